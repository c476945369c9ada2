"""What was evaluated already: a file of records, by the system that made them and the item they are of."""

import json
import zlib
from pathlib import Path

import numpy as np

from npgpt.runtime.errors import FileError, FormatError


class Records:
    """A JSON-lines file to which each record is added as it is made, so that an interrupted evaluation can go on.

    A line is {"system": ..., "item": ..., and the record's own fields}; a last line that was cut off while it was
    written is dropped. Without a path the records are in memory alone.
    Raises FileError (unreadable, cannot be written) and FormatError (not such a file).
    """

    def __init__(self, path=None):
        self._found, self._path = {}, path
        if path is None:
            return
        self._path = path = Path(path)
        if path.exists() and not path.is_file():
            raise FileError(f"cannot write {path}: the answers go into a file, and this is none")
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
            raise FormatError(f"{path}:{number}: not a record of an evaluation; choose another file for the answers, "
                              "or remove this one") from error

    def get(self, system, item):
        """Return the record, or None."""
        return self._found.get((system, item))

    def add(self, system, item, record):
        """Keep a record, in the file before this returns."""
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
    """Names a model, with the adapter in the folder `adapter`, by its weights: hexadecimal digits."""
    crc = zlib.crc32(repr(model.config).encode())
    for name, tensor in sorted(model.parameters().items()):
        crc = zlib.crc32(np.ascontiguousarray(tensor.data), zlib.crc32(name.encode(), crc))
    for file in sorted(Path(adapter).glob("adapter_*")) if adapter is not None else ():
        crc = zlib.crc32(file.read_bytes(), crc)
    return f"{crc:08x}"


def complete(records, system, task, model, progress=None):
    """Return the records of all items of `task`, in their order; `model` makes those that `records` lacks of `system`.

    progress    called after each item that is done, with how many have been
    """
    keys = [task.key(i) for i in range(len(task.items))]
    missing = [i for i, key in enumerate(keys) if records.get(system, key) is None]
    for done, (i, record) in enumerate(task.results(model, missing), start=len(keys) - len(missing) + 1):
        records.add(system, keys[i], record)
        if progress is not None:
            progress(done)
    return [records.get(system, key) for key in keys]
