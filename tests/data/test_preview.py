"""A sequence as lines of text to look at."""

import re

import pytest

from npgpt import Tokenizer
from npgpt.data import END, Document, encode, preview


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer.from_pretrained("tiny")


def shown(tokenizer, *segments, **options):
    sequences = encode(tokenizer, [Document("f:1", [*segments, (END, True)], "")], 256)[0].sequences
    return preview(sequences[0], sequences.loss_masks[0], tokenizer, **options)


def test_what_is_learned_stands_in_brackets(tiny):
    assert shown(tiny, ("The name is", False), (" the string", True)) == [
        "The│ name│ is[ the][ string][<|endoftext|>]"]
    assert shown(tiny, ("The name", True))[0].startswith("The[ name]"), "the first token is predicted from nothing"


def test_lines_end_where_those_of_the_text_do_and_at_the_width(tiny):
    assert shown(tiny, ("The name:\n", False), ("is\nthe", True)) == [
        "The│ name│:│\\n", "[is][\\n]", "[the][<|endoftext|>]"]
    for width in (20, 40, 80):
        lines = shown(tiny, ("the " * 50, False), (" of the" * 20, True), width=width)
        assert all(width - 10 < len(line) <= width for line in lines[:-2])


def test_nothing_is_invisible(tiny):
    lines = shown(tiny, ("a\tb\x1b[31m", False), ("\u2603", True))
    assert lines == [r"a│\t│b│\x1b│[│3│1│m[☃][◂][◂][<|endoftext|>]"]


def test_colour_is_added_and_nothing_else(tiny):
    segments = ("The name is", False), (" the string\n of", True)
    plain, coloured = shown(tiny, *segments, width=30), shown(tiny, *segments, width=30, colour=True)
    assert [re.sub("\33\\[\\d+m", "", line) for line in coloured] == plain
    assert "\33[2m name│\33[0m" in coloured[0]
    assert "\33[32m[ the]\33[0m" in coloured[0]
