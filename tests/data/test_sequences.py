import numpy as np
import pytest

from npgpt.batch import Batch
from npgpt.data import Sequences, sequences


def test_sequences_of_arrays():
    arrays, masks = [[5, 6, 7], np.array([8, 9], np.uint16)], [[1, 0, 1], [1, 1]]
    made = Sequences.of(arrays, masks)
    assert [s.tolist() for s in made] == [[5, 6, 7], [8, 9]]
    assert [mask.tolist() for mask in made.loss_masks] == masks
    assert made.lengths.tolist() == [3, 2]
    assert len(made) == len(made.loss_masks) == 2
    assert made[-1].tolist() == [8, 9]
    with pytest.raises(IndexError):
        made[2]
    expected = Batch.from_sequences(arrays[::-1], masks[::-1])
    batch = made.batch([1, 0])
    for name in ("ids", "targets", "lengths"):
        assert np.array_equal(getattr(batch, name), getattr(expected, name))
    assert Sequences.of(arrays).batch([0, 1]).n_targets == 3


def test_ids_that_occur_nowhere(monkeypatch):
    monkeypatch.setattr(sequences, "AT_ONCE", 2)
    made = Sequences.of([np.array([3, 1, 4]), np.array([1, 5])])
    assert made.missing([5, 2, 3, 9]) == [2, 9]
    assert made.missing([]) == []
