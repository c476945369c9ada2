"""PyTorch's own file format, `pytorch_model.bin`: read without torch, and without running what is in the file.

Such a file holds a pickle. It is never unpickled: `pickles` interprets it, with rules that only allow to build a
dictionary of tensors. A short list has the names that may occur; none is imported, and any other name is refused.

    zip (torch 1.6 on)  an uncompressed zip archive: NAME/data.pkl is the pickle, NAME/data/KEY the bytes of a storage,
                        NAME/byteorder (optional) is "little" or "big"
    legacy (before)     five pickles one after another: a magic number, the protocol (1001), facts about the system,
                        the dictionary itself, a list of storage keys; then for each key an int64, the number of its
                        elements, and the elements; all little-endian

In both, a tensor is a view of a storage: the place of its first element, its size and its strides, all in elements.

Source: torch/serialization.py and torch/_utils.py in github.com/pytorch/pytorch.
"""

import math
import zipfile
from typing import NamedTuple

import numpy as np

from npgpt.files import content, pickles
from npgpt.files.pickles import MAX_PICKLE, Global, type_name
from npgpt.runtime.errors import FileError, FormatError

DTYPES = {
    "torch.FloatStorage": "<f4", "torch.HalfStorage": "<f2", "torch.DoubleStorage": "<f8",
    "torch.BFloat16Storage": "<u2", "torch.LongStorage": "<i8", "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2", "torch.CharStorage": "i1", "torch.ByteStorage": "u1", "torch.BoolStorage": "?",
}  # fmt: skip
FUNCTIONS = ("collections.OrderedDict", "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2")
ONE_LEVEL_DOWN = ("state_dict", "model", "model_state_dict")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DIMENSIONS = 64  # NumPy's limit
MAX_SHARING = 4  # tensors may take this many times their storages' bytes; a tied head takes 2 at most


class _Storage(NamedTuple):
    kind: str  # of DTYPES
    key: str
    length: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple
    strides: tuple


def read(path):
    """Return the tensors of the file `path` as a dict name -> read-only array, in the order of the file.

    The arrays are views of the memory-mapped file, and share memory as the file's tensors do. Only three kinds of
    storage are copied: not aligned for its dtype, big-endian, and bfloat16, which NumPy does not have: it is the upper
    half of a float32, and becomes a float32. In a training checkpoint, the tensors are one level down, under
    "state_dict", "model" or "model_state_dict"; they are found there.

    Raises FileError if the file cannot be read, FormatError if it is not a whole, consistent file of tensors.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path):
    """Return the tensors of the file `path`, as `read` does, and a dict of the values beside them.

    The dict is empty unless the tensors are one level down. Its values are None, numbers, strings, lists, tuples and
    dicts; a tensor among them is a _Tensor.
    """
    mapped = _mapped(path)
    read_format = _read_zip if mapped[:2] == b"PK" else _read_legacy
    value, places, order = read_format(path, mapped)
    described, beside = _dictionary(path, value)
    return _arrays(path, mapped, described, places, order), beside


def _mapped(path):
    """Return the memory-mapped file. Raises FileError, and FormatError unless it begins as torch.save's files do."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            content.refuse_pointer(path, start)
            if not start.startswith((b"PK\3\4", b"\x80")):
                raise FormatError(f"{path} is not a file that torch.save writes: it starts with {start!r}")
            return content.mapped(file)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _dictionary(path, value):
    """Return the dictionary of _Tensors in the file's value, and a dict of what is beside it. Raises FormatError."""
    beside = {}
    if isinstance(value, dict):
        level = next((key for key in ONE_LEVEL_DOWN if isinstance(value.get(key), dict)), None)
        if level is not None:
            beside = {key: item for key, item in value.items() if key != level}
            value = value[level]
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a value of type {type_name(value)}, not a dictionary of tensors")
    for name, tensor in value.items():
        if type(name) is not str or not isinstance(tensor, _Tensor):
            raise FormatError(f"{path}: {name!r} is of type {type_name(tensor)}; every entry must be a named tensor")
    return value, beside


def _arrays(path, mapped, described, places, order):
    """Return the tensors as a dict name -> read-only array. `described`: dict name -> _Tensor. Raises FormatError."""
    storages, tensors = {}, {}
    for name, tensor in described.items():
        where = f"{path}: tensor {name!r}"
        if tensor.storage not in storages:
            storages[tensor.storage] = _storage(where, mapped, tensor.storage, places, order)
        tensors[name] = _view(where, tensor, storages[tensor.storage])
    held, taken = (sum(array.nbytes for array in arrays.values()) for arrays in (storages, tensors))
    if taken > MAX_SHARING * held:  # a small file must not turn into a large model
        raise FormatError(f"{path}: its {len(tensors)} tensors of {taken} bytes share storages of {held} bytes")
    return tensors


def _read_zip(path, mapped):
    """Return the pickle's value, the place of each storage in the file, {key: (begin, end)}, and the byte order."""
    places = _records(path, mapped)
    roots = [name.removesuffix("data.pkl") for name in places if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise FormatError(f"{path}: {len(roots)} records are named NAME/data.pkl; torch.save writes one")
    root = roots[0]
    order = b"little"
    if root + "byteorder" in places:
        begin, end = places[root + "byteorder"]
        order = mapped[begin : min(end, begin + 8)]
        if order not in (b"little", b"big"):
            raise FormatError(f"{path}: the byte order is {order!r}; it must be little or big")
    begin, end = places[root + "data.pkl"]
    value, _ = pickles.interpret(path, mapped[begin : min(end, begin + MAX_PICKLE)], _Tensors())
    data = root + "data/"
    return value, {name.removeprefix(data): places[name] for name in places if name.startswith(data)}, order.decode()


def _records(path, mapped):
    """Return the place of each record in the zip archive: dict name -> (begin, end). Raises FormatError."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # a damaged directory raises BadZipFile, or any error of struct, codecs and int
        raise FormatError(f"{path} is not a whole zip archive: {error}") from error
    places = {}
    for info in infos:
        at, name = info.header_offset, info.filename
        if name in places:
            raise FormatError(f"{path}: the record {name!r} occurs twice")
        if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise FormatError(f"{path}: the record {name!r} is encrypted or compressed; torch.save stores it as it is")
        # Before the bytes are a header of 30 bytes, the name and padding; the header has their lengths at 26 and 28.
        header = mapped[at : at + 30] if at >= 0 else b""
        begin = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if not header.startswith(b"PK\3\4") or begin + info.file_size > len(mapped):
            raise FormatError(f"{path}: the record {name!r} is not where the archive says; the file is damaged")
        places[name] = begin, begin + info.file_size
    if sum(end - begin for begin, end in places.values()) > len(mapped):
        raise FormatError(f"{path}: records of the archive overlap")
    return places


def _read_legacy(path, mapped):
    """Return the same as `_read_zip`, for a legacy file."""
    at, values, rules = 0, [], _Tensors()
    for right in (MAGIC, PROTOCOL, None, None, None):
        value, length = pickles.interpret(path, mapped[at : at + MAX_PICKLE], rules)
        if right not in (None, value):
            raise FormatError(f"{path} is not a file that torch.save writes: its pickles do not start with {right}")
        at += length
        values.append(value)
    value, keys = values[-2:]
    storages = rules.storages
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != storages.keys():
        raise FormatError(f"{path}: the storages in its list are not the storages of its tensors; the file is damaged")
    places = {}
    for key in keys:
        begin = at + 8
        at = begin + int.from_bytes(mapped[at:begin], "little") * np.dtype(DTYPES[storages[key].kind]).itemsize
        if at > len(mapped):
            raise FormatError(f"{path}: storage {key!r} ends after the end of the file; the file was cut short")
        places[key] = begin, at
    if at != len(mapped):
        raise FormatError(f"{path}: {len(mapped) - at} bytes follow the last storage; none may")
    return value, places, "little"


def _storage(where, mapped, storage, places, order):
    """Return the elements of a storage, an array (length,)."""
    dtype = np.dtype(DTYPES[storage.kind])
    if storage.key not in places:
        raise FormatError(f"{where}: its storage {storage.key!r} is not in the file")
    begin, end = places[storage.key]
    if end - begin != storage.length * dtype.itemsize:
        raise FormatError(
            f"{where}: {storage.length} elements of {storage.kind} take {storage.length * dtype.itemsize} bytes, "
            f"but its storage {storage.key!r} holds {end - begin}"
        )
    array = np.ndarray(storage.length, dtype.newbyteorder(order), mapped, begin)
    if array.dtype != dtype or not array.flags.aligned:
        array = array.astype(dtype)
    if storage.kind == "torch.BFloat16Storage":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _view(where, tensor, storage):
    """Return the tensor as a read-only view of its storage, an array (length,) that must hold all its elements.

    All arithmetic uses Python's integers, which do not overflow, and comes before any array is made.
    """
    _, offset, size, strides = tensor
    if not all(map(_are_counts, ((offset,), size, strides))) or not len(size) == len(strides) <= MAX_DIMENSIONS:
        raise FormatError(
            f"{where}: its offset must be a whole number, 0 or more; its size and strides must be tuples of such "
            f"numbers, of the same length, at most {MAX_DIMENSIONS}"
        )
    elements = math.prod(size)
    end = offset + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True)) + 1
    # NumPy multiplies the other sizes even if one is 0. Elements that share one place are counted each, so that a copy
    # of the tensor is never larger than the file.
    addressable = math.prod(max(length, 1) for length in size) * storage.itemsize <= np.iinfo(np.intp).max
    if not addressable or elements > len(storage) or (elements and end > len(storage)):
        raise FormatError(
            f"{where}: size {size} with strides {strides} from element {offset} on does not fit into its storage "
            f"of {len(storage)} elements"
        )
    if elements:
        steps = [stride * storage.itemsize for stride in strides]
        array = np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, steps)
    else:
        array = np.empty(size, storage.dtype)
    array.flags.writeable = False
    return array


def _are_counts(values):
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)


class _Tensors(pickles.Rules):
    """The rules for a file of tensors: the names at the head of this module, and calls that turn storages into tensors.

    storages  dict key -> _Storage, those that the pickle has described so far
    """

    needed_by = "no file of tensors needs"

    def __init__(self):
        self.storages = {}

    def named(self, name):
        return Global(name) if name in DTYPES or name in FUNCTIONS else super().named(name)

    def persistent(self, description):
        storage = _describe_storage(description)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise FormatError(f"the storage {storage.key!r} is described in two ways")
        return storage

    def call(self, function, arguments):
        match function, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "torch._utils._rebuild_parameter", (_Tensor() as tensor, _, _):
                return tensor
            case "torch._utils._rebuild_tensor_v2", (_Storage() as storage, offset, size, strides, _, _, *metadata):
                if len(metadata) <= 1:
                    return _Tensor(storage, offset, size, strides)
        raise ValueError(f"{function} is not called as torch.save does")


def _describe_storage(description):
    """Return the _Storage of ("storage", kind, key, device, length); legacy files add a None."""
    match description:
        case ("storage", Global() as kind, str(key), str(), int(length), *rest) if kind in DTYPES and length >= 0:
            if rest in ([], [None]):
                return _Storage(str(kind), key, length)
    raise ValueError("a storage is not described as torch.save does")
