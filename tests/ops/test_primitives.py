import numpy as np
import pytest

from npgpt import Tensor, backward, ops


@pytest.mark.parametrize(
    "ours, numpys",
    [
        (lambda x, y: ops.add(x, y), lambda x, y: x + y),
        (lambda x, y: ops.mul(x, y), lambda x, y: x * y),
        (lambda x, y: ops.matmul(x, ops.transpose(y, (1, 0))), lambda x, y: x @ y.T),
        (lambda x, y: ops.sum(x), lambda x, y: x.sum()),
        (lambda x, y: ops.sum(x, axis=0), lambda x, y: x.sum(axis=0)),
        (lambda x, y: ops.sum(x, axis=-1, keepdims=True), lambda x, y: x.sum(axis=-1, keepdims=True)),
        (lambda x, y: ops.exp(x), lambda x, y: np.exp(x)),
        (lambda x, y: ops.log(ops.exp(x)), lambda x, y: x),
        (lambda x, y: ops.tanh(x), lambda x, y: np.tanh(x)),
        (lambda x, y: ops.reshape(x, (4, -1)), lambda x, y: x.reshape(4, -1)),
        (lambda x, y: ops.take(x, (slice(1, None), [0, 0, 3])), lambda x, y: x[1:, [0, 0, 3]]),
    ],
)
def test_values_are_numpys(ours, numpys, leaves, assert_close):
    x, y = leaves((3, 4), (3, 4))
    assert_close(ours(x, y).data, numpys(x.data, y.data))


def test_each_repeated_index_counts():
    x = Tensor(np.zeros(4), trainable=True)
    dy = np.array([1.0, 10.0, 100.0])
    assert backward(ops.take(x, [2, 0, 2]), dy)[x].tolist() == [10, 0, 101, 0]


def test_where_an_input_was_repeated_its_gradient_is_summed(leaves):
    x, y = leaves((2, 1, 3), (4, 1))
    gradients = backward(ops.add(x, y), np.ones((2, 4, 3)))
    assert np.array_equal(gradients[x], np.full((2, 1, 3), 4.0))
    assert np.array_equal(gradients[y], np.full((4, 1), 6.0))
