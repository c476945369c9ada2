"""How long a run will take, before it starts: each kind of its work is counted, and tried out for a moment.

    seconds = sum over the kinds of work of (how much there is of it) * (how long one of it takes)

What is tried out is the model itself, and the optimiser's arithmetic on copies. Nothing that the run depends on is
changed, and no random numbers are taken from it. A trial takes some 0.3 s, or a small part of the run where that is
longer. Where a whole micro-batch would take more, two pieces of it are timed, and a straight line is drawn through
them: a fixed cost, that of reading the weights above all, and a cost in proportion to the tokens.
"""

import os
import statistics
import tempfile
import time
from typing import NamedTuple

import numpy as np

from npgpt.autograd import Tensor
from npgpt.batch import NO_TARGET, Batch
from npgpt.evaluation.evaluate import BATCH_TOKENS, grouped, token_losses
from npgpt.generation.generate import generate
from npgpt.optim import AdamW, clip_grad_norm
from npgpt.runtime.seeding import generator
from npgpt.runtime.threads import that_pay, workers
from npgpt.training.train import loss_and_gradients

MOMENT = 0.3     # seconds that the trials of one kind take, where they can be as short as that
PART = 0.05      # of all micro-batches, that may be tried out whole whatever it takes
LEAST = 32       # tokens of the first trial
SOME = 1 << 21   # numbers that an update is tried on: more than a processor's caches hold
WRITTEN = 1 << 22  # bytes that writing is tried with, at most
FILES = 6        # files and folders of a checkpoint, each of which the system is waited for to write to the disk


class Work(NamedTuple):
    """How much there is of each kind of work, or how many seconds one of each kind takes."""

    micro_batches: float  # of typical size, forward and backward
    updates: float        # of the trained parameters
    measured: float       # tokens whose loss is measured
    sampled: float        # tokens generated
    checkpoints: float    # written


def seconds(amounts, prices):
    """Return how long so much Work takes at such prices."""
    return sum(amount * price for amount, price in zip(amounts, prices, strict=True))


def left(sequences, config, keeping, done=0, measured=0, sampled=0, before=True):
    """Return the Work that is left of a run (of `fit.fit`, and what its caller does before and after), and a typical
    micro-batch of it, a Batch.

    sequences  data.Sequences
    config     TrainConfig
    keeping    FitConfig
    done       steps that were taken already
    measured   tokens of the held-out sequences, which are measured before training and by `fit`
    sampled    tokens generated before training, and again after it
    before     whether that before training is still to be done
    """
    order = config.order(sequences.lengths)
    total = config.total_steps(order)
    every = keeping.eval_every or order.steps_per_epoch
    evaluations = _multiples(every, done, total) if measured else 0
    checkpoints = _multiples(keeping.save_every or total, done, total)
    if keeping.keep_best:
        checkpoints += evaluations  # as many new lows as there can be
    batch, each = _typical(sequences, order, config, done, total)
    return Work(each * (total - done), total - done, measured * (evaluations + before), sampled * (1 + before),
                checkpoints), batch


def _multiples(every, done, total):
    """How many of the steps done + 1 .. total are multiples of `every`, or the last."""
    return total // every - done // every + (total % every > 0 and total > done)


def _typical(sequences, order, config, done, total, most=200):
    """Return a micro-batch of nearly the mean size, and how many of its size a step has. The first `most` steps that
    are left are looked at."""
    steps = range(done, min(total, done + most)) or range(1)
    tokens = [int(sequences.lengths[order[step]].sum()) for step in steps]
    step = min(steps, key=lambda step: abs(tokens[step - steps[0]] - np.mean(tokens)))
    batch = sequences.batch(order[step])
    parts = batch.split(config.micro_batches(batch))
    part = min(parts, key=lambda part: abs(len(part.ids) - len(batch.ids) / len(parts)))
    return part, float(np.mean(tokens)) / len(part.ids)


def tried(model, batch, amounts, config, held_out=None, folder=None, clock=time.perf_counter):
    """Return the prices of a run's Work: seconds, each found by doing a little of it.

    model     GPT2, with what is to be trained trainable, and gradient checkpointing switched on or off as for training
    batch     Batch, a typical micro-batch
    amounts   Work that is left: of what there is none, nothing is tried
    config    TrainConfig
    held_out  data.Sequences
    folder    where checkpoints will be written
    clock     a function that tells the time in seconds
    """
    with np.errstate(all="ignore"):  # what is wrong with the numbers comes out when they count
        micro_batch = _micro_batch(model, batch, amounts.micro_batches, config.threads, clock)
        update = _update(model, len(batch.ids), config, clock) if amounts.updates else 0.0
        measured = _measured(model, held_out, micro_batch / len(batch.ids), clock) if amounts.measured else 0.0
        sampled = _sampled(model, clock) if amounts.sampled else 0.0
    return Work(micro_batch, update, measured, sampled, _checkpoint(model, folder, clock) if folder else 0.0)


def _timed(work, clock, moment=0.0):
    """Do `work` until `moment` is over, once at least and 20 times at the most. Return the median of the seconds that
    it took, without the first time, which finds everything cold, where there are others."""
    times = []
    while not times or (sum(times) < moment and len(times) < 20):
        started = clock()
        work()
        times.append(clock() - started)
    return statistics.median(times[1:] or times)


def _piece(batch, tokens):
    """Return the first tokens of a batch, with as many targets for each token as the whole has."""
    ids = batch.ids[:tokens]
    targets = np.full(tokens, NO_TARGET)
    count = max(1, round(tokens * batch.n_targets / len(batch.ids)))
    targets[-count:] = ids[-count:]
    ends = np.minimum(np.cumsum(batch.lengths), tokens)
    lengths = np.diff(ends, prepend=0)
    return Batch(ids, targets, lengths[lengths > 0])


def _on_the_line(time_of, small, large, whole):
    """Return the time of `whole`, by a straight line through those of `small` and `large`, all in tokens."""
    low, high = time_of(small), time_of(large)
    slope = (high - low) / (large - small)
    slope = min(max(slope, high / large / 2), high / large)  # whatever noise there is, the fixed cost is not the most
    return high + slope * (whole - large)


def _micro_batch(model, batch, count, threads, clock):
    """How long a micro-batch takes, of which there are `count`."""
    whole = len(batch.ids)

    def work(piece):
        with workers(that_pay(model, whole, threads)):
            loss_and_gradients(model, piece, generator(0, "forecast"))

    least = min(LEAST, whole)
    first = _timed(lambda: work(_piece(batch, least)), clock)
    moment = max(MOMENT, PART * count * first * whole / least)
    large = int(least * moment / first) if first > 0 else whole  # as many tokens as a moment has time for
    if large >= whole:
        return _timed(lambda: work(batch), clock, MOMENT)
    large = max(large, 2 * least)
    return _on_the_line(lambda tokens: _timed(lambda: work(_piece(batch, tokens)), clock), least, large, whole)


def _update(model, tokens, config, clock):
    """How long clipping and AdamW take."""
    params, left, every = {}, SOME, 0
    for name, tensor in model.trainable_parameters().items():
        every += tensor.data.size
        rows = tensor.data[:max(1, left * len(tensor.data) // tensor.data.size)] if left > 0 else tensor.data[:0]
        if rows.size:
            params[name] = Tensor(rows.copy(), trainable=True)
            left -= rows.size
    opt = AdamW(params)
    grads = {tensor: np.full_like(tensor.data, 1e-3) for tensor in params.values()}

    def work():
        clip_grad_norm(grads, config.grad_clip or np.inf)
        opt.step(grads)

    with workers(that_pay(model, tokens, config.threads)):
        taken = _timed(work, clock, MOMENT / 10)
    return taken * every / sum(tensor.data.size for tensor in params.values())


def _measured(model, sequences, at_most, clock):
    """How long the loss of a held-out token takes, if not more than `at_most` seconds."""
    groups = list(grouped(sequences.lengths, BATCH_TOKENS))
    batch = sequences.batch(groups[len(groups) // 2])
    whole = len(batch.ids)
    large = max(min(whole, 2 * LEAST), int(MOMENT / at_most)) if at_most > 0 else whole
    if large >= whole:
        return _timed(lambda: token_losses(model, batch), clock) / whole
    return _on_the_line(lambda tokens: _timed(lambda: token_losses(model, _piece(batch, tokens)), clock), large // 2,
                        large, whole) / whole


def _sampled(model, clock):
    """How long a generated token takes."""
    tokens = min(4, model.config.n_positions - 1)
    return _timed(lambda: generate(model, [0], tokens, seed=0), clock, MOMENT / 6) / max(1, tokens)


def _checkpoint(model, folder, clock):
    """How long a checkpoint takes to be written: the trained parameters, two moments of each, and an adapter or a
    model. What cannot be written now cannot be written then, and will be refused then."""
    size = 4 * sum(tensor.data.nbytes for tensor in model.trainable_parameters().values())
    some = min(size, WRITTEN)

    def work():
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(FILES):
                file.write(bytes(some // FILES))
                file.flush()
                os.fsync(file.fileno())

    try:
        return _timed(work, clock) * size / max(some, 1)
    except OSError:
        return 0.0
