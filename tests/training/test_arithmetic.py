"""Micro-batches, accumulation and threads change the final weights of a run only by rounding.

The sequences have very different numbers of learned tokens, so that a mean of means would show.
"""

import numpy as np
import pytest

import npgpt
from npgpt.data import Sequences
from npgpt.runtime import shares
from npgpt.runtime.seeding import generator
from npgpt.training.train import TrainConfig, train

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2,
                          embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
LENGTHS = generator(0, "lengths").integers(2, 33, 24)
IDS = [generator(0, "ids", i).integers(0, 31, length) for i, length in enumerate(LENGTHS)]
MASKS = [np.arange(length) >= generator(0, "prompt", i).integers(0, length) for i, length in enumerate(LENGTHS)]
SEQUENCES = Sequences.of(IDS, MASKS)
ROUNDING = 100  # in eps, between gradients that are summed in different orders: see test_properties.py

# Settings for the same steps, of 12 sequences or of about 240 tokens: other pieces, other numbers of threads.
BY_SEQUENCES = [dict(batch_size=12 // accumulate, accumulate=accumulate, threads=n)
                for accumulate, n in ((1, 1), (1, 2), (1, 3), (4, 2), (12, 1))]
BY_TOKENS = [dict(batch_tokens=240 // accumulate, accumulate=accumulate, threads=n)
             for accumulate, n in ((1, 1), (1, 3), (2, 2), (5, 1))]


@pytest.fixture(autouse=True)
def small_shares(monkeypatch):
    """Let the workers share even these small arrays."""
    monkeypatch.setattr(shares, "LEAST_BYTES", 1)
    monkeypatch.setattr(shares, "LEAST_PRODUCT", 1)


def final_weights(full, dtype, options, room):
    """Return the trained weights after a run, and a bound on the rounding of each."""
    model = npgpt.GPT2(CONFIG, seed=1, dtype=dtype)
    if not full:
        npgpt.add_lora(model, npgpt.LoraConfig(r=2, lora_dropout=0.0, target_modules="all-linear"), seed=0)
    opt = npgpt.AdamW(model.trainable_parameters(), lr=1.0)
    allowed, steps, eps = dict.fromkeys(opt.params, 0.0), 0, np.finfo(dtype).eps
    for _ in train(model, SEQUENCES, opt, TrainConfig(epochs=2, lr=0.003, warmup=2, **options)):
        steps += 1
        allowed = {name: allowed[name] + more for name, more in room(opt, ROUNDING * eps, eps).items()}
    assert steps == 4
    return {name: tensor.data for name, tensor in opt.params.items()}, allowed


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
@pytest.mark.parametrize("ways", [BY_SEQUENCES, BY_TOKENS], ids=["sequences", "tokens"])
def test_final_weights(ways, full, dtype, room):
    expected, allowed = final_weights(full, dtype, ways[0], room)
    for options in ways[1:]:
        weights, _ = final_weights(full, dtype, options, room)
        for name, array in weights.items():
            assert (np.abs(array - expected[name]) <= allowed[name]).all(), name
