"""Attention and hidden states against transformers' output_attentions and output_hidden_states."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

from npgpt.inspection import inside

from .reference import CONFIGS, DTYPES, assert_close, npgpt_model, texts, torch_ids, torch_model, with_peft


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adapter", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_seen_inside(name, adapter, dtype):
    dtype, torch_dtype, bound = DTYPES[dtype]
    theirs = torch_model(name, dtype=torch_dtype)
    if adapter:
        theirs = with_peft(theirs, "all-linear")
    ours = npgpt_model(theirs, dtype)
    (ids,) = texts(ours.config.vocab_size, [17])
    with torch.no_grad():
        expected = theirs(torch_ids(ids), output_attentions=True, output_hidden_states=True)
    seen = inside.look(ours, ids)
    assert len(expected.attentions) == len(seen.attention)
    assert len(expected.hidden_states) == len(seen.hidden)
    for layer, attention in enumerate(expected.attentions):
        assert_close(seen.attention[layer], attention[0], bound, f"attention of layer {layer}")
    *blocks, last = expected.hidden_states
    for layer, hidden in enumerate(blocks):
        assert_close(seen.hidden[layer], hidden[0], bound, f"what {layer} blocks put out")
    # transformers' last hidden state has passed the final norm; ours has not.
    x, norm = seen.hidden[-1].astype(np.float64), ours.ln_f
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + norm.eps)
    assert_close(normed * norm.weight.data + norm.bias.data, last[0], bound, "the last hidden state")
    assert_close(seen.logits, expected.logits[0], bound, "logits")
