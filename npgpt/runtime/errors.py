"""The errors that npgpt raises. Each message is one line: what is wrong, where, and what would be right.

All errors derive from `NpgptError`, so a script can turn each into one line and exit status 2. Each also derives from
the built-in class that a caller would expect.
"""

LONGEST = 1000  # characters in a message


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
