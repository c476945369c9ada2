"""The metrics against the programs that published numbers come from, recorded, and against plain sums by hand.

tests/parity/test_metrics.py compares them with sacrebleu, nltk and rouge-score, on the spot.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.evaluation import metrics
from npgpt.runtime.errors import ConfigError

EXAMPLES = json.loads((Path(__file__).parents[1] / "metrics" / "examples.json").read_text(encoding="utf-8"))
OUTPUTS, REFERENCES, SCORES = EXAMPLES["outputs"], EXAMPLES["references"], EXAMPLES["scores"]


def test_as_the_e2e_challenge_scores_them():
    """mteval prints four digits; coco-caption's Python gives all."""
    assert metrics.bleu(OUTPUTS, REFERENCES) == pytest.approx(100 * SCORES["BLEU"], abs=0.005)
    assert metrics.nist(OUTPUTS, REFERENCES) == pytest.approx(SCORES["NIST"], abs=0.00005)
    assert metrics.rouge_l(OUTPUTS, REFERENCES) == pytest.approx(100 * SCORES["ROUGE-L"], rel=1e-12)
    assert metrics.cider(OUTPUTS, REFERENCES) == pytest.approx(SCORES["CIDEr"], rel=1e-12)


def test_each_item_as_coco_caption_scores_it():
    each = EXAMPLES["each"]
    np.testing.assert_allclose(metrics.rouge_l_rows(OUTPUTS, REFERENCES)[:, 0] / 100, each["ROUGE-L"], rtol=1e-12)
    np.testing.assert_allclose(metrics.cider_rows(OUTPUTS, REFERENCES)[:, 0], each["CIDEr"], rtol=1e-12, atol=1e-15)


def test_words_of_the_java_tokenizer():
    assert [" ".join(metrics.words_ptb(text)) for text in OUTPUTS] == EXAMPLES["words_ptb"]


@pytest.mark.parametrize("text, words", [  # what the Java of coco-caption makes of them, less punctuation
    ("I can't, won't, gonna, cannot; they'll we've I'd I'm you're",
     "i ca n't wo n't gon na can not they 'll we 've i 'd i 'm you 're"),
    ("Price: $30.99, €20, 5/5 and/or 3-out-of-5! A.M. Mr. Smith's U.S. x*y a@b.com http://a.com/b 50% #1 1,000",
     "price $ 30.99 $ 20 5/5 and/or 3-out-of-5 a.m. mr. smith 's u.s. x * y a@b.com http://a.com/b 50 % # 1 1,000"),
    ("The Smiths' house; the '90s; d'oeuvre o'clock 4* 10am 20-£25 'tis \"quoted\" 10:30 -5 20- 25 no. 5 'em a\u2013b",
     "the smiths house the '90s d'oeuvre o'clock 4 * 10am 20 # 25 't is quoted 10:30 -5 20 25 no. 5 'em a b"),
])  # fmt: skip
def test_words_ptb(text, words):
    assert " ".join(metrics.words_ptb(text)) == words


@pytest.mark.parametrize("text, words", [
    ('Hello, "World"!', 'Hello , " World " !'),
    ("3.14 is 1,000.5, a.b, don't 5-star ten-fold A&amp;B &lt;x&gt;",
     "3.14 is 1,000.5 , a . b , don't 5 - star ten-fold A & B < x >"),
    ("a-\nb c\nd <skipped>", "ab c d"),
    ("", ""),
])
def test_words_13a(text, words):
    assert " ".join(metrics.words_13a(text)) == words


def test_bleu_by_hand():
    """Papineni et al. 2002, example 2: "the" counts twice at most."""
    references = ["The cat is on the mat.", "There is a cat on the mat."]
    rows = metrics.bleu_rows(["the the the the the the the"], [references])
    np.testing.assert_array_equal(rows, [[2, 0, 0, 0, 7, 6, 5, 4, 7, 7]])
    smoothed = (2 / 7 * 1 / (2 * 6) * 1 / (4 * 5) * 1 / (8 * 4)) ** 0.25
    assert metrics.bleu_score(rows[0]) == pytest.approx(100 * smoothed)


def test_bleus_brevity():
    """Ten words too short by two; of two references as near, the shorter counts."""
    reference = "a b c d e f g h i j"
    assert metrics.bleu(["a b c d e f g h"], [[reference]]) == pytest.approx(100 * math.exp(1 - 10 / 8))
    rows = metrics.bleu_rows(["a b c d e f g h"], [[reference, "a b c d e f"]])
    assert rows[0, 9] == 6
    assert metrics.bleu(["a b c d e f g h"], [[reference, "a b c d e f"]]) == pytest.approx(100)


@pytest.mark.parametrize("output, reference", [("", "a b c d"), ("a b c", "a b c"), ("w x y z", "a b c d")])
def test_bleu_of_nothing_is_zero(output, reference):
    assert metrics.bleu([output], [[reference]]) == 0


def test_nist_by_hand():
    """Two items; "a" is 3 of 6 words of the references, and so one bit; "b" after it is as certain."""
    outputs, references = ["a b", "a"], [["a b", "a c"], ["a d"]]
    rows = metrics.nist_rows(outputs, references)
    third = math.log2(3)
    np.testing.assert_allclose(rows[:, 0], [1 + math.log2(6), 1])
    np.testing.assert_allclose(rows[:, 1], [third, 0])
    np.testing.assert_array_equal(rows[:, 5:], [[2, 1, 0, 0, 0, 4, 2, 1], [1, 0, 0, 0, 0, 2, 1, 1]])
    beta = math.log(2) / math.log(1.5) ** 2
    expected = ((2 + math.log2(6)) / 3 + third / 1) * math.exp(-beta * math.log(3 / 4) ** 2)  # 6 words / 3 x 2 items
    assert metrics.nist(outputs, references) == pytest.approx(expected)
    half = metrics.nist_score(np.array([6.0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 3, 1, 1]))
    assert half == pytest.approx(6 / 2 / 2)  # two thirds of the words: the factor is a half


def test_rouge_by_hand():
    """Lin 2004, section 3.1: against "police killed the gunman"; here P = R."""
    outputs = ["police kill the gunman", "the gunman kill police", "the gunman police killed"]
    rows = metrics.rouge_l_rows(outputs, [["police killed the gunman"]] * 3)
    np.testing.assert_allclose(rows, [[75, 1], [50, 1], [50, 1]])
    assert metrics.rouge_l(["a b"], [["a b c d"]], str.split, beta=1) == pytest.approx(100 * 2 / 3)
    assert metrics.rouge_l(["a b"], [["a b c d"]], str.split) == pytest.approx(100 * 2.44 * 0.5 / (0.5 + 1.44))
    assert metrics.rouge_l([""], [["a b"]]) == 0


words = st.lists(st.sampled_from("abcd"), max_size=70)


@given(words, words)
def test_the_longest_common_subsequence_is_that_of_the_table(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert metrics.longest_common_subsequence(a, b) == table[-1, -1]


def test_cider_by_hand():
    """Two items, no word in common: each n-gram weighs ln 2, and an output equal to its reference has similarity 1."""
    same = ["a b c d", "e f g h"]
    assert metrics.cider(same, [[text] for text in same], str.split) == pytest.approx(10)
    rows = metrics.cider_rows(["a b", "e f g h"], [["a b c d"], ["e f g h"]], str.split)
    similar = (2 / math.sqrt(2 * 4) + 1 / math.sqrt(1 * 3) + 0 + 0) * math.exp(-(2**2) / 72)
    np.testing.assert_allclose(rows, [[10 * similar / 4, 1], [10, 1]])
    rows = metrics.cider_rows(["a a", "x"], [["a a a"], ["x"]], str.split)  # not more than the reference has
    assert rows[0, 0] == pytest.approx(10 * (2 * 3 / (2 * 3) + 1 * 2 / (1 * 2)) * math.exp(-1 / 72) / 4)
    assert metrics.cider(["a b"], [["a b"]]) == 0


@pytest.mark.parametrize("output, references, right", [
    ("The  Cat.", ["a dog", "cat"], 100), ("cats", ["cat"], 0), ("An answer: 42!", ["answer 42"], 100),
    ("", ["a"], 100),
])
def test_exact_match(output, references, right):
    assert metrics.exact_match([output], [references]) == right


def test_exact_match_is_a_mean():
    assert metrics.exact_match(["a b", "c", "d"], [["b"], ["d"], ["x", "d"]]) == pytest.approx(200 / 3)


@pytest.mark.parametrize("score", [metrics.bleu, metrics.nist, metrics.rouge_l, metrics.cider, metrics.exact_match])
@pytest.mark.parametrize("outputs, references, message", [
    (["a"], [["a"], ["b"]], "1 outputs and 2 lists of references: expected as many of each, at least one"),
    ([], [], "0 outputs and 0 lists of references"),
    (["a", "b"], [["a"], "b"], "the references of output 1 are 'b': expected a list of at least one text"),
    (["a"], [[]], r"the references of output 0 are \[\]"),
])
def test_what_is_refused(score, outputs, references, message):
    with pytest.raises(ConfigError, match=message):
        score(outputs, references)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_sums_of_many_samples_are_scored_at_once(name):
    rows_of, score = metrics.METRICS[name]
    rows = rows_of(OUTPUTS, REFERENCES)
    counts = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=20)
    np.testing.assert_allclose(score(counts @ rows), [score(np.repeat(rows, c, axis=0).sum(axis=0)) for c in counts])
