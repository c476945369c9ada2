import math

import numpy as np
import pytest

from npgpt import Tensor, backward, ops


def constant(value):
    return Tensor(np.array(value))


def sigmoid(x):
    return ops.exp(ops.mul(ops.log(ops.add(constant(1.0), ops.exp(ops.mul(x, constant(-1.0))))), constant(-1.0)))


def rebuilt_gelu_new(x):
    cubic = ops.add(x, ops.mul(ops.mul(ops.mul(x, x), x), constant(0.044715)))
    t = ops.tanh(ops.mul(cubic, constant(math.sqrt(2 / math.pi))))
    return ops.mul(ops.mul(x, ops.add(t, constant(1.0))), constant(0.5))


@pytest.mark.parametrize(
    "fused, rebuilt",
    [
        (ops.gelu_new, rebuilt_gelu_new),
        (ops.relu, lambda x: ops.mul(x, Tensor((x.data > 0).astype(float)))),
        (ops.silu, lambda x: ops.mul(x, sigmoid(x))),
    ],
)
def test_equals_its_primitives(fused, rebuilt, leaves, assert_same):
    for x in leaves((4, 5), (70, 1024)):
        assert_same(fused, rebuilt, [x])


GRID = [-8.0, -6.5, -4.0, -1.3, -1e-3, 0.0, 1e-9, 0.4, 1.0, 3.9, 4.1, 6.1, 7.5]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gelu_is_that_of_the_error_function(dtype, assert_close):
    """Up to the rounding of some ten operations, one of them exp, which NumPy works out within four eps."""
    bound = 14 * np.finfo(dtype).eps
    x = Tensor(np.array([GRID], dtype), trainable=True)
    Phi = [(1 + math.erf(v / math.sqrt(2))) / 2 for v in GRID]
    density = [math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in GRID]
    y = ops.gelu(x)
    assert_close(y.data[0], np.multiply(GRID, Phi), bound)
    assert_close(backward(y, np.ones_like(y.data))[x][0], np.multiply(GRID, density) + Phi, bound)


def test_the_two_gelus_are_close_but_not_the_same(leaves):
    (x,) = leaves((4, 50))
    difference = np.abs(ops.gelu(x).data - ops.gelu_new(x).data).max()
    assert 1e-5 < difference < 1e-3


def test_relu_is_flat_at_its_kink():
    x = Tensor(np.array([[-1.0, 0.0, 2.0]]), trainable=True)
    y = ops.relu(x)
    assert y.data.tolist() == [[0, 0, 2]]
    assert backward(y, np.ones((1, 3)))[x].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_far_from_zero_nothing_overflows(name, dtype, assert_close):
    x = Tensor(np.array([[-1e4, -100.0, 100.0, 1e4]], dtype), trainable=True)
    y = ops.ACTIVATIONS[name](x)
    assert_close(y.data, [[0, 0, 100, 1e4]])
    assert_close(backward(y, np.ones_like(y.data))[x], [[0, 0, 1, 1]])


def test_names_of_configurations():
    assert set(ops.ACTIVATIONS) == {"gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "silu", "swish"}
    for spelling in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        assert ops.ACTIVATIONS[spelling] is ops.gelu_new
    assert ops.ACTIVATIONS["gelu"] is ops.gelu
    assert ops.ACTIVATIONS["relu"] is ops.relu
    assert ops.ACTIVATIONS["silu"] is ops.ACTIVATIONS["swish"] is ops.silu
