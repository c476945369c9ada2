"""How far a score would move with other items: intervals and a test of a difference, by resampling the items.

A score is a function of sums over items (see `items`): rows (n, k), one for each item, and score(sums (k,)) -> number.
A bootstrap sample draws n of the n items with replacement. The scores of the samples spread as the score of the same
model would spread over other sets of n such items. This assumes no distribution of the scores. It also works for
scores that are no mean (BLEU, perplexity).
Source    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 6, 13 and 16.

Why not scipy.stats.bootstrap: scipy is a download of some 35 MB, and this takes twenty lines.
"""

from typing import NamedTuple

import numpy as np

from npgpt.runtime.seeding import generator

SAMPLES = 1000
WIDEST = 1000


class Interval(NamedTuple):
    """value: on the original items; stderr: standard deviation of the samples; low, high: the middle 95 % of them.

    The last three are None if the samples are not `measurable`.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """The fields of an Interval, for the difference of two systems, and p: see `difference`.

    All but value are None if the samples of one of the two systems are not `measurable`.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None


def sample_scores(score, rows, seed=0, samples=SAMPLES):
    """Return the scores (samples,) of bootstrap samples of `rows` (n, k).

    The same seed and n draw the same items, so two systems are scored on the same samples.
    """
    n, rng = len(rows), generator(seed, "bootstrap")
    sums = [np.bincount(rng.integers(0, n, n), minlength=n) @ rows for _ in range(samples)]
    return np.array([score(each) for each in sums])


def measurable(scores):
    """Return whether the samples say how far the score would move with other items.

    They do not if one of them is not finite, or if the middle 95 % of them span a factor of more than WIDEST. Such a
    score is the exponential of a mean over few items, for example the perplexity per word of a short text: one item
    decides it.
    """
    if not np.isfinite(scores).all():
        return False
    low, high = _middle(scores)
    return bool(high <= WIDEST * max(1, low))


def _middle(scores):
    """Return the lowest and the highest of the middle 95 % of the scores."""
    return np.percentile(scores, [2.5, 97.5])


def _interval(value, scores):
    unit = np.abs(scores).max() or 1.0  # the squares of large scores would overflow
    return Interval(float(value), float(np.std(scores / unit, ddof=1) * unit), *map(float, _middle(scores)))


def interval(value, scores):
    """Return the percentile Interval of a score from the scores of its bootstrap samples."""
    return _interval(value, scores) if measurable(scores) else Interval(float(value), None, None, None)


def difference(value, scores, base_value, base_scores):
    """Test value - base_value by a paired bootstrap: both systems are scored on the same samples.

    If the two systems were equally good, the differences d would scatter in the same way, but around 0. p is how often
    such a difference would be at least as far from 0 as the measured one, on either side:
    (1 + #{|d - mean d| >= |measured|}) / (1 + samples).
    Source    Koehn 2004 (paired samples); Riezler & Maxwell 2005, section 3 (moved to 0).
    """
    found = float(value) - float(base_value)
    if not (measurable(scores) and measurable(base_scores)):
        return Difference(found, None, None, None, None)
    d = scores - base_scores
    extreme = np.count_nonzero(np.abs(d - d.mean()) >= abs(found))
    return Difference(*_interval(found, d), (1 + extreme) / (1 + len(d)))
