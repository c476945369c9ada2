"""The data of a run: which files are read, and what becomes of them."""

from pathlib import Path

import npgpt
from npgpt import data
from npgpt.commands.flags import unescaped
from npgpt.runtime.errors import NpgptError

TEXTS = Path(npgpt.__file__).parent / "texts"
TRAINING, HELD_OUT = TEXTS / "train.txt", TEXTS / "validation.txt"


def read(settings):
    """Return [(place, Documents), ...]: those to train on and, if there are any, those to measure on."""
    if settings["val_fraction"] and settings["val_data"] is not None:
        raise NpgptError("--val-fraction holds out a part of the data, --val-data names other data: give only one")
    sources = [(place, data.readable_again(path)) for place, path in filter(None, sources_of(settings))]
    for name in ("split", "separator"):
        if settings[name] is not None and not any(data.is_text(path) for _, path in sources):
            raise NpgptError(f"--{name} is for plain text; the records in {sources[0][0]} are separate already")
    split, separator, template = (unescaped(settings[name]) for name in ("split", "separator", "template"))
    return [(place, data.Documents(path, split, separator, template, settings["train_on_prompt"]))
            for place, path in sources]


def check_measured(documents, settings):
    """Raise NpgptError if a setting needs a held-out loss and there are no texts to measure it on."""
    if len(documents) > 1 or settings["val_fraction"]:
        return
    for name in ("eval_every", "keep_best", "patience"):
        if settings[name]:
            raise NpgptError(f"--{name.replace('_', '-')} needs texts to measure on: give --val-data or --val-fraction")


def sources_of(settings):
    """Return two of (place, what `data.Documents` takes): to train on, and to measure on (None: nothing)."""
    if settings["data"] is None:
        training, held_out = (f"npgpt/texts/{TRAINING.name}", TRAINING), (f"npgpt/texts/{HELD_OUT.name}", HELD_OUT)
    else:
        training, held_out = (settings["data"], settings["data"]), None
        if files := data.splits(settings["data"]):
            if "train" not in files:
                raise NpgptError(f"{settings['data']}: nothing to train on: no file in it is named train; it has files "
                                 f"of the splits {', '.join(files)}")
            training = named(files["train"]), files["train"]
            if "validation" in files:
                held_out = named(files["validation"]), files["validation"]
    if settings["val_fraction"]:
        held_out = None
    elif settings["val_data"] is not None:
        files = data.splits(settings["val_data"]).get("validation")
        held_out = (named(files), files) if files else (settings["val_data"],) * 2
    return training, held_out


def named(files):
    """Return a name for files: the first of them and the last."""
    return files[0].as_posix() if len(files) == 1 else f"{files[0].as_posix()} .. {files[-1].name} ({len(files)} files)"


def uses(settings):
    """Return which files of a folder of splits are used, and for what: [(files, use), ...]."""
    folder = settings["data"]
    files = data.splits(folder) if folder is not None else {}
    instead = next((f"not used, as --{name.replace('_', '-')} is given" for name in ("val_data", "val_fraction")
                    if settings[name] and settings[name] != folder), "measured on")
    words = {"train": "trained on", "validation": instead, "test": "not touched", "other": "left out"}
    return [(named(files[split]), words[split]) for split in files]


def longest(settings, config):
    """Return the most tokens that a sequence may have for a model with this GPT2Config."""
    context = config.n_positions
    length = context if settings["max_length"] is None else settings["max_length"]
    if not 2 <= length <= context:
        raise NpgptError(f"--max-length {length}: it must be from 2 to the model's context of {context}")
    return length


def encode(places_and_documents, settings, config, tokenizer):
    """Return [(place, Encoded), ...]: what to train on and, if there is any, what to measure on.

    config  GPT2Config of the model
    """
    found, length = [], longest(settings, config)
    for i, (place, documents) in enumerate(places_and_documents):
        fraction = settings["val_fraction"] if i == 0 else 0.0
        sides = data.encode(tokenizer, documents, length, fraction, not settings["special_tokens"])
        for e in sides[:2 if fraction else 1]:
            if not e.targets:
                why = "all its records are blank" if e.blank else "--val-fraction leaves no record for it"
                raise NpgptError(f"{place}: nothing to {'measure on' if found else 'learn'}: {why}")
            if e.highest >= config.vocab_size:
                raise NpgptError(f"{place}: token id {e.highest} is outside this model's vocabulary of "
                                 f"{config.vocab_size}; the tokenizer belongs to another model")
            found.append((place, e))
    return found


def recipe(documents, settings, config):
    """Return the data.Recipe of a run: how it makes sequences of what `read` returned. config: the model's."""
    template = documents[0][1].template
    return data.Recipe(template.kind, template.text, settings["train_on_prompt"], unescaped(settings["split"]),
                       unescaped(settings["separator"]), settings["special_tokens"], longest(settings, config))
