"""`pytorch_model.bin` without torch: two files that torch wrote, and many files made here, good and broken."""

import base64
import copyreg
import io
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from npgpt.files import torchfile
from npgpt.runtime.errors import FileError, FormatError

# torch 2.13 wrote these from the tensors in `expected`, with torch.save(state) and torch.save(state,
# _use_new_zipfile_serialization=False); "p" was a Parameter and state an OrderedDict with the attribute _metadata.
WRITTEN_BY_TORCH = {
    "zip": (
        "c-p0wO>7%Q7=~y47soVzZE4aF!f(NW)bZNhb=;;+x`d@=fjZlknqI7py@{=E?0oA<0!WoCp#*vZ)HCA1fm3@#+>j7lI8muLZbd?f1E-1;67!"
        "R6cBgStoJrQJ*z>&aJCpf7Z_x-x5Q@jqV`C5<MV4Es)z|H*s)eo8>P<)2`q7QRXoo75rsLQZTyHj7iOX))cJ1nXy@C^fCQOi$C5eb_K&XP7L"
        "@iZb!*!>XD7*IJTHUFZvE67j-ST=S0pVn_)I%n>$V_Y5h6qOzy3@4q75-)dqD(Liu~L}aE30eJW5h7T7Yt;CjPMrp8ev1)g2e3_4e%6(BPR5"
        "*$s4Jw&|f1qwMZ>mi`5u7K*6vP+JZqtqWlmCk777x!f^(=%?)^31WzmwEW8QBhO`MI96E_%)P!eBWKU7ea+Y9>Q`;-KNZ#@m@+@134C6#Dgy"
        "A{1fK7Ow%DuqlUc~T{2`@9b#U)vVQvo@R?ToB?lCLny47|!EliQLLRPr@0`8tM46HYV96{~d<QbEa&u<glBF}W<HiChGOOyrVek0i3sL_L!<"
        "BIGAzNEotQJcmIsK`q7Tf3adYmJ9ivZDU$Fm?l~TC=jiQ2~M5CaMpwwHenUcbvP)imTRrp*me_eJ`j1nxwh!+hMr|Q3e0h%3v>_2@-_PM1~;"
        "6?@TLj+XY7x+K81@WTw)v2Xf|wkJCIlfg9srE?@%FRM7Q8wBT5h0dtB@?hN1}zYq!8G^%9^=LRz$7;0pWvYKc}8T)PGDv(vq9yDd^HaNUqvt"
        "=3|yX!OMY+W6(ZMh+UiiXAI*7!|yVOf5Ct6$_WQ)pSh}3iAnvOzpq>`?pW%TIto<eiY?*?YC>RY&rGi#){p*x|Z!GftsTMW;fu^5U~jD8(;{"
        "{dI1*6Ic?HrqibioTR9(29b?C)88**7JW0=OY~Kw1=zO3nPNjA2%pn4B)%GlTnIpgCYLn~hIhttr^FO{AAs>t!kZ3ZPNY=IF6DK0e`GI<=4<"
        "6j16%aYVYcA-O(Y2YwZ2yh+>?P*E{_mp?y712))?Y%BME&o6|NB2(_~#DmkLJdHrv8!I-JiPfR}SsZ#uz(q-~4#{5jBl_8PJ{?W`Y@1U7PMY"
        "L+7;)pktno*X0I8qiljE|MjcoYX|p_ag^C@U@UsecI%{reQeREmvX(TYpMUalC(NqP%;HY&E=<+Oj=cx{Is0OWYx5sle0>`pk(EAHmA^(*B_"
        "o5OOhN(mQtc&y`27UfWgO-i_c*q?Qh`20rJZ*>hzr<iujxGXt41{&_11C)bTgcp<o!Fj@Q6N+~4*31Nez35_+%5`ny<={Z?dUk@a_=AbUI}u"
        "o;o{caI=@M`W`i>#uylw?|-eBI~bM!B=FJ9d_@U_K%Ucz^bCJzupD{Y}?0nIA{Jc7!Sbreem7|S~Oy@$(?czpZ3T;;hqok`-i>!PB{APh3*~"
        "UfAc4uXpA#`Y(Ag+AMu9pIs"
    ),
    "legacy": (
        "c-noGTT|0O6vwkkS|keMT@)4Xt(V%CG^JjkA|kkQ3#jqI$)stZ)zI`LTNs?_Okb$zXYj#CKL$^J7e9hCK6sLpGSz4<JDam-fB!vaPqxK>mh4"
        "|&W`2&o`?fTkYVq?w1Z<nYCA1-q<La)%9MiG&P0RJFP7Me;XahK6R~fS{-Kv$VMh*B~O+q8vu3NfS{a|?@G(k*gF*JG=$7K+sye8mRwZ<S$M"
        "NRY>PHi3fsMu(rrin7PWinLpq(!%ExmJ0)YBCA9qzWXV5uC9FyvZEbtfce?tJ<EVyH=@DwaYrQYM$fjn^_5jL_+KHh0)Vkw?GW1NHex$u$9m"
        "#K};J&pMspuk7r~#ol(;1G{l27n)L=QE55+s&@$yHPlY!0Q-P8;NS`YHat<>%qQXGny_H&p!3v62#7ZReXeERV`7nX<Z8%1W&paN&PB1vB!l"
        "?k}I$Lo1f3Pzh*x6-72|F-M$qt+gLFXBasBj_3ZN;$H;9^MX#6OFsZupma;j*mc6c|M~kMPSu*gJ5=hhGih*BD$^;YI*2tz{Ir*#n;nvYS!5"
        "0*M2G>{vRNla+iHk{y9t9f8}vz@1RwE`yW`_X2?p!+Q_uUV&|9b>W#_c)pNTWXK|1MEDrO6PRIwJI6DS6I8^Tr-VT+lu{VvRT$UeewCPpZMa"
        "bQJLv&g&gB)jk7R=62S`pPL&ie}k5rfl%CZiV|0v74;Tjtjvs?*^J>g6{jgoy3(BnS?8bjHsj_eaZTbQV6zj+$U&oFqV!t8GFG4~Okt3ZR))"
        "ts6IFCwDJj^j=j3R##(EQi<yAIs5L8y0EIFYcufz05#WVWrW8RjnVV>llDhHkbh~gYj1y8aa5~1TFZ__Roellz5(3!hiX#e||(1FNrETK5C6"
        "ZRP~5adlQQ)g?Lmt`>d3|;Rjc15}P7E__px<TIBbKCb+%*F5mT@+avqN;>dTg(<K}sq=!3F{0){NPs{"
    ),
}  # fmt: skip
WRITTEN_BY_TORCH = {kind: zlib.decompress(base64.b85decode(text)) for kind, text in WRITTEN_BY_TORCH.items()}


def expected():
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "w": w, "w.T": w.T, "row": w[1], "half": np.array([1.5, -2], np.float16),
        "bf16": np.array([1, -3.140625], np.float32), "mask": np.tril(np.ones((1, 1, 2, 2), np.uint8)),
        "scalar": np.float32(-1e4), "p": np.array([7.0]), "none": np.zeros((0, 5), np.float32),
    }  # fmt: skip


def assert_holds(path, tensors):
    found = torchfile.read(path)
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert np.array_equal(found[name], array, equal_nan=True), name
        assert found[name].flags.aligned and not found[name].flags.writeable, name


@pytest.mark.parametrize("kind", WRITTEN_BY_TORCH)
def test_what_torch_wrote(tmp_path, kind):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(WRITTEN_BY_TORCH[kind])
    assert_holds(path, expected())
    found = torchfile.read(path)
    assert np.shares_memory(found["w"], found["w.T"]) and np.shares_memory(found["w"], found["row"])
    assert not np.shares_memory(found["w"], found["half"])


# A small pickler, for files as torch writes them and for files that torch would never write.


class Name(str):
    """A global, "module name"."""


class Call(tuple):
    """(function, arguments)"""


class Built(tuple):
    """(object, state)"""


class Persistent(tuple):
    """A persistent id."""


class Raw(bytes):
    """Opcodes as they are."""


def opcodes(value):
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Name):
        return b"c" + value.replace(" ", "\n", 1).encode() + b"\n"
    if isinstance(value, Call):
        return opcodes(value[0]) + opcodes(value[1]) + b"R"
    if isinstance(value, Built):
        return opcodes(value[0]) + opcodes(value[1]) + b"b"
    if isinstance(value, Persistent):
        return opcodes(tuple(value)) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(key) + opcodes(item) for key, item in value.items()) + b"u"
    return pickle.dumps(value, 2)[2:-1].replace(b"q\0", b"")  # None, numbers, strings; without BINPUT


def pickled(value):
    return b"\x80\x02" + opcodes(value) + b"."


HOOKS = Call((Name("collections OrderedDict"), ()))


def storage(kind="FloatStorage", key="0", length=6):
    return Persistent(("storage", Name(f"torch {kind}"), key, "cpu", length))


def tensor(place=None, offset=0, size=(2, 3), strides=(3, 1), more=(False, HOOKS)):
    place = storage() if place is None else place
    return Call((Name("torch._utils _rebuild_tensor_v2"), (place, offset, size, strides, *more)))


DATA = np.arange(6, dtype=np.float32)


def archive(value, records=None, root="archive", order=b"little", **options):
    """Return the bytes of a zip file as torch.save writes it; `records` are the storages' bytes by key."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as file:
        file.writestr(f"{root}/data.pkl", value if type(value) is bytes else pickled(value))
        if order:
            file.writestr(f"{root}/byteorder", order)
        for key, data in ({"0": DATA.tobytes()} if records is None else records).items():
            file.writestr(f"{root}/data/{key}", data)
        file.writestr(f"{root}/version", "3\n")
    return stream.getvalue()


def legacy(value, records=None, magic=torchfile.MAGIC, protocol=1001, keys=None):
    """Return the bytes of a legacy file; `records` are pairs of length and bytes by key."""
    records = {"0": (6, DATA.tobytes())} if records is None else records
    pickles = (magic, protocol, {"little_endian": True, "protocol_version": 1001, "type_sizes": {"int": 4}})
    data = b"".join(map(pickled, pickles)) + (value if type(value) is bytes else pickled(value))
    data += pickled(list(records) if keys is None else keys)
    return data + b"".join(struct.pack("<q", length) + data for length, data in records.values())


def saved(tensors, form=archive, under=None, **beside):
    """Return torch.save's bytes, in either form, of the tensors {name: array}, or of {under: tensors, **beside}.

    uint16 stands for bfloat16.
    """
    kinds = {np.dtype(dtype): name for name, dtype in reversed(torchfile.DTYPES.items())}
    state, records = {}, {}
    for key, (name, array) in enumerate(tensors.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        place = storage(kinds[array.dtype].removeprefix("torch."), str(key), array.size)
        state[name] = tensor(place, 0, array.shape, strides)
        records[str(key)] = array.tobytes() if form is archive else (array.size, array.tobytes())
    return form(state if under is None else {under: state, **beside}, records)


@pytest.fixture
def read(tmp_path):
    """read(content): the result of torchfile.read for a file of these bytes."""

    def read_bytes(content):
        (tmp_path / "x.bin").write_bytes(content)
        return torchfile.read(tmp_path / "x.bin")

    return read_bytes


@pytest.fixture
def refused(tmp_path, read):
    """refused(content, message): such a file is refused, in one line that names it."""

    def check(content, message):
        with pytest.raises(FormatError, match=message) as caught:
            read(content)
        assert str(tmp_path / "x.bin") in str(caught.value)
        assert "\n" not in str(caught.value)

    return check


def test_the_files_made_here_are_read(read):
    for content in (archive({"w": tensor()}), legacy({"w": tensor()}), archive({"w": tensor()}, order=None)):
        np.testing.assert_array_equal(read(content)["w"], DATA.reshape(2, 3))


@pytest.mark.parametrize("kind", torchfile.DTYPES)
@pytest.mark.parametrize("order", ["little", "big"])
def test_every_dtype_in_both_byte_orders(read, kind, order):
    kind = kind.removeprefix("torch.")
    dtype = np.dtype(torchfile.DTYPES[f"torch.{kind}"])
    values = np.array([0, 1, 0, 1, 1, 0] if kind == "BoolStorage" else [0x3F80, 2, 3, 100, 5, 6]).astype(dtype)
    data = values.astype(dtype.newbyteorder(order)).tobytes()
    found = read(archive({"w": tensor(storage(kind))}, {"0": data}, order=order.encode()))["w"]
    if kind == "BFloat16Storage":
        values = (values.astype(np.uint32) << 16).view(np.float32)
        assert values[0] == 1
    assert found.dtype == values.dtype and not found.flags.writeable
    np.testing.assert_array_equal(found, values.reshape(2, 3))


def test_views_of_all_kinds(read):
    views = {
        "transposed": (0, (3, 2), (1, 3)), "column": (1, (2,), (3,)), "last": (5, (), ()), "ones": (2, (1, 1), (99, 0)),
        "none": (0, (0, 7), (7, 1)), "none at the end": (6, (0,), (1,)), "rows of none": (0, (9, 0), (1, 1)),
        "far": (0, (2,), (5,)),
    }  # fmt: skip
    found = read(archive({name: tensor(None, *view) for name, view in views.items()}))
    grid = DATA.reshape(2, 3)
    nothing = (np.zeros((0, 7)), np.zeros(0), np.zeros((9, 0)))
    right = (grid.T, grid[:, 1], grid[1, 2], grid[:1, 2:], *nothing, DATA[[0, 5]])
    for name, array in zip(views, right, strict=True):
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_a_parameter_and_metadata_in_a_call(read):
    parameter = Call((Name("torch._utils _rebuild_parameter"), (tensor(more=(True, HOOKS, {})), True, HOOKS)))
    np.testing.assert_array_equal(read(archive({"w": parameter}))["w"], DATA.reshape(2, 3))


@pytest.mark.parametrize("key", torchfile.ONE_LEVEL_DOWN)
def test_tensors_one_level_down(read, refused, key):
    checkpoint = {"epoch": 3, "best": 0.5, "optimizer": {"state": {0: {"m": tensor()}}}, key: {"w": tensor()}}
    for form in (archive, legacy):
        assert list(read(form(checkpoint))) == ["w"]
    refused(archive({"net": {"w": tensor()}}), "'net' is of type dict; every entry must be a named tensor")
    assert list(read(archive({"model": tensor()}))) == ["model"]


def test_what_stands_beside_the_tensors(tmp_path):
    for content, beside in ((archive({"model": {"w": tensor()}, "model_args": {"n_layer": 2, "bias": None}, "n": 1.5}),
                             {"model_args": {"n_layer": 2, "bias": None}, "n": 1.5}), (archive({"w": tensor()}), {})):
        (tmp_path / "ckpt.pt").write_bytes(content)
        tensors, found = torchfile.read_checkpoint(tmp_path / "ckpt.pt")
        assert list(tensors) == ["w"] and found == beside


def test_newer_pickle_protocols(read):
    def text(string):
        return b"\x8c" + bytes([len(string)]) + string.encode() + b"\x94"  # SHORT_BINUNICODE, MEMOIZE

    function = Raw(text("torch._utils") + text("_rebuild_tensor_v2") + b"\x93\x94")  # STACK_GLOBAL
    again = Raw(b"h\x02")  # the third thing in the memo
    body = opcodes({"v": Call((function, tensor()[1])), "w": Call((again, tensor()[1]))}) + b"."
    found = read(archive(b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body))
    for name in ("v", "w"):
        np.testing.assert_array_equal(found[name], DATA.reshape(2, 3))


def test_arrays_are_views_of_the_mapped_file(tmp_path):
    path = tmp_path / "x.bin"
    data = np.arange(2**20, dtype=np.float32)
    for length in range(1, 5):  # the file's name in the archive decides how the storage is aligned; torch aligns them
        content = archive({"w": tensor(storage(length=2**20), 0, (2**20,), (1,))}, {"0": data.tobytes()}, "n" * length)
        path.write_bytes(content)
        tracemalloc.start()
        found = torchfile.read(path)["w"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        aligned = content.find(data[:9].tobytes()) % 4 == 0
        assert (peak < 2**18) == aligned
        assert found.flags.aligned
        np.testing.assert_array_equal(found, data)
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 1


def shared(count):
    """Return a file of `count` tensors. Each is one and the same storage of 2^17 bfloat16."""
    whole = tensor(storage("BFloat16Storage", "0", 2**17), 0, (2**17,), (1,))
    return archive({str(i): whole for i in range(count)}, {"0": bytes(2**18)})


def test_tensors_may_share_a_storage_but_not_without_end(read, refused):
    tracemalloc.start()
    found = read(shared(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(np.shares_memory(found["0"], array) for array in found.values())
    assert peak < 2**21  # it was widened once
    refused(shared(5), f"its 5 tensors of {5 * 2**19} bytes share storages of {2**19} bytes")


# Values that would make the folder `path` if they were unpickled, and the name that the refusal must give.
HOSTILE = {
    "os": ("os.mkdir", lambda path: Call((Name("os mkdir"), (path,)))),
    "shell": ("os.system", lambda path: Call((Name("os system"), (f"mkdir {path}",)))),
    "eval": ("builtins.eval", lambda path: Call((Name("builtins eval"), (f"__import__('os').mkdir({path!r})",)))),
    "exec": ("__builtin__.exec", lambda path: Call((Name("__builtin__ exec"), (f"import os; os.mkdir({path!r})",)))),
    "getattr": ("builtins.getattr", lambda path: Call((
        Call((Name("builtins getattr"), (Call((Name("builtins __import__"), ("os",))), "mkdir"))), (path,)))),
    "copyreg": ("copyreg._reconstructor", lambda path: Call((Name("copyreg _reconstructor"), (
        Name("builtins object"), Name("builtins object"), Call((Name("os mkdir"), (path,))))))),
    "stack": ("os.mkdir", lambda path: Raw(opcodes("os") + opcodes("mkdir") + b"\x93" + opcodes((path,)) + b"R")),
    "INST": ("INST 'os mkdir'", lambda path: Raw(b"(" + opcodes(path) + b"ios\nmkdir\n")),
    "OBJ": ("os.mkdir", lambda path: Raw(b"(cos\nmkdir\n" + opcodes(path) + b"o")),
    "EXT1": ("EXT1", lambda path: Raw(b"\x82\xf0" + opcodes((path,)) + b"R")),
}  # fmt: skip
HIDDEN = {
    "alone": lambda bad: bad,
    "entry": lambda bad: {"w": bad},
    "name": lambda bad: {bad: tensor()},
    "unused": lambda bad: {"state_dict": {"w": tensor()}, "optimizer": [bad]},
    "hooks": lambda bad: {"w": tensor(more=(False, bad))},
    "attributes": lambda bad: Built((HOOKS, {"_metadata": bad})),
    "persistent id": lambda bad: {"w": tensor(Persistent(("storage", bad, "0", "cpu", 6)))},
}


@pytest.fixture
def extension():
    copyreg.add_extension("os", "mkdir", 0xF0)
    yield
    copyreg.remove_extension("os", "mkdir", 0xF0)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_does_not_run(tmp_path, refused, kind):
    message, value = HOSTILE[kind]
    made = tmp_path / "made"
    pickle.loads(pickled(value(str(made))))
    made.rmdir()  # it was there: unpickled, the value does what it should not
    for hide in HIDDEN.values():
        bad = hide(value(str(made)))
        for content in (archive(bad), legacy(bad), pickled(bad)):
            refused(content, f"{message}.*, which no file of tensors needs; nothing was run")
            assert not made.exists()


def test_only_names_that_tensors_need_are_allowed(refused):
    names = [
        "torch load", "torch.storage _load_from_bytes", "torch._utils _rebuild_device_tensor_from_numpy",
        "torch Tensor", "torch QUInt8Storage", "torch  FloatStorage", "torch.FloatStorage ",
        "npgpt.files.torchfile read",
        "numpy.core.multiarray _reconstruct", "builtins dict", "collections defaultdict", "argparse Namespace",
    ]  # fmt: skip
    for name in names:
        refused(archive({"w": Call((Name(name), ()))}), "its pickle names '.*', which no file of tensors needs")


BAD_VALUES = {
    "not a dict": ([tensor()], "holds a value of type list, not a dictionary"),
    "a tensor": (tensor(), "holds a value of type Tensor, not a dictionary"),
    "number": ({"w": 1}, "'w' is of type int; every entry must be a named tensor"),
    "none": ({"w": None}, "'w' is of type NoneType"),
    "name": ({"w": Name("torch FloatStorage")}, "'w' is of type Global"),
    "storage": ({"w": storage()}, "'w' is of type Storage"),
    "numbered": ({5: tensor()}, "5 is of type Tensor; every entry must be a named tensor"),
    "twice": (Raw(opcodes({"w": tensor()})[:-1] + opcodes("w") + opcodes(tensor()) + b"u"), "an entry occurs twice"),
    "tuple as a name": ({(1, 2): tensor()}, "is of type tuple"),
    "odd": (Raw(b"}(" + opcodes("w") + b"u"), "damaged"),
    "call of a string": ({"w": Call(("os.mkdir", ("x",)))}, "type str where another belongs"),
    "call of a storage": ({"w": Call((Name("torch FloatStorage"), ()))}, "is not called as torch.save does"),
    "arguments not a tuple": ({"w": Call((Name("collections OrderedDict"), [1]))}, "is not called as torch.save does"),
    "few arguments": ({"w": tensor(more=())}, "is not called as torch.save does"),
    "many arguments": ({"w": tensor(more=(1, 2, 3, 4))}, "is not called as torch.save does"),
    "storage of another kind": ({"w": tensor(7)}, "is not called as torch.save does"),
    "attributes of a tensor": ({"w": Built((tensor(), {"x": 1}))}, "type Tensor where another belongs"),
    "attributes of a name": ({"w": Built((Name("collections OrderedDict"), {}))}, "type Global where another belongs"),
    "two kinds": ({"v": tensor(), "w": tensor(storage("IntStorage"))}, "'0' is described in two ways"),
    "two lengths": ({"v": tensor(), "w": tensor(storage(length=5))}, "'0' is described in two ways"),
    "module": ({"w": tensor(Persistent(("module", 1, 2)))}, "a storage is not described as"),
    "kind": ({"w": tensor(Persistent(("storage", "torch.FloatStorage", "0", "cpu", 6)))}, "a storage is not described"),
    "no kind": ({"w": tensor(Persistent(("storage", HOOKS[0], "0", "cpu", 6)))}, "a storage is not described as"),
    "view": ({"w": tensor(Persistent((*storage(), ("0", 0, 6))))}, "a storage is not described as"),
    "length": ({"w": tensor(storage(length=-6))}, "a storage is not described as"),
    "id": ({"w": tensor(Persistent(()))}, "a storage is not described as"),
    "stack": (Raw(b"\x86"), "too few values on the stack"),
    "mark": (Raw(b"t"), "damaged"),
    "memo": (Raw(b"h\7"), "damaged"),
    "NEWOBJ": (Raw(opcodes(HOOKS[0]) + b")\x81"), "uses NEWOBJ, which no file of tensors needs"),
    "POP": (Raw(b"N0"), "uses POP"),
    "text": (Raw(b"I1\n"), "uses INT"),
    "opcode": (Raw(b"\xff"), "damaged"),
    "deep": (Raw(b"N" + b"\x85" * 100_000), "holds a value of type tuple"),
    "deep name": (Raw(b"}N" + b"\x85" * 100_000 + b"Ns"), "is of type tuple"),  # hashing it would crash
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_wrong_pickles_are_refused(refused, kind):
    value, message = BAD_VALUES[kind]
    refused(archive(value), message)


BIG = 2**62
BAD_VIEWS = {
    "one row more": (0, (3, 3), (3, 1), "does not fit"),
    "offset": (1, (2, 3), (3, 1), "does not fit"),
    "stride": (0, (2, 3), (4, 1), "does not fit"),
    "offset at the end": (6, (), (), "does not fit"),
    "huge size": (0, (BIG,), (1,), "does not fit"),
    "huge size, no stride": (0, (BIG,), (0,), "does not fit"),
    "laid on itself": (0, (7,), (0,), "does not fit"),
    "overflow to 0": (0, (BIG, 4), (1, 1), "does not fit"),
    "overflow of the end": (0, (2,), (2**64,), "does not fit"),
    "huge offset": (2**64, (1,), (1,), "does not fit"),
    "huge beside none": (0, (0, BIG), (1, 1), "does not fit"),
    "negative stride": (5, (2,), (-1,), "must be a whole number"),
    "negative offset": (-1, (2,), (1,), "must be a whole number"),
    "negative size": (0, (-2, -3), (3, 1), "must be a whole number"),
    "fraction": (0.0, (2,), (1,), "must be a whole number"),
    "true": (0, (True,), (1,), "must be a whole number"),
    "none": (0, None, (1,), "must be a whole number"),
    "list": (0, [2], (1,), "must be a whole number"),
    "fewer strides": (0, (2, 3), (1,), "must be a whole number"),
    "fewer sizes": (0, (2,), (1, 1), "must be a whole number"),
    "65 sizes": (0, (1,) * 65, (1,) * 65, "must be a whole number"),
    "10,000 huge sizes": (0, (2**2000,) * 10_000, (0,) * 10_000, "must be a whole number"),
}


@pytest.mark.parametrize("kind", BAD_VIEWS)
def test_views_beyond_their_storage_are_refused(refused, kind):
    *view, message = BAD_VIEWS[kind]
    refused(archive({"w": tensor(), "v": tensor(None, *view)}), f"tensor 'v'.*{message}")


def test_a_storage_of_another_length(refused):
    for data in (b"", DATA[:5].tobytes(), DATA.tobytes() + b"\0"):
        refused(archive({"w": tensor()}, {"0": data}), f"'w': 6 elements of torch.FloatStorage take 24 .* {len(data)}$")
    for length in (0, 5):
        refused(legacy({"w": tensor()}, {"0": (length, DATA[:length].tobytes())}), f"take 24 .* {4 * length}$")


def test_wrong_archives(tmp_path, refused):
    good = {"w": tensor()}
    refused(archive(good, {}), "tensor 'w': its storage '0' is not in the file")
    refused(archive(good, {"../0": DATA.tobytes()}), "its storage '0' is not in the file")
    refused(archive(good, order=b"middle-endian, say"), "the byte order is b'middle-e'")
    refused(archive(good, compression=zipfile.ZIP_DEFLATED), "'archive/data.pkl' is encrypted or compressed")
    content = archive(good)
    directory, header = content.find(b"PK\1\2"), content.find(b"PK\3\4", 10)
    for place, value in ((8, 1), (10, 8)):  # in the directory: bit 0 says encrypted, method 8 says deflated
        changed = bytearray(content)
        changed[directory + place] |= value
        refused(bytes(changed), "'archive/data.pkl' is encrypted or compressed")
    changed = bytearray(content)
    changed[header] ^= 1
    refused(bytes(changed), "the record 'archive/byteorder' is not where the archive says")
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a") as file:
        file.comment = b"PK\3\4" + bytes(60)
    content = stream.getvalue()
    # Of a file cut at its start zipfile believes that records begin before it; counted from the end, at the comment.
    refused(b"PK\3\4" + content[4 + len(file.comment) :], "is not where the archive says|is not a whole zip")
    stream = io.BytesIO(archive(good))
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr("other/data.pkl", pickled(good))
    refused(stream.getvalue(), "2 records are named NAME/data.pkl")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("model.safetensors", "")
    refused(stream.getvalue(), "0 records are named NAME/data.pkl")
    stream = io.BytesIO(archive(good))
    with zipfile.ZipFile(stream, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data/0", DATA.tobytes())
    refused(stream.getvalue(), "'archive/data/0' occurs twice")


def test_records_that_overlap_are_refused(refused):
    """A zip bomb: many entries of the directory share the same bytes, and each would be widened."""
    keys = [str(i) for i in range(50)]
    views = {key: tensor(storage("BFloat16Storage", key, 2**17), 0, (2**17,), (1,)) for key in keys}
    content = archive(views, {"0": bytes(2**18), **dict.fromkeys(keys[1:], b"")})
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = file.infolist()
        directory = file.start_dir
    first = next(entry for entry in entries if entry.filename == "archive/data/0")
    changed, at = bytearray(content), directory
    for entry in entries:  # each of the other storages becomes the first one's bytes
        if entry.filename.startswith("archive/data/"):
            struct.pack_into("<LL", changed, at + 20, 2**18, 2**18)
            struct.pack_into("<L", changed, at + 42, first.header_offset)
        at += 46 + len(entry.filename)
    refused(bytes(changed), "overlap")


def test_wrong_legacy_files(refused):
    good = {"w": tensor()}
    refused(legacy(good, magic=5), "its pickles do not start with 119")
    refused(legacy(good, protocol=1000), "its pickles do not start with 1001")
    refused(legacy(good, protocol=(1001,)), "its pickles do not start with 1001")
    for keys in ([], ["0", "1"], ["1"], [0], ("0",), [["0"]]):
        refused(legacy(good, keys=keys), "the storages in its list are not the storages of its tensors")
    refused(legacy(good, keys=["0", "0"]), "ends after the end of the file|not the storages of its tensors")
    for length in (7, 2**62, -1):
        refused(legacy(good, {"0": (length, DATA.tobytes())}), "storage '0' ends after the end of the file")
    refused(legacy(good) + b"\0", "1 bytes follow the last storage")


def test_other_files(tmp_path, refused):
    refused(b"", "is not a file that torch.save writes: it starts with b''")
    refused(b'{"a": 1}', "is not a file that torch.save writes")
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer")
    refused(b"PK\3\4", "is not a whole zip archive")
    refused(b"\x80", "its pickle is damaged")
    refused(pickle.dumps({"w": 1.5}), "its pickles do not start with")
    with pytest.raises(FileError, match=r"cannot read .*none: No such file or directory"):
        torchfile.read(tmp_path / "none")
    with pytest.raises(FileError, match=r"cannot read .*: Is a directory"):
        torchfile.read(tmp_path)


def test_a_pickle_cannot_take_much_memory(refused):
    tracemalloc.start()
    put = b"Nr\xff\xff\xff\x7f"  # LONG_BINPUT: pickle.Unpickler would make room for 2^31 things
    refused(archive(Raw(put)), "holds a value of type NoneType")
    refused(archive(Raw(b"X\xff\xff\xff\xff")), "damaged")
    refused(archive(Raw(b"\x8a\xff")), "damaged")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    refused(archive(Raw(b"\x88" * torchfile.MAX_PICKLE)), f"its end is not within {torchfile.MAX_PICKLE} bytes")


@pytest.mark.parametrize("kind", WRITTEN_BY_TORCH)
def test_truncated_files_are_refused(read, kind):
    content = WRITTEN_BY_TORCH[kind]
    for length in range(0, len(content), 3):
        with pytest.raises(FormatError):
            read(content[:length])


@pytest.mark.parametrize("kind", WRITTEN_BY_TORCH)
def test_a_damaged_byte_is_refused_or_harmless(read, kind):
    content, draw = WRITTEN_BY_TORCH[kind], np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= draw.integers(1, 256)
        try:
            found = read(bytes(damaged))
        except FormatError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert sum(array.nbytes for array in found.values()) < 4 * len(content)
            outcomes["read"] += 1
    assert min(outcomes.values()) > 50
