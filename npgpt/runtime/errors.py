"""The errors that npgpt raises. Each message is one line: what is wrong, where, and what would be right.

All errors derive from `NpgptError`, so a script can turn each into one line and exit status 2. Each also derives from
the built-in class that a caller would expect.
"""

import re

LONGEST = 1000  # characters in a message
# Control characters, by which a text can clear a terminal or change its title; characters that end a line or change
# its direction; and bytes of a file name that are not UTF-8.
_HARMFUL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class NpgptError(Exception):
    """The base of all errors that npgpt recognises."""

    def __init__(self, message):
        super().__init__(one_line(message))


def one_line(message):
    """Return `message` as one printable line. It may quote a file, so it is escaped, and shortened if it is long."""
    message = printable(message)
    return message if len(message) <= LONGEST else f"{message[:LONGEST - 300]} [..] {message[-200:]}"


def printable(text):
    """Return `text` with each character that cannot be printed as Python writes it, such as \\n for a new line."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def harmless(text, kept="\n\t"):
    """Return `text` with each character that can do harm in a terminal as Python writes it; other text stays.

    kept  characters that stay in any case
    """
    return _HARMFUL.sub(lambda match: match[0] if match[0] in kept else ascii(match[0])[1:-1], text)


class ConfigError(NpgptError, ValueError):
    """An argument or a configuration field cannot be used."""


class FormatError(NpgptError, ValueError):
    """A file was read, but it does not hold what it should."""


class FileError(NpgptError, OSError):
    """A file or folder is missing, cannot be read or cannot be written."""


class DivergedError(NpgptError, ArithmeticError):
    """A loss or a gradient is no longer a finite number."""


class HubError(NpgptError, OSError):
    """The hub, or the network between, did not give what was asked for."""
