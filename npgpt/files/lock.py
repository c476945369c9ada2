"""A lock on a folder, so that two processes do not write into it at the same time.

The system releases the lock when the process ends, even if it is killed. The locked file is one of its own, `.lock`:
some network file systems keep other handles from writing to a locked file. It stays in the folder, because a second
process may already wait to open it.
"""

import errno
import os
import warnings
import weakref
from pathlib import Path

from npgpt.runtime.errors import FileError

NAME = ".lock"
HELD = errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES  # what the systems say of a lock that another process has


def lock(folder, owner):
    """Lock a folder that exists, until the object `owner` is gone or the process ends.

    Warns if the file system has no locks: the folder is then used without one. Raises FileError if another process
    holds the lock, or if the folder cannot be written.
    """
    path = Path(folder, NAME)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(f"cannot write into {folder}: {error.strerror or error}") from error
    try:
        _take(descriptor)
    except OSError as error:
        if error.errno in HELD:
            os.close(descriptor)
            raise FileError(f"{folder} is in use: another process writes into it; wait until that ends, or stop "
                            "it") from error
        warnings.warn(f"{folder} cannot be locked ({error.strerror or error}): let no other process write into it",
                      stacklevel=2)
    weakref.finalize(owner, os.close, descriptor)


def _take(descriptor):
    """Take the lock, or raise OSError at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
