"""What the command lines share: one-line errors, and which model `--model` means."""

import start

import argparse
import contextlib
import io
import os
import re
import sys
import warnings
from pathlib import Path

import npgpt
from npgpt.adapters import pretrained
from npgpt.adapters.stack import set_adapter
from npgpt.files import hub
from npgpt.runtime.errors import ConfigError, HubError
from npgpt.runtime.threads import checked

DEFAULT_MODEL = "gpt2"
FALLBACK = "tiny"


class Parser(argparse.ArgumentParser):
    """Ends with one line and exit status 2 when an argument is wrong."""

    def error(self, message):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def run(command):
    """Call `command()` and return the exit status: 2 and one line on stderr for what npgpt calls an error."""
    start.imported()
    # NumPy takes for an error what BLAS adds and throws away: see test_cross_entropy.py. Losses are checked for NaN.
    warnings.filterwarnings("ignore", "invalid value encountered in matmul", RuntimeWarning)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="replace")  # a pipe shows each line at once, in any encoding
    try:
        try:
            return command() or 0
        finally:
            sys.stdout.flush()  # here, where it can be said that this failed
    except npgpt.NpgptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not _write_nowhere():
            raise
        if isinstance(error, BrokenPipeError):  # nobody reads on, as behind `| head`
            return 141  # what a shell reports of a program ended by SIGPIPE
        print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        start.ended()


def _write_nowhere():
    """If standard output takes no more, let what is still in its buffer go nowhere. Tells whether that is so."""
    try:
        print(flush=True)  # to be seen only above a traceback: the error was not this stream's
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def filled(text):
    """Return what a flag is given, which must not be empty, as that of a variable the shell does not know is."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def path(text):
    """Return the Path that a flag names. An empty one would be the working directory, which nobody means by it."""
    return Path(filled(text))


def same_place(one, other):
    """Tell whether two paths are those of one file or folder that is there, however they are spelled."""
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return False


def threads(text):
    """Return the number of threads that a flag is given."""
    count = int(text)
    try:
        return checked(count)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error) from error


def size(text):
    """Return the bytes of 3GB, 800MB, 2GiB or 2.5e9: what a flag that takes a size is given."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper().replace("E", "e"))
    count = float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ") if match else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 3GB or 800MB")
    return int(count)


def add_model_arguments(parser):
    parser.add_argument("--model", help=f"hub id, folder, or '{FALLBACK}', the model in the package (default "
                                        f"{DEFAULT_MODEL}, or {FALLBACK} where that cannot be had)")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")


def check_revision(parser, args):
    """Refuse `--revision` where no `--model` is named, for commands that then read none."""
    if args.revision is not None and args.model is None:
        parser.error("--revision is of the model that --model names, and there is none")


def choose_model(name, revision=None):
    """Return `name`, or where none was given the default model, or the embedded one where that cannot be had."""
    if name is not None:
        return name
    if hub.cached(DEFAULT_MODEL, revision):
        return DEFAULT_MODEL
    reason = "the hub cannot be reached"
    if hub.reachable():
        try:
            hub.file(DEFAULT_MODEL, "config.json", revision)  # small; a proxy may answer, and let nothing through
            return DEFAULT_MODEL
        except HubError as error:
            reason = f"the hub does not give it ({error})"
    print(f"{DEFAULT_MODEL} is not in the cache and {reason}: going on with the embedded model, --model {FALLBACK}",
          file=sys.stderr)
    return FALLBACK


def load(name, revision=None, adapter=()):
    """Return (model, tokenizer), with the adapter in the folder `adapter`, or the sum of those in several, in force."""
    folders = [adapter] if isinstance(adapter, str) else adapter or ()
    model, tokenizer = pretrained.base_of(name, revision, folders)
    for i, folder in enumerate(folders):
        npgpt.load_adapter(model, folder, f"adapter-{i}", trainable=False)
    if folders:
        set_adapter(model, [f"adapter-{i}" for i, _ in enumerate(folders)], trainable=False)
    return model, tokenizer
