import math

import numpy as np
import pytest

from npgpt import GPT2, GPT2Config, backward
from npgpt.autograd import no_grad
from npgpt.checking import gradcases
from npgpt.checking.gradcases import small_batch, small_model
from npgpt.runtime.errors import ConfigError

SEQUENCES = [[1, 5, 5, 2, 9], [7], [3, 4, 12], [0, 0, 6, 1, 2]]


def copied(model, **changes):
    """A model of another configuration with the weights of `model`, those of the same name."""
    other = small_model(**changes)
    for name, tensor in other.parameters().items():
        if name in model.parameters():
            tensor.data[...] = model.parameters()[name].data
    return other


def loss_of(model, batch, rng=None):
    with no_grad():
        return float(model.loss(batch, rng).data)


# Sizes and names


@pytest.mark.parametrize(
    "layers, heads, width, count",
    [
        (6, 12, 768, 81_912_576),  # distilgpt2
        (12, 12, 768, 124_439_808),  # gpt2
        (24, 16, 1024, 354_823_168),  # gpt2-medium
        (36, 20, 1280, 774_030_080),  # gpt2-large
        (48, 25, 1600, 1_557_611_200),  # gpt2-xl
    ],
)
def test_parameter_counts_of_the_released_models(layers, heads, width, count):
    """Weights that wait to be loaded are zeros no one has written to: even 6 GB of them take no memory."""
    model = GPT2(GPT2Config(n_layer=layers, n_head=heads, n_embd=width), seed=None)
    assert sum(tensor.data.size for tensor in model.parameters().values()) == count


def test_names_and_shapes_are_those_of_the_released_files():
    C, V, P, inner = 8, 13, 8, 20
    expected = {"wte.weight": (V, C), "wpe.weight": (P, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for layer in range(2):
        for name, shape in {
            "ln_1.weight": (C,), "ln_1.bias": (C,), "attn.c_attn.weight": (C, 3 * C), "attn.c_attn.bias": (3 * C,),
            "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,), "ln_2.weight": (C,), "ln_2.bias": (C,),
            "mlp.c_fc.weight": (C, inner), "mlp.c_fc.bias": (inner,), "mlp.c_proj.weight": (inner, C),
            "mlp.c_proj.bias": (C,),
        }.items():
            expected[f"h.{layer}.{name}"] = shape

    def shapes(model):
        return {name: tensor.shape for name, tensor in model.parameters().items()}

    assert shapes(small_model(n_inner=inner)) == expected
    untied = small_model(n_inner=inner, tie_word_embeddings=False)
    assert shapes(untied) == expected | {"lm_head.weight": (V, C)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_has_the_models_dtype(dtype):
    model = small_model(dtype)
    loss = model.loss(small_batch(), np.random.default_rng(0))
    assert loss.dtype == dtype
    assert {gradient.dtype for gradient in backward(loss).values()} == {np.dtype(dtype)}
    assert model.logits([1, 2]).dtype == dtype


def test_float32_follows_float64(assert_close):
    single, double = small_model(np.float32), small_model(np.float64)
    batch = small_batch()
    assert_close(single.logits([1, 2, 3]), double.logits([1, 2, 3]), 1e-5)
    ours, expected = backward(single.loss(batch)), backward(double.loss(batch))
    for name, tensor in single.parameters().items():
        assert_close(ours[tensor], expected[double.parameters()[name]], 1e-5, name)


# Fresh weights


def test_fresh_weights_are_gpt2s():
    model = GPT2(GPT2Config(n_embd=64, n_head=2, n_layer=8, vocab_size=500, n_positions=64), seed=0)
    for name, tensor in model.parameters().items():
        if "ln_" in name and name.endswith("weight"):
            assert (tensor.data == 1).all(), name
        elif name.endswith("bias"):
            assert not tensor.data.any(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if "c_proj" in name else 0.02
            assert tensor.data.std() == pytest.approx(std, rel=0.05), name
            assert abs(tensor.data.mean()) < 5 * std / math.sqrt(tensor.data.size), name


def test_each_parameter_has_a_stream_of_its_own():
    def weights(seed=0, dtype=np.float32, **fields):
        config = GPT2Config(**{"n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 13, "n_positions": 8} | fields)
        return {name: tensor.data for name, tensor in GPT2(config, seed, dtype).parameters().items()}

    first = weights()
    assert all(np.array_equal(array, first[name]) for name, array in weights().items())
    double = weights(dtype=np.float64)
    assert all(np.array_equal(array.astype(np.float32), first[name]) for name, array in double.items())
    assert not np.array_equal(weights(seed=1)["wte.weight"], first["wte.weight"])
    assert not np.array_equal(first["h.0.attn.c_attn.weight"], first["h.1.attn.c_attn.weight"])
    more = weights(n_layer=3, n_positions=9)  # and changing one thing leaves the others' draws alone
    assert np.array_equal(more["h.1.attn.c_attn.weight"], first["h.1.attn.c_attn.weight"])


# What a configuration changes


def test_attention_is_divided_by_the_layer_where_asked(assert_close):
    plain = small_model()
    scaled = copied(plain, scale_attn_by_inverse_layer_idx=True)
    assert np.abs(scaled.logits([1, 5, 2]) - plain.logits([1, 5, 2])).max() > 1e-6
    for layer, block in enumerate(plain.h):  # dividing the scores is dividing the queries
        for parameter in (block.attn.c_attn.weight, block.attn.c_attn.bias):
            parameter.data[..., :8] /= layer + 1
    assert_close(scaled.logits([1, 5, 2]), plain.logits([1, 5, 2]))


def test_attention_is_divided_by_the_root_of_the_head_width_unless_told_not_to(assert_close):
    plain = small_model()
    unscaled = copied(plain, scale_attn_weights=False)
    for block in unscaled.h:
        for parameter in (block.attn.c_attn.weight, block.attn.c_attn.bias):
            parameter.data[..., :8] /= math.sqrt(8 / 2)
    assert_close(unscaled.logits([1, 5, 2]), plain.logits([1, 5, 2]))


def test_an_untied_head_is_a_table_of_its_own(assert_close):
    tied = small_model()
    untied = copied(tied, tie_word_embeddings=False)
    untied.lm_head.weight.data[...] = tied.wte.weight.data
    batch = small_batch()
    assert np.array_equal(untied.logits([1, 5, 2]), tied.logits([1, 5, 2]))
    ours, expected = backward(untied.loss(batch)), backward(tied.loss(batch))
    assert_close(ours[untied.wte.weight] + ours[untied.lm_head.weight], expected[tied.wte.weight])


@pytest.mark.parametrize(
    "change",
    [{"activation_function": "gelu"}, {"activation_function": "relu"}, {"activation_function": "silu"},
     {"layer_norm_epsilon": 0.1}, {"n_head": 4}],
)
def test_other_fields_change_the_result(change):
    plain = small_model()
    assert np.abs(copied(plain, **change).logits([1, 5, 2]) - plain.logits([1, 5, 2])).max() > 1e-6


# Dropout


def test_without_a_generator_there_is_no_dropout():
    model = small_model()
    none = copied(model, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    assert loss_of(model, small_batch()) == loss_of(none, small_batch())


@pytest.mark.parametrize("where", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
def test_each_dropout_acts_where_a_generator_is_given(where):
    probabilities = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model, batch = small_model(**probabilities | {where: 0.3}), small_batch()
    rng = np.random.default_rng
    assert loss_of(model, batch, rng(0)) != loss_of(model, batch)
    assert loss_of(model, batch, rng(0)) == loss_of(model, batch, rng(0))
    assert loss_of(model, batch, rng(0)) != loss_of(model, batch, rng(1))
    assert loss_of(small_model(**probabilities), batch, rng(0)) == loss_of(model, batch)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_one_probability_can_be_set_for_all_dropout(p):
    model, batch = small_model(), small_batch()
    model.set_dropout(p)
    built = small_model(resid_pdrop=p, embd_pdrop=p, attn_pdrop=p)
    assert model.config == built.config
    assert loss_of(model, batch, np.random.default_rng(0)) == loss_of(built, batch, np.random.default_rng(0))


def test_residual_dropout_falls_on_both_branches_and_not_on_the_stream():
    """With nearly everything dropped, what is left is the embedding, normalised."""
    model = small_model(resid_pdrop=1 - 2**-16, embd_pdrop=0.0, attn_pdrop=0.0)
    nothing = copied(model)
    for block in nothing.h:
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            projection.weight.data[...] = projection.bias.data[...] = 0
    assert loss_of(model, small_batch(), np.random.default_rng(0)) == loss_of(nothing, small_batch())


# Configurations


def test_defaults_are_those_of_gpt2():
    """All that transformers' GPT2Config has of these fields; tests/parity compares the two themselves."""
    assert GPT2Config().to_dict() == {
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_inner": None, "activation_function": "gelu_new", "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False, "tie_word_embeddings": True,
        "bos_token_id": 50256, "eos_token_id": 50256,
    }


def test_a_configuration_goes_through_its_dict():
    config = GPT2Config(n_layer=3, n_inner=7, activation_function="relu", tie_word_embeddings=False, eos_token_id=None)
    assert config.to_dict()["model_type"] == "gpt2"
    assert GPT2Config.from_dict(config.to_dict()) == config
    assert GPT2Config.from_dict({"n_layer": 3, "n_ctx": 512, "task_specific_params": {}}) == GPT2Config(n_layer=3)


@pytest.mark.parametrize(
    "field, value",
    [("vocab_size", 0), ("n_positions", -1), ("n_embd", 7.0), ("n_layer", "12"), ("n_layer", True), ("n_inner", 0),
     ("n_head", 5), ("n_head", 0), ("activation_function", "mish"), ("resid_pdrop", 1), ("embd_pdrop", -0.1),
     ("attn_pdrop", None), ("layer_norm_epsilon", 0), ("initializer_range", math.nan), ("scale_attn_weights", 1),
     ("tie_word_embeddings", None), ("model_type", "llama"), ("add_cross_attention", True)],
)
def test_a_field_that_cannot_be_used_is_named_in_one_line(field, value):
    with pytest.raises(ConfigError, match=rf"^{field} = .*: it must be |^{field} = .* must be ") as error:
        GPT2Config.from_dict({field: value})
    assert "\n" not in str(error.value)


def test_models_of_gradcases_check_every_parameter():
    names = {model.name: set(model.tensors) for model in gradcases.models()}
    assert names["GPT-2"] == set(small_model().parameters())
    assert len(names["LoRA, all linears"]) == 2 * 2 * 4
