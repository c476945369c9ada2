"""Files to records: a reader for each format. A file is streamed, and an error names its place as path:line."""

import codecs
import csv
import itertools
import json
import re
import warnings
from typing import NamedTuple

from npgpt.runtime.errors import FileError, FormatError

SPLITS = ("line", "blank", "none")
LONGEST = 1 << 25  # bytes of one line, paragraph or JSON value: a record is held whole, a file is not
PIECE = 1 << 20    # bytes read at a time where there are no lines to go by
LINES = 3          # of a text file, looked at to see whether they are JSON
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


# Plain text


def read_text(path, split, separator):
    """Yield the Records of plain text; see `npgpt.data.read_records`."""
    _warn_of_json(path)
    if split == "none":
        pieces = _stream(path)
        if (first := next(pieces)).strip():
            yield Record(f"{path}:1", {"text": Stream(itertools.chain([first], pieces))})
        return
    texts = {"line": _lines, "blank": _paragraphs}.get(split) or (lambda path: _between(path, split))
    for number, text in texts(path):
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


def _between(path, mark):
    """Yield (number of the first line, text) of each text that is not blank, between the marks."""
    number, held = 1, ""
    for piece in itertools.chain(_decoded(path), [None]):
        *texts, held = (held + piece).split(mark) if piece is not None else [held, ""]
        for text in texts:
            start = text.lstrip()
            if start:
                yield number + text.count("\n", 0, len(text) - len(start)), start
            number += text.count("\n") + mark.count("\n")
        if len(held) > LONGEST:
            raise FormatError(f"{path}:{number}: a text {TOO_LONG}")


def _warn_of_json(path):
    """Say so where the first lines are JSON objects."""
    with open_file(path) as file:
        first = [line for line in (file.readline(LONGEST) for _ in range(LINES)) if line.strip()]
    try:
        objects = [isinstance(json.loads(line), dict) for line in first]
    except (ValueError, RecursionError):
        return
    if objects and all(objects):
        warnings.warn(f"{path}: its first lines are JSON objects, taken for plain text; where the name ends in .jsonl "
                      "their fields are read", stacklevel=2)


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


def read_jsonl(path):
    """Yield a Record for each line."""
    for number, line in _lines(path):
        if line.strip():
            yield _object(f"{path}:{number}", lambda line=line: json.loads(line))


def read_json(path):
    """Yield a Record for each object, in an array or one after another.

    One value and a piece of the file are held at a time.
    """
    decode, blank, pieces = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*"), _decoded(path)
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
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "an array",
             dict: "an object"}
    return names.get(type(value), f"of the kind {type(value).__name__}")


def read_csv(path):
    """Yield a Record for each row but the first. A first or a last column may be without a name, as the index of a
    table and what a comma at the end of each line makes are: it is left out."""
    csv.field_size_limit(LONGEST)  # of the process, 128 kB where nobody says otherwise: shorter than many a text
    number, names = 1, None
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        for row in rows:
            if names is None and "".join(row).strip():
                names = [name.strip() for name in row]
                known = slice(not names[0], len(names) - (not names[-1]))
                if len(set(names[known])) < len(names[known]) or "" in names[known]:
                    raise FormatError(f"{path}:{number}: expected a first row that names each column, each by another "
                                      f"name, not {','.join(row)}")
                if len(names) == 1 and (other := re.search("[;\t|]", names[0])):
                    raise FormatError(f"{path}:{number}: one column, {names[0]!r}; columns must stand apart by commas, "
                                      f"not by {other[0]!r}")
            elif names is not None and row:
                if len(row) != len(names):
                    raise FormatError(f"{path}:{number}: {len(row)} columns, where the first row names {len(names)}: "
                                      f"{', '.join(names)}")
                yield Record(f"{path}:{number}", dict(zip(names[known], row[known], strict=True)))
            number = rows.line_num + 1
    except csv.Error as error:
        raise FormatError(f"{path}:{number}: not valid CSV: {error}") from error


# Bytes


def _lines(path):
    """Yield (number, line) for the lines of the file, numbered from 1, with their ends."""
    with open_file(path) as file:
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
    with open_file(path) as file:
        while True:
            piece = file.read(PIECE)
            try:
                text = held + decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                number += error.object.count(b"\n", 0, error.start)
                raise FormatError(f"{path}:{number}: not UTF-8 text: {error.reason}") from error
            if not piece and decoder.getstate()[0]:  # a part of a byte-order mark, which it takes for none of the text
                raise FormatError(f"{path}:{number}: not UTF-8 text: unexpected end of data")
            held = "\r" if piece and text.endswith("\r") else ""  # "\n" may follow
            text = text.removesuffix(held).replace("\r\n", "\n")
            number += text.count("\n")
            if text:  # of a character of several bytes, a piece may hold only the first
                yield text
            if not piece:
                return


def open_file(path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
