import numpy as np
import pytest

from npgpt import Tensor, backward, ops
from npgpt.adapters.dora import column_norms, dora_linear
from npgpt.ops.dropout import keep_mask
from npgpt.runtime.seeding import generator

SHAPES = (5, 4), (4, 3), (3,), (2, 4), (3, 2), (3,)  # x, weight, bias, lora_A, lora_B, magnitude
SCALE = 0.7


def constant(values):
    return Tensor(np.array(values))


def direction(weight, A, B):
    """V = W + s (B A)ᵀ."""
    return ops.add(weight, ops.mul(ops.transpose(ops.matmul(B, A), (1, 0)), constant(SCALE)))


def norms(weight, A, B):
    return np.linalg.norm(direction(weight, A, B).data, axis=0)


def fused(p=0.0):
    def dora(x, weight, bias, A, B, m):
        norm = column_norms(weight.data, A.data, B.data, SCALE)
        return dora_linear(x, weight, bias, A, B, m, norm, SCALE, p, generator(0, "dropout"))
    return dora


def test_column_norms_are_those_of_the_whole_matrix(leaves, assert_close):
    weight, A, B = leaves((6, 5), (3, 6), (5, 3))
    assert_close(column_norms(weight.data, A.data, B.data, SCALE), norms(weight, A, B))
    assert column_norms(*(t.data.astype(np.float32) for t in (weight, A, B)), SCALE).dtype == np.float32


def test_equals_its_primitives(leaves, assert_same):
    """The norm is a constant there too."""
    def rebuilt(x, weight, bias, A, B, m):
        g = ops.mul(m, constant(1 / norms(weight, A, B)))
        return ops.add(ops.mul(ops.matmul(x, direction(weight, A, B)), g), bias)

    assert_same(fused(), rebuilt, leaves(*SHAPES))


def test_with_dropout_equals_its_primitives(leaves, assert_same):
    """Dropout falls on what DoRA adds to the frozen layer, and not on the frozen layer itself."""
    keep, keep_probability = keep_mask((5, 4), 0.4, generator(0, "dropout"))
    mask = constant(keep / keep_probability)

    def rebuilt(x, weight, bias, A, B, m):
        g, dropped = ops.mul(m, constant(1 / norms(weight, A, B))), ops.mul(x, mask)
        added = ops.add(ops.mul(ops.matmul(dropped, direction(weight, A, B)), g),
                        ops.mul(ops.matmul(dropped, weight), constant(-1.0)))
        return ops.add(ops.add(ops.matmul(x, weight), bias), added)

    assert 0 < keep.sum() < keep.size
    assert_same(fused(0.4), rebuilt, leaves(*SHAPES))


def test_it_starts_as_the_layer_it_wraps(leaves, assert_close):
    """With B zero and the magnitude that of W."""
    x, weight, bias, A, B, m = leaves(*SHAPES)
    B.data[...] = 0
    m.data = np.linalg.norm(weight.data, axis=0)
    for p in (0.0, 0.4):
        assert_close(fused(p)(x, weight, bias, A, B, m).data, ops.linear(x, weight, bias).data)


def test_what_the_detached_norm_leaves_out_is_the_projection_along_the_column(leaves, assert_close):
    """The docstring's claim, against the gradient that flows through the norm as well."""
    x, weight, bias, A, B, m = leaves(*SHAPES)
    for tensor in (x, weight, bias, m):
        tensor.trainable = False
    dy = np.random.default_rng(1).standard_normal((5, 3))
    detached = backward(fused()(x, weight, bias, A, B, m), dy)

    V = direction(weight, A, B)
    squares = ops.sum(ops.mul(V, V), axis=0)
    g = ops.mul(m, ops.exp(ops.mul(ops.log(squares), constant(-0.5))))
    whole = backward(ops.add(ops.mul(ops.matmul(x, V), g), bias), dy)

    dV = x.data.T @ (dy * m.data / norms(weight, A, B))
    e = V.data / norms(weight, A, B)
    along = e * (e * dV).sum(axis=0)
    assert_close(detached[B], SCALE * dV.T @ A.data.T)
    assert_close(whole[B], SCALE * (dV - along).T @ A.data.T)
    assert_close(whole[A], SCALE * B.data.T @ (dV - along).T)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_without_a_generator_nothing_is_dropped(leaves, p):
    x, weight, bias, A, B, m = leaves(*SHAPES)
    norm = column_norms(weight.data, A.data, B.data, SCALE)
    plain = dora_linear(x, weight, bias, A, B, m, norm, SCALE, p)
    np.testing.assert_array_equal(plain.data, fused()(x, weight, bias, A, B, m).data)
