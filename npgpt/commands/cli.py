"""What every command line does the same way: run a command, and say in one line what went wrong."""

import io
import os
import sys
import warnings

from npgpt.commands import start
from npgpt.commands.printing import harmless_streams
from npgpt.runtime.errors import ConfigError, NpgptError, one_line


class Unfailing(io.FileIO):
    """A stream that nobody has to read: if it cannot be written, because a disk is full, what is said goes nowhere."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return len(data)


def run(command, flags=()):
    """Call `command()` and return the exit status: 2 and one line on stderr for what npgpt calls an error.

    flags  the command's Flags, by which messages name what is wrong
    """
    start.imported()
    # NumPy reports what BLAS adds and throws away as an error: see test_cross_entropy.py. Losses are checked for NaN.
    warnings.filterwarnings("ignore", "invalid value encountered in matmul", RuntimeWarning)
    warnings.showwarning = lambda message, *_: print(f"warning: {one_line(str(message))}", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="replace")  # a pipe shows each line at once, in any encoding
    if type(sys.stderr) is io.TextIOWrapper:  # progress, warnings and errors: no reason to end
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(Unfailing(sys.stderr.fileno(), "w", closefd=False)),
                                      sys.stderr.encoding, "backslashreplace", line_buffering=True)
    with harmless_streams():
        return _status(command, flags)


def _status(command, flags):
    """Call `command()` and return its exit status."""
    try:
        try:
            return command() or 0
        finally:
            sys.stdout.flush()  # here, where a failure can still be reported
    except NpgptError as error:
        print(f"error: {_named(error, flags)}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not _write_nowhere():
            raise
        if isinstance(error, BrokenPipeError):  # nobody reads on, as in `npgpt generate | head`
            return 141  # what a shell reports of a program that SIGPIPE ended
        print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        start.ended()  # a second Ctrl-C must not interrupt this message
        print("stopped", file=sys.stderr)
        return start.status()
    finally:
        start.ended()


def _named(error, flags):
    """Return the message of an error. One about a configuration names the flags that set it."""
    if not flags or not isinstance(error, ConfigError):
        return error
    from npgpt.commands.flags import named

    return named(str(error), flags)


def _write_nowhere():
    """If standard output cannot be written, send what is still in its buffer nowhere. Returns whether that is so."""
    try:
        print(flush=True)  # only seen above a traceback: then the error was not this stream's
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
