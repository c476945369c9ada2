"""What a script does before all else; `cli` imports this module first, and every script imports `cli` first.

Importing NumPy and the rest takes up to half a second. Ctrl-C in that time ends the script with the message and the
status that `cli.run` has for it later. A standard stream that was closed leads nowhere from here on, so that no other
code has to ask whether it is there.
"""

import os
import signal
import sys


def _stop(number, frame):
    os.write(2, b"stopped\n")
    os._exit(130)  # there is nothing to put in order yet


def imported():
    """From here on Ctrl-C raises KeyboardInterrupt, as Python has it."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ended():
    """The command has done its work or has said why not: Ctrl-C cannot change that any more."""
    if _is_run() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_run():
    """Tell whether a script of this folder is what Python runs, and not a test that imports one."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return main is not None and os.path.dirname(os.path.abspath(main)) == os.path.dirname(os.path.abspath(__file__))


if _is_run():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the shell lets it ignore Ctrl-C
        signal.signal(signal.SIGINT, _stop)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # takes the lowest number: the stream's own
