"""The errors npgpt raises: one line that says what is wrong, where, and what would be right.

All share the base `NpgptError`, so a script can turn each into one line and exit status 2. Each also derives from the
built-in class a caller would expect.
"""

LONGEST = 1000  # characters in a message


class NpgptError(Exception):
    """Anything wrong that npgpt recognises."""

    def __init__(self, message):
        super().__init__(one_line(message))


def one_line(message):
    """Return `message` as one printable line, escaped and shortened as need be: it may quote what a file holds."""
    message = printable(message)
    return message if len(message) <= LONGEST else f"{message[:LONGEST - 300]} [..] {message[-200:]}"


def printable(text):
    """Return `text` with everything in it that cannot be printed written as Python would, \\n for a new line."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


class ConfigError(NpgptError, ValueError):
    """An argument or a configuration field that cannot be used."""


class FormatError(NpgptError, ValueError):
    """A file that was read but does not hold what it should."""


class FileError(NpgptError, OSError):
    """A file or folder that is missing, unreadable or cannot be written."""


class DivergedError(NpgptError, ArithmeticError):
    """A loss or a gradient that is no longer a finite number."""


class HubError(NpgptError, OSError):
    """The hub, or the network on the way to it, did not give what was asked for."""
