"""Make the golden files with torch, transformers and PEFT, in float64. From the repository's root:

    python -m tests.goldens.make_goldens

The same versions on the same machine give the same bytes. Other processors round differently in the last digits, so
tests/parity/test_goldens_live.py, which makes them again in memory, compares with a tolerance.
"""

import dataclasses
from importlib.metadata import version

import numpy as np
import torch
import transformers

import npgpt
from tests.goldens import golden
from tests.parity.reference import (
    released_name,
    texts,
    torch_gradients,
    torch_ids,
    torch_mean_loss,
    torch_model,
    with_peft,
)

RAGGED = [9, 2, 16, 1, 9, 5]  # two of one length, apart; a single token, which has no target
BATCHES = [[11, 5, 16], [7, 7, 3, 12], [16, 2, 9], [4, 13, 4, 6], [10, 8]]  # lengths; the steps go round and round


@dataclasses.dataclass
class Case:
    """One golden: a configuration of tests/parity/reference.py made smaller, perhaps an adapter, and how to train.

    training  what differs from TRAINING; max_grad_norm lies among the norms, so that some steps are clipped
    """

    config: str
    changes: dict
    training: dict
    lora: dict | None = None
    lengths: list = dataclasses.field(default_factory=lambda: RAGGED)
    batches: list = dataclasses.field(default_factory=lambda: BATCHES)


TRAINING = {"lr": 3e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "schedule": "linear",
            "warmup_steps": 5, "steps": 50}
GELU_NEW = "gelu_new", {"n_embd": 16, "vocab_size": 53}
INNER = "gelu-inner", {"n_embd": 24, "n_inner": 40}
BY_LAYER = "relu-by-layer", {"n_embd": 12, "vocab_size": 47}
UNSCALED = "silu-unscaled", {"n_embd": 12}
UNTIED = "untied", {"n_embd": 16, "vocab_size": 97}
DEEP = "deep", {"n_embd": 8, "n_inner": 10, "vocab_size": 31}
# Longer than a block of queries in attention, and more rows than a block of 256 in the loss.
LONG = "gelu_new", {"n_embd": 8, "n_head": 1, "n_layer": 1, "n_positions": 160, "vocab_size": 17}

CASES = {
    "gelu_new": Case(*GELU_NEW, {"max_grad_norm": 1.75}),
    "gelu-inner": Case(*INNER, {"schedule": "cosine", "weight_decay": 0.1, "max_grad_norm": 2.1}),
    "relu-by-layer": Case(*BY_LAYER, {"schedule": "constant", "betas": [0.8, 0.95], "max_grad_norm": 1.7}),
    "silu-unscaled": Case(*UNSCALED, {"schedule": "cosine", "warmup_steps": 0, "eps": 1e-3, "max_grad_norm": 1.35}),
    "untied": Case(*UNTIED, {"lr": 1e-2, "weight_decay": 0.0, "max_grad_norm": 1.5}),
    "deep": Case(*DEEP, {"betas": [0.9, 0.95], "max_grad_norm": 0.9}),
    "long": Case(*LONG, {"max_grad_norm": 0.3}, lengths=[150, 3, 129], batches=[[140, 9], [30, 131]]),
    "gelu_new-c_attn-r1": Case(
        *GELU_NEW, {"lr": 1e-2, "max_grad_norm": 0.75}, {"r": 1, "lora_alpha": 3, "target_modules": ["c_attn"]}
    ),
    "relu-by-layer-c_attn-r16": Case(
        *BY_LAYER, {"schedule": "cosine", "max_grad_norm": 0.29},
        {"r": 16, "lora_alpha": 8, "target_modules": ["c_attn"]},
    ),
    "untied-all-linear-r1": Case(
        *UNTIED, {"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.85},
        {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"},
    ),
    "gelu-inner-all-linear-r16": Case(
        *INNER, {"schedule": "constant", "max_grad_norm": 2.0},
        {"r": 16, "lora_alpha": 24, "target_modules": "all-linear"},
    ),
}


def make(name):
    """Return (question, answer) of one case; see golden.py."""
    torch.set_num_threads(1)  # sums over threads would depend on how many there are
    case, seed = CASES[name], list(CASES).index(name)
    training = {**TRAINING, **case.training}
    model = torch_model(case.config, dtype=torch.float64, **case.changes)
    if case.lora:
        model = with_peft(model, case.lora["target_modules"], r=case.lora["r"], alpha=case.lora["lora_alpha"])
    weights = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            weights[released_name(key)] = golden.weight(released_name(key), tuple(parameter.shape), seed)
            parameter.copy_(torch.tensor(weights[released_name(key)]))
    vocab_size, config = model.config.vocab_size, model.config.to_dict()
    sequences = texts(vocab_size, case.lengths, seed)
    batches = [texts(vocab_size, lengths, [seed, i]) for i, lengths in enumerate(case.batches)]
    question = {
        "made_with": {package: version(package) for package in ("numpy", "torch", "transformers", "peft")},
        "config": {field.name: config[field.name] for field in dataclasses.fields(npgpt.GPT2Config)},
        "lora": case.lora,
        "seed": seed,
        "weights_sha256": golden.digest(weights),
        "sequences": [ids.tolist() for ids in sequences],
        "training": training,
        "batches": [[ids.tolist() for ids in batch] for batch in batches],
    }
    answer = {**forward_and_backward(model, sequences), **train(model, batches, training)}
    return question, answer


def forward_and_backward(model, sequences):
    """Return logits, hidden states, loss and gradients. Each sequence goes through alone, so nothing is padded."""
    logits, hidden = [], []
    with torch.no_grad():
        for ids in sequences:
            output = model(torch_ids(ids), output_hidden_states=True)
            logits.append(output.logits[0].numpy())
            hidden.append(np.stack([state[0].numpy() for state in output.hidden_states]))
    loss = torch_mean_loss(model, [ids for ids in sequences if len(ids) > 1])
    gradients = torch_gradients(model, loss)
    assert all(np.abs(gradient).max() > 1e-5 for gradient in gradients.values()), "a gradient that checks nothing"
    return {
        "logits": np.concatenate(logits),
        "hidden": np.concatenate(hidden, axis=1),
        "loss": loss.detach().numpy(),
        **{f"gradients/{key}": gradient.copy() for key, gradient in gradients.items()},
    }


def train(model, batches, training):
    """Return losses, norms, rates and final weights: AdamW and clipping by torch, the schedule by transformers."""
    trainable = {released_name(key): p for key, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trainable.values(), lr=training["lr"], betas=training["betas"], eps=training["eps"],
        weight_decay=training["weight_decay"],
    )
    name = "constant_with_warmup" if training["schedule"] == "constant" else training["schedule"]
    scheduler = transformers.get_scheduler(name, optimizer, training["warmup_steps"], training["steps"])
    losses, norms, rates = [], [], []
    for step in range(training["steps"]):
        loss = torch_mean_loss(model, batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable.values(), training["max_grad_norm"])
        losses.append(loss.item())
        norms.append(norm.item())
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1, "nothing was learnt, so nothing is compared"
    assert min(norms) < training["max_grad_norm"] < max(norms), "every step is clipped, or none is"
    return {
        "losses": np.array(losses),
        "grad_norms": np.array(norms),
        "learning_rates": np.array(rates),
        **{f"trained/{key}": p.detach().numpy().copy() for key, p in trainable.items()},
    }


if __name__ == "__main__":
    for each in CASES:
        golden.write(each, *make(each))
