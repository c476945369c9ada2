"""How far a score would move with other items: intervals and a test of a difference, by resampling the items.

A score is a function of sums over items (see `metrics`): rows (n, k), one an item, and score(sums (k,)) -> number.
A bootstrap sample draws n of the n items with replacement. What the samples' scores spread over is what the score of
the same model on another n such items would spread over; nothing is assumed about how scores are distributed, and
scores that are no mean (BLEU, perplexity) have their interval too.
Source    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 6, 13 and 16.
"""

from typing import NamedTuple

import numpy as np

from npgpt.runtime.seeding import generator

SAMPLES = 1000


class Interval(NamedTuple):
    """value: on the items as they are; stderr: the samples' standard deviation; low, high: the middle 95 % of them."""

    value: float
    stderr: float
    low: float
    high: float


class Difference(NamedTuple):
    """An Interval's fields, of the difference of two systems; p: the chance of one as large were they equally good."""

    value: float
    stderr: float
    low: float
    high: float
    p: float


def sample_scores(score, rows, seed=0, samples=SAMPLES):
    """Return the scores (samples,) of bootstrap samples of `rows` (n, k). The same seed and n draw the same items, so
    two systems' scores are of the same samples."""
    n, rng = len(rows), generator(seed, "bootstrap")
    sums = [np.bincount(rng.integers(0, n, n), minlength=n) @ rows for _ in range(samples)]
    return np.array([score(each) for each in sums])


def interval(value, scores):
    """Percentile interval of a score and its bootstrap samples."""
    return Interval(float(value), float(np.std(scores, ddof=1)), *map(float, np.percentile(scores, [2.5, 97.5])))


def difference(value, scores, base_value, base_scores):
    """Paired bootstrap test of value - base_value, both scored on the same samples.

    Were the two equally good, differences would scatter as the samples' do, but about 0. p is how often they would then
    be at least as far from 0 as the one found: (1 + #{|d - mean d| >= |found|}) / (1 + samples), for both sides.
    Source    Koehn 2004 (paired samples); Riezler & Maxwell 2005, section 3 (moved to 0).
    """
    d, found = scores - base_scores, value - base_value
    extreme = np.count_nonzero(np.abs(d - d.mean()) >= abs(found))
    return Difference(*interval(found, d), (1 + extreme) / (1 + len(d)))
