"""The fields of records and messages: the text under a name, and the messages for wrong fields."""

from npgpt.data.readers import Stream, json_name
from npgpt.runtime.errors import FormatError


def text_under(where, fields, name):
    """Return the text under `name`, str or Stream. Raises FormatError if there is none."""
    if name not in fields:
        raise FormatError(f'{where}: no "{name}"; it has {quoted(fields) or "nothing"}')
    value = fields[name]
    if isinstance(value, Stream):
        return value
    if not isinstance(value, str):
        raise FormatError(f'{where}: its "{name}" is {json_name(value)}, expected a string')
    return valid(where, name, value)


def valid(where, name, text):
    """Return the text. Raises FormatError for half of a surrogate pair: JSON can spell it, but it has no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f'{where}: its "{name}" is not valid Unicode') from error
    return text


def is_blank(value):
    """Tell whether a value is a text of nothing but white space."""
    return isinstance(value, str) and not value.strip()


def quoted(names):
    """Return the names in quotes, in one line."""
    return ", ".join(f'"{name}"' for name in names)
