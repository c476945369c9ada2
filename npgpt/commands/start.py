"""What a program does first, before it imports anything that takes time.

Importing NumPy and the rest takes up to half a second. If Ctrl-C comes in that time, the program ends with the message
and the status that `cli.run` gives later; only the first hundredth of a second, in which Python itself starts, is out
of reach. A standard stream that was closed leads nowhere from here on, so that no other code has to check for it.

This module also knows how the program was started, so that help and hints name commands as the user types them.
"""

import _signal as signal  # the module signal wraps it in enumerations, whose import takes longer than all of this
import os
import sys

CONSOLE, MODULE, SCRIPT = "npgpt {}", "python -m npgpt {}", "python scripts/{}.py"  # the ways to start a command
prog = None   # what help and errors call this program; None: the name of its file
_way = CONSOLE
_begun = False


def begin(way=SCRIPT, command=None):
    """Prepare this process for Ctrl-C and for closed streams. The first statement of every program.

    way, command  how the program was started, and the command that it is; None: a script says that by its file's name
    """
    global prog, _way, _begun
    _way, _begun = way, True
    if way != SCRIPT:
        prog = typed(command) if command else way.format("").rstrip()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the shell lets it ignore Ctrl-C
        signal.signal(signal.SIGINT, _stop)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # takes the lowest number: the stream's own


def typed(command):
    """Return how a user who started this program types the command `command`."""
    return _way.format(file_name(command) if _way == SCRIPT else command)


def file_name(command):
    """Return the name of a command's module and of its script."""
    return command.replace(" ", "_").replace("-", "_")


def _stop(number, frame):
    os.write(2, b"stopped\n")
    os._exit(130)  # nothing needs to be cleaned up yet


def imported():
    """From here on Ctrl-C raises KeyboardInterrupt, as in any Python program."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ended():
    """The command has done its work, or has said why it could not. Ctrl-C changes nothing any more."""
    if _begun and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
