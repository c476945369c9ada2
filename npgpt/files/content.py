"""What a file holds: its bytes, or only a pointer to them."""

import mmap

from npgpt.runtime.errors import FormatError

POINTER = b"version https://git-lfs"


def mapped(file):
    """Return the bytes of an open file, which is not empty: a memory map, or a copy if the file system has no maps.

    Some file systems cannot map a file: network shares, FUSE, /proc. Raises OSError.
    """
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        file.seek(0)
        return file.read()


def refuse_pointer(path, start):
    """Raise FormatError if `start`, at least the first 8 bytes of a file, begins a pointer that Git LFS left there."""
    if start.startswith(POINTER) or start == POINTER[:8]:
        raise FormatError(f"{path} is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
