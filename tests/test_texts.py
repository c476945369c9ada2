"""The shipped texts: what the README promises about them, and that the held-out ones are really held out."""

import itertools
import re
from pathlib import Path

import pytest

import npgpt
from npgpt.data import read_texts

TEXTS = Path(npgpt.__file__).parent / "texts"
TRAIN = read_texts(TEXTS / "train.txt")
VALIDATION = read_texts(TEXTS / "validation.txt")
ALL = TRAIN + VALIDATION


def words(text):
    return re.findall(r"[a-z0-9]+(?:['/-][a-z0-9]+)*", text.lower())


def sentences(text):
    return re.split(r"(?<=[.?]) ", text)


def test_a_hundred_to_train_on_and_twenty_held_out():
    assert (len(TRAIN), len(VALIDATION)) == (100, 20)


@pytest.mark.parametrize("name", ["train.txt", "validation.txt"])
def test_files_are_plain_lines(name):
    data = (TEXTS / name).read_bytes()
    assert re.fullmatch(rb"(?:[!-~](?:[ -~]*[!-~])?\n)+", data), "ASCII, no blank line, no stray white space"
    assert b"  " not in data


def test_each_text_is_one_or_two_whole_sentences():
    for text in ALL:
        assert 12 <= len(text.split()) <= 40, text
        assert len(sentences(text)) in (1, 2), text
        assert all(sentence[0].isupper() for sentence in sentences(text)), text
        assert text.endswith("."), text
        assert not any(a == b for a, b in itertools.pairwise(words(text))), f"a doubled word: {text}"


def test_no_sentence_occurs_twice():
    """Neither within a file nor across the split, whatever the case and the punctuation."""
    seen = [tuple(words(sentence)) for text in ALL for sentence in sentences(text)]
    assert len(seen) > len(ALL)
    assert len(set(seen)) == len(seen)


def test_no_text_is_another_reworded():
    """Two texts share less than a third of their words; near-duplicates share well over half."""
    for a, b in itertools.combinations(ALL, 2):
        common, union = set(words(a)) & set(words(b)), set(words(a)) | set(words(b))
        assert len(common) < len(union) / 3, f"{a}\n{b}"


def test_held_out_texts_come_from_the_same_distribution():
    """Training has seen at least half the words of each; a text on a foreign subject shares little but its articles."""
    known = {word for text in TRAIN for word in words(text)}
    for text in VALIDATION:
        assert len(known & set(words(text))) >= len(set(words(text))) / 2, text
    foreign = "Sieve flour over chopped butter, rub until crumbly, chill the pastry an hour and bake at once."
    assert len(known & set(words(foreign))) < len(set(words(foreign))) / 2
