"""The data of finetune.py: its flags, what is read, and what becomes of it, said in a few lines."""

import cli

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import npgpt
from npgpt import data
from npgpt.files import checkpoint

TEXTS = Path(npgpt.__file__).parent / "texts"
TRAINING, HELD_OUT = TEXTS / "train.txt", TEXTS / "validation.txt"
DEFAULTS = {"data": None, "val_data": None, "val_fraction": 0.0, "split": None, "separator": None, "template": None,
            "train_on_prompt": False, "special_tokens": False, "max_length": None}


def add_flags(add):
    """add(flag, help, **options of argparse)"""
    add("--data", "what to train on: .txt, .jsonl, .json, .csv or .parquet, or a folder of them, of which the files "
        "named train are used; records have text, prompt and completion, instruction, input and output, messages or "
        "conversations (default: the texts in the package)", type=cli.filled)
    add("--val-data", "what to measure on, before, after each epoch and after (default: in a folder the files named "
        "validation, valid, val or dev; without --data the held-out texts in the package)", type=cli.filled)
    add("--val-fraction", "hold out this part of the data, chosen by a hash, instead", type=float)
    add("--split", "what a text is in plain text: line, a line; blank, what blank lines enclose; none, a whole file, "
        "which is then cut into blocks; or what stands between a mark such as '<|endoftext|>' (default line, in a "
        "folder without a file named train none)")
    add("--separator", "in plain text, what stands between prompt and completion, such as '||'")
    add("--template", "what records are put into, with their fields in braces and \\n for a new line; the last field "
        "and what follows is learned (default: one for each kind of record)")
    add("--train-on-prompt", "learn prompts too", action="store_true")
    add("--special-tokens", "special tokens spelled out in the data, such as <|endoftext|>, become those tokens; "
        "without this they are plain text, and only those in --template are tokens", action="store_true")
    add("--max-length", "longest sequence in tokens; longer texts are split (default: the model's context)", type=int)


def read(settings):
    """Return [(place, Documents), ...]: those to train on and, where there are any, those to measure on."""
    if settings["val_fraction"] and settings["val_data"] is not None:
        raise npgpt.NpgptError("--val-fraction holds out a part of the data, --val-data names other data: give one")
    sources = [source for source in sources_of(settings) if source]
    for name in ("split", "separator"):
        if settings[name] is not None and not any(data.is_text(path) for _, path in sources):
            raise npgpt.NpgptError(f"--{name} is for plain text; the records in {sources[0][0]} are divided already")
    split, template = unescaped(settings["split"]), unescaped(settings["template"])
    return [(place, data.Documents(path, split, settings["separator"], template, settings["train_on_prompt"]))
            for place, path in sources]


def sources_of(settings):
    """Return two of (place, what `data.Documents` takes): to train on, and to measure on (None: nothing)."""
    if settings["data"] is None:
        training, held_out = (f"npgpt/texts/{TRAINING.name}", TRAINING), (f"npgpt/texts/{HELD_OUT.name}", HELD_OUT)
    else:
        training, held_out = (settings["data"], settings["data"]), None
        if files := data.splits(settings["data"]):
            if "train" not in files:
                raise npgpt.NpgptError(f"{settings['data']}: nothing to train on: no file in it is named train, and "
                                       f"there are files of the splits {', '.join(files)}")
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
    """Return how files are called: by the first and the last of them."""
    return files[0].as_posix() if len(files) == 1 else f"{files[0].as_posix()} .. {files[-1].name} ({len(files)} files)"


def say_what_is_used(settings, say):
    """Say which file of a folder of splits is used for what."""
    folder = settings["data"]
    files = data.splits(folder) if folder is not None else {}
    instead = next((f"not used, as --{name.replace('_', '-')} is given" for name in ("val_data", "val_fraction")
                    if settings[name] and settings[name] != folder), "measured on")
    uses = {"train": "trained on", "validation": instead, "test": "not touched", "other": "left out"}
    if files:
        below = f"{Path(folder).as_posix()}/"
        told = (f"{named(files[split]).removeprefix(below)} {uses[split]}" for split in files)
        say(f"files      {folder}: {'; '.join(told)}")


def unescaped(text):
    return text and text.replace("\\n", "\n").replace("\\t", "\t")


def encode(places_and_documents, settings, config, tokenizer, say):
    """Return the Encoded to train on and that to measure on (None where there is none), and say what they are.

    config  GPT2Config of the model they are for
    """
    context = config.n_positions
    max_length = context if settings["max_length"] is None else settings["max_length"]
    if not 2 <= max_length <= context:
        raise npgpt.NpgptError(f"--max-length {max_length}: it must be from 2 to the model's context of {context}")
    encoded = []
    say_what_is_used(settings, say)
    for i, (place, documents) in enumerate(places_and_documents):
        if i == 0 or documents.template.text != places_and_documents[0][1].template.text:
            say(f"template   {documents.template}")
            if tokens := documents.template.spelled(tokenizer.special_tokens):
                say(f"           special tokens in it: {', '.join(tokens)}")
        fraction = settings["val_fraction"] if i == 0 else 0.0
        sides = data.encode(tokenizer, documents, max_length, fraction, not settings["special_tokens"])
        for e in sides[:2 if fraction else 1]:
            if not e.targets:
                raise npgpt.NpgptError(f"{place}: nothing to {'measure on' if encoded else 'learn'}: {reason(e)}")
            if e.highest >= config.vocab_size:
                raise npgpt.NpgptError(f"{place}: token id {e.highest} is outside this model's vocabulary of "
                                       f"{config.vocab_size}; the tokenizer is that of another model")
            say(f"{('data', 'held out')[len(encoded)]:10} {place}: {summary(e, max_length)}")
            encoded.append(e)
    return encoded if len(encoded) == 2 else (encoded[0], None)


def summary(e, max_length):
    """Return what became of the documents, in a line."""
    figures = f"{e.tokens:,} tokens, {e.targets:,} learned"
    if e.texts:
        line = f"{count(e.texts, 'text')}, {figures}, end of text learned in {e.ended:,} of {e.texts:,}"
    else:  # blocks of texts that count on the other side, with the ends that came to be here
        line = f"{count(len(e.sequences), 'block')}, {figures}"
        line += f", among them the end of {count(e.ended, 'text')}" if e.ended else ""
    if e.blank:
        line += f"; {e.blank:,} blank left out"
    if e.split:
        line += (f"; {e.split:,} longer than {max_length} tokens {'was' if e.split == 1 else 'were'} split: "
                 f"{count(len(e.sequences), 'sequence')}")
    if e.cut:
        line += f", {e.cut:,} tokens in none"
    if e.spelled:
        line += f"; {count(e.spelled, 'special token')} spelled out, taken as plain text (see --special-tokens)"
    return line


def count(n, word):
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def reason(e):
    return "all its records are blank" if e.blank else "--val-fraction leaves no record for it"


def preview(settings, n):
    """Print what there is to learn and the first `n` sequences of it, token by token; the model is not needed."""
    if n < 0:
        raise npgpt.NpgptError(f"--preview {n}: it must be at least 0")
    documents = read(settings)
    tokenizer = npgpt.Tokenizer.from_pretrained(settings["model"], settings["revision"])
    config = checkpoint.read_config(npgpt.GPT2Config, settings["model"], settings["revision"])
    tokenizer.add_tokens(settings["add_tokens"] or [])
    config = dataclasses.replace(config, vocab_size=max(config.vocab_size, tokenizer.vocab_size))
    sequences = encode(documents, settings, config, tokenizer, print)[0].sequences
    width, colour = shutil.get_terminal_size((100, 1)).columns, sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for i in range(min(n, len(sequences))):
        mask = sequences.loss_masks[i]
        print(f"\nsequence {i + 1:,} of {len(sequences):,}: {len(mask)} tokens, {mask[1:].sum()} learned, in brackets")
        print(*data.preview(sequences[i], mask, tokenizer, width, colour), sep="\n")
