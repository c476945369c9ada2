"""The data of finetune.py: its flags, what is read, and what becomes of it, said in a few lines."""

from pathlib import Path

import numpy as np

import npgpt
from npgpt import data

TEXTS = Path(npgpt.__file__).parent / "texts"
TRAINING, HELD_OUT = TEXTS / "train.txt", TEXTS / "validation.txt"
DEFAULTS = {"data": None, "val_data": None, "val_fraction": 0.0, "split": None, "separator": None, "template": None,
            "train_on_prompt": False, "max_length": None}


def add_flags(add):
    """add(flag, help, **options of argparse)"""
    add("--data", "what to train on: .txt, .jsonl, .json or .csv, or a folder of them; records have text, prompt and "
        "completion, instruction, input and output, or messages (default: the texts in the package)")
    add("--val-data", "what to measure on, before, after each epoch and after (default: held-out texts in the package)")
    add("--val-fraction", "hold out this part of the data, chosen by a hash, instead", type=float)
    add("--split", "what a text is in plain text: a line, what blank lines enclose, or a whole file, which is then cut "
        "into blocks (default line, in a folder none)", choices=data.SPLITS)
    add("--separator", "in plain text, what stands between prompt and completion, such as '||'")
    add("--template", "what records are put into, with their fields in braces and \\n for a new line; the last field "
        "and what follows is learned (default: one for each kind of record)")
    add("--train-on-prompt", "learn prompts too", action="store_true")
    add("--max-length", "longest sequence in tokens; longer texts are split (default: the model's context)", type=int)


def read(settings):
    """Return [(place, Documents), ...]: those to train on and, where there are any, those to measure on."""
    paths = [TRAINING if settings["data"] is None else settings["data"]]
    if settings["val_data"] is not None or (settings["data"] is None and not settings["val_fraction"]):
        paths.append(HELD_OUT if settings["val_data"] is None else settings["val_data"])
    if settings["val_fraction"] and len(paths) == 2:
        raise npgpt.NpgptError("--val-fraction holds out a part of the data, --val-data names other data: give one")
    for name in ("split", "separator"):
        if settings[name] is not None and not any(map(data.is_text, paths)):
            raise npgpt.NpgptError(f"--{name} is for plain text; the records in {paths[0]} are divided already")
    template = settings["template"] and settings["template"].replace("\\n", "\n").replace("\\t", "\t")
    return [(f"npgpt/texts/{path.name}" if path in (TRAINING, HELD_OUT) else path,
             data.Documents(path, settings["split"], settings["separator"], template, settings["train_on_prompt"]))
            for path in paths]


def encode(places_and_documents, settings, model, tokenizer, say):
    """Return the Sequences to train on and those to measure on (None where there are none), and say what they are."""
    context = model.config.n_positions
    max_length = context if settings["max_length"] is None else settings["max_length"]
    if not 2 <= max_length <= context:
        raise npgpt.NpgptError(f"--max-length {max_length}: it must be from 2 to the model's context of {context}")
    encoded = []
    for i, (place, documents) in enumerate(places_and_documents):
        if i == 0 or documents.template.text != places_and_documents[0][1].template.text:
            say(f"template   {documents.template}")
        fraction = settings["val_fraction"] if i == 0 else 0.0
        for e in data.encode(tokenizer, documents, max_length, fraction)[:2 if fraction else 1]:
            if not e.targets:
                raise npgpt.NpgptError(f"{place}: nothing to {'measure on' if encoded else 'learn'}: {reason(e)}")
            model.check_ids(np.array([e.highest]), 0)
            say(f"{('data', 'held out')[len(encoded)]:10} {place}: {summary(e, max_length)}")
            encoded.append(e.sequences)
    return encoded if len(encoded) == 2 else (encoded[0], None)


def summary(e, max_length):
    """Return what became of the documents, in a line."""
    parts = [f"{e.texts:,} texts" if e.texts else f"{len(e.sequences):,} blocks",
             f"{e.tokens:,} tokens", f"{e.targets:,} learned", f"end of text in {e.ended:,} of {e.texts:,}"]
    if e.blank:
        parts[-1] += f"; {e.blank:,} blank ones left out"
    if e.split:
        parts[-1] += (f"; {e.split:,} longer than {max_length} tokens were split: {len(e.sequences):,} sequences"
                      + (f", {e.cut:,} tokens in none" if e.cut else ""))
    return ", ".join(parts)


def reason(e):
    return "all its records are blank" if e.blank else "--val-fraction leaves no record for it"
