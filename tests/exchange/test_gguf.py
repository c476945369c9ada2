"""A model that a GGUF file cannot hold is refused before writing. tests/parity/test_gguf.py checks the content."""

import dataclasses
import sys

import pytest
import tokenizers

from npgpt import GPT2, GPT2Config, Tokenizer
from npgpt.exchange import gguf
from npgpt.runtime.errors import ConfigError
from tests.commands.conftest import byte_tokenizer

CONFIG = GPT2Config(vocab_size=260, n_positions=8, n_embd=8, n_layer=1, n_head=2)


def refused(tmp_path, message, tokenizer=None, dtype="float32", **fields):
    model = GPT2(dataclasses.replace(CONFIG, **fields))
    with pytest.raises(ConfigError, match=message):
        gguf.export(model, tokenizer or byte_tokenizer(), tmp_path / "x.gguf", dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [{"activation_function": "gelu"}, {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_model_that_llama_cpp_computes_otherwise(tmp_path, fields):
    ((field, value),) = fields.items()
    refused(tmp_path, f"{field} = {value!r}: llama.cpp computes GPT-2 with ", **fields)


def test_a_tokenizer_of_another_kind(tmp_path):
    for change in ({"normalizer": tokenizers.normalizers.NFC()},
                   {"pre_tokenizer": tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)},
                   {"pre_tokenizer": tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
                   {"pre_tokenizer": tokenizers.pre_tokenizers.Whitespace()}):
        inner = tokenizers.Tokenizer.from_str(byte_tokenizer()._tokenizer.to_str())
        ((attribute, value),) = change.items()
        setattr(inner, attribute, value)
        refused(tmp_path, "the tokenizer is not GPT-2's byte-level BPE", Tokenizer(inner))
    refused(tmp_path, "byte-level BPE", Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))))


def test_more_tokens_than_the_model_has_rows(tmp_path):
    refused(tmp_path, "a token with id 256, but the model has a vocabulary of 256", vocab_size=256)


def test_other_numbers(tmp_path):
    refused(tmp_path, "dtype = 'float64': a GGUF file is written in float32 or float16", dtype="float64")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(tmp_path, r"written by the gguf package: pip install '\.\[gguf\]'")
