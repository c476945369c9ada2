"""One step of training, and the loop of steps."""

import contextlib
import dataclasses
import math
import numbers
import signal
import threading
import time
from typing import NamedTuple

from npgpt.autograd import backward, no_grad
from npgpt.data import Order, Sequences
from npgpt.optim import clip_grad_norm, schedule
from npgpt.runtime.errors import ConfigError, DivergedError
from npgpt.runtime.seeding import generator
from npgpt.runtime.threads import checked, that_pay, workers


class StepResult(NamedTuple):
    """loss: nats a target, before the update; grad_norm: before clipping; tokens: in the batch."""

    loss: float
    grad_norm: float
    tokens: int


def train_step(model, batch, opt, max_grad_norm=1.0, rng=None, threads=None, micro_batches=1):
    """Forward, backward, clip, update: what one step of `scripts/finetune.py` runs.

    batch          Batch; the gradient is that of the mean loss over all its targets, however it is cut up
    opt            AdamW over the model's trainable parameters
    max_grad_norm  gradients are scaled down to this norm; None: they are left alone
    rng            np.random.Generator for dropout; None: no dropout
    threads        int; None: as many as pay (see `runtime.threads.that_pay`)
    micro_batches  the batch is worked through in this many pieces, one after another, to hold less in memory

    Returns a StepResult. The same arguments and thread count give the same bits. Ctrl-C (KeyboardInterrupt) finds the
    weights as they were before the step or as they are after it. Raises DivergedError, before the update, where loss or
    gradient are no longer finite numbers, and ConfigError for an unusable number of threads.
    """
    with workers(that_pay(model, len(batch.ids) // micro_batches, threads)):
        loss, grads = loss_and_gradients(model, batch, rng, micro_batches)
        with _uninterrupted():
            norm = clip_grad_norm(grads, max_grad_norm or math.inf)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(f"step {opt.steps + 1} has loss {loss:g} and gradient norm {norm:g}: the training "
                                    "has diverged; start again with a smaller learning rate")
            opt.step(grads)
    return StepResult(loss, norm, len(batch.ids))


def loss_and_gradients(model, batch, rng=None, micro_batches=1):
    """Return the mean loss over the batch's targets and its gradients, dict Tensor -> array.

    The mean over all targets is the mean of the parts' means weighted by their targets, m_i / M. A part's gradient is
    therefore asked for with dy = m_i / M, and the sum over the parts, in their order, is the whole batch's gradient.
    """
    targets = batch.n_targets
    if targets == 0:
        raise ConfigError("the batch has no target: nothing in it can be learned; a sequence needs two tokens or more")
    total, grads = 0.0, {}
    for part in batch.split(micro_batches):
        if not part.n_targets:
            continue
        loss = model.loss(part, rng)
        total += float(loss.data) * part.n_targets
        for tensor, gradient in backward(loss, part.n_targets / targets).items():
            grads[tensor] = gradient if tensor not in grads else grads[tensor] + gradient
    return total / targets, grads


@contextlib.contextmanager
def _uninterrupted():
    """Hold Ctrl-C back until the block is done, so that it never leaves half an update."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
        yield
        return
    held = []
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, in what pieces and at what rate to train. Raises ConfigError, naming the field.

    epochs        passes over the data
    max_steps     stop after this many optimiser steps, even inside an epoch; None: after the last epoch
    batch_size    sequences a micro-batch
    batch_tokens  tokens a micro-batch, about, instead; None: batch_size says how many sequences
    accumulate    micro-batches a step: their gradients are those of one batch of all their sequences
    lr            highest learning rate
    warmup        steps over which it rises from 0
    schedule      how it goes on: constant, linear or cosine, over all steps
    grad_clip     largest norm of the gradient; 0: no clipping
    seed          of the order of the data and of dropout
    threads       int; None: as many as pay
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 4
    batch_tokens: int | None = None
    accumulate: int = 1
    lr: float = 3e-4
    warmup: int = 0
    schedule: str = "linear"
    grad_clip: float = 1.0
    seed: int = 0
    threads: int | None = None

    def __post_init__(self):
        least = {"epochs": 1, "max_steps": 1, "batch_size": 1, "batch_tokens": 2, "accumulate": 1, "lr": 0, "warmup": 0,
                 "grad_clip": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name in ("max_steps", "batch_tokens"):
                continue
            kind, word = (numbers.Real, "number") if name in ("lr", "grad_clip") else (numbers.Integral, "whole number")
            if not isinstance(value, kind) or not low <= value < math.inf:
                raise ConfigError(f"{name} = {value}: it must be a {word} of at least {low}")
        if self.threads is not None:
            checked(self.threads)
        schedule(self.schedule, 0, 1)

    def order(self, lengths):
        """Return the Order in which sequences of these lengths are seen."""
        tokens = None if self.batch_tokens is None else self.batch_tokens * self.accumulate
        return Order(lengths, self.seed, self.batch_size * self.accumulate, tokens)

    def total_steps(self, order):
        """How many steps are taken of an Order."""
        return min(self.epochs * order.steps_per_epoch, self.max_steps or math.inf)

    def micro_batches(self, batch):
        """How many micro-batches a batch is worked through in."""
        if self.batch_tokens is None:
            return math.ceil(len(batch.lengths) / self.batch_size)
        return math.ceil(len(batch.ids) / self.batch_tokens)


class Step(NamedTuple):
    """One finished step: its number from 1, its epoch from 1, and what metrics.jsonl holds of it."""

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float


def train(model, sequences, opt, config):
    """Train on `sequences`, yielding a Step after each step, from where `opt` stands to the end.

    sequences   data.Sequences, whose masks say what carries loss, or a list of integer arrays, where all does

    Everything drawn depends on the seed and the step's number alone: which sequences the step sees (each epoch is a
    new permutation) and what is dropped out. A run that goes on with the optimiser's state therefore takes the same
    steps as one never stopped.
    """
    if not isinstance(sequences, Sequences):
        sequences = Sequences.of(sequences)
    order = config.order(sequences.lengths)
    total = config.total_steps(order)
    for index in range(opt.steps, total):
        started = time.perf_counter()
        batch = sequences.batch(order[index])
        opt.lr = config.lr * schedule(config.schedule, index, total, config.warmup)
        rng = generator(config.seed, "dropout", index)
        try:
            result = train_step(model, batch, opt, config.grad_clip, rng, config.threads, config.micro_batches(batch))
        except DivergedError as error:
            raise DivergedError(f"{error}; {_blame(model, sequences, order[index])}") from error
        yield Step(index + 1, index // order.steps_per_epoch + 1, result.loss, opt.lr, result.grad_norm, result.tokens,
                   time.perf_counter() - started)


def _blame(model, sequences, indices):
    """Say which sequences a batch has, and which of them alone, without dropout, have a loss that is not finite."""
    def names(chosen):
        return ("sequence " if len(chosen) == 1 else "sequences ") + ", ".join(str(i + 1) for i in chosen)

    with no_grad():
        wrong = [i for i in indices if not math.isfinite(model.loss(sequences.batch([i])).data)]
    alone = f", of which {names(wrong)} alone has such a loss" if 0 < len(wrong) < len(indices) else ""
    return f"its batch is {names(indices)} of the data{alone}"
