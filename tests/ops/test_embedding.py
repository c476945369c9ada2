import numpy as np
import pytest

from npgpt import Tensor, backward, ops


@pytest.mark.parametrize("ids", [[4, 0, 2], [1, 3, 1, 0, 3, 1], [2], [5, 5, 5, 5]])
def test_equals_its_primitives(ids, leaves, assert_same):
    one_hot = Tensor(np.eye(6)[ids])
    tables = leaves((6, 3))
    assert_same(lambda weight: ops.embedding(weight, np.array(ids)), lambda weight: ops.matmul(one_hot, weight), tables)
    assert_same(lambda weight: ops.embedding(weight, np.array(ids)), lambda weight: ops.take(weight, ids), tables)


def test_repeated_ids_add_up():
    table = Tensor(np.zeros((4, 1)), trainable=True)
    gradient = backward(ops.embedding(table, np.array([2, 0, 2])), np.array([[1.0], [10.0], [100.0]]))[table]
    assert gradient.ravel().tolist() == [10, 0, 101, 0]
