"""A file as text: lines or pieces, of UTF-8 or of what its mark says. What can be read only once is copied first.

The io module decodes and splits lines too, but its errors name no line, and it would read a line of any length.
"""

import codecs
import io
import os
import stat
import tempfile
import weakref
from pathlib import Path

from npgpt.files.content import POINTER, refuse_pointer
from npgpt.runtime.encodings import LONGEST_MARK, encoding
from npgpt.runtime.errors import FileError, FormatError

LONGEST = 1 << 25  # characters of one line, paragraph or JSON value: memory holds a whole record, but not a whole file
PIECE = 1 << 20    # bytes to read at a time
TOO_LONG = f"of more than {LONGEST >> 20} MB: a record must fit into memory and be shorter (--split none has no limit)"


# Files that can be read again


class Copied:
    """What came through a pipe, in a temporary file without a name. str() gives the pipe's name."""

    def __init__(self, path):
        """Read `path` to its end. Raises FileError."""
        self._path = path
        try:
            with open(path, "rb") as source:
                self._file = tempfile.TemporaryFile()
                weakref.finalize(self, self._file.close)
                self._copy(source)
        except OSError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}") from error

    def _copy(self, source):
        try:
            while piece := source.read(PIECE):
                self._file.write(piece)
            self._file.flush()
        except OSError as error:
            raise FileError(f"cannot copy {self._path} into a temporary file: {error.strerror or error}; set TMPDIR to "
                            "another folder") from error

    def __str__(self):
        return str(self._path)

    @property
    def suffix(self):
        return Path(self._path).suffix

    def open(self):
        """Return the content from its start, open for reading bytes."""
        return io.BufferedReader(_View(self._file.fileno()))


class _View(io.RawIOBase):
    """A file that others read as well: it has a place of its own in it."""

    def __init__(self, descriptor):
        self._descriptor, self._at = descriptor, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        read = os.pread(self._descriptor, len(buffer), self._at)
        buffer[:len(read)] = read
        self._at += len(read)
        return len(read)

    def seek(self, offset, whence=os.SEEK_SET):
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        self._at = begin + offset
        return self._at


def readable_again(path):
    """Return what can be read as often as needed: `path` itself, or a Copied of a pipe. A list: of each of its paths.

    Raises FileError for a device, which may have no end, and if a pipe cannot be read or copied.
    """
    if isinstance(path, list):
        return [readable_again(each) for each in path]
    if not is_read_once(path):
        return path
    about = os.stat(path)
    endless = stat.S_ISBLK(about.st_mode) or stat.S_ISCHR(about.st_mode)
    if endless and not os.path.samestat(about, os.stat(os.devnull)) and not _is_terminal(path):
        raise FileError(f"{path} is a device; expected a file, a folder or a pipe")
    return Copied(path)


def is_read_once(path):
    """Tell whether `path` is a pipe or something else that is neither a regular file nor a folder."""
    if isinstance(path, Copied):
        return False
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # opening it will say why
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_terminal(path):
    with open(path, "rb", buffering=0) as file:
        return file.isatty()


def open_file(path):
    """Return a file or Copied, open for reading bytes. Raises FileError."""
    if isinstance(path, Copied):
        return path.open()
    try:
        file = open(path, "rb")
        try:
            refuse_pointer(path, file.peek(len(POINTER)))
        except BaseException:
            file.close()
            raise
        return file
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


# Bytes to text


def lines(path):
    """Yield (number, line) for each line of the file, numbered from 1; a line keeps its end: \\n, \\r\\n or \\r."""
    number, held = 1, ""
    for piece in _pieces(path):
        parts, held = io.StringIO(held + piece, newline=""), ""
        for line in parts:
            if len(line) > LONGEST:
                raise FormatError(f"{path}:{number}: a line {TOO_LONG}")
            if line.endswith(("\n", "\r")):
                yield number, line
                number += 1
            else:
                held = line
    if held:
        yield number, held


def decoded(path):
    """Yield the file as text, in pieces that are not empty, with "\\n" at the end of each line."""
    for piece in _pieces(path):
        yield piece.replace("\r\n", "\n").replace("\r", "\n") if "\r" in piece else piece


def _pieces(path):
    """Yield the file as text, in pieces that are not empty. No piece ends between "\\r" and "\\n"."""
    number, held = 1, ""
    with open_file(path) as file:
        start = file.read(LONGEST_MARK)
        name, mark = encoding(start)
        decoder = codecs.getincrementaldecoder(name)()
        piece = start[mark:] + file.read(PIECE)
        while True:
            try:
                text = held + decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                number += _line_ends(held + error.object[:error.start].decode(name))
                raise FormatError(f"{path}:{number}: not {name.upper()} text: {error.reason}; save it as UTF-8"
                                  ) from error
            held = "\r" if piece and text.endswith("\r") else ""  # "\n" may follow
            text = text.removesuffix(held)
            number += _line_ends(text)
            if text:  # a piece may hold only the first byte of a character
                yield text
            if not piece:
                return
            piece = file.read(PIECE)


def _line_ends(text):
    return text.count("\n") + (text.count("\r") - text.count("\r\n") if "\r" in text else 0)
