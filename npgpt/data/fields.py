"""The fields of records and messages: what is under a name, and how what is wrong with it is said."""

from npgpt.data.readers import Stream, json_name
from npgpt.runtime.errors import FormatError


def text_under(where, fields, name):
    """Return the text under `name`, str or Stream. Raises FormatError where there is none."""
    if name not in fields:
        raise FormatError(f'{where}: no "{name}"; it has {quoted(fields) or "nothing"}')
    value = fields[name]
    if isinstance(value, Stream):
        return value
    if not isinstance(value, str):
        raise FormatError(f'{where}: its "{name}" is {json_name(value)}, expected a string')
    return valid(where, name, value)


def valid(where, name, text):
    """Return the text. Raises FormatError for half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f'{where}: its "{name}" is not valid Unicode') from error
    return text


def is_blank(value):
    """Whether a value is a text with nothing in it but white space."""
    return isinstance(value, str) and not value.strip()


def quoted(names):
    """Return the names in a line."""
    return ", ".join(f'"{name}"' for name in names)
