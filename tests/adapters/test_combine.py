"""Several adapters made into one, and one for each sequence of a batch."""

import numpy as np
import pytest

from npgpt import (
    LoraConfig,
    add_lora,
    add_weighted_adapter,
    load_adapter,
    merge_lora,
    save_adapter,
)
from npgpt.adapters.combine import METHODS, _added
from npgpt.adapters.stack import adapter_names, set_adapter, updates
from npgpt.checking.gradcases import randomise, small_model
from npgpt.runtime.errors import ConfigError

NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
IDS = np.array([1, 5, 5, 2, 9])
CONFIGS = {
    "a": LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "wte", "lm_head"]),
    "b": LoraConfig(r=2, lora_alpha=6, target_modules=["c_attn", "mlp.c_fc"], use_rslora=True),
    "c": LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn"], init_lora_weights="pissa"),
    "dora": LoraConfig(r=2, target_modules=["c_attn"], use_dora=True, modules_to_save=["ln_f"]),
}


def model_with(*names, dtype=np.float64):
    model = small_model(dtype, tie_word_embeddings=False, **NONE)
    for name in names:
        add_lora(model, CONFIGS[name], name=name)
        randomise(model.trainable_parameters(), seed=ord(name[0]))
    return model


def delta(model, name):
    """dict module -> what the adapter adds to its weight."""
    layers = {module: getattr(layer, "base_layer", layer) for module, layer in model.named_modules()}
    return {module: update.delta(layers[module])["weight"] for module, update in updates(model, name).items()}


def weighted_sum(model, weights):
    total = {}
    for name, weight in weights.items():
        for module, array in delta(model, name).items():
            total[module] = total.get(module, 0) + weight * array
    return total


# Combining


@pytest.mark.parametrize("method", ["cat", "svd"])
@pytest.mark.parametrize("weights", [{"a": 1, "b": 1, "c": 1}, {"a": 0.3, "b": -1.7}, {"c": 2}])
def test_concatenation_is_exact_and_so_is_svd_of_full_rank(method, weights, assert_close, tmp_path):
    model = model_with("a", "b", "c")
    set_adapter(model, weights)
    stacked = model.logits(IDS)
    add_weighted_adapter(model, list(weights), list(weights.values()), "sum", method, rank=10)
    assert set(adapter_names(model)) == {"a", "b", "c", "sum"}
    assert_close(model.logits(IDS), stacked, 1e-11)
    expected = weighted_sum(model, weights)
    found = delta(model, "sum")
    assert found.keys() == expected.keys()
    for module, array in expected.items():
        assert_close(found[module], array, 1e-11)
    save_adapter(model, tmp_path, "sum")
    loaded = load_adapter(small_model(tie_word_embeddings=False, **NONE), tmp_path, "sum")
    assert_close(loaded.logits(IDS), stacked, 1e-5)
    assert_close(merge_lora(model).logits(IDS), stacked, 1e-11)


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_svd_is_the_best_of_its_rank(rank, assert_close):
    model, weights = model_with("a", "b", "c"), {"a": 1, "b": -2, "c": 0.5}
    add_weighted_adapter(model, list(weights), list(weights.values()), "sum", "svd", rank=rank)
    for module, target in weighted_sum(model, weights).items():
        U, S, Vt = np.linalg.svd(target)
        r = rank or max(len(next(iter(update.plain()[0].values()))) for name in weights
                        for each, update in updates(model, name).items() if each == module)
        assert_close(delta(model, "sum")[module], U[:, :r] * S[:r] @ Vt[:r], 1e-10)


def test_linear_adds_a_to_a_and_b_to_b(assert_close):
    model = model_with("a", "b")
    add_weighted_adapter(model, ["a", "b"], [2, -3], "sum", "linear")
    a, b = (updates(model, name)["h.0.attn.c_attn"] for name in "ab")
    both = updates(model, "sum")["h.0.attn.c_attn"]
    root_a, root_b = np.sqrt(2 * a.scale), np.sqrt(3 * b.scale)
    assert_close(both.lora_A.data, root_a * a.lora_A.data - root_b * b.lora_A.data)
    assert_close(both.lora_B.data, root_a * a.lora_B.data + root_b * b.lora_B.data)
    assert both.scale == 1


def test_ties_by_hand():
    """Each row keeps its half of the largest entries; signs 1, -1, 1 are elected; the mean of those that agree."""
    tensors = np.array([[3.0, -4.0, 1.0, 0.5], [-2.0, -1.0, 6.0, 0.1]])
    result = _added(tensors.copy(), np.array([1.0, 10.0]), "ties", 0.5, None)
    np.testing.assert_array_equal(result, [3.0, -4.0, 60.0, 0.0])


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_drops_by_the_generator_alone_and_keeps_the_mean(method):
    tensors, factors = np.ones((1, 200, 200)), np.array([2.0])
    first, again = (_added(tensors, factors, method, 0.25, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, _added(tensors, factors, method, 0.25, np.random.default_rng(8)))
    assert set(np.unique(first)) == {0.0, 8.0}
    assert first.mean() == pytest.approx(2, rel=0.05)


def test_with_density_1_ties_of_agreeing_adapters_is_their_mean_and_dare_is_linear(assert_close):
    tensors = np.abs(np.random.default_rng(0).standard_normal((3, 4, 5)))
    factors = np.array([1.0, 2.0, 3.0])
    total = np.einsum("n,nij->ij", factors, tensors)
    assert_close(_added(tensors.copy(), factors, "ties", 1.0, None), total / 3)
    assert_close(_added(tensors, factors, "dare_linear", 1.0, np.random.default_rng(0)), total)


@pytest.mark.parametrize("arguments, message", [
    ((["a", "b"], [1], "sum"), "1 weights for 2 adapters"),
    (([], [], "sum"), "0 weights for 0 adapters"),
    ((["a", "x"], [1, 1], "sum"), "no adapter called 'x'"),
    ((["a"], [1], "b"), "an adapter called 'b' already"),
    ((["a"], [1], "sum", "mean"), f"'mean' is not known; it must be one of {', '.join(METHODS)}"),
    ((["a", "c"], [1, 1], "sum", "linear"), "the ranks differ: 2, 6"),
    ((["a"], [1], "sum", "ties", None, 0), "density = 0"),
    ((["a"], [1], "sum", "dare_linear"), "dare_linear draws at random: pass rng"),
    ((["a"], [1], "sum", "svd", 0), "rank = 0"),
    ((["dora"], [1], "sum"), "adapter 'dora' has more than low-rank updates at h.0.attn.c_attn"),
])
def test_what_cannot_be_combined_changes_nothing(arguments, message):
    model = model_with("a", "b", "c", "dora")
    before = model.logits(IDS)
    with pytest.raises(ConfigError, match=message):
        add_weighted_adapter(model, *arguments)
    assert set(adapter_names(model)) == {"a", "b", "c", "dora"}
    np.testing.assert_array_equal(model.logits(IDS), before)
