"""The rules for the next token, on scores made by hand. tests/parity compares with Hugging Face on random scores."""

import numpy as np
import pytest

from npgpt.generation import warpers
from npgpt.generation.sampling import Sampling

FOUR = np.log([0.1, 0.4, 0.2, 0.3])


def kept(z):
    return np.flatnonzero(z > -np.inf).tolist()


@pytest.mark.parametrize("rule, parameter, expected", [
    (warpers.top_k, 2, [1, 3]), (warpers.top_k, 4, [0, 1, 2, 3]), (warpers.top_k, 9, [0, 1, 2, 3]),
    (warpers.top_p, 0.69, [1, 3]), (warpers.top_p, 0.71, [1, 2, 3]),
    (warpers.min_p, 0.5, [1, 2, 3]), (warpers.min_p, 0.51, [1, 3]), (warpers.min_p, 1, [1]),
    # the entropy is 1.28, the surprises are 2.30, 0.92, 1.61, 1.20: token 3 is nearest, then 2, 1, 0
    (warpers.typical_p, 0.1, [3]), (warpers.typical_p, 0.31, [2, 3]), (warpers.typical_p, 0.6, [1, 2, 3]),
])
def test_what_is_kept(rule, parameter, expected):
    z = rule(FOUR, parameter)
    assert kept(z) == expected
    assert np.array_equal(z[expected], FOUR[expected])


def test_penalties():
    z = np.array([2.0, -2.0, 1.0, -1.0])
    assert warpers.repetition_penalty(z, [0, 1, 1], 2.0).tolist() == [1, -4, 1, -1]
    assert warpers.frequency_penalty(z, [3, 1, 3], 0.5, 0.25).tolist() == [2, -2.75, 1, -2.25]
    assert warpers.logit_bias(z, {2: 5, 0: -np.inf}).tolist() == [-np.inf, -2, 6, -1]
    assert z.tolist() == [2, -2, 1, -1]  # the input is unchanged


@pytest.mark.parametrize("n, ids, expected", [
    (1, [2, 0], [1, 3]),                    # each token may come once
    (2, [1, 2, 1, 3, 1], [0, 1]),           # 1 2 and 1 3 have occurred
    (3, [0, 1, 2, 0, 1], [0, 1, 3]),        # 0 1 2 has occurred
    (3, [0, 1, 2, 1, 1], [0, 1, 2, 3]),
    (3, [0], [0, 1, 2, 3]), (2, [], [0, 1, 2, 3]),
])
def test_no_ngram_comes_twice(n, ids, expected):
    assert kept(warpers.no_repeat_ngram(FOUR, ids, n)) == expected


@pytest.mark.parametrize("ids, expected", [([0], [0, 2, 3]), ([1, 2], [0, 2]), ([2, 1], [0, 2, 3]), ([], [0, 2, 3])])
def test_bad_words_are_not_completed(ids, expected):
    assert kept(warpers.bad_words(FOUR, ids, [[1], [1, 2, 3], [0, 1, 2, 3, 0]])) == expected


def test_the_end_of_text_waits():
    sampling = Sampling(min_new_tokens=2)
    assert kept(sampling.scores(FOUR, [0, 0, 3], 2, 1)) == [0, 2, 3]
    assert kept(sampling.scores(FOUR, [0, 0, 3, 3], 2, 1)) == [0, 1, 2, 3]
    assert kept(sampling.scores(FOUR, [0, 0, 3], 2)) == [0, 1, 2, 3]


def test_the_rules_apply_in_their_order():
    """The order is: bias, penalty, temperature, top_p."""
    sampling = Sampling(temperature=0.5, top_p=0.9, logit_bias={0: 3.0}, repetition_penalty=2.0)
    z = np.array([1.0, 1.9, 0.5, 0.0])
    assert sampling.scores(z, [0], 1).tolist() == [0, (1.9 - 2) / 0.5, -np.inf, -np.inf]


@pytest.mark.parametrize("warper", [warpers.top_p, warpers.typical_p])
def test_huge_scores_do_not_overflow(warper):
    """Adding 1000 to all scores changes nothing."""
    z = np.array([2.0, 1.0, -1.0])
    kept = np.isfinite(warper(z, 0.9))
    assert np.array_equal(np.isfinite(warper(z + 1000, 0.9)), kept)
    assert kept.any() and not kept.all()
