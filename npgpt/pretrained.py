"""A base with its tokenizer, as the adapters that go onto it were trained with."""

import os
from pathlib import Path

from npgpt.adapter import make_room
from npgpt.checkpoint import from_pretrained
from npgpt.errors import ConfigError
from npgpt.tokenizer import Tokenizer


def base_of(name, revision=None, adapters=()):
    """Return (model, tokenizer) for the adapters in the folders `adapters`, none of which is loaded.

    name, revision  of the base, as for `GPT2.from_pretrained`

    Where tokens were added for an adapter, the model has rows for them. The tokenizer is the adapters' where their
    folders hold a tokenizer.json, else the base's. Raises ConfigError where two adapters have different tokenizers,
    and what loading raises.
    """
    folders = [folder for folder in adapters if os.path.isfile(Path(folder) / "tokenizer.json")]
    tokenizers = [Tokenizer.from_pretrained(folder) for folder in folders]
    for folder, tokenizer in zip(folders, tokenizers, strict=True):
        if tokenizer.to_dict() != tokenizers[0].to_dict():
            raise ConfigError(f"{folders[0]} and {folder} have different tokenizers: use one of the adapters at a time")
    tokenizer = tokenizers[0] if tokenizers else Tokenizer.from_pretrained(name, revision)
    model = from_pretrained(name, revision)
    for folder in adapters:
        make_room(model, folder)
    return model, tokenizer
