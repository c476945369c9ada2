import numpy as np
import pytest

from npgpt import Tensor, backward, ops
from npgpt.ops.attention import plain_attention
from npgpt.ops.dropout import keep_mask
from npgpt.runtime import tiles
from npgpt.runtime.seeding import generator
from npgpt.runtime.threads import blas_threads


@pytest.mark.parametrize(
    "lengths, n_head",
    [([6], 2), ([1], 2), ([1, 1], 3), ([4, 4], 2), ([3, 1, 4, 3, 3, 2], 2), ([2, 3, 2], 1), ([5], 6),
     ([130, 3, 130], 2), ([257], 1)],  # longer than one block of queries
)
def test_equals_its_primitives(lengths, n_head, leaves, assert_same):
    lengths = np.array(lengths)
    assert_same(
        lambda qkv: ops.causal_attention(qkv, lengths, n_head, 0.7),
        lambda qkv: plain_attention(qkv, lengths, n_head, 0.7),
        leaves((lengths.sum(), 6 * n_head)),
    )


@pytest.mark.parametrize("scores, heads", [(1, 1), (72, 2), (1 << 18, 3)])
def test_dropout_falls_on_the_probabilities(monkeypatch, leaves, assert_same, scores, heads):
    """Each tile of heads, here of 6 x 6 scores each, draws its mask from its own stream."""
    monkeypatch.setattr(tiles, "TILE", scores)
    seed = int(generator(0, "dropout").integers(1 << 62))
    keep, keep_probability = zip(*(keep_mask((1, min(heads, 3 - h), 6, 6), 0.4, generator(seed, "attention", 0, 0, h))
                                   for h in range(0, 3, heads)), strict=True)
    assert_same(
        lambda qkv: ops.causal_attention(qkv, np.array([6]), 3, 0.7, 0.4, generator(0, "dropout")),
        lambda qkv: plain_attention(qkv, [6], 3, 0.7, np.concatenate(keep, axis=1)[0] / keep_probability[0]),
        leaves((6, 18)),
    )


@pytest.mark.parametrize("scores", [1, 1 << 17])
def test_each_probability_has_its_own_draw(monkeypatch, leaves, scores):
    """With one value for all tokens, a token's output is the sum of its kept probabilities; no two are alike."""
    monkeypatch.setattr(tiles, "TILE", scores)
    (qkv,) = leaves((12, 12))
    qkv.data[:, 8:] = 1
    y = ops.causal_attention(qkv, np.array([4, 4, 4]), 2, 0.7, 0.5, generator(0, "dropout")).data
    heads = y.reshape(3, 4, 2, 2)[..., 0]
    for one, two in ((heads[0], heads[1]), (heads[..., 0], heads[..., 1])):
        assert not np.array_equal(one != 0, two != 0)


def test_sequences_of_different_lengths_have_draws_of_their_own(monkeypatch, leaves):
    """A sequence's first token sees itself alone: its output is its value, or 0 where that was dropped."""
    monkeypatch.setattr(tiles, "TILE", 1)
    (qkv,) = leaves((9, 3 * 32))
    y = ops.causal_attention(qkv, np.array([4, 5]), 32, 0.7, 0.5, generator(0, "dropout")).data
    assert not np.array_equal(y[0] != 0, y[4] != 0)


def test_the_first_token_of_a_sequence_gathers_its_own_value(leaves, assert_close):
    (qkv,) = leaves((7, 12))
    y = ops.causal_attention(qkv, np.array([3, 4]), 2, 0.7).data
    assert_close(y[[0, 3]], qkv.data[[0, 3], 8:])


def test_no_gradient_reaches_what_a_token_cannot_see(leaves):
    (qkv,) = leaves((9, 12))
    dy = np.zeros((9, 4))
    dy[6] = 1  # token 2 of the second sequence
    gradient = backward(ops.causal_attention(qkv, np.array([4, 5]), 2, 0.7), dy)[qkv]
    assert np.flatnonzero(gradient.any(axis=1)).tolist() == [4, 5, 6]


def test_huge_scores_do_not_overflow(leaves):
    (qkv,) = leaves((6, 12))
    y = ops.causal_attention(qkv, np.array([6]), 2, 1e6)
    assert np.isfinite(y.data).all()
    assert np.isfinite(backward(y, np.ones((6, 4)))[qkv]).all()


def test_a_long_sequence_never_has_all_its_scores_in_memory(memory):
    qkv = Tensor(np.zeros((1024, 24), np.float32), trainable=True)
    scores = 8 * 1024 * 1024 * 4  # bytes, for 8 heads
    with blas_threads(1):
        y, held, peak = memory(lambda: ops.causal_attention(qkv, np.array([1024]), 8, 1.0))
        assert held < 0.01 * scores
        assert peak < 0.2 * scores
        _, _, peak = memory(lambda: backward(y, np.ones((1024, 8), np.float32)))
        assert peak < 0.2 * scores
