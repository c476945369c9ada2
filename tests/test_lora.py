import math

import numpy as np
import pytest

from npgpt import GPT2, AdamW, GPT2Config, LoraConfig, add_lora, backward, merge_lora
from npgpt.adapters.stack import updates
from npgpt.checking.gradcases import randomise, small_batch, small_model
from npgpt.lora import LoraLayer, adapted_layers
from npgpt.nn import Linear

IDS = [1, 5, 5, 2, 9]
ALL = [f"h.{layer}.{name}" for layer in range(2) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


def adapted(targets="all-linear", **fields):
    """A small model with an adapter whose B is random, so that it has an effect."""
    model = add_lora(small_model(), LoraConfig(r=3, lora_alpha=4, target_modules=targets, **fields))
    randomise(model.trainable_parameters(), seed=1)
    return model


def size(tensors):
    return sum(tensor.data.size for tensor in tensors.values())


# What is trained


def test_rank_8_on_c_attn_of_gpt2_trains_294_912_of_124_734_720():
    model = add_lora(GPT2(GPT2Config(), seed=None), LoraConfig(r=8, target_modules=["c_attn"]))
    assert size(model.trainable_parameters()) == 294_912
    assert size(model.parameters()) == 124_734_720


@pytest.mark.parametrize(
    "layers, heads, width, c_attn, all_linear",
    [(6, 12, 768, 147_456, 589_824), (12, 12, 768, 294_912, 1_179_648), (24, 16, 1024, 786_432, 3_145_728)],
)
def test_counts_of_other_models(layers, heads, width, c_attn, all_linear):
    for targets, expected in ((["c_attn"], c_attn), ("all-linear", all_linear)):
        model = GPT2(GPT2Config(n_layer=layers, n_head=heads, n_embd=width), seed=None)
        assert size(add_lora(model, LoraConfig(r=8, target_modules=targets)).trainable_parameters()) == expected


def test_names_and_shapes_of_what_is_added():
    model = small_model()
    before = model.parameters()
    assert add_lora(model, LoraConfig(r=3, target_modules=["c_attn"])) is model
    added = {name: tensor.shape for name, tensor in model.parameters().items() if name not in before}
    shapes = {"lora_A": (3, 8), "lora_B": (24, 3)}
    assert added == {f"h.{layer}.attn.c_attn.{AB}": shape for layer in range(2) for AB, shape in shapes.items()}
    assert model.trainable_parameters().keys() == added.keys()
    assert all(model.parameters()[name] is tensor for name, tensor in before.items())


def test_the_loss_has_gradients_of_the_adapter_alone():
    model = adapted(["c_attn"])
    assert set(backward(model.loss(small_batch()))) == set(model.trainable_parameters().values())


# How it starts


def test_training_starts_from_the_base_model_exactly():
    model = small_model(np.float32)
    before = model.logits(IDS)
    add_lora(model, LoraConfig(r=3, target_modules="all-linear"))
    assert np.array_equal(model.logits(IDS), before)
    for name, tensor in model.trainable_parameters().items():
        assert tensor.data.any() == name.endswith("lora_A")
        assert tensor.dtype == np.float32


def test_A_is_kaiming_uniform():
    model = add_lora(small_model(n_embd=64), LoraConfig(r=64, target_modules=["c_attn"]))
    for update in updates(model).values():
        bound = 1 / math.sqrt(64)
        assert 0.99 * bound < np.abs(update.lora_A.data).max() <= bound
        assert update.lora_A.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_each_layers_A_is_its_own_and_does_not_depend_on_which_others_are_adapted():
    def A(targets, seed=0):
        model = add_lora(small_model(), LoraConfig(r=3, target_modules=targets), seed)
        return {name: update.lora_A.data for name, update in updates(model).items()}

    everything, some = A("all-linear"), A(["mlp.c_fc"])
    assert list(some) == ["h.0.mlp.c_fc", "h.1.mlp.c_fc"]
    assert all(np.array_equal(array, everything[name]) for name, array in some.items())
    assert len({array.ravel()[0] for array in everything.values()}) == len(everything)
    assert not np.array_equal(A(["c_fc"], seed=1)["h.0.mlp.c_fc"], some["h.0.mlp.c_fc"])


# What it computes


def test_the_update_is_s_B_A_and_s_is_alpha_over_r(assert_close):
    model, plain = adapted(["c_attn"]), small_model()
    for layer, block in enumerate(plain.h):
        update = updates(model)[f"h.{layer}.attn.c_attn"]
        block.attn.c_attn.weight.data += 4 / 3 * (update.lora_B.data @ update.lora_A.data).T
    assert_close(model.logits(IDS), plain.logits(IDS))


@pytest.mark.parametrize("target", ["c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_dropout_falls_on_the_update_alone(target):
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = LoraConfig(r=3, lora_dropout=0.5, target_modules=[target])
    model = add_lora(small_model(**none), config)  # B is zero: the update is, whatever is dropped
    loss = float(model.loss(small_batch()).data)
    assert float(model.loss(small_batch(), np.random.default_rng(0)).data) == loss
    randomise(model.trainable_parameters(), seed=1)
    assert float(model.loss(small_batch(), np.random.default_rng(0)).data) != float(model.loss(small_batch()).data)


def test_the_base_is_bit_equal_after_training():
    model = adapted()
    before = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    opt = AdamW(model.trainable_parameters(), lr=0.1)
    for step in range(3):
        opt.step(backward(model.loss(small_batch(), np.random.default_rng(step))))
    for name, tensor in model.parameters().items():
        assert np.array_equal(tensor.data, before[name]) == (".lora_" not in name), name


# Merging


def test_a_merged_model_is_a_plain_one_with_the_same_logits(assert_close):
    model = adapted()
    before = model.logits(IDS)
    assert merge_lora(model) is model
    assert_close(model.logits(IDS), before)
    assert not adapted_layers(model)
    assert [name for name, module in model.named_modules() if type(module) is Linear] == ALL
    assert model.parameters().keys() == small_model().parameters().keys()
    assert model.trainable_parameters() == {}


def test_merging_twice_is_merging_once():
    once = {name: tensor.data for name, tensor in merge_lora(adapted()).parameters().items()}
    twice = merge_lora(merge_lora(adapted())).parameters()
    assert all(np.array_equal(twice[name].data, array) for name, array in once.items())


def test_merging_leaves_the_layer_it_wraps_untouched():
    """Its weight may be a mapped file, or in use elsewhere."""
    model = adapted(["c_attn"])
    base = model.h[0].attn.c_attn.base_layer
    before = base.weight.data.copy()
    base.weight.data.flags.writeable = base.bias.data.flags.writeable = False
    merge_lora(model)
    assert np.array_equal(base.weight.data, before)
    assert not np.array_equal(model.h[0].attn.c_attn.weight.data, before)
    model.h[0].attn.c_attn.bias.data += 1
    assert not np.array_equal(base.bias.data, model.h[0].attn.c_attn.bias.data)


def test_a_merged_model_can_be_adapted_again():
    model = merge_lora(adapted())
    assert isinstance(add_lora(model, LoraConfig(r=2)).h[0].attn.c_attn, LoraLayer)
