import math

import numpy as np
import pytest

from npgpt import AdamW, Tensor, clip_grad_norm
from npgpt.optim import schedule
from npgpt.runtime.errors import ConfigError

SETTINGS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


def tensors(*arrays, dtype=np.float64):
    return {f"p{i}": Tensor(np.array(array, dtype), trainable=True) for i, array in enumerate(arrays)}


def scalar_adamw(p, gradients, lr, betas, eps, weight_decay):
    """Algorithm 2 of Loshchilov & Hutter for one number, written out."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        mhat, vhat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * weight_decay * p - lr * mhat / (math.sqrt(vhat) + eps)
    return p


def test_adamw_is_its_algorithm_element_by_element(assert_close):
    draw = np.random.default_rng(0)
    start, gradients = draw.standard_normal((3, 4)), draw.standard_normal((7, 3, 4))
    params = tensors(start)
    opt = AdamW(params, **SETTINGS)
    for g in gradients:
        opt.step({params["p0"]: g})
    expected = [[scalar_adamw(start[i, j], gradients[:, i, j], **SETTINGS) for j in range(4)] for i in range(3)]
    assert_close(params["p0"].data, expected, 1e-14)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_first_step_has_the_length_of_the_learning_rate_whatever_the_gradient(scale):
    params = tensors([0.0, 0.0])
    AdamW(params, lr=0.01, eps=1e-12).step({params["p0"]: scale * np.array([3.0, -0.2])})
    assert np.allclose(params["p0"].data, [-0.01, 0.01], rtol=1e-6)


def test_decay_acts_on_the_weight_and_not_through_the_gradient():
    params = tensors([2.0, -3.0])
    opt = AdamW(params, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        opt.step({params["p0"]: np.zeros(2)})
    assert np.allclose(params["p0"].data, np.array([2, -3]) * (1 - 0.1 * 0.5) ** 3, rtol=1e-15)
    assert not opt.m["p0"].any()


def test_decay_leaves_out_what_is_named():
    params = tensors([2.0, -3.0], [1.0], [5.0])
    opt = AdamW(params, lr=0.1, weight_decay=0.5, ratios={"p2": 2.0}, undecayed=["p1"])
    for _ in range(3):
        opt.step({tensor: np.zeros(tensor.shape) for tensor in params.values()})
    assert np.allclose(params["p0"].data, np.array([2, -3]) * (1 - 0.1 * 0.5) ** 3, rtol=1e-15)
    assert params["p1"].data == 1
    assert np.allclose(params["p2"].data, 5 * (1 - 0.2 * 0.5) ** 3, rtol=1e-15)
    with pytest.raises(ConfigError, match="undecayed names p3, p4, not in params"):
        AdamW(params, undecayed=["p4", "p0", "p3"])


def test_the_learning_rate_may_be_set_between_steps():
    params = tensors([1.0])
    opt = AdamW(params, lr=0.1)
    opt.lr = 0.0
    opt.step({params["p0"]: np.ones(1)})
    assert params["p0"].data == 1


def test_a_parameter_without_gradient_stays():
    params = tensors([1.0], [1.0])
    AdamW(params, lr=0.1).step({params["p1"]: np.ones(1)})
    assert params["p0"].data == 1
    assert params["p1"].data < 1


def test_float32_stays_float32_and_gradients_are_only_read():
    params = tensors([1.0, 2.0], dtype=np.float32)
    g = np.array([0.5, -0.5], np.float32)
    g.flags.writeable = False
    opt = AdamW(params)
    opt.step({params["p0"]: g})
    assert {params["p0"].dtype, opt.m["p0"].dtype, opt.v["p0"].dtype} == {np.dtype(np.float32)}


def test_weights_are_updated_in_place_and_mapped_ones_copied_first():
    writable, mapped = np.ones(2), np.ones(2)
    mapped.flags.writeable = False
    params = {"writable": Tensor(writable, True), "mapped": Tensor(mapped, True)}
    AdamW(params, lr=0.1).step({tensor: np.ones(2) for tensor in params.values()})
    assert params["writable"].data is writable
    assert writable[0] < 1
    assert mapped[0] == 1
    assert params["mapped"].data[0] == writable[0]


@pytest.mark.parametrize(
    "params, settings, message",
    [
        ({}, {}, "nothing is trainable"),
        (tensors([1.0]), {"lr": -1}, "lr=-1"),
        (tensors([1.0]), {"lr": math.nan}, "lr=nan"),
        (tensors([1.0]), {"betas": (1.0, 0.9)}, r"betas=\(1.0, 0.9\)"),
        (tensors([1.0]), {"betas": (0.9, -0.1)}, "betas"),
        (tensors([1.0]), {"betas": (0.9, 1.0)}, "betas"),
        (tensors([1.0]), {"eps": 0}, "eps=0"),
        (tensors([1.0]), {"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_settings_that_cannot_be_used(params, settings, message):
    with pytest.raises(ConfigError, match=message):
        AdamW(params, **settings)


def test_settings_at_the_edge_of_what_can_be_used():
    params = tensors([1.0])
    AdamW(params, lr=0, betas=(0, 0), weight_decay=0).step({params["p0"]: np.ones(1)})
    assert params["p0"].data == 1


# Clipping


def test_all_gradients_are_scaled_by_one_factor_to_the_norm():
    a, b = tensors([0.0, 0.0], [[0.0]]).values()
    grads = {a: np.array([3.0, 0.0]), b: np.array([[-4.0]])}
    assert clip_grad_norm(grads, 1.0) == 5
    assert np.allclose(grads[a], [0.6, 0], rtol=1e-6)
    assert np.allclose(grads[b], [[-0.8]], rtol=1e-6)
    assert clip_grad_norm(grads, 1.0) == pytest.approx(1, rel=1e-6)


def test_the_factor_is_that_of_pytorch():
    (a,) = tensors([0.0]).values()
    grads = {a: np.array([4.0])}
    clip_grad_norm(grads, 2.0)
    assert grads[a] == pytest.approx(4 * 2 / (4 + 1e-6), rel=1e-15)


@pytest.mark.parametrize("max_norm", [5.1, 100.0, math.inf])
def test_gradients_within_the_norm_are_left_alone(max_norm):
    (a,) = tensors([0.0, 0.0]).values()
    grads = {a: np.array([3.0, 4.0])}
    assert clip_grad_norm(grads, max_norm) == 5
    assert grads[a].tolist() == [3, 4]


def test_an_array_given_to_two_leaves_is_scaled_once_for_each():
    a, b = tensors([0.0], [0.0]).values()
    shared = np.array([4.0], np.float32)
    grads = {a: shared, b: shared}
    clip_grad_norm(grads, 1.0)
    assert grads[a] == grads[b] == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert grads[a].dtype == np.float32


@pytest.mark.parametrize("max_norm", [0, -1, math.nan])
def test_a_norm_that_cannot_be_reached_is_an_error(max_norm):
    with pytest.raises(ConfigError, match="max_norm"):
        clip_grad_norm({}, max_norm)


# Schedules


@pytest.mark.parametrize(
    "name, factors",
    [
        ("constant", [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0, 0.25, 0.5, 0.75, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
    ],
)
def test_schedules_at_their_landmarks(name, factors):
    assert [schedule(name, step, 8, warmup_steps=4) for step in range(9)] == pytest.approx(factors, abs=1e-15)
    assert schedule(name, 100, 8, 4) == factors[-1]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_warm_up_the_first_step_has_the_full_rate(name):
    assert schedule(name, 0, 8) == 1
    assert schedule(name, 0, 0) == 1
    assert schedule(name, 8, 8, 8) == 1  # warm-up to the very end
    assert schedule(name, 1, 1) == schedule(name, 8, 8)  # a single step


def test_a_schedule_that_is_not_known_is_an_error_at_once():
    with pytest.raises(ConfigError, match="'cosin' is not known"):
        schedule("cosin", 0, 10, warmup_steps=5)


def test_ratios_multiply_the_rate_and_with_it_the_decay_of_those_named():
    """As two optimisers would, each with its own rate."""
    draw = np.random.default_rng(0)
    start, grads = draw.standard_normal((2, 3)), draw.standard_normal((4, 2, 3))

    def run(**options):
        params = {name: Tensor(row.copy(), trainable=True) for name, row in zip("ab", start, strict=True)}
        opt = AdamW(params, weight_decay=0.1, **options)
        for step in grads:
            opt.step({tensor: g for tensor, g in zip(params.values(), step, strict=True)})
        return {name: tensor.data for name, tensor in params.items()}

    both, slow, fast = run(lr=0.01, ratios={"b": 16}), run(lr=0.01), run(lr=0.16)
    np.testing.assert_array_equal(both["a"], slow["a"])
    np.testing.assert_array_equal(both["b"], fast["b"])


@pytest.mark.parametrize("ratios", [{"c": 2}, {"a": 0}, {"a": -1}])
def test_ratios_that_cannot_be_used(ratios):
    with pytest.raises(ConfigError, match="ratios = "):
        AdamW({"a": Tensor(np.zeros(1), trainable=True)}, ratios=ratios)

def test_a_parameter_larger_than_the_cache_is_updated_like_its_parts():
    draws = np.random.default_rng(0)
    start, gradients = draws.standard_normal((700, 500)), draws.standard_normal((3, 700, 500))
    whole = Tensor(start.copy(), trainable=True)
    parts = {f"{row}": Tensor(start[row : row + 100].copy(), trainable=True) for row in range(0, 700, 100)}
    one, many = AdamW({"whole": whole}), AdamW(parts)
    for g in gradients:
        one.step({whole: g})
        many.step({part: g[int(row) : int(row) + 100] for row, part in parts.items()})
    assert np.array_equal(whole.data, np.concatenate([part.data for part in parts.values()]))
    assert not np.any(whole.data == start)
