"""What the command lines share: one-line errors, and which model `--model` means."""

import argparse
import os
import re
import sys
import warnings

import npgpt
from npgpt import hub, pretrained
from npgpt.errors import HubError
from npgpt.lora import set_adapter

DEFAULT_MODEL = "gpt2"
FALLBACK = "tiny"


class Parser(argparse.ArgumentParser):
    """Ends with one line and exit status 2 when an argument is wrong."""

    def error(self, message):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def run(command):
    """Call `command()` and return the exit status: 2 and one line on stderr for what npgpt calls an error."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    sys.stdout.reconfigure(line_buffering=True, errors="replace")  # a pipe shows each line at once, in any encoding
    try:
        return command() or 0
    except npgpt.NpgptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # nobody reads on, as behind `| head`; what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell reports of a program ended by SIGPIPE
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


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
