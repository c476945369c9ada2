"""Which model --model names, and loading it with its adapters."""

import contextlib
import os
import sys

import npgpt
from npgpt.adapters import pretrained
from npgpt.adapters.stack import set_adapter
from npgpt.commands.flags import Flag, filled
from npgpt.data import Recipe
from npgpt.files import hub
from npgpt.runtime.errors import HubError, NpgptError

DEFAULT = "gpt2"
FALLBACK = "tiny"
REVISION = Flag("--revision", "branch, tag or commit of a model on the hub", metavar="NAME")
TOKENIZER = Flag("--tokenizer", "hub id or folder of the tokenizer, if it is not beside the model's weights", filled,
                 metavar="NAME")
MODEL = [
    Flag("--model", f"hub id, folder, or '{FALLBACK}', the model in the package (default: with an adapter, the "
                    f"model that it was trained on; else {DEFAULT}, or {FALLBACK} if {DEFAULT} is neither in the cache "
                    "nor on a hub that can be reached)", metavar="NAME"),
    REVISION,
    TOKENIZER,
]


def check_revision(parser, args):
    """Refuse --revision without --model, for commands that then read no model."""
    if args.revision is not None and args.model is None:
        parser.error("--revision needs --model, the model on the hub that it is a revision of")


def choose_model(name, revision=None, adapters=()):
    """Return `name`; if it is None, the base that the first adapter names, else the default model, or the embedded one
    if the default cannot be had. Raises NpgptError if the base of an adapter cannot be had."""
    if name is not None:
        return name
    for adapter in adapters:
        base = pretrained.base_name(adapter)
        if base is not None:
            try:
                hub.file(base, "config.json", revision)
            except NpgptError as error:
                raise NpgptError(f"{adapter} was trained on {base!r}: {error}; --model can name that model "
                                 "elsewhere") from error
            return base
    if hub.cached(DEFAULT, revision):
        return DEFAULT
    reason = "the hub cannot be reached"
    if hub.reachable():
        try:
            hub.file(DEFAULT, "config.json", revision)  # small; a proxy may answer and let nothing through
            return DEFAULT
        except HubError as error:
            reason = f"the hub does not give it ({error})"
    print(f"{DEFAULT} is not in the cache and {reason}: going on with the embedded model, --model {FALLBACK}",
          file=sys.stderr)
    return FALLBACK


def load(name, revision=None, adapter=(), tokenizer=None):
    """Return (model, tokenizer), with the adapter in the folder `adapter` active, or the sum of those in several."""
    folders = [adapter] if isinstance(adapter, str) else adapter or ()
    model, tokenizer = pretrained.base_of(name, revision, folders, tokenizer)
    for i, folder in enumerate(folders):
        npgpt.load_adapter(model, folder, f"adapter-{i}", trainable=False)
    if folders:
        set_adapter(model, [f"adapter-{i}" for i, _ in enumerate(folders)], trainable=False)
    return model, tokenizer


def load_tokenizer(name, revision=None, tokenizer=None):
    """Return the tokenizer of the model `name`, or the one that --tokenizer names."""
    return npgpt.Tokenizer.from_pretrained(tokenizer or name, None if tokenizer else revision)


def recipes(adapters, model):
    """Return the data.Recipe beside each adapter, or without adapters that of the model; None if there is none."""
    folders = map(hub.adapter_folder, adapters) if adapters else filter(None, [hub.folder(model)])
    return [Recipe.load(folder) for folder in folders]


def same_place(one, other):
    """Return whether two paths lead to one existing file or folder, however they are spelled."""
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return False
