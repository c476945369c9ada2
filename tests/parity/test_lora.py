"""LoRA against PEFT: logits, loss, the gradients of A and B, merging, the initial weights and the trainable counts."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
import transformers

import npgpt

from .reference import (
    CONFIGS,
    DTYPES,
    assert_all_close,
    assert_close,
    npgpt_gradients,
    npgpt_model,
    texts,
    torch_gradients,
    torch_ids,
    torch_mean_loss,
    torch_model,
    with_peft,
)

TARGETS = {
    "c_attn": ["c_attn"],
    "both-c_proj": ["c_proj"],
    "attn.c_proj": ["attn.c_proj"],
    "all-linear": "all-linear",
    "regex": r".*\.0\.(attn\.c_attn|mlp\.c_fc)",
    "one-module": ["transformer.h.0.mlp.c_proj"],
}
RAGGED = [9, 2, 24, 9, 15]


@pytest.fixture(params=DTYPES)
def dtypes(request):
    return DTYPES[request.param]


def compare(name, dtypes, targets, **lora):
    """Hold logits, loss and gradients of one adapted model against PEFT's."""
    dtype, torch_dtype, bound = dtypes
    theirs = with_peft(torch_model(name, dtype=torch_dtype), targets, **lora)
    ours = npgpt_model(theirs, dtype)
    sequences = texts(ours.config.vocab_size, RAGGED)
    with torch.no_grad():
        assert_close(ours.logits(sequences[2]), theirs(torch_ids(sequences[2])).logits[0], bound, "logits")

    loss = ours.loss(npgpt.Batch.from_sequences(sequences))
    expected = torch_mean_loss(theirs, sequences)
    assert_close(loss.data, expected.detach(), bound, "loss")
    gradients = npgpt_gradients(ours, loss)
    assert sorted(gradients) == sorted(ours.trainable_parameters())
    assert_all_close(gradients, torch_gradients(theirs, expected), bound)

    # Merging is another order of the same sums, so it is held to the same bound.
    npgpt.merge_lora(ours)
    theirs = theirs.merge_and_unload()
    with torch.no_grad():
        assert_close(ours.logits(sequences[2]), theirs(torch_ids(sequences[2])).logits[0], bound, "merged logits")
    merged = {key: tensor.data for key, tensor in ours.parameters().items()}
    assert_all_close(merged, {k: t.data for k, t in npgpt_model(theirs, dtype).parameters().items()}, bound)


@pytest.mark.parametrize("targets", ["c_attn", "all-linear"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config(name, targets, dtypes):
    compare(name, dtypes, TARGETS[targets])


@pytest.mark.parametrize("targets", TARGETS)
def test_every_form_of_target(targets, dtypes):
    compare("relu-by-layer", dtypes, TARGETS[targets])


@pytest.mark.parametrize(("r", "alpha"), [(1, 2), (1, 4), (3, 8), (16, 16), (40, 8)])
def test_every_rank(r, alpha, dtypes):
    """Rank 40 is more than the width of the model it adapts."""
    compare("gelu_new", dtypes, "all-linear", r=r, alpha=alpha)


@pytest.mark.parametrize("r", [2, 8])
def test_initial_weights(r):
    """Both sides draw A from U(-1/sqrt(in), 1/sqrt(in)) and start B at zero."""
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        torch_model(n_embd=256, n_positions=8),
        peft.LoraConfig(r=r, target_modules="all-linear", fan_in_fan_out=True, task_type="CAUSAL_LM"),
    )
    ours = npgpt_model(torch_model(n_embd=256, n_positions=8))
    npgpt.add_lora(ours, npgpt.LoraConfig(r=r, target_modules="all-linear"), seed=5)
    lora = {key: tensor.data for key, tensor in ours.trainable_parameters().items()}
    expected = {
        key.removeprefix("base_model.model.transformer.").removesuffix(".default.weight"): weight.detach().numpy()
        for key, weight in theirs.named_parameters()
        if ".lora_" in key
    }
    assert {key: array.shape for key, array in lora.items()} == {key: array.shape for key, array in expected.items()}
    scaled = {}
    for side, arrays in (("ours", lora), ("theirs", expected)):
        assert not any(array.any() for key, array in arrays.items() if key.endswith("lora_B"))
        scaled[side] = np.sort(np.concatenate(
            [array.ravel() * math.sqrt(array.shape[1]) for key, array in arrays.items() if key.endswith("lora_A")]
        ))
    # A brought to U(-1, 1): the two empirical distributions' distance (Kolmogorov-Smirnov) at its 0.1 % level.
    count = len(scaled["ours"])
    at = np.concatenate(list(scaled.values()))
    distance = np.abs(np.searchsorted(scaled["ours"], at) - np.searchsorted(scaled["theirs"], at)).max() / count
    assert distance < 1.95 * math.sqrt(2 / count)
    for values in scaled.values():
        assert 0.999 < np.abs(values).max() <= 1
    # No two modules share a draw.
    starts = {array.ravel()[0] for key, array in lora.items() if key.endswith("lora_A")}
    assert len(starts) == sum(key.endswith("lora_A") for key in lora)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_trainable_counts(name, targets):
    theirs = with_peft(torch_model(name), TARGETS[targets])
    ours = npgpt_model(theirs)
    trainable = sum(tensor.data.size for tensor in ours.trainable_parameters().values())
    total = sum(tensor.data.size for tensor in ours.parameters().values())
    assert (trainable, total) == theirs.get_nb_trainable_parameters()


def test_gpt2_with_rank_8_on_c_attn_trains_294912_of_124734720():
    with torch.device("meta"):
        theirs = peft.get_peft_model(
            transformers.GPT2LMHeadModel(transformers.GPT2Config()),
            peft.LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"),
        )
    ours = npgpt.add_lora(npgpt.GPT2(npgpt.GPT2Config(), seed=None), npgpt.LoraConfig(r=8), seed=0)
    trainable = sum(tensor.data.size for tensor in ours.trainable_parameters().values())
    total = sum(tensor.data.size for tensor in ours.parameters().values())
    assert (trainable, total) == theirs.get_nb_trainable_parameters() == (294_912, 124_734_720)
