"""Files and folders that are written whole or not at all, and JSON with one-line errors.

The standard library does the work; no package for it also covers folders and the messages.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path

from npgpt.files.content import refuse_pointer
from npgpt.runtime.encodings import decoded
from npgpt.runtime.errors import FileError, FormatError, NpgptError

# What file systems say if they cannot flush a file or a folder: CIFS, some in user space, and Windows for all folders.
NO_FLUSH = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def replacing(path):
    """Give a temporary path beside `path`. Rename it to `path` if the block succeeds, remove it if not.

    So a reader sees the old file or the new one, never a part of either. Missing parent folders are made.
    Raises FileError if the folder or the file cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except NpgptError:  # it may be an OSError too, and it says already what is wrong
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path):
    """Give a temporary folder beside `path`. Rename it to `path` if the block succeeds, remove it if not.

    So a reader sees the whole folder or none. This holds after a power failure too, if the file system can flush:
    everything is then on the disk before the rename. Missing parent folders are made. Raises FileError if `path` exists
    and is not an empty folder, and if it cannot be written.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileError(f"cannot write {path}: it exists already and is not an empty folder; name a new one")
        temporary.mkdir(parents=True)
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            _flush(written)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
        _flush(path.parent)
    except FileError as error:  # a user knows the place in which the file was to be
        raise FileError(str(error).replace(str(temporary), str(path))) from error
    except NpgptError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path):
    """Remove a folder and all its files. It is renamed first, so that nobody sees a part of it. Raises FileError."""
    path = Path(path)
    temporary = _beside(path)
    try:
        os.rename(path, temporary)
    except OSError as error:
        raise FileError(f"cannot remove {path}: {error.strerror or error}") from error
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder):
    """Remove the temporary files below `folder` that processes left there when they were killed."""
    for path in Path(folder).rglob(".*.tmp"):
        if not re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            continue  # another program's
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _beside(path):
    """Return the temporary path of this process for `path`."""
    return path.parent / f".{path.name}.{os.getpid()}.tmp"


def _flush(path):
    """Make the system write a file or folder to the disk now. A file system that cannot do that does it later."""
    try:
        # Windows flushes only files that are open for writing.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


def read_text(path):
    """Return the text of the file `path`, with its own line ends. It is UTF-8, or what its byte order mark says.

    Raises FileError or FormatError (not UTF-8).
    """
    try:
        raw = Path(path).read_bytes()
        refuse_pointer(path, raw)
        return decoded(raw)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not {error.encoding.upper()} text: {error.reason} at byte {error.start}; save "
                          "it as UTF-8") from error


def write_text(path, text):
    """Write `text` to `path` as UTF-8, whole or not at all. Raises FileError.

    A file's name need not be UTF-8. If the text quotes such a name, the other bytes are written as \\udcXX.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode(errors="backslashreplace"))


def read_json(path):
    """Return the object in the JSON file `path`. Raises FileError (unreadable) or FormatError (not a JSON object)."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def write_json(path, value, sort_keys=False):
    """Write `value` to `path` as indented JSON, whole or not at all. Raises FileError."""
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys) + "\n")
