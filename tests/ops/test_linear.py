import numpy as np

from npgpt import Tensor, ops
from npgpt.ops.dropout import keep_mask
from npgpt.runtime.seeding import generator

SHAPES = (5, 4), (4, 3), (3,)  # x, weight, bias
LORA_SHAPES = *SHAPES, (2, 4), (3, 2)  # and lora_A, lora_B


def rebuilt_linear(x, weight, bias):
    return ops.add(ops.matmul(x, weight), bias)


def test_linear_equals_its_primitives(leaves, assert_same):
    assert_same(ops.linear, rebuilt_linear, leaves(*SHAPES))


def test_linear_without_bias_equals_its_primitives(leaves, assert_same):
    assert_same(ops.linear, ops.matmul, leaves(*SHAPES[:2]))


def test_lora_linear_equals_its_primitives(leaves, assert_same):
    scale, p = 0.7, 0.4
    keep, keep_probability = keep_mask((5, 4), p, generator(0, "dropout"))
    mask = Tensor(keep / keep_probability)

    def fused(x, weight, bias, A, B):
        return ops.lora_linear(x, weight, bias, A, B, scale, p, generator(0, "dropout"))

    def rebuilt(x, weight, bias, A, B):
        u = ops.matmul(ops.mul(x, mask), ops.transpose(A, (1, 0)))
        update = ops.mul(ops.matmul(u, ops.transpose(B, (1, 0))), Tensor(np.array(scale)))
        return ops.add(rebuilt_linear(x, weight, bias), update)

    assert 0 < keep.sum() < keep.size
    assert_same(fused, rebuilt, leaves(*LORA_SHAPES))


def test_lora_linear_is_a_linear_of_the_merged_weight(leaves, assert_same):
    def merged(x, weight, bias, A, B):
        update = ops.transpose(ops.matmul(B, A), (1, 0))
        return rebuilt_linear(x, ops.add(weight, ops.mul(update, Tensor(np.array(0.7)))), bias)

    def fused(x, weight, bias, A, B):
        return ops.lora_linear(x, weight, bias, A, B, 0.7)

    assert_same(fused, merged, leaves(*LORA_SHAPES))


def test_without_a_generator_nothing_is_dropped(leaves):
    x, weight, bias, A, B = leaves(*LORA_SHAPES)
    plain = ops.lora_linear(x, weight, bias, A, B, 0.7)
    assert np.array_equal(ops.lora_linear(x, weight, bias, A, B, 0.7, p=0.4).data, plain.data)


def test_a_frozen_linear_does_not_keep_its_input(leaves):
    x, weight, bias = leaves(*SHAPES)
    weight.trainable = bias.trainable = False
    rule = ops.linear(x, weight, bias).record.rule
    assert not any(cell.cell_contents is x.data for cell in rule.__closure__)
