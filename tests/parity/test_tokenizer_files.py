"""A tokenizer's files give the ids that transformers gives."""

import json
import logging

import pytest

pytest.importorskip("transformers")

import transformers

from npgpt import Tokenizer
from tests.files.test_tokenizer_files import ADDED, MAP, new_file, old_files

TEXTS = ["A list", " A list", "<|user|>A covid-19 list<|endoftext|>", "A  <|bot|>  list [PAD]x", ""]
PAD = {"content": "[PAD]", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}
END = PAD | {"content": "<|endoftext|>", "rstrip": False, "special": True}
BOT = END | {"content": "<|bot|>", "lstrip": True}
FILES = {
    "nothing": {},
    "older": {"added_tokens": ADDED, "special_tokens_map": MAP},
    "older, with a token without an id": {"added_tokens": ADDED, "special_tokens_map": MAP | {"pad_token": PAD}},
    "newer": {"added_tokens": ADDED,
              "tokenizer_config": {"added_tokens_decoder": {"3071": END, "3072": BOT}, "eos_token": "<|bot|>"}},
    "space": {"tokenizer_config": {"add_prefix_space": True}},
    "start": {"tokenizer_config": {"add_bos_token": True}},
    "space and another start": {
        "tokenizer_config": {"add_bos_token": True, "bos_token": "<|b|>", "add_prefix_space": True}},
    "a list of tokens": {"tokenizer_config": {"extra_special_tokens": ["<|user|>", "<|bot|>"]}},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("write", [old_files, new_file])
def test_ids_are_those_of_transformers(tmp_path, name, write, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)
    files = dict(FILES[name])
    files["tokenizer_config"] = {"tokenizer_class": "GPT2Tokenizer"} | files.get("tokenizer_config", {})
    folder = write(tmp_path, **files)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs(text)["input_ids"], json.dumps(text)
    assert (ours.vocab_size, ours.eos_id) == (len(theirs), theirs.eos_token_id)
