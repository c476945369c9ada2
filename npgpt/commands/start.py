"""What a program does first, before it imports anything that takes time.

Importing NumPy and the rest takes up to half a second. If Ctrl-C comes in that time, the program ends with the message
and the status that `cli.run` gives later; only the first hundredth of a second, in which Python itself starts, is out
of reach. A standard stream that was closed leads nowhere from here on, so that no other code has to check for it.

SIGTERM is handled like Ctrl-C. Slurm, docker stop, Kubernetes and spot machines send it some seconds before they end a
process. The exit status is the one that a shell reports for the signal: 128 and its number, 130 or 143.

This module also knows how the program was started, so that help and hints name commands as the user types them.
"""

import _signal as signal  # the module signal wraps it in enumerations, whose import takes longer than all of this
import os
import sys
import time

CONSOLE, MODULE, SCRIPT = "npgpt {}", "python -m npgpt {}", "python scripts/{}.py"  # the ways to start a command
SIGNALS = signal.SIGINT, signal.SIGTERM
MOMENT = 1.0  # seconds
prog = None   # what help and errors call this program; None: the name of its file
_way = CONSOLE
_begun = False
_stopped_by, _terminated = signal.SIGINT, -MOMENT  # the last signal; when SIGTERM came


def begin(way=SCRIPT, command=None):
    """Prepare this process for Ctrl-C and for closed streams. The first statement of every program.

    way, command  how the program was started, and the command that it is; None: a script says that by its file's name
    """
    global prog, _way, _begun
    _way, _begun = way, True
    if way != SCRIPT:
        prog = typed(command) if command else way.format("").rstrip()
    for number, default in zip(SIGNALS, (signal.default_int_handler, signal.SIG_DFL), strict=True):
        if signal.getsignal(number) == default:  # else whoever started the program lets it ignore the signal
            signal.signal(number, _stop)
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
    try:
        os.write(2, b"stopped\n")
    finally:
        os._exit(128 + number)  # nothing needs to be cleaned up yet


def imported():
    """From here on Ctrl-C and SIGTERM raise KeyboardInterrupt."""
    for number in SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, interrupt)


def ended():
    """The command has done its work, or has said why it could not. Ctrl-C and SIGTERM change nothing any more."""
    for number in SIGNALS:
        if _begun and signal.getsignal(number) is interrupt:
            signal.signal(number, signal.SIG_IGN)


def interrupt(number, frame=None):
    """Raise KeyboardInterrupt for a signal."""
    if not repeated(number):
        raise KeyboardInterrupt


def repeated(number):
    """Note which signal came. Returns whether it is a SIGTERM that came a moment ago too.

    Slurm, timeout and others send it to all processes, and those pass it on to their children: so it comes twice.
    """
    global _stopped_by, _terminated
    _stopped_by = number
    again = number == signal.SIGTERM and time.monotonic() < _terminated + MOMENT
    if number == signal.SIGTERM and not again:
        _terminated = time.monotonic()
    return again


def by_ctrl_c():
    """Return whether it was Ctrl-C that stopped the program, and not SIGTERM."""
    return _stopped_by == signal.SIGINT


def status():
    """Return the exit status of a program that a signal stopped."""
    return 128 + _stopped_by
