"""Tokens as text: characters that several tokens make are whole, and nothing gets lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgpt
from npgpt.files import characters


@pytest.fixture(scope="module")
def tiny():
    return npgpt.Tokenizer.from_pretrained("tiny")


@given(st.text(st.characters(codec="utf-8", exclude_characters=characters.REPLACEMENT), max_size=12))
def test_the_labels_of_a_text_are_the_text(tiny, text):
    found = characters.labels(tiny, tiny.encode(text, split_special_tokens=True))
    assert "".join(label.text for label in found if label.part == 1) == text
    assert all(label.part <= label.parts for label in found)


def test_characters_of_several_tokens(tiny):
    found = characters.labels(tiny, tiny.encode("a\u4f60b"))
    assert [label.running for label in found] == ["a", "\u4f60", "\u25c2", "\u25c2", "b"]
    assert [label.alone for label in found] == ["a", "\u4f60 (1 of 3)", "\u4f60 (2 of 3)", "\u4f60 (3 of 3)", "b"]


def test_what_makes_no_text_is_written_as_bytes(tiny):
    ids = tiny.encode("\u4f60").tolist()
    eos = tiny.eos_id
    found = characters.labels(tiny, [*ids[:2], eos, *ids[2:], tiny.vocab_size, *ids, *ids[:1]])
    assert [label.alone for label in found] == [
        "\\xe4", "\\xbd", "<|endoftext|>", "\\xa0", f"[{tiny.vocab_size}]",
        *(f"\u4f60 ({part} of 3)" for part in (1, 2, 3)), "\\xe4"]


def test_a_replacement_character_in_the_text_is_itself(tiny):
    assert "".join(label.running for label in characters.labels(tiny, tiny.encode("a b"))) == "a b"
    found = characters.labels(tiny, tiny.encode("a\ufffd b"))
    assert [label.alone for label in found] == ["a", "\\xef", "\\xbf", "\\xbd", " b"]


def test_what_a_token_completes(tiny):
    ids = tiny.encode("a\u4f60").tolist()
    assert [characters.completed(tiny, ids[:t], i) for t, i in enumerate(ids)] == ["a", "\\xe4", "\\xbd", "\u4f60"]
    assert characters.completed(tiny, ids[:2], ids[0]) == "a"
    assert characters.completed(tiny, ids[:2], tiny.vocab_size) == f"[{tiny.vocab_size}]"
    assert characters.completed(tiny, [], ids[-1]) == "\\xa0"
