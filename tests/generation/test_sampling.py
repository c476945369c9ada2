"""The distributions are right on logits made by hand, and the draws follow them."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npgpt.generation.sampling import Sampling
from npgpt.runtime.seeding import generator

FOUR = np.log([0.1, 0.4, 0.2, 0.3])


def probabilities(logits, *args, **options):
    return Sampling(*args, **options).probabilities(logits)


def sample(logits, rng, **options):
    return Sampling(**options).draw(logits, rng)


@pytest.mark.parametrize("options, expected", [
    ({}, [0.1, 0.4, 0.2, 0.3]),
    ({"temperature": 0.5}, np.array([0.01, 0.16, 0.04, 0.09]) / 0.3),
    ({"top_k": 1}, [0, 1, 0, 0]),
    ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
    ({"top_k": 4}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_p": 0.91}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_p": 0.89}, [0, 4 / 9, 2 / 9, 3 / 9]),
    ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
    ({"top_p": 0.39}, [0, 1, 0, 0]),
    ({"top_p": 1e-12}, [0, 1, 0, 0]),
    # top_k leaves 4/7 and 3/7; the first alone reaches 0.55
    ({"top_k": 2, "top_p": 0.55}, [0, 1, 0, 0]),
    ({"top_k": 2, "top_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
    # the temperature comes first: 16/30 reaches 0.5, but 0.4 would not
    ({"temperature": 0.5, "top_p": 0.5}, [0, 1, 0, 0]),
])
def test_distributions(options, expected):
    before = FOUR.copy()
    p = probabilities(FOUR, **options)
    np.testing.assert_allclose(p, expected, rtol=0, atol=1e-12)
    assert np.array_equal(p == 0, np.equal(expected, 0))  # a token that is cut has probability 0
    assert p.dtype == np.float64
    assert np.array_equal(FOUR, before)


def test_ties():
    tied = np.array([2.0, 5.0, 2.0, 2.0, -1.0])
    assert (probabilities(tied, top_k=2) > 0).tolist() == [True, True, True, True, False]  # all equal to the 2nd
    equal = np.zeros(5, np.float32)
    assert probabilities(equal, top_k=3).tolist() == [0.2] * 5
    assert probabilities(equal, top_p=0.5).tolist() == [1 / 3, 1 / 3, 1 / 3, 0, 0]  # no more tokens than needed for 0.5
    assert probabilities(equal, top_p=1e-9).tolist() == [1, 0, 0, 0, 0]
    assert probabilities(np.zeros(4), top_p=0.5).tolist() == [0.5, 0.5, 0, 0]  # two reach 0.5 exactly


def test_extreme_logits_do_not_overflow():
    assert probabilities(np.array([3e38, -3e38, 0], np.float32)).tolist() == [1, 0, 0]
    assert probabilities(np.array([1000.0, 1000.0, 0])).tolist() == [0.5, 0.5, 0]
    assert probabilities(np.array([3.0, 2.0]), temperature=1e-300).tolist() == [1, 0]
    np.testing.assert_allclose(probabilities(np.array([30.0, -30.0]), temperature=1e300), [0.5, 0.5])


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.floats(0.1, 5), st.none() | st.integers(1, 40), st.none() | st.floats(0, 1, exclude_min=True),
)
@example([0.0, 2.7755575615628914e-17], 1.0, 1, None)  # different scores with the same probability
def test_what_is_kept_is_the_likeliest_and_no_more_than_needed(logits, temperature, top_k, top_p):
    logits = np.array(logits, np.float32)
    whole = probabilities(logits, temperature)
    assert whole.sum() == pytest.approx(1)
    p = probabilities(logits, temperature, top_k, top_p)
    assert p.sum() == pytest.approx(1)
    kept = p > 0
    np.testing.assert_allclose(p[kept], whole[kept] / whole[kept].sum(), rtol=1e-9)
    if not kept.all():
        assert whole[kept].min() >= whole[~kept].max()
    if top_k is not None:
        scores = Sampling(temperature).scores(logits)
        kth = np.sort(scores)[::-1][min(top_k, len(scores)) - 1]
        assert scores[kept].min() >= kth
        assert top_p is not None or kept.sum() == (scores >= kth).sum()
    if top_p is not None:
        allowed = probabilities(logits, temperature, top_k)
        assert allowed[kept].sum() >= top_p - 1e-9
        if kept.sum() > 1:
            assert allowed[kept].sum() - allowed[kept].min() < top_p + 1e-9  # without the last token the sum is below p


def test_tokens_are_drawn_as_often_as_they_are_likely():
    rng = generator(0, "test")
    for options in ({}, {"top_k": 3}, {"temperature": 1.5, "top_p": 0.8}):
        p = probabilities(FOUR, **options)
        drawn = np.bincount([sample(FOUR, rng, **options) for _ in range(10_000)], minlength=4) / 10_000
        assert (drawn[p == 0] == 0).all()
        assert (abs(drawn - p) <= 5 * np.sqrt(p * (1 - p) / 10_000)).all()


def test_what_is_cut_is_never_drawn():
    class Lowest:
        def random(self):
            return 0.0

    class Highest:
        def random(self):
            return np.nextafter(1.0, 0.0)

    assert sample(FOUR, Lowest(), top_k=2) == 1
    assert sample(np.array([-2000.0, 0.0]), Lowest()) == 1  # no token is cut, but the first has probability 0
    assert sample(FOUR[::-1], Highest(), top_k=2) == 2
