"""Adapters that PEFT wrote, and the logits it computes under them; neither PEFT nor torch is needed here."""

import numpy as np
import pytest

from npgpt import GPT2, GPT2Config, load_adapter, merge_lora
from npgpt.adapters.stack import updates
from tests.goldens import golden

FOLDERS = sorted(path.parent for path in (golden.FOLDER / "adapters").glob("*/adapter_config.json"))
BOUND = 1e-5  # float32, relative to the largest logit


def base(name="", dtype=np.float32):
    """The base of the adapter called `name`, or of any without added tokens. Those npgpt adds in its own way."""
    added = 3 if "added" in name else 0
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=53 - added, n_positions=24)
    model = GPT2(config, seed=None, dtype=dtype)
    for key, tensor in model.parameters().items():
        tensor.data = golden.weight(key, tensor.shape, 0).astype(dtype)
    model.resize_token_embeddings(53)
    return model


def test_there_are_goldens():
    assert len(FOLDERS) == 12


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_peft_wrote_computes_the_same_here(folder, dtype, assert_close):
    with np.load(folder / "answer.npz") as answer:
        ids, expected = answer["ids"], answer["logits"]
    model = load_adapter(base(folder.name, dtype), folder)
    assert_close(model.logits(ids), expected, BOUND, "logits")
    assert np.abs(base(folder.name).logits(ids) - expected).max() > 0.1, "an adapter without effect"
    assert model.trainable_parameters().keys() == {
        f"{module}.{name}" for module, update in updates(model).items() for name in update.parameters()}
    assert_close(merge_lora(model).logits(ids), expected, BOUND, "merged logits")
