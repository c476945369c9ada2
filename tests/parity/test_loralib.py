"""Checkpoints that loralib writes of a transformers GPT-2, converted, against what loralib computes from them."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("loralib")

import loralib
import peft
import torch

import npgpt
from npgpt.exchange import loralib as ours

from .reference import assert_close, npgpt_model, texts, torch_ids, torch_model

R, ALPHA = 3, 12


def with_loralib(model, enable_lora):
    """Put loralib's MergedLinear in the place of every c_attn, as the paper's code does."""
    for block in model.transformer.h:
        old = block.attn.c_attn
        width, outputs = old.weight.shape
        new = loralib.MergedLinear(width, outputs, r=R, lora_alpha=ALPHA, enable_lora=enable_lora, fan_in_fan_out=True,
                                   merge_weights=False)
        with torch.no_grad():
            new.weight.copy_(old.weight)
            new.bias.copy_(old.bias)
            new.lora_B.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
        block.attn.c_attn = new
    loralib.mark_only_lora_as_trainable(model)
    return model.eval()


@pytest.mark.parametrize("enable_lora", [(True, False, True), (True, True, True), (False, True, False)])
@pytest.mark.parametrize("whole", [False, True])
def test_loralib_writes_and_npgpt_and_peft_compute_the_same(tmp_path, enable_lora, whole):
    theirs = with_loralib(torch_model("untied"), enable_lora)
    state = theirs.state_dict() if whole else loralib.lora_state_dict(theirs)
    torch.save({"model_state_dict": state}, tmp_path / "model.pt")
    (ids,) = texts(theirs.config.vocab_size, [20])
    with torch.no_grad():
        expected = theirs(torch_ids(ids)).logits[0].numpy()

    base = npgpt_model(torch_model("untied"))
    assert np.abs(base.logits(ids) - expected).max() > 0.1
    enabled = tuple(output for output, on in zip("qkv", enable_lora, strict=True) if on)
    ours.convert(tmp_path / "model.pt", tmp_path / "adapter", ALPHA, enabled, base if whole else None)
    assert_close(npgpt.load_adapter(base, tmp_path / "adapter").logits(ids), expected, 1e-5, "logits")
    with_peft = peft.PeftModel.from_pretrained(torch_model("untied"), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_close(with_peft(torch_ids(ids)).logits[0].numpy(), expected, 1e-5, "PEFT's logits")
