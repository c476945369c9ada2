"""Several adapters on one model: naming, switching, stacking, taking off."""


import numpy as np
import pytest

from npgpt import AdamW, LoraConfig, add_lora, backward, load_adapter, merge_lora, save_adapter
from npgpt.adapters.stack import adapter_names, delete_adapter, disable_adapter, set_adapter, updates
from npgpt.checking.gradcases import randomise, small_batch, small_model
from npgpt.lora import adapted_layers
from npgpt.runtime.errors import ConfigError
from tests.test_lora import adapted

IDS = [1, 5, 5, 2, 9]
NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIGS = {
    "one": LoraConfig(r=3, lora_alpha=4, target_modules=["c_attn", "mlp.c_fc"]),
    "two": LoraConfig(r=2, lora_alpha=5, lora_dropout=0.4, target_modules=["c_attn", "c_proj"]),
}


def with_adapters(*names, dtype=np.float64):
    """A small model with these adapters of CONFIGS, each with an effect."""
    model = small_model(dtype, **NONE)
    for name in names:
        add_lora(model, CONFIGS[name], name=name)
        randomise(model.trainable_parameters(), seed=1)
    return model


def deltas(model, weights):
    """The logits of the base with these adapters' updates added to its weights by hand."""
    plain = small_model(**NONE)
    for name, weight in weights.items():
        for module, update in updates(model, name).items():
            plain.parameters()[f"{module}.weight"].data += (
                weight * CONFIGS[name].scale * (update.lora_B.data @ update.lora_A.data).T)
    return plain.logits(IDS)


def base_bits(model):
    return {name: tensor.data.tobytes() for name, tensor in model.parameters().items() if "lora_" not in name}


@pytest.fixture
def model():
    return with_adapters("one", "two")


def test_the_last_one_added_is_in_force_and_trains_alone(model):
    assert adapter_names(model) == ["one", "two"]
    assert model.trainable_parameters().keys() == {
        f"h.{layer}.{module}.lora_{AB}.two"
        for layer in range(2) for module in ("attn.c_attn", "attn.c_proj", "mlp.c_proj") for AB in "AB"}
    np.testing.assert_array_equal(model.logits(IDS), with_adapters("two").logits(IDS))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_computes_what_it_computes_alone(model, name):
    set_adapter(model, name)
    np.testing.assert_array_equal(model.logits(IDS), with_adapters(name).logits(IDS))
    loss, alone = model.loss(small_batch()), with_adapters(name).loss(small_batch())
    assert float(loss.data) == float(alone.data)
    assert set(backward(loss)) == set(model.trainable_parameters().values())
    assert all(key.endswith(f".{name}") for key in model.trainable_parameters())


@pytest.mark.parametrize("weights", [{"one": 1, "two": 1}, {"one": 0.3, "two": -1.7}, {"two": 0.5}, {"two": 0}])
def test_updates_are_added_with_their_weights(model, weights, assert_close):
    set_adapter(model, weights)
    expected = deltas(model, weights)
    assert_close(model.logits(IDS), expected)
    assert_close(merge_lora(model).logits(IDS), expected)


def test_a_list_of_names_adds_them_as_they_are(model):
    set_adapter(model, ["one", "two"])
    listed = model.logits(IDS)
    set_adapter(model, {"one": 1, "two": 1})
    np.testing.assert_array_equal(model.logits(IDS), listed)


def test_one_trains_while_another_is_in_force_too(model):
    set_adapter(model, ["one", "two"], trainable=["one"])
    before = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    opt = AdamW(model.trainable_parameters(), lr=0.1)
    for step in range(3):
        opt.step(backward(model.loss(small_batch(), np.random.default_rng(step))))
    for name, tensor in model.parameters().items():
        assert np.array_equal(tensor.data, before[name]) == (not name.endswith(".one")), name


def test_dropout_falls_on_each_update_of_a_stack(model):
    for weights in ({"one": 0.5}, {"two": 0.5}):  # with a weight of 1, an adapter alone goes another way
        set_adapter(model, weights)
        loss = float(model.loss(small_batch()).data)
        assert float(model.loss(small_batch(), np.random.default_rng(0)).data) != loss
    set_adapter(model, {"one": 0.0, "two": 0.0})
    still = float(model.loss(small_batch(), np.random.default_rng(0)).data)
    assert still == pytest.approx(float(small_model(**NONE).loss(small_batch()).data), rel=1e-12)


def test_without_adapters_the_base_is_there_bit_by_bit(model):
    base = small_model(**NONE).logits(IDS)
    before = model.logits(IDS)
    with disable_adapter(model) as same:
        assert same is model
        np.testing.assert_array_equal(model.logits(IDS), base)
    np.testing.assert_array_equal(model.logits(IDS), before)
    with pytest.raises(RuntimeError), disable_adapter(model):
        raise RuntimeError
    np.testing.assert_array_equal(model.logits(IDS), before)


def test_the_base_is_bit_equal_after_training_switching_loading_and_taking_off(tmp_path):
    model = with_adapters("one")
    before = base_bits(model)
    save_adapter(model, tmp_path, name="one")
    delete_adapter(model, "one")
    add_lora(model, CONFIGS["two"], name="two")
    opt = AdamW(model.trainable_parameters(), lr=0.1)
    for step in range(3):
        opt.step(backward(model.loss(small_batch(), np.random.default_rng(step))))
    load_adapter(model, tmp_path, name="one")
    set_adapter(model, {"one": 0.5, "two": 0.5})
    model.loss(small_batch())
    set_adapter(model, "one")
    delete_adapter(model, "two")
    assert base_bits(model) == before


def test_an_adapter_is_taken_off(model):
    delete_adapter(model, "two")
    assert adapter_names(model) == ["one"]
    np.testing.assert_array_equal(model.logits(IDS), small_model(**NONE).logits(IDS))  # "two" was in force alone
    set_adapter(model, "one")
    np.testing.assert_array_equal(model.logits(IDS), with_adapters("one").logits(IDS))
    delete_adapter(model, "one")
    assert not adapted_layers(model)
    assert model.parameters().keys() == small_model().parameters().keys()


def test_one_of_a_stack_is_taken_off_and_the_other_stays_in_force(model):
    set_adapter(model, {"one": 2, "two": 1})
    delete_adapter(model, "two")
    alone = with_adapters("one")
    set_adapter(alone, {"one": 2})
    np.testing.assert_array_equal(model.logits(IDS), alone.logits(IDS))


def test_each_is_saved_and_loaded_beside_the_other(model, tmp_path):
    for name in CONFIGS:
        save_adapter(model, tmp_path, name)
    loaded = small_model(np.float32, **NONE)
    for name in CONFIGS:
        load_adapter(loaded, tmp_path, name)
    for name in CONFIGS:
        set_adapter(loaded, name)
        expected = with_adapters(name, dtype=np.float32)
        np.testing.assert_array_equal(loaded.logits(IDS), expected.logits(IDS))


@pytest.mark.parametrize("call", [
    lambda model: set_adapter(model, "three"),
    lambda model: set_adapter(model, ["one", "three"]),
    lambda model: set_adapter(model, "one", trainable=["three"]),
    lambda model: delete_adapter(model, "three"),
    lambda model: updates(model, "three"),
])
def test_a_name_that_is_not_there_is_an_error_and_changes_nothing(model, call):
    before, trained = model.logits(IDS), model.trainable_parameters().keys()
    with pytest.raises(ConfigError, match=r"no adapter called 'three': its adapters are one, two$"):
        call(model)
    np.testing.assert_array_equal(model.logits(IDS), before)
    assert model.trainable_parameters().keys() == trained


def test_of_a_stack_what_stays_is_in_force_and_merges_without_what_was_taken_off(assert_close):
    model = add_lora(small_model(), LoraConfig(r=2, target_modules=["c_attn"]), name="a")
    add_lora(model, LoraConfig(r=2, target_modules=["c_attn"]), name="b")
    for name in ("a", "b"):
        set_adapter(model, name)
        randomise(model.trainable_parameters(), seed=1)
    ids = np.arange(6)
    set_adapter(model, {"a": 0.5})
    expected = model.logits(ids)
    set_adapter(model, {"a": 0.5, "b": 2.0})
    delete_adapter(model, "b")
    assert_close(model.logits(ids), expected)
    assert_close(merge_lora(model).logits(ids), expected)


def test_a_second_adapter_of_the_same_name_is_an_error():
    model = adapted(["c_attn"])
    with pytest.raises(ConfigError, match="has an adapter called 'default' already"):
        add_lora(model, LoraConfig(target_modules=["c_fc"]))
