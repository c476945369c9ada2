"""finetune --preview: the first sequences, token by token, with what is learned in brackets."""

import dataclasses
import os
import shutil
import sys

import npgpt
from npgpt import data
from npgpt.adapters import pretrained
from npgpt.commands import dataset, lines, models
from npgpt.files import checkpoint
from npgpt.runtime.errors import NpgptError


def show(settings, n):
    """Print what there is to learn, and the first `n` sequences of it. The model's weights are not needed."""
    if n < 0:
        raise NpgptError(f"--preview {n}: it must be at least 0")
    documents = dataset.read(settings)
    adapter = settings["adapter"] if pretrained.has_tokenizer(settings["adapter"]) else None
    tokenizer = models.load_tokenizer(settings["model"], settings["revision"], settings["tokenizer"] or adapter)
    config = checkpoint.read_config(npgpt.GPT2Config, settings["model"], settings["revision"])
    tokenizer.add_tokens(settings["add_tokens"] or [])
    config = dataclasses.replace(config, vocab_size=max(config.vocab_size, tokenizer.vocab_size))
    encoded = dataset.encode(documents, settings, config, tokenizer)
    print(*lines.data(settings, documents, encoded, dataset.longest(settings, config), tokenizer), sep="\n")
    sequences = encoded[0][1].sequences
    width, colour = shutil.get_terminal_size((100, 1)).columns, sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for i in range(min(n, len(sequences))):
        mask = sequences.loss_masks[i]
        print(f"\nsequence {i + 1:,} of {len(sequences):,}: {len(mask)} tokens, {mask[1:].sum()} learned, in brackets")
        place = sys.stdout.stream if colour else sys.stdout  # the first one leaves colours as they are
        print(*data.preview(sequences[i], mask, tokenizer, width, colour), sep="\n", file=place)
