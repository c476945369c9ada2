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
    """loss: nats per target, before the update; grad_norm: before clipping; tokens: number of tokens in the batch."""

    loss: float
    grad_norm: float
    tokens: int


def train_step(model, batch, opt, max_grad_norm=1.0, rng=None, threads=None, micro_batches=1):
    """Run one training step: forward, backward, clip, update. `scripts/finetune.py` runs this.

    batch          Batch; the loss is the mean over all its targets, also with several micro-batches
    opt            AdamW over the model's trainable parameters
    max_grad_norm  scale the gradients down to this norm; None: no clipping
    rng            np.random.Generator for dropout; None: no dropout
    threads        int; None: choose the number (see `runtime.threads.that_pay`)
    micro_batches  cut the batch into this many pieces and compute them one after another, to use less memory

    Returns a StepResult. The same arguments and number of threads give the same bits. Ctrl-C (KeyboardInterrupt) leaves
    the weights as they were before the step or as they are after it, never in between. Raises DivergedError, before the
    update, if the loss or the gradient is not finite, and ConfigError for an unusable number of threads.
    """
    with workers(that_pay(model, len(batch.ids) // micro_batches, threads)):
        loss, grads = loss_and_gradients(model, batch, rng, micro_batches)
        with _uninterrupted():
            norm = clip_grad_norm(grads, max_grad_norm or math.inf)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(f"step {opt.steps + 1} has loss {loss:g} and gradient norm {norm:g}: the training "
                                    "has diverged; start again with a smaller learning rate (--lr)")
            opt.step(grads)
    return StepResult(loss, norm, len(batch.ids))


def loss_and_gradients(model, batch, rng=None, micro_batches=1):
    """Return the mean loss over the batch's targets and its gradients, dict Tensor -> array.

    Part i has m_i of the M targets. The loss of the batch is the sum of the parts' mean losses, weighted by m_i / M. So
    the backward pass of part i starts from dy = m_i / M, and the sum over the parts is the gradient of the batch.
    """
    targets = batch.n_targets
    if targets == 0:
        raise ConfigError("the batch has no target, so there is nothing to learn; give it a sequence of two or more "
                          "tokens that are not masked")
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
    """Delay Ctrl-C and SIGTERM until the block is done, so that they never leave half an update."""
    if threading.current_thread() is not threading.main_thread():  # signals interrupt only the main thread
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held, handlers = [], {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in held[:1]:
        signal.raise_signal(number)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The length of a training, its batches and its learning rate. Raises ConfigError, naming the field.

    epochs        passes over the data
    max_steps     stop after this many optimiser steps, even inside an epoch; None: stop after the last epoch
    batch_size    sequences in a micro-batch
    batch_tokens  tokens in a micro-batch, about; replaces batch_size; None: use batch_size
    accumulate    micro-batches in a step; together they give the gradient of one large batch
    lr            highest learning rate
    warmup        steps in which the learning rate rises from 0 to lr
    schedule      learning rate after that: constant, linear or cosine, over all steps
    grad_clip     largest norm of the gradient; 0: no clipping
    seed          of the order of the data and of dropout
    threads       int; None: choose the number
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
        """Return the Order of the sequences with these lengths."""
        tokens = None if self.batch_tokens is None else self.batch_tokens * self.accumulate
        return Order(lengths, self.seed, self.batch_size * self.accumulate, tokens)

    def total_steps(self, order):
        """Return the number of steps of a run with this Order."""
        return min(self.epochs * order.steps_per_epoch, self.max_steps or math.inf)

    def micro_batches(self, batch):
        """Return the number of micro-batches in a batch."""
        if self.batch_tokens is None:
            return math.ceil(len(batch.lengths) / self.batch_size)
        return math.ceil(len(batch.ids) / self.batch_tokens)


class Step(NamedTuple):
    """One finished step, as metrics.jsonl holds it; step and epoch count from 1."""

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float


def train(model, sequences, opt, config):
    """Train on `sequences` from step `opt.steps` to the end. Yields a Step after each step.

    sequences   data.Sequences, with masks for the loss, or a list of integer arrays, in which all tokens have loss

    All random choices depend only on the seed and the number of the step: the sequences of the step (each epoch is a
    new permutation) and dropout. So a run that resumes with the optimiser's state takes the same steps as a run that
    was never stopped.
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
    """Return text that names the sequences of a batch, and those whose own loss, without dropout, is not finite."""
    def names(chosen):
        return ("sequence " if len(chosen) == 1 else "sequences ") + ", ".join(str(i + 1) for i in chosen)

    with no_grad():
        wrong = [i for i in indices if not math.isfinite(model.loss(sequences.batch([i])).data)]
    alone = f"; the loss is not finite for {names(wrong)}" if 0 < len(wrong) < len(indices) else ""
    return f"its batch is {names(indices)} of the data{alone}"
