"""The safetensors file format: read as memory-mapped arrays, written tensor by tensor.

Own code, because the official package copies each tensor for NumPy and cannot give it BF16.

A file is  8 bytes     n, the header's length, unsigned and little-endian
           n bytes     the header: JSON {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...},
                       with an optional "__metadata__" of strings, padded with spaces
           the rest    the tensors' bytes, row-major and little-endian; the offsets count from here

Source: the format's own description, github.com/huggingface/safetensors. It asks that the tensors cover the data
exactly, without overlap or hole, so that nothing can hide in a file.
"""

import json
import math
import os

import numpy as np

from npgpt.files import atomic, content
from npgpt.runtime.errors import ConfigError, FileError, FormatError

# The official writer writes tensors by dtype, the last of this list first: wide before narrow, so all stay aligned.
DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2",
    "I32": "<i4", "U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items() if code != "BF16"}
MAX_HEADER = 100_000_000  # bytes; the official limit
MAX_DIMENSIONS = 64  # NumPy's limit


def read(path):
    """Return the tensors of the file `path` as a dict name -> read-only array, in the order of the header.

    The arrays are views of the memory-mapped file: nothing is read before it is used. Only two kinds are copied:
    tensors that are not aligned for their dtype, and BF16. NumPy has no BF16; it is the upper half of a float32, and
    becomes a float32.

    Raises FileError if the file cannot be read, FormatError if it is not a whole, consistent safetensors file.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _read_header(path, file, size)
            mapped = content.mapped(file)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    entries = {name: _check_entry(f"{path}: tensor {name!r}", entry, size - start) for name, entry in header.items()}
    _check_cover(path, entries, size - start)
    return {name: _array(mapped, start + begin, shape, code) for name, (begin, _, shape, code) in entries.items()}


def _read_header(path, file, size):
    """Return the header's entries without "__metadata__", and the position in the file at which the data starts."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    content.refuse_pointer(path, prefix)
    if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise FormatError(
            f"{path} is not a whole safetensors file: {size} bytes with a header of {length} bytes; "
            f"a header has 2 to {MAX_HEADER} bytes and lies inside the file"
        )
    try:
        text = file.read(length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: the header is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.startswith("{"):
        raise FormatError(f"{path}: the header starts with {text[0]!r}, not '{{'; is this a safetensors file?")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        "".join(header).encode()  # fails for half of a surrogate pair, which JSON can spell but is not valid text
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested thousands deep
        raise FormatError(f"{path}: the header is not valid JSON: {error}") from error
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # some write null, and the official reader accepts it
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must map strings to strings")
    return header, 8 + length


def _unique(pairs):
    """Return the JSON object's pairs as a dict. Raises ValueError for a key that occurs twice."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} occurs twice")
    return value


def _check_entry(where, entry, available):
    """Return begin, end, shape and dtype code of one header entry, whose bytes lie inside the `available` bytes.

    All arithmetic uses Python's integers, which do not overflow, and comes before any array is made.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: its entry must be an object of exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise FormatError(f"{where}: dtype {code!r} is not supported; supported are {', '.join(DTYPES)}")
    itemsize = np.dtype(DTYPES[code]).itemsize
    # NumPy multiplies the other sizes even if one is 0, so their product must be addressable too.
    width = 4 if code == "BF16" else itemsize  # in memory
    if (
        not _are_sizes(shape)
        or len(shape) > MAX_DIMENSIONS
        or math.prod(max(item, 1) for item in shape) * width > np.iinfo(np.intp).max
    ):
        raise FormatError(f"{where}: the shape must be a list of at most {MAX_DIMENSIONS} sizes that memory can hold")
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
        raise FormatError(f"{where}: data_offsets must be [begin, end] within the file's {available} bytes of data")
    begin, end = offsets
    if end - begin != math.prod(shape) * itemsize:
        raise FormatError(
            f"{where}: {code} of shape {shape} takes {math.prod(shape) * itemsize} bytes, "
            f"but data_offsets {offsets} hold {end - begin}"
        )
    return begin, end, tuple(shape), code


def _are_sizes(value):
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)  # a bool is not a size


def _check_cover(path, entries, available):
    """Check that the tensors cover the `available` bytes of data exactly. Raises FormatError."""
    reached = 0
    for begin, end, name in sorted((begin, end, name) for name, (begin, end, _, _) in entries.items()):
        if begin != reached:
            wrong = "overlaps another" if begin < reached else "leaves a hole before it"
            raise FormatError(f"{path}: tensor {name!r} {wrong}: it begins at byte {begin}, but {reached} is right")
        reached = end
    if reached != available:
        raise FormatError(f"{path}: the tensors cover {reached} of {available} bytes of data; they must cover all")


def _array(mapped, offset, shape, code):
    """Return the tensor at byte `offset` of the mapped file as a read-only array."""
    array = np.ndarray(shape, DTYPES[code], mapped, offset)
    if code == "BF16":
        array = array.astype(np.uint32)
        array <<= 16  # in place: << would turn an array without dimensions into a scalar
        array = array.view(np.float32)
    elif not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


def write(path, tensors, metadata=None):
    """Write `tensors` (dict name -> array) to the file `path`, whole or not at all.

    metadata    dict of strings to strings; transformers and PEFT want {"format": "pt"}

    The bytes are the same as the official writer's. At most one tensor is copied at a time, and only if its bytes are
    not row-major and little-endian already. Raises ConfigError for a dtype that the format does not have, FileError if
    the file cannot be written.
    """
    codes = {}
    for name, array in tensors.items():
        codes[name] = CODES.get(array.dtype.newbyteorder("<"))
        if codes[name] is None or name == "__metadata__":
            raise ConfigError(
                f"cannot write tensor {name!r} of dtype {array.dtype} to {path}: "
                f"a name other than __metadata__ and one of the dtypes {', '.join(map(str, CODES))} would be right"
            )
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    names = sorted(tensors, key=lambda name: (-list(DTYPES).index(codes[name]), name))
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": codes[name], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with atomic.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = np.ascontiguousarray(tensors[name], dtype=tensors[name].dtype.newbyteorder("<"))
            file.write(array.reshape(-1).view(np.uint8))
