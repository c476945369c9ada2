"""BLEU and NIST against sums by hand. test_metrics.py compares them with mteval-v13a."""

import math

import numpy as np
import pytest

from npgpt.evaluation import mteval


@pytest.mark.parametrize("text, words", [
    ('Hello, "World"!', 'Hello , " World " !'),
    ("3.14 is 1,000.5, a.b, don't 5-star ten-fold A&amp;B &lt;x&gt;",
     "3.14 is 1,000.5 , a . b , don't 5 - star ten-fold A & B < x >"),
    ("a-\nb c\nd <skipped>", "ab c d"),
    ("", ""),
])
def test_words_13a(text, words):
    assert " ".join(mteval.words_13a(text)) == words


def test_bleu_by_hand():
    """Papineni et al. 2002, example 2: "the" counts at most twice."""
    references = ["The cat is on the mat.", "There is a cat on the mat."]
    rows = mteval.bleu_rows(["the the the the the the the"], [references])
    np.testing.assert_array_equal(rows, [[2, 0, 0, 0, 7, 6, 5, 4, 7, 7]])
    smoothed = (2 / 7 * 1 / (2 * 6) * 1 / (4 * 5) * 1 / (8 * 4)) ** 0.25
    assert mteval.bleu_score(rows[0]) == pytest.approx(100 * smoothed)


def test_bleus_brevity():
    """The output has two words fewer than ten. Of two equally near references the shorter one counts."""
    reference = "a b c d e f g h i j"
    assert mteval.bleu(["a b c d e f g h"], [[reference]]) == pytest.approx(100 * math.exp(1 - 10 / 8))
    rows = mteval.bleu_rows(["a b c d e f g h"], [[reference, "a b c d e f"]])
    assert rows[0, 9] == 6
    assert mteval.bleu(["a b c d e f g h"], [[reference, "a b c d e f"]]) == pytest.approx(100)


@pytest.mark.parametrize("output, reference", [("", "a b c d"), ("a b c", "a b c"), ("w x y z", "a b c d")])
def test_bleu_of_nothing_is_zero(output, reference):
    assert mteval.bleu([output], [[reference]]) == 0


def test_nist_by_hand():
    """Two items. 3 of the 6 reference words are "a", so "a" has one bit. "b" follows one "a" of three: log2(3) bits."""
    outputs, references = ["a b", "a"], [["a b", "a c"], ["a d"]]
    rows = mteval.nist_rows(outputs, references)
    third = math.log2(3)
    np.testing.assert_allclose(rows[:, 0], [1 + math.log2(6), 1])
    np.testing.assert_allclose(rows[:, 1], [third, 0])
    np.testing.assert_array_equal(rows[:, 5:], [[2, 1, 0, 0, 0, 4, 2, 1], [1, 0, 0, 0, 0, 2, 1, 1]])
    beta = math.log(2) / math.log(1.5) ** 2
    expected = ((2 + math.log2(6)) / 3 + third / 1) * math.exp(-beta * math.log(3 / 4) ** 2)  # 6 words / 3 x 2 items
    assert mteval.nist(outputs, references) == pytest.approx(expected)
    half = mteval.nist_score(np.array([6.0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 3, 1, 1]))
    assert half == pytest.approx(6 / 2 / 2)  # with two thirds of the words the factor is 1/2
