"""ROUGE-L and CIDEr against coco-caption's recorded scores and words, and against sums by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.evaluation import coco

EXAMPLES = json.loads((Path(__file__).parents[1] / "metrics" / "examples.json").read_text(encoding="utf-8"))
OUTPUTS, REFERENCES = EXAMPLES["outputs"], EXAMPLES["references"]


def test_each_item_as_coco_caption_scores_it():
    each = EXAMPLES["each"]
    np.testing.assert_allclose(coco.rouge_l_rows(OUTPUTS, REFERENCES)[:, 0] / 100, each["ROUGE-L"], rtol=1e-12)
    np.testing.assert_allclose(coco.cider_rows(OUTPUTS, REFERENCES)[:, 0], each["CIDEr"], rtol=1e-12, atol=1e-15)


def test_words_of_the_java_tokenizer():
    assert [" ".join(coco.words_ptb(text)) for text in OUTPUTS] == EXAMPLES["words_ptb"]


@pytest.mark.parametrize("text, words", [  # the words of coco-caption's Java program, without punctuation
    ("I can't, won't, gonna, cannot; they'll we've I'd I'm you're",
     "i ca n't wo n't gon na can not they 'll we 've i 'd i 'm you 're"),
    ("Price: $30.99, €20, 5/5 and/or 3-out-of-5! A.M. Mr. Smith's U.S. x*y a@b.com http://a.com/b 50% #1 1,000",
     "price $ 30.99 $ 20 5/5 and/or 3-out-of-5 a.m. mr. smith 's u.s. x * y a@b.com http://a.com/b 50 % # 1 1,000"),
    ("The Smiths' house; the '90s; d'oeuvre o'clock 4* 10am 20-£25 'tis \"quoted\" 10:30 -5 20- 25 no. 5 'em a\u2013b",
     "the smiths house the '90s d'oeuvre o'clock 4 * 10am 20 # 25 't is quoted 10:30 -5 20 25 no. 5 'em a b"),
])  # fmt: skip
def test_words_ptb(text, words):
    assert " ".join(coco.words_ptb(text)) == words


def test_rouge_by_hand():
    """Lin 2004, section 3.1: the reference is "police killed the gunman", and P = R."""
    outputs = ["police kill the gunman", "the gunman kill police", "the gunman police killed"]
    rows = coco.rouge_l_rows(outputs, [["police killed the gunman"]] * 3)
    np.testing.assert_allclose(rows, [[75, 1], [50, 1], [50, 1]])
    assert coco.rouge_l(["a b"], [["a b c d"]], str.split, beta=1) == pytest.approx(100 * 2 / 3)
    assert coco.rouge_l(["a b"], [["a b c d"]], str.split) == pytest.approx(100 * 2.44 * 0.5 / (0.5 + 1.44))
    assert coco.rouge_l([""], [["a b"]]) == 0


words = st.lists(st.sampled_from("abcd"), max_size=70)


@given(words, words)
def test_the_longest_common_subsequence_is_that_of_the_table(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert coco.longest_common_subsequence(a, b) == table[-1, -1]


def test_cider_by_hand():
    """Two items without a common word: each n-gram has weight ln 2. An output that equals its reference scores 10."""
    same = ["a b c d", "e f g h"]
    assert coco.cider(same, [[text] for text in same], str.split) == pytest.approx(10)
    rows = coco.cider_rows(["a b", "e f g h"], [["a b c d"], ["e f g h"]], str.split)
    similar = (2 / math.sqrt(2 * 4) + 1 / math.sqrt(1 * 3) + 0 + 0) * math.exp(-(2**2) / 72)
    np.testing.assert_allclose(rows, [[10 * similar / 4, 1], [10, 1]])
    rows = coco.cider_rows(["a a", "x"], [["a a a"], ["x"]], str.split)  # a count is clipped to the reference's
    assert rows[0, 0] == pytest.approx(10 * (2 * 3 / (2 * 3) + 1 * 2 / (1 * 2)) * math.exp(-1 / 72) / 4)
    assert coco.cider(["a b"], [["a b"]]) == 0
