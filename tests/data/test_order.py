"""The order of the data: which sequences each step sees."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.batch import Batch
from npgpt.data import Order
from npgpt.runtime.errors import ConfigError

some_lengths = st.lists(st.integers(2, 40), min_size=1, max_size=60)


def epoch_of(order, epoch=0):
    """The steps of an epoch, each a list of indices."""
    start = epoch * order.steps_per_epoch
    return [order[step].tolist() for step in range(start, start + order.steps_per_epoch)]


@given(some_lengths, st.integers(1, 70), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_takes_each_sequence_once(lengths, batch_size, seed, epoch):
    n = len(lengths)
    steps = epoch_of(Order(lengths, seed, batch_size), epoch)
    assert sorted(i for step in steps for i in step) == list(range(n))
    assert [len(step) for step in steps] == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)


@given(some_lengths, st.integers(0, 200), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_by_tokens_takes_each_sequence_once_in_about_equal_steps(lengths, more, seed, epoch):
    tokens = max(lengths) + more
    order = Order(lengths, seed, 1, tokens)
    steps = epoch_of(order, epoch)
    assert sorted(i for step in steps for i in step) == list(range(len(lengths)))
    assert all(steps)
    assert order.steps_per_epoch == -(-sum(lengths) // tokens)
    share = sum(lengths) / order.steps_per_epoch
    sizes = [sum(lengths[i] for i in step) for step in steps]
    # cuts at the nearest ends, so half a sequence too early and half too late; one more where none was left for a step
    assert max(sizes) <= share + 2 * max(lengths)


def test_steps_by_tokens_are_equal_where_they_can_be():
    lengths = np.full(100, 10)
    assert {len(step) for step in epoch_of(Order(lengths, 0, 1, 50))} == {5}
    lengths = np.random.default_rng(0).integers(5, 15, 1000)
    sizes = [sum(lengths[i] for i in step) for step in epoch_of(Order(lengths, 0, 1, 500))]
    assert 400 < min(sizes) and max(sizes) < 600


def test_no_two_cuts_by_tokens_fall_together():
    for seed in range(50):
        assert all(epoch_of(Order([30, 30, 1], seed, 1, 30)))


def test_the_order_depends_on_lengths_seed_and_epoch_alone():
    lengths = np.random.default_rng(1).integers(2, 30, 50)

    def order(seed=7, epoch=1, **options):
        return epoch_of(Order(lengths, seed, 4, **options), epoch)

    first = order()
    np.random.seed(0)  # noqa: NPY002 - that a global state has no say is what is tested
    assert order() == first
    assert order(batch_tokens=100) == order(batch_tokens=100)
    orders = {str(order(seed, epoch, batch_tokens=tokens)) for seed in range(4) for epoch in range(4)
              for tokens in (None, 100)}
    assert len(orders) == 32
    # and which sequences come together is by chance, not by their lengths
    together = [len({lengths[i] for i in step}) for step in order()]
    assert np.mean(together) > 3


def test_a_step_can_be_asked_for_in_any_turn():
    order, lengths = Order(range(2, 22), 0, 3), range(2, 22)
    steps = [order[step].tolist() for step in range(21)]
    for step in (20, 0, 13, 14, 6, 7):
        assert order[step].tolist() == Order(lengths, 0, 3)[step].tolist() == steps[step]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=40), st.integers(2, 4))
def test_wherever_a_step_is_cut_the_parts_have_about_equal_tokens(lengths, parts):
    """No part differs from its share by more than the longest sequence, and most differ by much less."""
    step = Order(lengths, 0, len(lengths))[0]
    batch = Batch.from_sequences([np.zeros(lengths[i], int) for i in step])
    prefix = np.cumsum([0, *batch.lengths])
    ideal = np.arange(len(lengths) + 1) * sum(lengths) / len(lengths)
    assert np.abs(prefix - ideal).max() <= max(lengths)
    split = batch.split(parts)
    assert max(len(part.ids) for part in split) <= sum(lengths) / parts + max(lengths)


def test_threads_get_more_equal_work_than_by_chance():
    draw, chance, arranged = np.random.default_rng(0), [], []
    for seed in range(200):
        lengths = draw.integers(10, 100, 4)
        step = Order(lengths, seed, 4)[0]
        for order, excess in ((draw.permutation(4), chance), (step, arranged)):
            batch = Batch.from_sequences([np.zeros(length, int) for length in lengths[order]])
            excess.append(max(len(part.ids) for part in batch.split(2)) / sum(lengths) * 2 - 1)
    assert np.mean(arranged) < 0.5 * np.mean(chance)


def test_equal_sequences_stay_as_they_were_drawn():
    order = Order(np.full(9, 5), 3, 3)
    drawn = list(itertools.chain.from_iterable(epoch_of(order)))
    assert sorted(drawn) == list(range(9)) != drawn


def test_fewer_tokens_than_a_sequence_has_are_refused():
    assert Order([3, 9, 4], 0, 1, 9).steps_per_epoch == 2
    with pytest.raises(ConfigError, match="batch_tokens = 8: it must be at least 9, the length of the longest"):
        Order([3, 9, 4], 0, 1, 8)
