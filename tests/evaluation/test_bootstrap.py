"""Intervals and the paired test, in cases with known results."""

import math

import numpy as np
import pytest

from npgpt.evaluation import bootstrap
from npgpt.evaluation.items import mean_score


def rows(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def test_the_interval_of_a_mean():
    """It is close to the interval of the normal distribution."""
    values = np.random.default_rng(0).normal(3, 2, 400)
    scores = bootstrap.sample_scores(mean_score, rows(values), samples=4000)
    value, stderr, low, high = bootstrap.interval(values.mean(), scores)
    exact = values.std() / math.sqrt(400)
    assert value == values.mean()
    assert stderr == pytest.approx(exact, rel=0.05)
    assert (low, high) == pytest.approx((value - 1.96 * exact, value + 1.96 * exact), abs=0.15 * exact)


def test_samples_are_of_the_seed_and_of_nothing_else():
    data = rows(np.arange(10.0))
    first = bootstrap.sample_scores(mean_score, data, seed=1, samples=20)
    assert first.tolist() == bootstrap.sample_scores(mean_score, data, seed=1, samples=20).tolist()
    assert first.tolist() != bootstrap.sample_scores(mean_score, data, seed=2, samples=20).tolist()
    np.testing.assert_allclose(bootstrap.sample_scores(mean_score, rows(np.arange(10) + 5.0), 1, 20), first + 5)


def test_samples_take_items_with_replacement():
    """A constant has no spread, and each item is drawn as often as chance predicts."""
    assert set(bootstrap.sample_scores(mean_score, rows(np.full(7, 2.0)), samples=50)) == {2.0}
    for i in (0, 19):
        present = bootstrap.sample_scores(lambda sums: float(sums[0] > 0), rows(np.eye(20)[i]), samples=4000).mean()
        assert present == pytest.approx(1 - (1 - 1 / 20) ** 20, abs=0.03)


@pytest.mark.parametrize("shift, p", [(0.0, 1.0), (0.1, 0.0455), (0.2, 6e-5)])
def test_p_of_a_difference(shift, p):
    """400 differences with standard deviation 1: p is the normal distribution's two-sided p of 0, 2 and 4 se."""
    noise = np.random.default_rng(1).normal(size=400)
    noise = (noise - noise.mean()) / noise.std()
    base = np.random.default_rng(2).normal(0, 50, 400)  # both systems share this spread, so it does not count
    system = base + noise + shift
    scores, base_scores = (bootstrap.sample_scores(mean_score, rows(x), samples=4000) for x in (system, base))
    found = bootstrap.difference(system.mean(), scores, base.mean(), base_scores)
    assert found.value == pytest.approx(shift, abs=1e-9)
    assert found.p == pytest.approx(p, abs=0.01)
    assert found.stderr == pytest.approx(1 / 20, rel=0.05)


def test_a_system_does_not_differ_from_itself():
    scores = bootstrap.sample_scores(mean_score, rows(np.arange(5.0)), samples=10)
    assert bootstrap.difference(2.0, scores, 2.0, scores) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize("hopeless", [
    [5.0] * 49 + [math.nan], [5.0] * 49 + [math.inf], [-math.inf] * 50,
    np.geomspace(2e3, 3e88, 50), [1.0] * 40 + [1e6] * 10,
])
def test_what_is_not_measurable_has_no_interval_and_no_p(hopeless):
    """With NaN, no difference was as extreme as the measured one, and p was 1 / 51: significant."""
    hopeless, sound = np.array(hopeless), np.linspace(4, 6, 50)
    assert bootstrap.interval(hopeless.mean(), hopeless)[1:] == (None, None, None)
    for pair in ((hopeless, sound), (sound, hopeless)):
        found = bootstrap.difference(pair[0].mean(), pair[0], pair[1].mean(), pair[1])
        assert found[1:] == (None, None, None, None)


@pytest.mark.parametrize("scores", [[0.0] * 40 + [100.0] * 10, np.geomspace(1e9, 9e11, 50), [-3.0, -5.0, -900.0] * 20])
def test_what_is_measurable(scores):
    """Zero correct answers, a large perplexity with a fair interval, and log probabilities."""
    found = bootstrap.interval(np.mean(scores), np.array(scores))
    assert None not in found
    assert found.low <= found.value <= found.high


def test_scores_whose_squares_would_overflow_have_an_interval():
    scores = np.array([1e200, 2e200, 3e200])
    found = bootstrap.interval(2e200, scores)
    assert found.stderr == pytest.approx(1e200)
    assert found.high < np.inf
