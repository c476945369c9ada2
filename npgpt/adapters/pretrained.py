"""A base model and its tokenizer, as they were when the adapters for it were trained."""

import contextlib
import os
import warnings
from pathlib import Path

from npgpt.adapters.peft import make_room
from npgpt.adapters.peft_config import read_config
from npgpt.adapters.place import CONFIG_FILE, folder_of
from npgpt.files import hub
from npgpt.files.tokenizer import Tokenizer
from npgpt.gpt2 import GPT2
from npgpt.runtime.errors import ConfigError, FileError, one_line

# Files beside a tokenizer.json that say which tokens end a text.
SAY_WHAT_ENDS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


def base_name(adapters):
    """Return the name of the base that the configurations of `adapters`, folders or hub ids, name.

    None if no adapter names one. Raises ConfigError if two adapters name different bases, or if the base is a
    folder that is not here, and what reading the configurations raises.
    """
    found = {}
    for adapter in adapters:
        path = folder_of(adapter) / CONFIG_FILE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loading the adapter warns of the same
            fields = read_config(path)
        if fields["base_model_name_or_path"]:
            found.setdefault(fields["base_model_name_or_path"], path)
    if len(found) > 1:
        one, two, *_ = found
        raise ConfigError(f"the adapters were made for {one!r} and for {two!r}: say with --model which base to use")
    for name, path in found.items():
        try:
            hub.folder(name)
        except FileError as error:
            raise ConfigError(f"{path} names the base {name!r}, which is not here: say with --model where the base "
                              "is") from error
        return name
    return None


def base_of(name, revision=None, adapters=()):
    """Return (model, tokenizer) for `adapters`, folders or hub ids. It does not load the adapters.

    name, revision  of the base, as for `GPT2.from_pretrained`

    If tokens were added for an adapter, the model has rows for them. The tokenizer comes from the adapters' folders if
    they have a tokenizer.json, else from the base. Raises ConfigError if two adapters have different tokenizers, and
    what loading raises.
    """
    adapters = [folder_of(adapter) for adapter in adapters]
    folders = [folder for folder in adapters if os.path.isfile(Path(folder) / "tokenizer.json")]
    tokenizers = [Tokenizer.from_pretrained(folder) for folder in folders]
    for folder, tokenizer in zip(folders, tokenizers, strict=True):
        if tokenizer.to_dict() != tokenizers[0].to_dict():
            raise ConfigError(f"{folders[0]} and {folder} have different tokenizers: use only one of these adapters")
    tokenizer = _ending_like(name, revision, folders[0], tokenizers[0]) if tokenizers else (
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
    if any(os.path.isfile(Path(folder) / each) for each in SAY_WHAT_ENDS):
        return tokenizer
    with contextlib.suppress(FileError):  # the base may have no tokenizer
        return tokenizer.around(Tokenizer.from_pretrained(name, revision))
    return tokenizer
