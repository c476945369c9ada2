"""A base model and its tokenizer, as they were when the adapters for it were trained."""

import contextlib
import os
import warnings

from npgpt.adapters.peft import make_room
from npgpt.adapters.peft_config import CONFIG_FILE, read_config
from npgpt.files import hub
from npgpt.files.tokenizer import Tokenizer
from npgpt.gpt2 import GPT2
from npgpt.runtime.errors import ConfigError, FileError, one_line

# Files beside a tokenizer.json that say which tokens end a text.
SAY_WHAT_ENDS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


def base_name(adapter):
    """Return the name of the model that an adapter was trained on, as its files say it; None if they do not.

    adapter  a folder or a hub id. Raises FileError, FormatError and HubError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `load_adapter` will warn
        return read_config(hub.adapter_folder(adapter) / CONFIG_FILE)["base_model_name_or_path"] or None


def has_tokenizer(adapter):
    """Return whether an adapter, a folder or a hub id, was saved with a tokenizer of its own. None: no adapter."""
    return adapter is not None and os.path.isfile(hub.adapter_folder(adapter) / "tokenizer.json")


def base_of(name, revision=None, adapters=(), tokenizer=None):
    """Return (model, tokenizer) for the adapters in the folders `adapters`. It does not load the adapters.

    name, revision  of the base, as for `GPT2.from_pretrained`
    adapters        folders, or hub ids
    tokenizer       hub id or folder of the tokenizer, if it is not beside the weights

    If tokens were added for an adapter, the model has rows for them. Without `tokenizer`, the tokenizer comes from the
    adapters' folders if they have a tokenizer.json, else from the base. Raises ConfigError if two adapters have
    different tokenizers, and what loading raises.
    """
    adapters = [hub.adapter_folder(adapter) for adapter in adapters]
    folders = [] if tokenizer else [folder for folder in adapters if has_tokenizer(folder)]
    tokenizers = [Tokenizer.from_pretrained(folder) for folder in folders]
    for folder, other in zip(folders, tokenizers, strict=True):
        if other.to_dict() != tokenizers[0].to_dict():
            raise ConfigError(f"{folders[0]} and {folder} have different tokenizers: use only one of these adapters")
    tokenizer = (Tokenizer.from_pretrained(tokenizer) if tokenizer else
                 _ending_like(name, revision, folders[0], tokenizers[0]) if tokenizers else
                 Tokenizer.from_pretrained(name, revision))
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


def _ending_like(name, revision, folder, tokenizer):
    """Return the tokenizer of an adapter's folder, with the base's ends of texts unless it has its own."""
    if any(os.path.isfile(folder / each) for each in SAY_WHAT_ENDS):
        return tokenizer
    with contextlib.suppress(FileError):  # the base may have no tokenizer
        return tokenizer.around(Tokenizer.from_pretrained(name, revision))
    return tokenizer
