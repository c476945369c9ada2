"""How much memory training needs, estimated before it starts from the arrays that the operations save.

    M = process + saved + work + gradients

process    what the process holds already: the weights, AdamW's moments, and copies of the weights that are trained
saved      what the forward pass saves for the backward pass, in proportion to the tokens of a micro-batch. We run one
           sequence and count the arrays in its records, because only the operations know what they save. With gradient
           checkpointing, a block saves only its input, and one block at a time is computed again.
work       temporary arrays of the backward pass: in a block, two gradients as wide as the MLP and two as wide as the
           model; or, if that is more, a block of logits and two arrays of hidden states for each worker. If an adapter
           changes the head, also the changed table and its gradient. Measuring the held-out loss saves nothing and
           has no gradients, but it takes many tokens at a time: if it needs more than all this together, that counts.
gradients  of everything that is trained. The token table has two, one for each of its uses, and their sum. With several
           micro-batches in a step, also the sum of the gradients so far.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from npgpt.autograd import Record, Tensor
from npgpt.batch import NO_TARGET, Batch
from npgpt.evaluation.evaluate import BATCH_TOKENS, group_by_tokens
from npgpt.evaluation.evaluate import ROWS as ROWS_OF_LOGITS
from npgpt.ops.cross_entropy import ROWS, TOKENS
from npgpt.runtime.memory import resident
from npgpt.runtime.seeding import generator
from npgpt.runtime.threads import that_pay
from npgpt.training.recompute import has_gradient_checkpointing, set_gradient_checkpointing


class Memory(NamedTuple):
    """The four terms above, in bytes."""

    process: int
    saved: int
    work: int
    gradients: int

    @property
    def total(self):
        return sum(self)


def memory(model, batch, threads=None, process=None, micro_batches=1, held_out=None):
    """Return the Memory of training at its peak. Call this when the optimiser exists.

    model          GPT2, with trainable parameters and gradient checkpointing set as for training
    batch          Batch, the largest micro-batch
    threads        as for `train_step`
    process        bytes that the process holds, if known; None: ask the system
    micro_batches  number of micro-batches in a step
    held_out       the sequences whose loss is measured, data.Sequences; None: there are none
    """
    if process is None:
        process = resident()  # ask now: the sequence below needs memory that training does not hold
    config, itemsize, tokens = model.config, model.head().data.itemsize, len(batch.ids)
    count = that_pay(model, tokens, threads)
    longest = int(batch.lengths.max())

    saved = saved_bytes(model, longest) * tokens // longest
    if has_gradient_checkpointing(model):
        set_gradient_checkpointing(model, False)
        saved += saved_bytes(model, longest) * tokens // longest // config.n_layer
        set_gradient_checkpointing(model, True)
    work = tokens * (2 * (config.n_inner or 4 * config.n_embd) + 2 * config.n_embd) * itemsize

    rows = min(ROWS, max(batch.n_targets, 1))
    work = max(work, count * rows * (min(TOKENS, config.vocab_size) + 2 * config.n_embd) * itemsize)
    trainable = gradients = sum(tensor.data.nbytes for tensor in model.trainable_parameters().values())
    if model.head().trainable:
        # The table's gradients come last. By then the saved arrays are gone and have made room for the others.
        size = model.head().data.nbytes
        gradients = 3 * size + max(0, gradients - size - saved - work)
    elif model.head().record is not None:
        work += 2 * model.head().data.nbytes
    if micro_batches > 1:
        gradients += trainable
    if held_out is not None:
        work = max(work, measuring_bytes(model, held_out.lengths) - saved - gradients)
    return Memory(process, saved, work, gradients)


def measuring_bytes(model, lengths):
    """Return the bytes that measuring the loss of sequences with these lengths takes, at its peak.

    In a block these are three arrays as wide as the MLP and three as wide as the model; later the hidden states and,
    for each worker, a block of logits, and the room of one more that is free but in pieces.
    """
    config = model.config
    tokens = max(int(lengths[group].sum()) for group in group_by_tokens(lengths, BATCH_TOKENS))
    in_block = tokens * (3 * (config.n_inner or 4 * config.n_embd) + 3 * config.n_embd)
    blocks = 1 + min(that_pay(model, tokens), math.ceil(tokens / ROWS_OF_LOGITS))
    logits = blocks * min(tokens, ROWS_OF_LOGITS) * config.vocab_size
    return max(in_block, tokens * config.n_embd + logits) * model.head().data.itemsize


def saved_bytes(model, length):
    """Return the bytes that the forward pass of one sequence of `length` tokens saves for the backward pass."""
    targets = np.full(length, NO_TARGET)
    targets[0] = 0
    loss = model.loss(Batch(np.zeros(length, np.int64), targets, np.array([length])), generator(0, "estimate"))
    known = {id(_owner(tensor.data)) for tensor in model.parameters().values()}
    found, seen = {}, set()
    records = [parent for parent, _ in loss.record.parents if isinstance(parent, Record)]  # everything below the head
    while records:
        record = records.pop()
        if id(record) not in seen:
            seen.add(id(record))
            _collect_arrays(record.rule, found, seen)
            records += [parent for parent, _ in record.parents if isinstance(parent, Record)]
    return sum(array.nbytes for key, array in found.items() if key not in known)


def _collect_arrays(value, found, seen):
    """Put every array that `value` refers to into `found`, a dict id -> array that owns the memory.

    gc.get_referents would also follow modules and classes, and with them everything in the process.
    """
    if isinstance(value, np.ndarray):
        owner = _owner(value)
        found[id(owner)] = owner
        return
    if isinstance(value, Tensor) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, tuple | list | set):
        inside = value
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, functools.partial):
        inside = [value.func, value.args, value.keywords]
    else:
        inside = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    for each in inside:
        _collect_arrays(each, found, seen)


def _owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def largest_micro_batch(sequences, config, steps=200):
    """Return the largest micro-batch of the first `steps` steps, as a Batch.

    sequences  data.Sequences
    config     TrainConfig
    """
    order = config.order(sequences.lengths)
    step = max(range(min(config.total_steps(order), steps)), key=lambda i: int(sequences.lengths[order[i]].sum()))
    batch = sequences.batch(order[step])
    return max(batch.split(config.micro_batches(batch)), key=lambda part: len(part.ids))


def ways(config):
    """Yield (batch_size, batch_tokens, accumulate, checkpointing) for all settings that make the same steps.

    The fastest come first; later ones need less memory.
    """
    total = config.batch_size * config.accumulate
    for checkpointing in (False, True):
        if config.batch_tokens:
            for pieces in (1, 2, 4, 8, 16, 32):
                if config.batch_tokens % pieces == 0:
                    yield config.batch_size, config.batch_tokens // pieces, config.accumulate * pieces, checkpointing
        else:
            for size in range(config.batch_size, 0, -1):
                if total % size == 0:
                    yield size, None, total // size, checkpointing


def spelled(count):
    """Return a number of bytes as text."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count:,} bytes"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def duration(seconds):
    """Return a time in seconds as text."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
