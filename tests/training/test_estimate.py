"""The estimated memory against the measured memory of training, each in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.data import Sequences
from npgpt.training import estimate
from npgpt.training.recompute import set_gradient_checkpointing
from npgpt.training.train import TrainConfig

GPT2, SMALL = {"n_layer": 3}, {"n_layer": 4, "vocab_size": 3072, "n_embd": 192, "n_head": 4}
C_ATTN, ALL = {"target_modules": ["c_attn"]}, {"target_modules": "all-linear"}
CHILD = """
import json, re, sys
import numpy as np, npgpt
from npgpt.training import estimate
from npgpt.runtime.memory import keep_freed_memory
from npgpt.training.recompute import set_gradient_checkpointing
keep_freed_memory()
config, lora, checkpoint, batch, micro_batches = json.loads(sys.argv[1])
model = npgpt.GPT2(npgpt.GPT2Config(**config), seed=None)
for name, tensor in model.parameters().items():
    tensor.data.fill(0.01)
if lora:
    npgpt.add_lora(model, npgpt.LoraConfig(**lora))
    model.set_dropout(0.0)
set_gradient_checkpointing(model, checkpoint)
opt, rng = npgpt.AdamW(model.trainable_parameters()), np.random.default_rng(0)
sequences = [rng.integers(0, model.config.vocab_size, batch[1]) for _ in range(batch[0])]
whole = npgpt.Batch.from_sequences(sequences)
estimated = estimate.memory(model, whole.split(micro_batches)[0], micro_batches=micro_batches)
for step in range(2):
    npgpt.train_step(model, whole, opt, rng=np.random.default_rng(step), micro_batches=micro_batches)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([estimated.total, peak]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("config, lora, checkpoint, batch, micro_batches", [
    (GPT2, C_ATTN, False, (4, 64), 1),
    (GPT2, C_ATTN, False, (8, 128), 1),
    (GPT2, C_ATTN, True, (8, 128), 1),
    (GPT2, ALL, False, (1, 1024), 1),
    (GPT2, C_ATTN, False, (8, 128), 4),
    (GPT2, None, False, (2, 64), 1),
    (GPT2, None, False, (8, 64), 4),
    (SMALL, ALL, False, (16, 64), 1),
    (SMALL, None, False, (8, 128), 1),
    (SMALL, None, True, (4, 256), 1),
    (GPT2, {**C_ATTN, "trainable_token_indices": [5, 7]}, False, (4, 64), 1),
], ids=["gpt2 4x64", "gpt2 8x128", "gpt2 8x128 checkpoint", "gpt2 1x1024", "gpt2 in 4", "gpt2 full", "gpt2 full in 4",
        "small lora",
        "small full", "small checkpoint", "gpt2 token rows"])
def test_the_estimate_is_within_15_percent(config, lora, checkpoint, batch, micro_batches):
    spec = json.dumps([config, lora, checkpoint, batch, micro_batches])
    result = subprocess.run([sys.executable, "-c", CHILD, spec], capture_output=True, text=True, timeout=120,
                            env=os.environ | {"PYTHONPATH": str(Path(npgpt.__file__).parents[1])})
    assert result.returncode == 0, result.stderr
    estimated, peak = json.loads(result.stdout)
    assert abs(estimated / peak - 1) < 0.15, f"estimated {estimated / 1e6:.0f} MB, measured {peak / 1e6:.0f} MB"


def test_what_is_saved_is_counted():
    """Saved bytes grow with the tokens, are few with checkpointing, and are 0 below the lowest adapter."""
    config = npgpt.GPT2Config(vocab_size=31, n_positions=64, n_embd=16, n_layer=2, n_head=2, attn_pdrop=0.0,
                              resid_pdrop=0.0, embd_pdrop=0.0)
    model = npgpt.GPT2(config)
    saved = [estimate.saved_bytes(model, length) for length in (16, 32)]
    assert saved[0] > 0
    assert saved[1] == pytest.approx(2 * saved[0], rel=0.02)
    set_gradient_checkpointing(model, True)
    assert estimate.saved_bytes(model, 32) < saved[1] / 3
    npgpt.add_lora(model, npgpt.LoraConfig(target_modules=["h.1.mlp.c_proj"], lora_dropout=0.0))
    set_gradient_checkpointing(model, False)
    assert estimate.saved_bytes(model, 32) < saved[1] / 4  # nothing below the adapter is recorded


def test_the_largest_micro_batch_and_other_ways_to_the_same_steps():
    lengths = [3, 9, 4, 7, 5, 8, 6, 2]
    sequences = Sequences.of([np.zeros(length, np.int64) for length in lengths])
    config = TrainConfig(batch_size=2, accumulate=2, epochs=1)
    batch = estimate.largest_micro_batch(sequences, config)
    assert len(batch.lengths) == 2
    assert len(batch.ids) >= sum(lengths) / 4
    assert list(estimate.ways(TrainConfig(batch_size=4, accumulate=3))) == [
        (size, None, 12 // size, checkpointing) for checkpointing in (False, True) for size in (4, 3, 2, 1)]
    assert list(estimate.ways(TrainConfig(batch_tokens=12)))[:3] == [
        (4, 12, 1, False), (4, 6, 2, False), (4, 3, 4, False)]


def test_the_eye():
    assert [estimate.spelled(n) for n in (3, 25_000, 2.5e6, 2.5e8, 3e9)] == [
        "3 bytes", "25 kB", "2.5 MB", "0.25 GB", "3.00 GB"]
    assert [estimate.duration(n) for n in (3.2, 600, 7200)] == ["4 s", "10 min", "2.0 h"]


MEASURING = """
import json, re, sys
import numpy as np, npgpt
from npgpt.data import Sequences
from npgpt.evaluation import evaluate
from npgpt.runtime.memory import keep_freed_memory, resident
from npgpt.training import estimate
keep_freed_memory()
config, lengths = json.loads(sys.argv[1])
model = npgpt.GPT2(npgpt.GPT2Config(**config), seed=None)
for tensor in model.parameters().values():
    tensor.data.fill(0.01)
held_out = Sequences.of([np.arange(length) for length in lengths])
before = resident()
estimated = estimate.measuring_bytes(model, held_out.lengths)
evaluate.mean_nll(model, held_out)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([estimated, peak - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("config, lengths", [(GPT2, [1024] * 3), (GPT2, [64] * 50), ({**SMALL, "vocab_size": 50257},
                                                                                   [1000] * 4)])
def test_measuring_takes_the_memory_that_is_estimated(config, lengths):
    environment = os.environ | {"PYTHONPATH": str(Path(npgpt.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", MEASURING, json.dumps([config, lengths])], env=environment,
                          capture_output=True, text=True, check=True)
    estimated, measured = json.loads(done.stdout)
    assert 0.8 * estimated - 10e6 < measured < 1.1 * estimated + 10e6


def test_measuring_counts_if_it_takes_more_than_a_step():
    model = npgpt.GPT2(npgpt.GPT2Config(**SMALL), seed=None)
    npgpt.add_lora(model, npgpt.LoraConfig())
    batch = npgpt.Batch.from_sequences([np.arange(8)])
    alone = estimate.memory(model, batch, 1, 1000)
    few, many = (estimate.memory(model, batch, 1, 1000, held_out=Sequences.of([np.arange(8)] * count))
                 for count in (1, 300))
    assert few.total < many.total == 1000 + estimate.measuring_bytes(model, np.full(300, 8))
    assert many[:2] + many[3:] == alone[:2] + alone[3:]
    large = npgpt.Batch.from_sequences([np.arange(900)] * 4)
    assert estimate.memory(model, large, 1, 1000, held_out=Sequences.of([np.arange(8)])) == estimate.memory(
        model, large, 1, 1000)
