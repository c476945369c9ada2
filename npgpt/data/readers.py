"""Files to records: a reader for each format. A file is streamed, and an error names its place as path:line."""

import codecs
import csv
import itertools
import json
import re
from pathlib import Path
from typing import NamedTuple

from npgpt.errors import ConfigError, FileError, FormatError

SPLITS = ("line", "blank", "none")
LONGEST = 1 << 25  # bytes of one line, paragraph or JSON value: a record is held whole, a file is not
PIECE = 1 << 20    # bytes read at a time where there are no lines to go by
TOO_LONG = f"of more than {LONGEST >> 20} MB: a record is held whole and must be shorter (--split none reads any text)"
WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)  # up to where the last word ends
BINARY = "a zero byte: this is a binary file, not text"
EXPECTED = 'expected an object, such as {"text": "..."}'


class Record(NamedTuple):
    """What a file says in one place.

    where   "path:line"
    fields  dict: what the record has under each name; JSON values of any kind, str or Stream from other formats
    """

    where: str
    fields: dict


class Stream:
    """A text that is not held whole: iterating gives its pieces, once."""

    def __init__(self, pieces):
        self._pieces = pieces

    def __iter__(self):
        return iter(self._pieces)


def read_records(path, split=None, separator=None):
    """Yield the records of the file or folder `path`, in order.

    .jsonl  a JSON object a line
    .json   an array of JSON objects, or objects one after another
    .csv    a record a row, its fields named by the first row
    folder  every file of the formats here in it and below it, in the order of their names
    other   UTF-8 text, divided as `split` says: "line", a text a line; "blank", a text a paragraph, blank lines between
            them; "none", the whole file is one text. None stands for "line", and in a folder for "none". A text is the
            field "text"; with a `separator`, what stands before it is "prompt" and what follows is "completion".

    A byte-order mark, "\\r" before "\\n", blank lines and white space at the end of a line are no part of a text.
    Raises FileError (missing, unreadable), FormatError (not what it should be) and ConfigError (an unusable option).
    """
    if split not in (None, *SPLITS):
        raise ConfigError(f"split = {split!r}: it must be one of {', '.join(SPLITS)}")
    if separator == "" or (separator and split == "none"):
        raise ConfigError(f"separator = {separator!r}: it must be what stands between prompt and completion in each "
                          "line or paragraph, so it does not go with split none")
    if split is None:
        split = "none" if Path(path).is_dir() and not separator else "line"
    for file, reader in files(path):
        yield from reader(file) if reader is not _read_text else _read_text(file, split, separator)


def files(path):
    """Return [(file, its reader), ...] for the file or folder `path`. Raises FileError for a folder without any."""
    if not str(path):
        raise FileError("cannot read '': expected the name of a file or folder")
    path = Path(path)
    if not path.is_dir():
        return [(path, READERS.get(path.suffix.lower(), _read_text))]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
    if not found:
        raise FileError(f"{path} is a folder without data: expected files that end in {', '.join(READERS)}")
    return [(file, READERS[file.suffix.lower()]) for file in found]


def is_text(path):
    """Whether `path` is, or holds, plain text, which can be split and have a separator."""
    return any(reader is _read_text for _, reader in files(path))


# Plain text


def _read_text(path, split, separator):
    if split == "none":
        pieces = _stream(path)
        if (first := next(pieces)).strip():
            yield Record(f"{path}:1", {"text": Stream(itertools.chain([first], pieces))})
        return
    for number, text in _paragraphs(path) if split == "blank" else _lines(path):
        text, where = text.rstrip(), f"{path}:{number}"
        if "\0" in text:
            raise FormatError(f"{where}: {BINARY}")
        if text and separator is None:
            yield Record(where, {"text": text})
        elif text:
            prompt, found, completion = text.partition(separator)
            if not found:
                raise FormatError(f"{where}: no {separator!r} in it; expected prompt{separator}completion")
            yield Record(where, {"prompt": prompt, "completion": completion})


def _paragraphs(path):
    """Yield (number of the first line, text) of each run of lines that are not blank."""
    for blank, lines in itertools.groupby(_lines(path), lambda line: not line[1].strip()):
        if not blank:
            first, size, kept = None, 0, []
            for number, line in lines:
                first, size = first or number, size + len(line)
                if size > LONGEST:
                    raise FormatError(f"{path}:{first}: a paragraph {TOO_LONG}")
                kept.append(line.rstrip())
            yield first, "\n".join(kept)


def _stream(path):
    """Yield the text of the file in pieces, at least one.

    A piece ends with a word and the next starts with white space, which no token of GPT-2's reaches across.
    """
    held, number = "", 1
    for text in _decoded(path):
        if "\0" in text:
            raise FormatError(f"{path}:{number + text.count(chr(10), 0, text.index(chr(0)))}: {BINARY}")
        number, held = number + text.count("\n"), held + text if held else text.lstrip()
        if len(held) > PIECE and not held.isspace():
            words = WORDS.match(held)
            cut = words.end() if words else len(held) - 1  # in so long a word one place is like another
            yield held[:cut]
            held = held[cut:]
    yield held.rstrip()


# JSON and CSV


def _read_jsonl(path):
    for number, line in _lines(path):
        if line.strip():
            yield _object(f"{path}:{number}", lambda line=line: json.loads(line))


def _read_json(path):
    """Hold one value and a piece of the file at a time, whether it is an array or objects one after another."""
    decode, blank, pieces = json.JSONDecoder().raw_decode, re.compile(r"\s*"), _decoded(path)
    text, at, number = "", 0, 1  # what is held of the file, the place in it, and the line of that place

    def character():
        """Go on to what is not blank, and return it: "" at the end."""
        nonlocal text, at, number
        while True:
            end = blank.match(text, at).end()
            number, at = number + text.count("\n", at, end), end
            if at < len(text):
                return text[at]
            text, at = next(pieces, None), 0
            if text is None:
                text = ""
                return ""

    def value():
        """Return the value that starts here, and go on to its end."""
        nonlocal text, at, number
        while True:
            try:
                found, end = decode(text, at)
            except json.JSONDecodeError as error:  # it may only be that not all of it is held
                following = "".join(itertools.islice(pieces, 1 + (len(text) - at) // PIECE))
                if following and len(text) - at <= LONGEST:
                    text, at = text[at:] + following, 0
                    continue
                number += text.count("\n", at, error.pos)
                raise
            number, at = number + text.count("\n", at, end), end
            return found

    array, first = character() == "[", True
    at += array
    while (found := character()) and not (array and found == "]"):
        if array and not first:
            if found != ",":
                raise FormatError(f"{path}:{number}: not valid JSON: expected a comma or the end of the array")
            at += 1
            character()
        start = number
        try:
            record = _object(f"{path}:{start}", value)
        except FormatError as error:
            raise FormatError(str(error).replace(f"{path}:{start}:", f"{path}:{number}:", 1)) from error
        yield record
        first = False
    at += 1
    if array and (found != "]" or character()):
        raise FormatError(f"{path}:{number}: not valid JSON: "
                          + ("something follows the array" if found else "the array has no end"))


def _object(where, parse):
    """Return parse(), a JSON object, as a Record."""
    try:
        found = parse()
    except RecursionError as error:
        raise FormatError(f"{where}: nested too deeply; {EXPECTED}") from error
    except ValueError as error:  # not always a JSONDecodeError: a number may have too many digits
        raise FormatError(f"{where}: not valid JSON: {getattr(error, 'msg', error)}; {EXPECTED}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{where}: not an object but {json_name(found)}; {EXPECTED}")
    return Record(where, found)


def json_name(value):
    """What JSON calls a value of this kind."""
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def _read_csv(path):
    csv.field_size_limit(LONGEST)  # of the process, 128 kB where nobody says otherwise: shorter than many a text
    number, names = 1, None
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        for row in rows:
            if names is None and "".join(row).strip():
                names = [name.strip() for name in row]
                if len(set(names)) < len(names) or "" in names:
                    raise FormatError(f"{path}:{number}: expected a first row that names each column, each by another "
                                      f"name, not {','.join(row)}")
            elif names is not None and row:
                if len(row) != len(names):
                    raise FormatError(f"{path}:{number}: {len(row)} columns, where the first row names {len(names)}: "
                                      f"{', '.join(names)}")
                yield Record(f"{path}:{number}", dict(zip(names, row, strict=True)))
            number = rows.line_num + 1
    except csv.Error as error:
        raise FormatError(f"{path}:{number}: not valid CSV: {error}") from error


READERS = {".txt": _read_text, ".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}


# Bytes


def _lines(path):
    """Yield (number, line) for the lines of the file, numbered from 1, with their ends."""
    with _open(path) as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST + 1)
            if len(line) > LONGEST:
                raise FormatError(f"{path}:{number}: a line {TOO_LONG}")
            if not line:
                return
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"{path}:{number}: not UTF-8 text: {error.reason}") from error


def _decoded(path):
    """Yield the file as text, in pieces that are not empty, with "\\n" at the ends of lines."""
    decoder, number, held = codecs.getincrementaldecoder("utf-8-sig")(), 1, ""
    with _open(path) as file:
        while True:
            piece = file.read(PIECE)
            try:
                text = held + decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                number += error.object.count(b"\n", 0, error.start)
                raise FormatError(f"{path}:{number}: not UTF-8 text: {error.reason}") from error
            held = "\r" if piece and text.endswith("\r") else ""  # "\n" may follow
            text = text.removesuffix(held).replace("\r\n", "\n")
            number += text.count("\n")
            if text:  # of a character of several bytes, a piece may hold only the first
                yield text
            if not piece:
                return


def _open(path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
