import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FileError, FormatError

DTYPES = ["?", "u1", "i1", "<i2", "<u2", "<f2", "<i4", "<u4", "<f4", "<f8", "<i8", "<u8"]


def layout(header, data=b""):
    """Return the bytes of a file with this header: an object, or the header's bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=4), st.integers(0, 2**32)),
        max_size=6,
    ),
    st.none() | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.text("aé\n", max_size=3)),
)
def test_round_trip(tmp_path_factory, drawn, metadata):
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    tensors = {
        name: np.frombuffer(np.random.default_rng(seed).bytes(8 * 81), np.uint8)[: np.prod(shape, dtype=int)]
        .astype(dtype).reshape(shape)
        for name, (dtype, shape, seed) in drawn.items()
    }  # fmt: skip
    safetensors.write(path, tensors, metadata)
    found = safetensors.read(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.aligned


def test_the_bytes_are_the_official_ones(tmp_path):
    path = tmp_path / "x.safetensors"
    one, two = np.array([1.0], "<f4"), np.array([2.0], "<f4")
    tensors = {"b": one, "m": np.array([True, False]), "é": np.array(3, "<i8"), "a": two}
    safetensors.write(path, tensors, {"format": "pt"})
    header = (
        '{"__metadata__":{"format":"pt"},"é":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        '"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},'
        '"m":{"dtype":"BOOL","shape":[2],"data_offsets":[16,18]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = bytes.fromhex("0300000000000000 00000040 0000803f 0100")
    assert path.read_bytes() == layout(header, data)


def test_any_memory_layout_is_written_row_major_and_little_endian(tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"T": grid.T, "step": grid[::2, ::-3], "big": grid.astype(">f4"), "row": np.broadcast_to(grid[0], (3, 6))}
    safetensors.write(tmp_path / "x", tensors)
    for name, array in safetensors.read(tmp_path / "x").items():
        np.testing.assert_array_equal(array, tensors[name])
        assert array.dtype == np.dtype("<f4")


def test_writing_copies_no_contiguous_tensor(tmp_path):
    tensors = {str(i): np.zeros(2**18, np.float32) for i in range(8)}  # 1 MiB each
    tracemalloc.start()
    safetensors.write(tmp_path / "x", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**19


def test_arrays_are_read_only_views_of_the_mapped_file(tmp_path):
    path = tmp_path / "x"
    safetensors.write(path, {"a": np.zeros(2**20, np.float32), "b": np.ones(3, np.float32)})
    tracemalloc.start()
    found = safetensors.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**18
    assert not found["a"].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1
    # the file may be replaced, even by a write of what was read from it, and the arrays stay what they are
    safetensors.write(path, {"b": found["b"] + 1})
    np.testing.assert_array_equal(found["b"], [1, 1, 1])
    np.testing.assert_array_equal(safetensors.read(path)["b"], [2, 2, 2])


def test_misaligned_tensors_are_copied(tmp_path):
    path = tmp_path / "x"
    values = np.array([1.5, -2.0], "<f4")
    header = {"c": entry("I8", [1], [0, 1]), "w": entry("F32", [2], [1, 9])}
    path.write_bytes(layout(header, b"\x07" + values.tobytes()))
    found = safetensors.read(path)["w"]
    np.testing.assert_array_equal(found, values)
    assert found.flags.aligned
    assert not found.flags.writeable


def test_bf16_becomes_float32(tmp_path):
    path = tmp_path / "x"
    halves = np.array([0x3F80, 0xC000, 0x0001, 0x7F80, 0x7FC0, 0x8000], "<u2")
    path.write_bytes(layout({"w": entry("BF16", [2, 3], [0, 12])}, halves.tobytes()))
    found = safetensors.read(path)["w"]
    assert found.dtype == np.float32
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, np.float32([[1, -2, 2**-133], [np.inf, np.nan, -0.0]]))
    assert np.signbit(found[1, 2])


BIG = 2**63
WRONG = {
    "empty": (b"", "0 bytes with a header of 0 bytes"),
    "length cut": (b"\x02\0\0\0\0\0\0", "is not a whole safetensors file: 7 bytes"),
    "header of nothing": (bytes(8), "8 bytes with a header of 0 bytes"),
    "header beyond the end": ((100).to_bytes(8, "little") + b"{}", "10 bytes with a header of 100 bytes"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", f"a header of {2**64 - 1} bytes"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "not UTF-8": (layout(b'{"\xff":1}'), "the header is not UTF-8: invalid start byte at byte 2"),
    "not an object": (layout(b"[1, 2]"), r"the header starts with '\[', not '{'"),
    "space first": (layout(b" {}"), "the header starts with ' '"),
    "not JSON": (layout(b"{'a': 1}"), "the header is not valid JSON"),
    "text after": (layout(b"{} x"), "the header is not valid JSON"),
    "deep": (layout(b'{"a":' * 100_000), "the header is not valid JSON"),
    "endless number": (layout(b'{"a":' + b"9" * 5000 + b"}"), "the header is not valid JSON"),
    "twice": (layout(b'{"a":{},"b":{},"a":{}}'), "the key 'a' occurs twice"),
    "twice within": (layout(b'{"a":{"dtype":"I8","dtype":"I8"}}'), "the key 'dtype' occurs twice"),
    "metadata number": (layout({"__metadata__": {"a": 1}}), "__metadata__ must map strings to strings"),
    "metadata list": (layout({"__metadata__": []}), "__metadata__ must map strings to strings"),
    "entry list": (layout({"a": []}), "tensor 'a': its entry must be an object of exactly"),
    "entry less": (layout({"a": {"dtype": "F32", "shape": []}}), "tensor 'a': its entry must be an object of exactly"),
    "entry more": (layout({"a": entry() | {"x": 1}}, bytes(8)), "tensor 'a': its entry must be an object of exactly"),
    "dtype": (layout({"a": entry("F8_E4M3")}, bytes(8)), "tensor 'a': dtype 'F8_E4M3' is not supported"),
    "dtype list": (layout({"a": entry(["F32"])}, bytes(8)), r"tensor 'a': dtype \['F32'\] is not supported"),
    "size negative": (layout({"a": entry(shape=[-2])}, bytes(8)), "the shape must be a list"),
    "size fraction": (layout({"a": entry(shape=[2.0])}, bytes(8)), "the shape must be a list"),
    "size true": (layout({"a": entry(shape=[True, 2])}, bytes(8)), "the shape must be a list"),
    "shape number": (layout({"a": entry() | {"shape": 2}}, bytes(8)), "the shape must be a list"),
    "65 sizes": (layout({"a": entry(shape=[1] * 64 + [2])}, bytes(8)), "the shape must be a list of at most 64"),
    "overflow": (layout({"a": entry("U8", [BIG, 2], [0, 0])}), "sizes that memory can hold"),
    "overflow at 0": (layout({"a": entry("U8", [0, BIG], [0, 0])}), "sizes that memory can hold"),
    "offsets three": (layout({"a": entry(offsets=[0, 8, 8])}, bytes(8)), "data_offsets must be"),
    "offsets back": (layout({"a": entry(offsets=[8, 0])}, bytes(8)), "data_offsets must be"),
    "offset negative": (layout({"a": entry(offsets=[-8, 0])}, bytes(8)), "data_offsets must be"),
    "offset beyond": (layout({"a": entry()}, bytes(7)), "data_offsets must be .begin, end. within the file's 7 bytes"),
    "wrong size": (layout({"a": entry("F64")}, bytes(8)), r"F64 of shape \[2\] takes 16 bytes, but .*\[0, 8\] hold 8"),
    "overlap": (layout({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b' overlaps another"),
    "same place": (layout({"a": entry(), "b": entry()}, bytes(8)), "'b' overlaps another"),
    "hole": (layout({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "'b' leaves a hole .* 12, but 8 is"),
    "hole first": (layout({"a": entry(offsets=[8, 16])}, bytes(16)), "'a' leaves a hole before it"),
    "rest": (layout({"a": entry()}, bytes(9)), "the tensors cover 8 of 9 bytes"),
    "newline in a name": (layout({"a\nb": entry("Q")}, bytes(8)), r"tensor 'a\\nb': dtype 'Q'"),
}  # fmt: skip


def test_metadata_may_be_null(tmp_path):
    """Some programs write it so, and the official reader accepts it."""
    header = b'{"__metadata__":null,"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + np.float32(2).tobytes())
    assert safetensors.read(tmp_path / "x.safetensors") == {"w": np.float32([2])}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        safetensors.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_over_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write((safetensors.MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(safetensors.MAX_HEADER + 100)
    tracemalloc.start()
    with pytest.raises(FormatError, match="a header has 2 to 100000000 bytes"):
        safetensors.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_overlapping_tensors_are_refused_before_any_is_converted(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(layout({str(i): entry("BF16", [2**16], [0, 2**17]) for i in range(100)}, bytes(2**17)))
    tracemalloc.start()
    with pytest.raises(FormatError, match="overlaps"):
        safetensors.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**19
    tracemalloc.stop()


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.int8)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            safetensors.read(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*none: No such file or directory"):
        safetensors.read(tmp_path / "none")
    with pytest.raises(FileError, match=r"cannot read .*: Is a directory"):
        safetensors.read(tmp_path)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    for name, array in (("a", np.zeros(1, complex)), ("a", np.array(["x"])), ("__metadata__", np.zeros(1))):
        with pytest.raises(ConfigError, match=f"tensor '{name}' of dtype {array.dtype} to .*would be right"):
            safetensors.write(path, {name: array})
    assert path.read_text() == "old"
    with pytest.raises(FileError, match=r"cannot write .*below"):
        safetensors.write(path / "below", {})
    assert list(tmp_path.iterdir()) == [path]
