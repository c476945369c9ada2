"""The file of records: the answers that an evaluation has already, by system and item.

Why JSON lines and not a database: a user can read the file, and an interrupted write spoils only the last line.
"""

import json
import zlib
from pathlib import Path

import numpy as np

from npgpt.runtime.errors import FileError, FormatError


class Records:
    """A JSON-lines file that takes each record at once, so that an interrupted evaluation can go on.

    A line is {"system": ..., "item": ..., and the fields of the record}. An incomplete last line, from an interrupted
    write, is dropped. Without a path, the records are only in memory.
    Raises FileError if the file cannot be read or written, FormatError if it holds something else.
    """

    def __init__(self, path=None):
        self._found, self._path = {}, path
        if path is None:
            return
        self._path = path = Path(path)
        if path.exists() and not path.is_file():
            raise FileError(f"cannot write {path}: this is not a file; name a file for the answers")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                whole, newline, torn = file.read().rpartition(b"\n")
                for number, line in enumerate(whole.splitlines(), start=1):
                    self._keep(path, number, line)
                if torn:
                    file.truncate(len(whole + newline))
        except OSError as error:
            raise _unwritable(path, error) from error

    def _keep(self, path, number, line):
        try:
            record = json.loads(line)
            self._found[record.pop("system"), record.pop("item")] = record
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}:{number}: this line is not a record of an evaluation; choose another file for "
                              "the answers, or remove this one") from error

    def get(self, system, item):
        """Return the record, or None."""
        return self._found.get((system, item))

    def add(self, system, item, record):
        """Keep a record. When this returns, the record is in the file."""
        self._found[system, item] = record
        if self._path is not None:
            line = json.dumps({"system": system, "item": item, **record}) + "\n"
            try:
                with self._path.open("ab") as file:
                    file.write(line.encode())
            except OSError as error:
                raise _unwritable(self._path, error) from error


def _unwritable(path, error):
    return FileError(f"cannot write {path}: {error.strerror or error}")


def fingerprint(model, adapter=None):
    """Return a name of a model with the adapter in the folder `adapter`, made from all weights: hexadecimal digits."""
    crc = zlib.crc32(repr(model.config).encode())
    for name, tensor in sorted(model.parameters().items()):
        crc = zlib.crc32(np.ascontiguousarray(tensor.data), zlib.crc32(name.encode(), crc))
    for file in sorted(Path(adapter).glob("adapter_*")) if adapter is not None else ():
        crc = zlib.crc32(file.read_bytes(), crc)
    return f"{crc:08x}"


def complete(records, system, task, model, progress=None):
    """Return the records of all items of `task`, in their order. `model` makes the missing records of `system`.

    progress    is called after each item, with the number of items done so far
    """
    keys = [task.key(i) for i in range(len(task.items))]
    missing = [i for i, key in enumerate(keys) if records.get(system, key) is None]
    for done, (i, record) in enumerate(task.results(model, missing), start=len(keys) - len(missing) + 1):
        records.add(system, keys[i], record)
        if progress is not None:
            progress(done)
    return [records.get(system, key) for key in keys]
