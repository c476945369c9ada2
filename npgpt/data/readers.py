"""Files to records: a reader for each format. A file is streamed, and an error names its place as path:line.

A path here is a regular file's, or a Copied (text_files.py), as some files are read twice. json and csv of the standard
library do the parsing. ijson would stream JSON too, but its errors do not name the line.
"""

import csv
import itertools
import json
import re
import warnings
from typing import NamedTuple

from npgpt.data import text_files
from npgpt.data.text_files import TOO_LONG, decoded, lines
from npgpt.runtime.errors import FormatError

SPLITS = ("line", "blank", "none")
LINES = 3          # at the start of a text file, to see whether they are JSON
WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)  # up to the end of the last word
BLANKS = re.compile(r"[ \t\r\n]*")  # what JSON allows between values
BINARY = "a zero byte: this is a binary file, not text"
EXPECTED = 'expected an object, such as {"text": "..."}'


class Record(NamedTuple):
    """One record of a file.

    where   "path:line"
    fields  dict name -> value: any JSON value, or from other formats a str or Stream
    """

    where: str
    fields: dict


class Stream:
    """A text that memory does not hold as a whole. Iterating gives its pieces, once."""

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
    texts = {"line": lines, "blank": _paragraphs}.get(split) or (lambda path: _between(path, split))
    for number, text in texts(path):
        text, where = text.rstrip(), f"{path}:{number}"
        if "\0" in text:
            raise FormatError(f"{where}: {BINARY}")
        if text and separator is None:
            yield Record(where, {"text": text})
        elif text:
            prompt, found, completion = text.partition(separator)
            if not found:
                raise FormatError(f"{where}: the text has no {separator!r}; expected prompt{separator}completion")
            yield Record(where, {"prompt": prompt, "completion": completion})


def _paragraphs(path):
    """Yield (number of the first line, text) for each run of lines that are not blank."""
    for blank, group in itertools.groupby(lines(path), lambda line: not line[1].strip()):
        if not blank:
            first, size, kept = None, 0, []
            for number, line in group:
                first, size = first or number, size + len(line)
                if size > text_files.LONGEST:
                    raise FormatError(f"{path}:{first}: a paragraph {TOO_LONG}")
                kept.append(line.rstrip())
            yield first, "\n".join(kept)


def _between(path, mark):
    """Yield (number of the first line, text) for each text between the marks that is not blank."""
    number, held = 1, ""
    for piece in itertools.chain(decoded(path), [None]):
        *texts, held = (held + piece).split(mark) if piece is not None else [held, ""]
        for text in texts:
            start = text.lstrip()
            if start:
                yield number + text.count("\n", 0, len(text) - len(start)), start
            number += text.count("\n") + mark.count("\n")
        if len(held) > text_files.LONGEST:
            raise FormatError(f"{path}:{number}: a text {TOO_LONG}")


def _warn_of_json(path):
    """Warn if the first lines are JSON objects."""
    try:
        first = [line for _, line in itertools.islice(lines(path), LINES) if line.strip()]
        objects = [isinstance(json.loads(line), dict) for line in first]
    except (FormatError, ValueError, RecursionError):  # a FormatError comes again where the text is read
        return
    if objects and all(objects):
        warnings.warn(f"{path}: the first lines are JSON objects, but are read as plain text; to read their fields, "
                      "let the file's name end in .jsonl", stacklevel=2)


def _stream(path):
    """Yield the text of the file in pieces, at least one.

    A piece ends after a word, and the next begins with white space. No token of GPT-2 covers such a place.
    """
    held, number = "", 1
    for text in decoded(path):
        if "\0" in text:
            raise FormatError(f"{path}:{number + text.count(chr(10), 0, text.index(chr(0)))}: {BINARY}")
        number, held = number + text.count("\n"), held + text if held else text.lstrip()
        if len(held) > text_files.PIECE and not held.isspace():
            words = WORDS.match(held)
            cut = words.end() if words else len(held) - 1  # inside such a long word, any place will do
            yield held[:cut]
            held = held[cut:]
    yield held.rstrip()


# JSON and CSV


def read_jsonl(path):
    """Yield a Record for each line."""
    for number, line in lines(path):
        if line.strip():
            yield _object(f"{path}:{number}", lambda line=line: json.loads(line))


def read_json(path):
    """Yield a Record for each object, in an array or one after another.

    Memory holds one value and a piece of the file at a time.
    """
    source = _JsonFile(path)
    array, first = source.character() == "[", True
    source.at += array
    while (found := source.character()) and not (array and found == "]"):
        if array and not first:
            if found != ",":
                raise FormatError(f"{path}:{source.line}: not valid JSON: expected a comma or the end of the array")
            source.at += 1
            source.character()
        start = source.line
        try:
            record = _object(f"{path}:{start}", source.value)
        except FormatError as error:  # the value began on the line `start`, but the error may be on a later one
            raise FormatError(str(error).replace(f"{path}:{start}:", f"{path}:{source.line}:", 1)) from error
        yield record
        first = False
    source.at += 1
    if array and (found != "]" or source.character()):
        raise FormatError(f"{path}:{source.line}: not valid JSON: "
                          + ("something follows the array" if found else "the array has no end"))


class _JsonFile:
    """A file of JSON values, read in pieces: the text held, the place `at` in it, and the line of this place."""

    def __init__(self, path):
        self._pieces, self._text, self.at, self.line = decoded(path), "", 0, 1

    def character(self):
        """Move to the next character that is not blank, and return it: "" at the end of the file."""
        while True:
            self._move(BLANKS.match(self._text, self.at).end())
            if self.at < len(self._text):
                return self._text[self.at]
            self._text, self.at = next(self._pieces, ""), 0
            if not self._text:
                return ""

    def value(self):
        """Return the value that begins here, and move to its end."""
        while True:
            try:
                found, end = json.JSONDecoder().raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:  # perhaps a part of the value is not held yet
                left = len(self._text) - self.at
                following = "".join(itertools.islice(self._pieces, 1 + left // text_files.PIECE))
                if not following or left > text_files.LONGEST:
                    self._move(error.pos)
                    raise
                self._text, self.at = self._text[self.at:] + following, 0
            else:
                self._move(end)
                return found

    def _move(self, end):
        self.line += self._text.count("\n", self.at, end)
        self.at = end


def _object(where, parse):
    """Return parse(), a JSON object, as a Record. Raises FormatError."""
    try:
        found = parse()
    except FormatError:  # about the bytes, and not about JSON
        raise
    except RecursionError as error:
        raise FormatError(f"{where}: nested too deeply; {EXPECTED}") from error
    except ValueError as error:  # not always a JSONDecodeError: an integer may have too many digits
        raise FormatError(f"{where}: not valid JSON: {getattr(error, 'msg', error)}; {EXPECTED}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{where}: not an object but {json_name(found)}; {EXPECTED}")
    return Record(where, found)


def json_name(value):
    """Return JSON's word for a value of this kind."""
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "an array",
             dict: "an object"}
    return names.get(type(value), f"of the kind {type(value).__name__}")


def read_csv(path, delimiter=","):
    """Yield a Record for each row after the first, which names the columns. A first or last column without a name is
    left out: a table's index has none, and a comma at the end of each line makes one."""
    csv.field_size_limit(text_files.LONGEST)  # for the whole process; many texts need more than the default, 128 kB
    number, names = 1, None
    rows = csv.reader((line for _, line in lines(path)), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if names is None and "".join(row).strip():
                names = [name.strip() for name in row]
                known = slice(not names[0], len(names) - (not names[-1]))
                if len(set(names[known])) < len(names[known]) or "" in names[known]:
                    raise FormatError(f"{path}:{number}: expected a first row that gives each column a different name, "
                                      f"not {delimiter.join(row)}")
                if len(names) == 1 and (other := re.search("[,;\t|]", names[0].replace(delimiter, ""))):
                    raise FormatError(f"{path}:{number}: one column, {names[0]!r}; {_separating(delimiter, other[0])}")
            elif names is not None and row:
                if len(row) != len(names):
                    raise FormatError(f"{path}:{number}: {len(row)} columns, but the first row names {len(names)}: "
                                      f"{', '.join(names)}")
                yield Record(f"{path}:{number}", dict(zip(names[known], row[known], strict=True)))
            number = rows.line_num + 1
    except csv.Error as error:
        raise FormatError(f"{path}:{number}: not valid CSV: {error}") from error


def _separating(delimiter, found):
    """Return what to do about columns that something else than the delimiter separates."""
    names = {",": "commas in a .csv", "\t": "tabs in a .tsv"}
    return (f"columns are separated by {names[delimiter]} file, not by {found!r}"
            + (f": let the file's name end in .{'csv' if found == ',' else 'tsv'}" if found in names else ""))


def read_tsv(path):
    """Do the same for a table whose columns are separated by tabs."""
    return read_csv(path, "\t")
