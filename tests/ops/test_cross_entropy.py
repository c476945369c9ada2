import math

import numpy as np
import pytest

from npgpt import Tensor, backward, ops
from npgpt.errors import ConfigError

SOME = np.array([4, -100, 0, 4, -100, -100, 10, 3])


def rebuilt(hidden, weight, targets):
    rows = np.flatnonzero(targets != -100)
    Z = ops.matmul(ops.take(hidden, rows), ops.transpose(weight, (1, 0)))
    log_sum = ops.log(ops.sum(ops.exp(Z), axis=1))
    at_target = ops.take(Z, (np.arange(len(rows)), targets[rows]))
    losses = ops.add(log_sum, ops.mul(at_target, Tensor(np.array(-1.0))))
    return ops.mul(ops.sum(losses), Tensor(np.array(1 / len(rows))))


@pytest.mark.parametrize("block_rows", [256, 5, 2, 1])
@pytest.mark.parametrize("targets", [SOME, np.arange(8), np.full(8, 7), np.array([-100] * 7 + [2])])
def test_equals_its_primitives(targets, block_rows, leaves, assert_same):
    assert_same(
        lambda hidden, weight: ops.cross_entropy(hidden, weight, targets, block_rows),
        lambda hidden, weight: rebuilt(hidden, weight, targets),
        leaves((8, 3), (11, 3)),
    )


def test_equals_its_primitives_where_two_rows_of_logits_fill_the_cache(leaves, assert_same):
    targets = np.array([59_999, 1, -100, 40_000, 7, 59_999])
    assert_same(
        lambda hidden, weight: ops.cross_entropy(hidden, weight, targets),
        lambda hidden, weight: rebuilt(hidden, weight, targets),
        leaves((6, 2), (60_000, 2)),
    )


def test_equals_its_primitives_where_the_table_is_the_input(leaves, assert_same):
    """A tied table receives a gradient as input and as output."""
    def tied(head):
        def loss(table):
            return head(ops.embedding(table, np.array([1, 5, 1, 2])), table, np.array([5, 1, 2, -100]))
        return loss

    assert_same(tied(ops.cross_entropy), tied(rebuilt), leaves((7, 3)))


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    loss = ops.cross_entropy(Tensor(np.zeros((3, 2))), Tensor(np.ones((11, 2))), np.array([0, 5, -100]))
    assert float(loss.data) == pytest.approx(math.log(11), abs=1e-15)
    assert loss.shape == ()


def test_rows_without_target_get_no_gradient(leaves):
    hidden, weight = leaves((8, 3), (11, 3))
    gradient = backward(ops.cross_entropy(hidden, weight, SOME))[hidden]
    assert np.array_equal(gradient.any(axis=1), SOME != -100)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_thousands_do_not_overflow(dtype):
    hidden, weight = Tensor(np.array([[1e4], [-1e4]], dtype), True), Tensor(np.array([[1], [-1]], dtype), True)
    loss = ops.cross_entropy(hidden, weight, np.array([1, 1]))
    assert float(loss.data) == 1e4  # 2e4 for the first, 0 for the second
    assert all(np.isfinite(gradient).all() for gradient in backward(loss).values())


def test_all_logits_are_never_in_memory_together(memory):
    hidden, weight = Tensor(np.zeros((1024, 2), np.float32), True), Tensor(np.zeros((3000, 2), np.float32))
    logits = 1024 * 3000 * 4  # bytes
    _, _, peak = memory(lambda: backward(ops.cross_entropy(hidden, weight, np.arange(1024))))
    assert peak < 0.3 * logits  # a quarter of the rows at a time


def test_no_target_at_all_is_an_error(leaves):
    with pytest.raises(ConfigError, match="no target"):
        ops.cross_entropy(*leaves((2, 3), (11, 3)), np.array([-100, -100]))
