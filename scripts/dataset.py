"""The data of finetune.py: its flags, what is read, and what becomes of it, said in a few lines."""

import os
import shutil
import sys
from pathlib import Path

import npgpt
from npgpt import checkpoint, data

TEXTS = Path(npgpt.__file__).parent / "texts"
TRAINING, HELD_OUT = TEXTS / "train.txt", TEXTS / "validation.txt"
DEFAULTS = {"data": None, "val_data": None, "val_fraction": 0.0, "split": None, "separator": None, "template": None,
            "train_on_prompt": False, "special_tokens": False, "max_length": None}


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
    add("--special-tokens", "special tokens spelled out in the data, such as <|endoftext|>, become those tokens; "
        "without this they are plain text, and only those in --template are tokens", action="store_true")
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


def encode(places_and_documents, settings, config, tokenizer, say):
    """Return the Encoded to train on and that to measure on (None where there is none), and say what they are.

    config  GPT2Config of the model they are for
    """
    context = config.n_positions
    max_length = context if settings["max_length"] is None else settings["max_length"]
    if not 2 <= max_length <= context:
        raise npgpt.NpgptError(f"--max-length {max_length}: it must be from 2 to the model's context of {context}")
    encoded = []
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
    line = (f"{count(e.texts, 'text') if e.texts else count(len(e.sequences), 'block')}, {e.tokens:,} tokens, "
            f"{e.targets:,} learned, end of text learned in {e.ended:,} of {e.texts:,}")
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
    config = checkpoint.read_config(settings["model"], settings["revision"])
    sequences = encode(documents, settings, config, tokenizer, print)[0].sequences
    width, colour = shutil.get_terminal_size((100, 1)).columns, sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for i in range(min(n, len(sequences))):
        mask = sequences.loss_masks[i]
        print(f"\nsequence {i + 1:,} of {len(sequences):,}: {len(mask)} tokens, {mask[1:].sum()} learned, in brackets")
        print(*data.preview(sequences[i], mask, tokenizer, width, colour), sep="\n")
