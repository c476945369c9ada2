import numpy as np
import pytest

from npgpt import Tensor, ops

EPS = 1e-5


def rebuilt(x, weight, bias):
    width = Tensor(np.array(1 / x.shape[1]))
    mean = ops.mul(ops.sum(x, axis=1, keepdims=True), width)
    centred = ops.add(x, ops.mul(mean, Tensor(np.array(-1.0))))
    variance = ops.mul(ops.sum(ops.mul(centred, centred), axis=1, keepdims=True), width)
    log_rstd = ops.mul(ops.log(ops.add(variance, Tensor(np.array(EPS)))), Tensor(np.array(-0.5)))
    return ops.add(ops.mul(ops.mul(centred, ops.exp(log_rstd)), weight), bias)


def fused(x, weight, bias):
    return ops.layer_norm(x, weight, bias, EPS)


@pytest.mark.parametrize("rows, width", [(5, 6), (1, 6), (5, 2), (300, 1024)])  # the last: several blocks of rows
def test_equals_its_primitives(rows, width, leaves, assert_same):
    assert_same(fused, rebuilt, leaves((rows, width), (width,), (width,)))


def test_rows_have_mean_0_and_variance_1(leaves, assert_close):
    (x,) = leaves((4, 8))
    y = ops.layer_norm(Tensor(100 + 7 * x.data), Tensor(np.ones(8)), Tensor(np.zeros(8)), EPS).data
    assert np.abs(y.mean(axis=1)).max() < 1e-12
    assert_close(y.var(axis=1), np.ones(4), 1e-5)


def test_a_row_of_equal_values_becomes_the_bias(leaves):
    weight, bias = leaves(8, 8)
    y = fused(Tensor(np.full((2, 8), 3.0)), weight, bias)
    assert np.array_equal(y.data, np.tile(bias.data, (2, 1)))
