"""The loop of steps: the order of the data, learning rates, resuming, and Ctrl-C."""

import dataclasses
import importlib
import math
import signal
import threading

import numpy as np
import pytest

import npgpt
from npgpt.runtime.errors import ConfigError, DivergedError
from npgpt.runtime.seeding import generator
from npgpt.runtime.threads import available
from npgpt.training.run import Run
from npgpt.training.train import StepResult, TrainConfig, train

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2,
                          embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
LENGTHS = (3, 9, 2, 16, 5, 7, 4, 12, 2, 6)
SEQUENCES = [generator(0, "test", i).integers(0, 31, length) for i, length in enumerate(LENGTHS)]


@pytest.fixture(autouse=True)
def interruptible():
    """A process in the background ignores Ctrl-C; the tests need it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def start(dropout=0.0, dtype=np.float32, lora_seed=0):
    """Return a model with a fresh adapter, and its optimiser."""
    model = npgpt.GPT2(CONFIG, seed=1, dtype=dtype)
    npgpt.add_lora(model, npgpt.LoraConfig(r=2, lora_dropout=dropout), seed=lora_seed)
    return model, npgpt.AdamW(model.trainable_parameters(), lr=1.0)  # the loop sets the learning rate


def figures(steps):
    return [step[:-1] for step in steps]  # without the seconds


def weights(model):
    return {name: tensor.data.copy() for name, tensor in model.parameters().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.fixture
def batches(monkeypatch):
    """Record the arguments of each step, (batch, max_grad_norm, micro_batches), without training."""
    given = []

    def record(model, batch, opt, max_grad_norm, rng, threads, micro_batches):
        given.append((batch, max_grad_norm, micro_batches))
        return StepResult(0.0, 0.0, len(batch.ids))

    monkeypatch.setattr(importlib.import_module("npgpt.training.train"), "train_step", record)
    return given


def sequences_of(batch):
    return [tuple(part.tolist()) for part in np.split(batch.ids, np.cumsum(batch.lengths)[:-1])]


def test_every_epoch_takes_each_sequence_once_in_an_order_of_its_own(batches):
    def order(seed):
        batches.clear()
        list(train(*start()[:1], SEQUENCES, start()[1], TrainConfig(epochs=3, batch_size=2, accumulate=2, seed=seed)))
        assert [len(batch.lengths) for batch, _, _ in batches] == [4, 4, 2] * 3
        return [[s for batch, _, _ in batches[i:i + 3] for s in sequences_of(batch)] for i in (0, 3, 6)]

    epochs = order(seed=0)
    for epoch in epochs:
        assert sorted(epoch) == sorted(tuple(sequence.tolist()) for sequence in SEQUENCES)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert order(seed=0) == epochs
    assert order(seed=1) != epochs


def test_a_step_is_worked_through_in_micro_batches(batches):
    model, opt = start()
    list(train(model, SEQUENCES, opt, TrainConfig(epochs=1, batch_size=2, accumulate=3, grad_clip=0.25)))
    assert [(len(batch.lengths), micro, clip) for batch, clip, micro in batches] == [(6, 3, 0.25), (4, 2, 0.25)]


def test_steps_are_numbered_and_counted():
    model, opt = start()
    steps = list(train(model, SEQUENCES, opt, TrainConfig(epochs=2, batch_size=4)))
    assert [(step.step, step.epoch) for step in steps] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    assert sum(step.tokens for step in steps[:3]) == sum(LENGTHS)
    assert opt.steps == 6
    for step in steps:
        assert 0 < step.seconds < 60
        assert step.grad_norm > 0
    assert steps[0].loss == pytest.approx(math.log(31), abs=1)


@pytest.mark.parametrize("max_steps, expected", [(None, 6), (2, 2), (3, 3), (5, 5), (6, 6), (99, 6)])
def test_max_steps_ends_the_training_early(max_steps, expected):
    config = TrainConfig(epochs=2, batch_size=4, max_steps=max_steps)
    order = config.order(LENGTHS)
    assert order.steps_per_epoch == 3
    assert config.total_steps(order) == expected
    model, opt = start()
    assert len(list(train(model, SEQUENCES, opt, config))) == expected
    assert list(train(model, SEQUENCES, opt, config)) == []  # the run has ended


@pytest.mark.parametrize("name, factors", [
    ("constant", [0, 0.5, 1, 1, 1, 1]),
    ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
    ("cosine", [0, 0.5, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
])
def test_the_learning_rate_follows_its_schedule(name, factors):
    model, opt = start()
    config = TrainConfig(epochs=2, batch_size=4, lr=0.01, warmup=2, schedule=name)
    for step, factor in zip(train(model, SEQUENCES, opt, config), factors, strict=True):
        assert step.lr == pytest.approx(0.01 * factor, rel=1e-12)
        assert opt.lr == step.lr
    assert opt.steps == 6


def test_the_rate_that_is_logged_is_the_one_that_was_used():
    model, opt = start()
    before = weights(model)
    steps = train(model, SEQUENCES, opt, TrainConfig(warmup=2))
    assert next(steps).lr == 0
    assert_equal(weights(model), before)
    assert next(steps).lr > 0
    assert not np.array_equal(weights(model)["h.0.attn.c_attn.lora_B"], before["h.0.attn.c_attn.lora_B"])


def test_the_loss_falls():
    model, opt = start()
    steps = list(train(model, SEQUENCES, opt, TrainConfig(epochs=20, lr=0.03)))
    assert np.mean([step.loss for step in steps[-3:]]) < 0.8 * np.mean([step.loss for step in steps[:3]])


def test_accumulation_equals_a_larger_batch():
    runs = []
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        model, opt = start(dtype=np.float64)
        config = TrainConfig(epochs=3, batch_size=batch_size, accumulate=accumulate, lr=0.01, warmup=1)
        runs.append(([step[2:6] for step in train(model, SEQUENCES, opt, config)], weights(model)))
    for losses, final in runs[1:]:
        np.testing.assert_allclose(losses, runs[0][0], rtol=1e-12)
        for name, array in final.items():
            np.testing.assert_allclose(array, runs[0][1][name], rtol=0, atol=1e-12)


def test_dropout_is_of_the_seed_and_of_the_step():
    def losses(dropout, seed):
        model, opt = start(dropout)
        for name, tensor in model.trainable_parameters().items():
            tensor.data[...] = generator(5, name).normal(0, 0.3, tensor.shape)
        # one sequence and no learning, so that only dropout differs
        return [step.loss for step in train(model, SEQUENCES[:1], opt, TrainConfig(epochs=4, lr=0.0, seed=seed))]

    assert len(set(losses(0.0, seed=0))) == 1
    assert len(set(losses(0.5, seed=0))) == 4
    assert losses(0.5, seed=0) == losses(0.5, seed=0)
    assert not set(losses(0.5, seed=0)) & set(losses(0.5, seed=1))


@pytest.mark.parametrize("stop", [1, 3, 5, 9])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, stop):
    config = TrainConfig(epochs=3, batch_size=2, accumulate=2, lr=0.01, warmup=2, schedule="cosine", threads=1)
    model, opt = start(dropout=0.3)
    whole = list(train(model, SEQUENCES, opt, config))
    assert len(whole) == 9

    stopped, stopped_opt = start(dropout=0.3)
    steps = train(stopped, SEQUENCES, stopped_opt, config)
    first = [next(steps) for _ in range(stop)]
    steps.close()
    run = Run.create(tmp_path)
    run.write_config({})
    for step in first:
        run.log(step)
    run.save_checkpoint(stopped, stopped_opt)

    resumed, resumed_opt = start(dropout=0.3, lora_seed=99)  # the initial weights must not matter
    run.resume(resumed_opt)
    rest = list(train(resumed, SEQUENCES, resumed_opt, config))
    assert figures(first + rest) == figures(whole)
    assert_equal(weights(resumed), weights(model))
    assert_equal(resumed_opt.m, opt.m)
    assert_equal(resumed_opt.v, opt.v)


# Ctrl-C


class Pressing(dict):
    """Parameters that receive Ctrl-C, or another signal, in the middle of their update."""

    number = signal.SIGINT

    def items(self):
        for i, item in enumerate(super().items()):
            if i == 1:
                signal.raise_signal(self.number)
            yield item


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_during_an_update_wait_for_its_end(monkeypatch, number):
    monkeypatch.setattr(Pressing, "number", number)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        update_waits()
    finally:
        assert signal.signal(signal.SIGTERM, before) is signal.default_int_handler


def update_waits():
    config = TrainConfig(epochs=1, threads=1)
    model, opt = start()
    steps = train(model, SEQUENCES, opt, config)
    next(steps)
    next(steps)
    whole = weights(model)

    model, opt = start()
    steps = train(model, SEQUENCES, opt, config)
    next(steps)
    opt.params = Pressing(opt.params)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert opt.steps == 2
    assert_equal(weights(model), whole)


def test_ctrl_c_during_the_gradient_leaves_everything_as_it_was(monkeypatch):
    model, opt = start()
    config = TrainConfig(epochs=1, batch_size=2, accumulate=2)
    steps = train(model, SEQUENCES, opt, config)
    next(steps)
    before, moments, threads = weights(model), {name: m.copy() for name, m in opt.m.items()}, available()
    loss, calls = model.loss, []

    def pressing(*args):
        calls.append(args)
        if len(calls) == 2:  # after the gradient of the first micro-batch
            signal.raise_signal(signal.SIGINT)
        return loss(*args)

    monkeypatch.setattr(model, "loss", pressing)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert len(calls) == 2
    assert opt.steps == 1
    assert_equal(weights(model), before)
    assert_equal(opt.m, moments)
    assert available() == threads

    monkeypatch.undo()
    model_2, opt_2 = start()
    whole = list(train(model_2, SEQUENCES, opt_2, config))
    assert figures(train(model, SEQUENCES, opt, config)) == figures(whole[1:])  # the run can go on
    assert_equal(weights(model), weights(model_2))


def test_an_error_during_an_update_gives_ctrl_c_back(monkeypatch):
    model, opt = start()
    monkeypatch.setattr(opt, "step", lambda grads: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(train(model, SEQUENCES, opt, TrainConfig()))  # `interruptible` checks the handler


def test_training_works_outside_the_main_thread():
    results = []
    model, opt = start()
    thread = threading.Thread(target=lambda: results.extend(train(model, SEQUENCES, opt, TrainConfig(max_steps=2))))
    thread.start()
    thread.join()
    assert len(results) == 2


# What is refused


def test_a_training_that_diverged_ends_before_it_spoils_the_weights():
    model, opt = start()
    steps = train(model, SEQUENCES, opt, TrainConfig(lr=0.01))
    next(steps)
    model.ln_f.weight.data[0] = np.nan
    before, moments = weights(model), {name: m.copy() for name, m in opt.m.items()}
    with pytest.raises(DivergedError, match="step 2 has loss nan and gradient norm nan: the training has diverged; "
                                            "start again with a smaller learning rate"):
        next(steps)
    assert opt.steps == 1
    assert_equal(opt.m, moments)
    for name, array in weights(model).items():
        assert np.array_equal(array, before[name], equal_nan=True)


@pytest.mark.parametrize("field, values", [
    ("epochs", (0, -1, 1.5, "three", None)),
    ("max_steps", (0, -1, 2.5)),
    ("batch_size", (0, -4, None)),
    ("batch_tokens", (1, 0, 2.5)),
    ("accumulate", (0, -1)),
    ("lr", (-1e-4, math.nan, math.inf, "fast", None)),
    ("warmup", (-1, 0.5)),
    ("grad_clip", (-1.0, math.nan, math.inf)),
    ("seed", (-1, 0.5, None)),
    ("threads", (0, -2)),
    ("schedule", ("", "cyclic", None)),
])
def test_unusable_settings_are_named(field, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"{field}.*{value}|{field} {value!r}"):
            TrainConfig(**{field: value})


def test_usable_settings():
    TrainConfig(max_steps=None, threads=None, lr=0, warmup=0, grad_clip=0, seed=0)
    TrainConfig(epochs=1, max_steps=1, batch_size=1, accumulate=1, threads=1)
    assert TrainConfig(seed=np.int64(3), lr=np.float32(0.5)).seed == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 4
