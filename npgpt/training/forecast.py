"""How long a run will take, forecast before it starts: count each kind of work, and time a little of it.

    seconds = sum over the kinds of work of (amount of this work) * (seconds for one unit of it)

The trials use the model itself, and copies for the optimiser. They change nothing that the run depends on and take
none of its random numbers. A trial takes about 0.3 s, or a small part of the run if that is longer. If a whole
micro-batch would take longer, two pieces of it are timed, and a straight line goes through the two times: a fixed
cost, mostly for reading the weights, and a cost in proportion to the tokens.
"""

import os
import statistics
import tempfile
import time
from typing import NamedTuple

import numpy as np

from npgpt.autograd import Tensor
from npgpt.batch import NO_TARGET, Batch
from npgpt.evaluation.evaluate import BATCH_TOKENS, group_by_tokens, token_losses
from npgpt.generation.generate import generate
from npgpt.optim import AdamW, clip_grad_norm
from npgpt.runtime.seeding import generator
from npgpt.runtime.threads import that_pay, workers
from npgpt.training.train import loss_and_gradients

MOMENT = 0.3     # seconds for the trials of one kind of work, if they can be so short
PART = 0.05      # of the time for all micro-batches: their trial may always take this long
LEAST = 32       # tokens in the first trial
SOME = 1 << 21   # numbers in the trial of an update: more than the caches of a processor hold
WRITTEN = 1 << 22  # most bytes in the trial of writing
FILES = 6        # files and folders of a checkpoint; for each we wait until the system has written it to the disk


class Work(NamedTuple):
    """The amount of each kind of work, or the seconds that one unit of each kind takes."""

    micro_batches: float  # of typical size, forward and backward
    updates: float        # of the trained parameters
    measured: float       # held-out tokens whose loss is measured
    sampled: float        # generated tokens
    checkpoints: float    # written checkpoints


def seconds(amounts, prices):
    """Return the seconds for these amounts of Work at these prices."""
    return sum(amount * price for amount, price in zip(amounts, prices, strict=True))


def left(sequences, config, keeping, done=0, measured=0, sampled=0, before=True):
    """Return the remaining Work of a run, in `fit.fit` and before and after it, and a typical micro-batch, a Batch.

    sequences  data.Sequences
    config     TrainConfig
    keeping    FitConfig
    done       steps that are done already
    measured   tokens of the held-out sequences, which are measured before training and by `fit`
    sampled    tokens that are generated before training, and again after it
    before     whether the work before training is still to do
    """
    order = config.order(sequences.lengths)
    total = config.total_steps(order)
    every = keeping.eval_every or order.steps_per_epoch
    evaluations = _count_multiples(every, done, total) if measured else 0
    checkpoints = _count_multiples(keeping.save_every or total, done, total)
    if keeping.keep_best:
        checkpoints += evaluations  # each may be a new low
    batch, each = _typical_micro_batch(sequences, order, config, done, total)
    return Work(each * (total - done), total - done, measured * (evaluations + before), sampled * (1 + before),
                checkpoints), batch


def _count_multiples(every, done, total):
    """Return how many of the steps done + 1 .. total are multiples of `every` or the last step."""
    return total // every - done // every + (total % every > 0 and total > done)


def _typical_micro_batch(sequences, order, config, done, total, most=200):
    """Return a micro-batch of about the mean size, and how many of this size a step has on average.

    This looks at the next `most` steps.
    """
    steps = range(done, min(total, done + most)) or range(1)
    tokens = [int(sequences.lengths[order[step]].sum()) for step in steps]
    step = min(steps, key=lambda step: abs(tokens[step - steps[0]] - np.mean(tokens)))
    batch = sequences.batch(order[step])
    parts = batch.split(config.micro_batches(batch))
    part = min(parts, key=lambda part: abs(len(part.ids) - len(batch.ids) / len(parts)))
    return part, float(np.mean(tokens)) / len(part.ids)


def tried(model, batch, amounts, config, held_out=None, folder=None, clock=time.perf_counter):
    """Time a little of each kind of Work. Returns the prices: Work in seconds.

    model     GPT2, with trainable parameters and gradient checkpointing set as for training
    batch     Batch, a typical micro-batch
    amounts   the remaining Work; a kind with amount 0 is not timed
    config    TrainConfig
    held_out  data.Sequences
    folder    the folder for checkpoints; None: writing is not timed
    clock     function that returns the time in seconds
    """
    with np.errstate(all="ignore"):  # if the numbers are bad, the training itself will say so
        micro_batch = _time_micro_batch(model, batch, amounts.micro_batches, config.threads, clock)
        token = micro_batch / len(batch.ids)
        update = _time_update(model, len(batch.ids), config, clock) if amounts.updates else 0.0
        measured = _time_held_out_token(model, held_out, token, clock) if amounts.measured else 0.0
        sampled = _time_generated_token(model, clock) if amounts.sampled else 0.0
    return Work(micro_batch, update, measured, sampled, _time_checkpoint(model, folder, clock) if folder else 0.0)


def _median_time(work, clock, moment=0.0):
    """Repeat `work` until `moment` seconds are over, at least once and at most 20 times. Return the median time.

    The first time does not count if there are others, because the caches are still cold.
    """
    times = []
    while not times or (sum(times) < moment and len(times) < 20):
        started = clock()
        work()
        times.append(clock() - started)
    return statistics.median(times[1:] or times)


def _piece(batch, tokens):
    """Return the first tokens of a batch, with the same share of targets as the whole batch."""
    ids = batch.ids[:tokens]
    targets = np.full(tokens, NO_TARGET)
    count = max(1, round(tokens * batch.n_targets / len(batch.ids)))
    targets[-count:] = ids[-count:]
    ends = np.minimum(np.cumsum(batch.lengths), tokens)
    lengths = np.diff(ends, prepend=0)
    return Batch(ids, targets, lengths[lengths > 0])


def _extrapolate(time_of, small, large, whole):
    """Return the time for `whole` tokens, by a straight line through the times for `small` and `large` tokens."""
    low, high = time_of(small), time_of(large)
    slope = (high - low) / (large - small)
    slope = min(max(slope, high / large / 2), high / large)  # against noise: the fixed cost is at most half
    return high + slope * (whole - large)


def _time_micro_batch(model, batch, count, threads, clock):
    """Return the seconds for a micro-batch; the run has `count` of them."""
    whole = len(batch.ids)

    def work(piece):
        with workers(that_pay(model, whole, threads)):
            loss_and_gradients(model, piece, generator(0, "forecast"))

    least = min(LEAST, whole)
    first = _median_time(lambda: work(_piece(batch, least)), clock)
    moment = max(MOMENT, PART * count * first * whole / least)
    large = int(least * moment / first) if first > 0 else whole  # as many tokens as fit into the moment
    if large >= whole:
        return _median_time(lambda: work(batch), clock, MOMENT)
    large = max(large, 2 * least)
    return _extrapolate(lambda tokens: _median_time(lambda: work(_piece(batch, tokens)), clock), least, large, whole)


def _time_update(model, tokens, config, clock):
    """Return the seconds for clipping and AdamW, timed on copies of some of the parameters."""
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
        taken = _median_time(work, clock, MOMENT / 10)
    return taken * every / sum(tensor.data.size for tensor in params.values())


def _time_held_out_token(model, sequences, at_most, clock):
    """Return the seconds for the loss of a held-out token, which should be no more than `at_most`."""
    groups = list(group_by_tokens(sequences.lengths, BATCH_TOKENS))
    batch = sequences.batch(groups[len(groups) // 2])
    whole = len(batch.ids)

    def time_of(piece):
        return _median_time(lambda: token_losses(model, piece), clock)

    large = max(min(whole, 2 * LEAST), int(MOMENT / at_most)) if at_most > 0 else whole
    if large >= whole:
        return time_of(batch) / whole
    return _extrapolate(lambda tokens: time_of(_piece(batch, tokens)), large // 2, large, whole) / whole


def _time_generated_token(model, clock):
    """Return the seconds for a generated token."""
    tokens = min(4, model.config.n_positions - 1)
    return _median_time(lambda: generate(model, [0], tokens, seed=0), clock, MOMENT / 6) / max(1, tokens)


def _time_checkpoint(model, folder, clock):
    """Return the seconds for writing a checkpoint: the trained parameters, two moments of each, and the adapter.

    If the folder cannot be written, this returns 0: the run itself will say so.
    """
    size = 4 * sum(tensor.data.nbytes for tensor in model.trainable_parameters().values())
    some = min(size, WRITTEN)

    def work():
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(FILES):
                file.write(bytes(some // FILES))
                file.flush()
                os.fsync(file.fileno())

    try:
        return _median_time(work, clock) * size / max(some, 1)
    except OSError:
        return 0.0
