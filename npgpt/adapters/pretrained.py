"""A base model and its tokenizer, as they were when the adapters for it were trained."""

import os
import warnings
from pathlib import Path

from npgpt.adapters.peft import make_room
from npgpt.files.tokenizer import Tokenizer
from npgpt.gpt2 import GPT2
from npgpt.runtime.errors import ConfigError, one_line


def has_tokenizer(folder):
    """Return whether an adapter was saved with a tokenizer of its own. folder: None if there is no adapter."""
    return folder is not None and os.path.isfile(Path(folder) / "tokenizer.json")


def base_of(name, revision=None, adapters=()):
    """Return (model, tokenizer) for the adapters in the folders `adapters`. It does not load the adapters.

    name, revision  of the base, as for `GPT2.from_pretrained`

    If tokens were added for an adapter, the model has rows for them. The tokenizer comes from the adapters' folders if
    they have a tokenizer.json, else from the base. Raises ConfigError if two adapters have different tokenizers, and
    what loading raises.
    """
    folders = [folder for folder in adapters if has_tokenizer(folder)]
    tokenizers = [Tokenizer.from_pretrained(folder) for folder in folders]
    for folder, tokenizer in zip(folders, tokenizers, strict=True):
        if tokenizer.to_dict() != tokenizers[0].to_dict():
            raise ConfigError(f"{folders[0]} and {folder} have different tokenizers: use only one of these adapters")
    tokenizer = tokenizers[0] if tokenizers else Tokenizer.from_pretrained(name, revision)
    model = GPT2.from_pretrained(name, revision)
    for folder in adapters:
        before = model.config.vocab_size
        make_room(model, folder)
        if model.config.vocab_size > before and folder not in folders:
            warnings.warn(one_line(f"{folder}: tokens were added for this adapter, but it has no tokenizer.json that "
                                   "knows them; copy the tokenizer.json of its training there"), stacklevel=2)
    if tokenizers and tokenizer.vocab_size > model.config.vocab_size:
        warnings.warn(one_line(f"{folders[0]}: its tokenizer has {tokenizer.vocab_size:,} tokens, but the model has "
                               f"rows for {model.config.vocab_size:,}; if texts use the other tokens, save the adapter "
                               "again with its new rows (PEFT's save_embedding_layers)"), stacklevel=2)
    return model, tokenizer
