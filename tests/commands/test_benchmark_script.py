"""benchmark.py measures full-size models, which takes minutes; here only what it measures against, on a small one."""

import benchmark
import numpy as np
import pytest

import npgpt
from npgpt.runtime import shares
from npgpt.runtime.threads import workers

CONFIG = npgpt.GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=100, n_positions=16)
C, V, N, M = 64, 100, 25, 23


@pytest.fixture(autouse=True)
def small_shares(monkeypatch):
    """Let the products of a small model be shared out, as those of gpt2 are."""
    monkeypatch.setattr(shares, "LEAST_PRODUCT", 1)


def multiplications(model, n_threads):
    batch = npgpt.Batch.from_sequences([np.arange(16), np.arange(9)])
    with workers(n_threads):
        parts = benchmark.step_products(model, batch)
    assert len(parts) == n_threads
    assert all((a @ b).shape == out.shape for part in parts for a, b, out in part)
    counts = [sum(out.size * a.shape[-1] for a, _, out in part) for part in parts]
    assert max(counts) < 1.05 * min(counts)
    return sum(counts)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_products_of_a_step_are_those_that_a_step_multiplies(n_threads):
    """Their multiplications, counted, are those of the model: 2 (forward, backward) for each weight and token."""
    layers = 2 * 2 * 12 * C * C * N - 3 * C * C * N         # no gradient goes below the first layer's c_attn
    lora = 2 * (4 + 12) * C * N + 2 * (4 * 3 + 4 + 4 * 3) * C * N + 4 * C * N
    attention = 2 * (2 + 4) * C * (16 * 16 + 9 * 9)
    model = npgpt.add_lora(npgpt.GPT2(CONFIG, seed=None), npgpt.LoraConfig(r=4))
    assert multiplications(model, n_threads) == layers + lora + attention + 2 * C * V * M


@pytest.mark.parametrize("n_threads", [1, 2])
def test_those_of_a_full_step_are_3_for_each_weight_and_token(n_threads):
    attention = 2 * (2 + 4) * C * (16 * 16 + 9 * 9)
    layers, head = 3 * 2 * 12 * C * C * N, 3 * C * V * M
    assert multiplications(npgpt.GPT2(CONFIG, seed=None), n_threads) == layers + attention + head


def test_unknown_cases_are_refused(refused):
    assert "case 'step 3x3' is not one of step 4x64" in refused("benchmark.py", "step 3x3")
