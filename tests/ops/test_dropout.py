import numpy as np
import pytest

from npgpt import Tensor, backward, ops
from npgpt.ops.dropout import keep_mask
from npgpt.runtime.seeding import generator


def test_equals_its_primitives(leaves, assert_same):
    keep, keep_probability = keep_mask((4, 5), 0.3, generator(0, "dropout"))
    assert_same(
        lambda x: ops.dropout(x, 0.3, generator(0, "dropout")),
        lambda x: ops.mul(x, Tensor(keep / keep_probability)),
        leaves((4, 5)),
    )


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.5, 0.9])
def test_elements_are_dropped_with_probability_p_and_the_mean_stays(p):
    n = 1 << 20
    y = ops.dropout(Tensor(np.ones((n, 1))), p, generator(0, "dropout")).data
    five_sigma = 5 * np.sqrt(p * (1 - p) / n)
    assert abs(np.mean(y == 0) - p) < five_sigma
    assert abs(y.mean() - 1) < five_sigma / (1 - p)


def test_of_all_equally_likely_draws_exactly_the_stated_share_is_kept():
    class EveryDraw:
        def integers(self, high, size, dtype):
            assert (high, size, dtype) == (1 << 64, 65536 // 4, np.uint64)
            return np.arange(65536, dtype=np.uint16).view(dtype)

    for p in (0.1, 0.5, 1 - 1e-9):
        keep, keep_probability = keep_mask((65536,), p, EveryDraw())
        assert keep.mean() == keep_probability > 0


def test_the_kept_are_divided_by_the_exact_probability_of_keeping():
    keep, keep_probability = keep_mask((1000,), 0.1, generator(0, "dropout"))
    assert keep_probability == 1 - round(0.1 * 65536) / 65536
    y = ops.dropout(Tensor(np.ones(1000)), 0.1, generator(0, "dropout")).data
    assert np.unique(y).tolist() == [0, 1 / keep_probability]
    assert np.array_equal(y != 0, keep)


def test_the_gradient_passes_where_the_value_passed(leaves):
    (x,) = leaves((40, 50))
    y = ops.dropout(x, 0.3, generator(0, "dropout"))
    assert np.array_equal(backward(y, x.data)[x], y.data)


def test_without_a_generator_or_probability_it_is_the_identity(leaves):
    (x,) = leaves((4, 5))
    assert ops.dropout(x, 0.5, None) is x
    assert ops.dropout(x, 0.0, generator(0, "dropout")) is x


def test_one_draw_does_not_repeat_the_last(leaves):
    (x,) = leaves((40, 50))
    rng = generator(0, "dropout")
    assert not np.array_equal(ops.dropout(x, 0.5, rng).data, ops.dropout(x, 0.5, rng).data)
