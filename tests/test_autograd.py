import concurrent.futures
import gc
import weakref

import numpy as np
import pytest

from npgpt import Tensor, backward, ops
from npgpt.autograd import Record, no_grad, record
from npgpt.checking import gradcases
from npgpt.runtime.errors import ConfigError


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), trainable=True)


# What backward returns


def test_gradients_are_returned_for_the_trainable_leaves_and_stored_nowhere():
    x, y, frozen = leaf(2.0), leaf(3.0), Tensor(np.array([5.0]))
    before = x.data.copy()
    for _ in range(2):  # the second time finds nothing of the first
        gradients = backward(ops.mul(ops.mul(x, y), frozen))
        assert gradients.keys() == {x, y}
        assert (gradients[x], gradients[y]) == (15, 10)
    assert np.array_equal(x.data, before)
    assert x.record is None


def test_the_result_is_linear_in_dy():
    x = leaf(1.0, 2.0, 3.0)
    dy = np.array([1.0, -2.0, 0.5])
    one, twice = (backward(ops.exp(x), factor * dy)[x] for factor in (1, 2))
    assert np.allclose(one, dy * np.exp(x.data), rtol=1e-15)
    assert np.array_equal(twice, 2 * one)


def test_an_expression_read_several_times_is_differentiated_once():
    calls = []

    def square(x):
        return record("square", x.data * x.data, (x,), lambda dy: (calls.append(1) or 2 * x.data * dy,))

    x = leaf(3.0)
    y = square(x)
    total = ops.add(ops.add(y, ops.mul(y, y)), ops.add(y, x))  # 2 y + y^2 + x, with y = x^2
    assert backward(total)[x] == 2 * 6 + 2 * 9 * 6 + 1
    assert len(calls) == 1


def test_a_tensor_added_to_itself():
    x = leaf(3.0)
    assert backward(ops.add(x, x))[x] == 2


@pytest.mark.parametrize("order", [1, -1])
def test_one_gradient_sent_to_two_parents_is_not_added_to_in_place(order):
    x, y = leaf(1.0), leaf(1.0)
    both = record("both", x.data + y.data, (x, y), lambda dy: (dy, dy))  # the same array, twice
    other = ops.add(x, x)
    gradients = backward(ops.add(*[both, other][::order]))  # the walk meets one first, then the other
    assert gradients[x] == 3
    assert gradients[y] == 1


def test_a_leaf_made_trainable_or_frozen_later_counts_as_it_is_when_it_is_read():
    x, y = leaf(2.0), leaf(3.0)
    y.trainable = False
    assert backward(ops.mul(x, y)).keys() == {x}
    y.trainable = True
    assert backward(ops.mul(x, y)).keys() == {x, y}


# What is frozen


def test_the_walk_stops_below_the_lowest_trainable_leaf():
    frozen, x = Tensor(np.ones((2, 2))), leaf([1.0, 2.0], [3.0, 4.0])
    below = ops.exp(ops.matmul(frozen, frozen))
    assert below.record is None
    above = ops.matmul(below, x)
    assert [parent for parent, _ in above.record.parents] == [None, x]


def test_frozen_blocks_of_a_model_leave_no_record():
    model = gradcases.small_model()
    model.freeze()
    for tensor in model.h[1].parameters().values():
        tensor.trainable = True
    graph, stack = set(), [model.loss(gradcases.small_batch()).record]
    while stack:
        node = stack.pop()
        if isinstance(node, Record) and node not in graph:
            graph.add(node)
            stack.extend(parent for parent, _ in node.parents)
    names = [node.name for node in graph]
    assert names.count("causal_attention") == 1
    assert names.count("layer_norm") == 3
    assert "embedding" not in names


# The graph is used once


def test_a_second_backward_is_an_error():
    y = ops.exp(leaf(1.0))
    backward(y)
    with pytest.raises(ConfigError, match="already used"):
        backward(y)


def test_a_second_backward_through_a_shared_part_is_an_error_before_anything_is_used_up():
    x = leaf(1.0)
    shared = ops.exp(x)
    one, two = ops.tanh(shared), ops.log(shared)
    backward(one)
    with pytest.raises(ConfigError, match=r"part of its graph \(exp\) already"):
        backward(two)


def test_nothing_to_differentiate_is_an_error():
    with pytest.raises(ConfigError, match="nothing trainable"):
        backward(ops.exp(Tensor(np.array([1.0]))))
    with pytest.raises(ConfigError, match="only a scalar"):
        backward(ops.exp(leaf(1.0, 2.0)))


def test_memory_falls_while_the_walk_goes_on():
    saved, alive = [], []

    def step(x):
        array = np.ones(1)
        saved.append(weakref.ref(array))

        def rule(dy):
            alive.append(sum(ref() is not None for ref in saved))
            return (dy * array,)

        return record("step", x.data, (x,), rule)

    y = leaf(1.0)
    for _ in range(5):
        y = step(y)
    backward(y)
    assert alive == [5, 4, 3, 2, 1]
    assert not any(ref() is not None for ref in saved)


def test_an_activation_no_rule_asks_for_is_freed_during_the_forward_pass():
    x = leaf(1.0)
    h = ops.add(x, x)
    ref = weakref.ref(h.data)
    y = ops.add(h, x)
    del h
    assert ref() is None
    assert backward(y)[x] == 3


def test_no_reference_cycles():
    """Whatever a training step makes is freed as soon as it is dropped: nothing waits for the garbage collector."""
    model, batch = gradcases.small_model(), gradcases.small_batch()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)  # keeps what the collector finds
    try:
        for use in (lambda loss: None, backward):  # a graph that is dropped, and one that is used
            use(model.loss(batch, np.random.default_rng(0)))
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, Tensor | Record | np.ndarray)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def test_a_graph_of_ten_thousand_operations_meets_no_recursion_limit():
    x = leaf(1.0)
    for use in (lambda y: None, lambda y: backward(y)[x]):  # dropping it must not recurse either
        y = x
        for _ in range(10_000):
            y = ops.add(y, x)
        assert use(y) in (None, 10_001)


# Rules that are wrong


@pytest.mark.parametrize(
    "gradient",
    [np.ones(3), np.ones((2, 1)), np.ones(2, np.float32), None, 1.0],
    ids=["shape", "dimension", "dtype", "None", "number"],
)
def test_a_wrong_gradient_is_reported_by_the_name_of_its_operation(gradient):
    x = leaf(1.0, 2.0)
    with pytest.raises(AssertionError, match="crooked"):
        backward(record("crooked", x.data, (x,), lambda dy: (gradient,)), np.ones(2))


def test_a_float64_constant_is_caught_on_the_way_back():
    x = leaf(1.0, dtype=np.float32)
    with pytest.raises(AssertionError, match=r"mul .*float64.*float32"):
        backward(ops.mul(x, Tensor(np.array([2.0]))))


# Threads


def test_threads_differentiate_the_same_leaves_at_once():
    model, batch = gradcases.small_model(), gradcases.small_batch()
    expected = backward(model.loss(batch))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for gradients in pool.map(lambda _: backward(model.loss(batch)), range(16)):
            assert gradients.keys() == expected.keys()
            assert all(np.array_equal(gradients[tensor], expected[tensor]) for tensor in expected)


def test_no_grad_holds_in_its_own_thread_only():
    x = leaf(1.0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, no_grad():
        assert ops.exp(x).record is None
        assert pool.submit(ops.exp, x).result().record is not None


def test_no_grad_is_put_back_as_it_was():
    x = leaf(1.0)
    with no_grad():
        with pytest.raises(ValueError, match="inside"), no_grad():
            raise ValueError("inside")
        assert ops.exp(x).record is None
    assert ops.exp(x).record is not None
