"""Training against torch and PEFT: AdamW, clipping, schedules, and twenty optimiser steps of whole models."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
import transformers

import npgpt
from npgpt.autograd import Tensor
from npgpt.commands import adapting
from npgpt.optim import schedule

from .reference import (
    DTYPES,
    assert_all_close,
    assert_close,
    npgpt_model,
    released_name,
    texts,
    torch_mean_loss,
    torch_model,
    with_peft,
)

STEPS, WARMUP = 20, 4
SHAPES = {"matrix": (5, 7), "vector": (11,), "single": (1,)}


@pytest.fixture(params=DTYPES)
def dtypes(request):
    return DTYPES[request.param]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.05, "weight_decay": 0.3},
        {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.0},
    ],
)
def test_adamw(dtypes, settings):
    dtype, torch_dtype, bound = dtypes
    settings = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, **settings}
    draw = np.random.default_rng(0)
    ours = {key: Tensor(draw.standard_normal(shape).astype(dtype), trainable=True) for key, shape in SHAPES.items()}
    theirs = {key: torch.nn.Parameter(torch.tensor(tensor.data)) for key, tensor in ours.items()}
    assert all(parameter.dtype == torch_dtype for parameter in theirs.values())
    optimizer, reference = npgpt.AdamW(ours, **settings), torch.optim.AdamW(theirs.values(), **settings)
    for step in range(STEPS):
        optimizer.lr = reference.param_groups[0]["lr"] = settings["lr"] * (step + 1)
        gradients = {key: draw.standard_normal(shape).astype(dtype) for key, shape in SHAPES.items()}
        for key, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[key])
        optimizer.step({ours[key]: gradient for key, gradient in gradients.items()})
        reference.step()
        assert_all_close(
            {key: tensor.data for key, tensor in ours.items()},
            {key: parameter.detach().numpy() for key, parameter in theirs.items()},
            bound,
        )


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e3])
def test_clip_grad_norm(dtypes, max_norm):
    dtype, _, bound = dtypes
    draw = np.random.default_rng(1)
    arrays = {Tensor(np.zeros(shape, dtype)): draw.standard_normal(shape).astype(dtype) for shape in SHAPES.values()}
    theirs = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()]
    for parameter, array in zip(theirs, arrays.values(), strict=True):
        parameter.data, parameter.grad = torch.tensor(np.zeros_like(array)), torch.tensor(array)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert_close(npgpt.clip_grad_norm(arrays, max_norm), expected, bound, "norm")
    for parameter, array in zip(theirs, arrays.values(), strict=True):
        assert_close(array, parameter.grad, bound, "clipped gradient")


@pytest.mark.parametrize(("name", "warmup"), [("constant", 4), ("linear", 4), ("cosine", 4), ("linear", 0)])
def test_schedule(name, warmup):
    named = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_scheduler(named, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS)
    expected = [theirs.lr_lambdas[0](step) for step in range(STEPS)]
    assert [schedule(name, step, STEPS, warmup) for step in range(STEPS)] == pytest.approx(expected)


def train_theirs(model, batches, lr, factors):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    losses = []
    for sequences, factor in zip(batches, factors, strict=True):
        optimizer.param_groups[0]["lr"] = lr * factor
        optimizer.zero_grad()
        loss = torch_mean_loss(model, sequences)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_ours(model, batches, lr, factors):
    optimizer = npgpt.AdamW(model.trainable_parameters(), lr=lr, weight_decay=0.01)
    losses = []
    for sequences, factor in zip(batches, factors, strict=True):
        optimizer.lr = lr * factor
        step = npgpt.train_step(model, npgpt.Batch.from_sequences(sequences), optimizer, max_grad_norm=1.0)
        losses.append(step.loss)
    return losses


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("gelu_new", {"targets": ["c_attn"], "r": 8}),
        ("relu-by-layer", {"targets": "all-linear", "r": 1}),
        ("untied", {"targets": "all-linear", "r": 16}),
        ("gelu_new", None),
        ("silu-unscaled", None),
        ("untied", None),
    ],
)
def test_twenty_steps(name, lora, dtypes):
    """Each step stands on the one before, so one wrong step shows in the losses of all that follow.

    In float32 rounding grows the same way (a unit of relu that is on here and off there is enough), hence 1e-4. In
    float64 the two sides stay together to the last digits, and the weights after the last step can be compared too. In
    float32 they cannot: the gradient of the key bias is zero but for rounding (a constant added to all scores of a row
    changes no softmax), and Adam divides that rounding by its own size.
    """
    dtype, torch_dtype, bound = dtypes
    theirs = torch_model(name, dtype=torch_dtype)
    if lora is not None:
        theirs = with_peft(theirs, **lora)
    ours = npgpt_model(theirs, dtype)
    if lora is None:
        ours.unfreeze()
    batches = [texts(ours.config.vocab_size, [11, 5, 20, 11], seed=step) for step in range(STEPS // 4)] * 4
    factors = [schedule("linear", step, STEPS, WARMUP) for step in range(STEPS)]
    expected = train_theirs(theirs, batches, 3e-3, factors)
    losses = train_ours(ours, batches, 3e-3, factors)
    assert np.mean(expected[-5:]) < np.mean(expected[:5]) - 0.1, "nothing was learnt, so nothing is compared"
    assert_close(losses, expected, 1e-4 if dtype == np.float32 else bound, "losses")
    if dtype == np.float64:
        assert_all_close(
            {key: tensor.data for key, tensor in ours.parameters().items()},
            {released_name(key): weight.detach().numpy() for key, weight in theirs.named_parameters()},
            1e-9,
        )


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", ["gelu_new", "untied"])
def test_three_steps_of_all_weights_decay_as_in_the_trainer(name, decay_all, tmp_path):
    """transformers' Trainer puts biases and norms into a group of their own, without decay."""
    theirs = torch_model(name, dtype=torch.float64)
    ours = npgpt_model(theirs, np.float64)
    ours.unfreeze()
    arguments = transformers.TrainingArguments(tmp_path, learning_rate=0.02, weight_decay=0.4, report_to=[])
    trainer = transformers.Trainer(theirs, arguments)
    reference = (torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.4) if decay_all
                 else trainer.create_optimizer())
    opt = adapting.optimizer(ours, {"full": True, "decay_all": decay_all, "lr": 0.02, "weight_decay": 0.4})
    if not decay_all:
        decayed = {released_name(name) for name in trainer.get_decay_parameter_names(theirs)}
        assert opt.params.keys() - opt.undecayed == decayed & opt.params.keys()
    for step in range(3):
        sequences = texts(ours.config.vocab_size, [11, 5, 20], seed=step)
        reference.zero_grad()
        torch_mean_loss(theirs, sequences).backward()
        reference.step()
        npgpt.train_step(ours, npgpt.Batch.from_sequences(sequences), opt, max_grad_norm=None)
    assert_all_close(
        {key: tensor.data for key, tensor in ours.parameters().items()},
        {released_name(key): weight.detach().numpy() for key, weight in theirs.named_parameters()},
        1e-9,
    )
