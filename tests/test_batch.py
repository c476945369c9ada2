import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import Batch
from npgpt.runtime.errors import ConfigError

lengths_of_sequences = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def batch_of(lengths):
    """Sequences whose tokens are numbered through, so that each token says where it belongs."""
    ends = np.cumsum(lengths)
    return Batch.from_sequences([np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)])


def test_sequences_lie_end_to_end_and_each_predicts_its_own_next_tokens():
    batch = Batch.from_sequences([[5, 6, 7], [8], np.array([9, 5], np.uint16)])
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 5]
    assert batch.targets.tolist() == [6, 7, -100, -100, 5, -100]
    assert batch.lengths.tolist() == [3, 1, 2]
    assert batch.n_targets == 3
    assert {array.dtype for array in (batch.ids, batch.targets, batch.lengths)} == {np.dtype(np.int64)}


def test_a_token_carries_loss_where_its_mask_is_1():
    batch = Batch.from_sequences([[5, 6, 7], [8, 9]], loss_masks=[[1, 0, 1], np.array([True, True])])
    assert batch.targets.tolist() == [-100, 7, -100, 9, -100]
    # The first token of a sequence is predicted from nothing, so its mask says nothing.
    assert Batch.from_sequences([[5, 6]], [[0, 1]]).targets.tolist() == [6, -100]


def test_the_sequences_given_are_left_alone():
    sequence, mask = np.array([5, 6, 7]), np.array([1, 0, 1])
    batch = Batch.from_sequences([sequence], [mask])
    batch.ids[0] = batch.targets[0] = 1
    assert sequence.tolist() == [5, 6, 7]
    assert mask.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "sequences, masks, message",
    [
        ([], None, "at least one sequence"),
        ([[1, 2], []], None, "sequence 1 has shape"),
        ([[[1, 2]]], None, "sequence 0 has shape"),
        ([[1, 2], [1.0, 2.0]], None, "sequence 1 .*float64"),
        ([[1, 2]], [], "0 loss masks for 1 sequences"),
        ([[1, 2], [3, 4]], [[1, 1], [1]], "loss mask 1"),
    ],
)
def test_what_is_no_batch_is_an_error_that_names_the_sequence(sequences, masks, message):
    with pytest.raises(ConfigError, match=message) as error:
        Batch.from_sequences(sequences, masks)
    assert "\n" not in str(error.value)


@given(lengths_of_sequences, st.integers(1, 15))
def test_parts_hold_every_sequence_once_in_order(lengths, parts):
    batch = batch_of(lengths)
    split = batch.split(parts)
    for name in ("ids", "targets", "lengths"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in split]), getattr(batch, name))
    for part in split:
        assert part.lengths.sum() == len(part.ids) == len(part.targets)
    assert sum(part.n_targets for part in split) == batch.n_targets


@given(lengths_of_sequences, st.integers(1, 15))
def test_parts_are_about_equal(lengths, parts):
    """Every cut is as near as can be to where equal parts would be cut."""
    split = batch_of(lengths).split(parts)
    share = sum(lengths) / parts
    cuts, ends = np.cumsum([len(part.ids) for part in split])[:-1], np.cumsum(lengths)[:-1]
    assert 1 <= len(split) <= parts
    assert max(len(part.ids) for part in split) <= share + max(lengths)
    if len(lengths) > 1:
        for goal in share * np.arange(1, parts):
            assert np.abs(cuts - goal).min() == np.abs(ends - goal).min()


@pytest.mark.parametrize(
    "lengths, parts, expected",
    [([5, 6], 2, [[5], [6]]), ([4, 4, 5, 5], 2, [[4, 4], [5, 5]]), ([7], 3, [[7]]), ([1, 1, 10], 2, [[1, 1], [10]]),
     ([3, 3, 3, 3], 4, [[3]] * 4), ([3, 3, 3, 3], 1, [[3, 3, 3, 3]])],
)
def test_examples_of_parts(lengths, parts, expected):
    assert [part.lengths.tolist() for part in batch_of(lengths).split(parts)] == expected
