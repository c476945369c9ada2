"""Files and folders written whole or not at all, and JSON read with one-line errors."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from npgpt.runtime.errors import FileError, FormatError, NpgptError


@contextlib.contextmanager
def replacing(path):
    """Give a temporary path beside `path`; rename it onto `path` when the block ends well, remove it when not.

    A reader therefore sees the old file or the new one, never half of either. Missing parent folders are made.
    Raises FileError where the folder or the file cannot be written.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except NpgptError:  # some are OSErrors, and all say already what is wrong
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path):
    """Give a temporary folder beside `path`; rename it to `path` when the block ends well, remove it when not.

    A reader therefore sees the whole folder or none, also where the power failed: everything is on the disk before the
    rename. Missing parent folders are made. Raises FileError where `path` is there already, other than as an empty
    folder, and where nothing can be written.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileError(f"cannot write {path}: it is there already, and is not an empty folder; name a new one")
        temporary.mkdir(parents=True)
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            _flush(written)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
        _flush(path.parent)
    except FileError as error:  # the place a user knows is the one it was to be at
        raise FileError(str(error).replace(str(temporary), str(path))) from error
    except NpgptError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path):
    """Remove a folder with all its files, from the first moment on under another name: never half of it is seen.
    Raises FileError."""
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        os.rename(path, temporary)
    except OSError as error:
        raise FileError(f"cannot remove {path}: {error.strerror or error}") from error
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder):
    """Remove below `folder` what a process that was killed while it wrote has left there."""
    for path in Path(folder).rglob(".*.tmp"):
        if not re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            continue  # somebody else's
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _flush(path):
    """Have the system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path):
    """Return the text of the file `path`, line ends as they are. Raises FileError or FormatError (not UTF-8)."""
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


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
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=sort_keys) + "\n", encoding="utf-8")
