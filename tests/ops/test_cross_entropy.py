import math

import numpy as np
import pytest

from npgpt import Tensor, backward, ops
from npgpt.ops.cross_entropy import plain_cross_entropy
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.threads import workers

SOME = np.array([4, -100, 0, 4, -100, -100, 10, 3])


@pytest.mark.parametrize("blocks", [(), (5,), (2, 11), (1, 3), (8, 1)])
@pytest.mark.parametrize("targets", [SOME, np.arange(8), np.full(8, 7), np.array([-100] * 7 + [2])])
def test_equals_its_primitives(targets, blocks, leaves, assert_same):
    assert_same(
        lambda hidden, weight: ops.cross_entropy(hidden, weight, targets, *blocks),
        lambda hidden, weight: plain_cross_entropy(hidden, weight, targets),
        leaves((8, 3), (11, 3)),
    )


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_equals_its_primitives_over_a_large_vocabulary(n_threads, leaves, assert_same):
    targets = np.array([59_999, 1, -100, 40_000, 7, 59_999])
    with workers(n_threads):
        assert_same(
            lambda hidden, weight: ops.cross_entropy(hidden, weight, targets),
            lambda hidden, weight: plain_cross_entropy(hidden, weight, targets),
            leaves((6, 2), (60_000, 2)),
        )


def test_equals_its_primitives_where_the_table_is_the_input(leaves, assert_same):
    """A tied table receives a gradient as input and as output."""
    def tied(head):
        def loss(table):
            return head(ops.embedding(table, np.array([1, 5, 1, 2])), table, np.array([5, 1, 2, -100]))
        return loss

    assert_same(tied(ops.cross_entropy), tied(plain_cross_entropy), leaves((7, 3)))


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    loss = ops.cross_entropy(Tensor(np.zeros((3, 2))), Tensor(np.ones((11, 2))), np.array([0, 5, -100]))
    assert float(loss.data) == pytest.approx(math.log(11), abs=1e-15)
    assert loss.shape == ()


def test_rows_without_target_get_no_gradient(leaves):
    hidden, weight = leaves((8, 3), (11, 3))
    gradient = backward(ops.cross_entropy(hidden, weight, SOME))[hidden]
    assert np.array_equal(gradient.any(axis=1), SOME != -100)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("blocks", [(), (2, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_thousands_do_not_overflow(dtype, blocks, n_threads):
    hidden, weight = Tensor(np.array([[1e4], [-1e4]], dtype), True), Tensor(np.array([[1], [-1]], dtype), True)
    with workers(n_threads):
        loss = ops.cross_entropy(hidden, weight, np.array([1, 1]), *blocks)
    assert float(loss.data) == 1e4  # 2e4 for the first, 0 for the second
    assert all(np.isfinite(gradient).all() for gradient in backward(loss).values())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("rows, vocabulary", [(1024, 10_240), (10_240, 1024)])
def test_all_logits_are_never_in_memory_together(rows, vocabulary, trained, memory):
    hidden = Tensor(np.zeros((rows, 2), np.float32), trainable=True)
    weight = Tensor(np.zeros((vocabulary, 2), np.float32), trained)
    logits = rows * vocabulary * 4  # bytes
    _, _, peak = memory(lambda: backward(ops.cross_entropy(hidden, weight, np.zeros(rows, int))))
    assert peak < 0.15 * logits  # a tenth of the rows or of the vocabulary at a time


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_in_float32_a_model_sure_of_its_targets_has_an_exact_loss_and_gradient(trained, n_threads, assert_close):
    """Of numbers of order 1 that nearly cancel, loss and gradients of 1e-5 would keep one digit or two."""
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 40, 30)
    table = draw.standard_normal((40, 16))
    table *= 4 / np.linalg.norm(table, axis=1, keepdims=True)
    results = []
    for dtype in (np.float64, np.float32):
        hidden, weight = Tensor((1.5 * table[targets]).astype(dtype), True), Tensor(table.astype(dtype), trained)
        with workers(n_threads):
            loss = ops.cross_entropy(hidden, weight, targets)
            results.append([loss.data, *backward(loss).values()])
    assert 0 < results[0][0] < 1e-3
    for exact, single in zip(*results, strict=True):
        assert_close(single, exact, 1e-4)  # logits of order 10 are rounded at 1e-6


def test_no_loss_is_negative():
    table = 30 * np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    for token in range(5):
        assert ops.cross_entropy(Tensor(table[[token]]), Tensor(table), np.array([token])).data >= 0


def test_what_blas_adds_and_throws_away_is_no_error():
    """For rows of five float32, the AVX-512 kernel of OpenBLAS 0.3.31 (in NumPy 2.4) adds up eight numbers, three of
    which nobody wrote: its stack as an earlier call left it. Their sums are thrown away, and the result is right; but
    where one of the three is a signalling NaN, the processor notes an invalid operation, of which NumPy warns. So
    pyproject.toml takes that one warning out of those that are errors. Here an earlier product leaves them: BLAS copies
    a vector that has gaps onto its stack.
    """
    hidden, table = np.arange(5, dtype=np.float32)[None] / 8, np.arange(35, dtype=np.float32).reshape(7, 5) / 32
    expected = (hidden * table).sum(axis=1)  # exact: multiples of 1/256 below 16
    nan = np.full((2, 200), 0x7FA00000, np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        assert np.isnan(nan[:, :100] @ nan[0, ::2]).all()
    assert np.array_equal((hidden @ table.T)[0], expected)


def test_no_target_at_all_is_an_error(leaves):
    with pytest.raises(ConfigError, match="no target"):
        ops.cross_entropy(*leaves((2, 3), (11, 3)), np.array([-100, -100]))
