"""Standard output and standard error of a command, on which no text can give orders to the terminal.

Names, values and texts come from files of other people. A tensor's name may hold the characters that clear the screen,
and a model may generate them. So both streams write such characters as Python does: \\x1b. A new line and a tab stay.
"""

import contextlib
import sys

from npgpt.runtime.errors import harmless


class Harmless:
    """A text stream that makes what it writes harmless. `stream` is the stream itself, for colours."""

    def __init__(self, stream, kept):
        self.stream, self._kept = stream, kept

    def write(self, text):
        self.stream.write(harmless(text, self._kept))
        return len(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def harmless_streams():
    """Make standard output and standard error harmless inside this block."""
    before = sys.stdout, sys.stderr
    # a progress bar begins its line again with \\r
    sys.stdout, sys.stderr = (stream and Harmless(stream, kept)
                              for stream, kept in zip(before, ("\n\t", "\n\t\r"), strict=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def exact():
    """Return the stream for a model's text. A terminal gets it harmless; a file or a program, as it is."""
    return sys.stdout if sys.stdout.isatty() else getattr(sys.stdout, "stream", sys.stdout)
