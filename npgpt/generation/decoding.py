"""The logits of the next token for several growing sequences. A new token costs one row of work for each sequence."""

import functools
import itertools

import numpy as np

from npgpt import ops
from npgpt.adapters.mixed_batch import check_not_mixed
from npgpt.autograd import Tensor, no_grad
from npgpt.runtime.shares import even_parts, product
from npgpt.runtime.threads import blas_threads, crew, spread, that_pay, workers

SMALL = 1_000_000  # multiplications: up to here OpenBLAS (for AVX-512) multiplies without copying its arguments


class Decoder:
    """B sequences, with the keys and values of the tokens that the model has read.

    From the past, attention at position t needs only the keys and values of positions 0..t. Attention is causal, so
    they never change, and we keep them: k and v are (layers, B, H, capacity, D), and row b is filled up to lengths[b].
    A new token costs one row of work in every layer. The rows of all sequences go through the layers together, so that
    each weight is read from memory once for all of them; this reading takes most of the time. Sequences of different
    lengths are not padded: attention works on each run of neighbours of equal length, and all other layers work row
    by row.

    model     GPT2
    batch     B
    capacity  the most tokens a sequence will have; the memory is used only as it fills
    """

    def __init__(self, model, batch, capacity):
        check_not_mixed(model)
        config = model.config
        self.model = model
        shape = (config.n_layer, batch, config.n_head, capacity, config.n_embd // config.n_head)
        self.k, self.v = np.zeros(shape, model.wte.weight.dtype), np.zeros(shape, model.wte.weight.dtype)
        self.lengths = np.zeros(batch, np.int64)

    def read(self, sequences):
        """Start again with these sequences in rows 0, 1, ...: return the logits (len(sequences), V) of the next tokens.

        sequences  list of integer arrays (T,), T >= 1; equal sequences are computed once
        """
        members = {}  # equal sequences -> their rows
        for row, sequence in enumerate(sequences):
            members.setdefault(tuple(map(int, sequence)), []).append(row)
            self.lengths[row] = len(sequence)
        lengths = np.array([len(sequence) for sequence in members])
        ends = np.cumsum(lengths)
        H, D = self.k.shape[2], self.k.shape[4]

        def attend(layer, qkv, scale):
            parts = qkv.data.reshape(-1, 3, H, D).transpose(1, 2, 0, 3)     # (N, 3C) -> 3 x (H, N, D)
            for same, T, end in zip(members.values(), lengths, ends, strict=True):
                self.k[layer, same, :, :T], self.v[layer, same, :, :T] = parts[1:, :, end - T:end]
            return ops.causal_attention(qkv, lengths, H, scale)

        positions = np.concatenate([np.arange(T) for T in lengths])
        ids = np.concatenate([np.array(sequence) for sequence in members])
        with workers(that_pay(self.model, len(ids))):
            logits = self._logits(ids, positions, attend, ends - 1)
        which = {row: i for i, same in enumerate(members.values()) for row in same}
        return logits[[which[row] for row in range(len(sequences))]]

    def step(self, tokens):
        """Add one token to every sequence, tokens (B,): return the logits (B, V) of the next tokens."""
        before = self.lengths
        self.lengths = before + 1
        edges = [0, *(np.flatnonzero(np.diff(before)) + 1).tolist(), len(before)]
        runs = [(slice(*edge), int(self.lengths[edge[0]])) for edge in itertools.pairwise(edges)]
        attend = functools.partial(self._attend, runs)
        # For one row we use BLAS's own threads: the products are short, and these threads stay awake between them.
        with (workers if len(before) > 1 else blas_threads)(that_pay(self.model, len(before))):
            return self._logits(np.asarray(tokens), before, attend, slice(None))

    def keep(self, rows):
        """Go on with these rows only, in this order. A row that is named twice is copied."""
        rows = np.asarray(rows)
        moved = rows != np.arange(len(rows))
        longest = self.lengths.max()
        for kept in (self.k, self.v):
            kept[:, :len(rows), :, :longest][:, moved] = kept[:, rows[moved], :, :longest]
        self.lengths = self.lengths[rows]

    def _attend(self, runs, layer, qkv, scale):
        """Store one new key and value for each sequence, then attend with the new query: qkv (B, 3C) -> (B, C).

        runs  (rows, T) for each run of neighbours of equal length T, with the new token
        """
        H, D = self.k.shape[2], self.k.shape[4]
        q, k, v = qkv.data.reshape(-1, 3, H, 1, D).swapaxes(0, 1)           # (B, 3C) -> 3 x (B, H, 1, D)
        y = np.empty(q.shape, q.dtype)
        for rows, T in runs:
            keys, values = self.k[layer, rows, :, :T], self.v[layer, rows, :, :T]
            keys[:, :, -1:], values[:, :, -1:] = k[rows], v[rows]
            S = (q[rows] * scale) @ keys.swapaxes(-1, -2)                   # -> (rows, H, 1, T)
            S -= S.max(axis=-1, keepdims=True)
            E = np.exp(S, out=S)
            np.divide(E @ values, E.sum(axis=-1, keepdims=True), out=y[rows])
        return Tensor(y.reshape(-1, H * D))                                 # (B, H, 1, D) -> (B, C)

    def _logits(self, ids, positions, attend, last):
        """Run the rows through the model and return the logits (M, V) at the rows `last`."""
        with no_grad():
            hidden = self.model.hidden(ids, positions, attend).data[last]
            return head_logits(hidden, self.model.head().data)


def head_logits(hidden, weight):
    """Return hidden weightᵀ: hidden (M, C), weight (V, C) -> (M, V).

    For one row this is a matrix-vector product, which runs at the speed of memory. For two to twelve rows one matrix
    product takes three times as long, because BLAS first copies the whole table into another order. We multiply by a
    few rows of the table at a time instead: BLAS does not copy such small blocks, and the time is half of that.
    """
    (M, C), V = hidden.shape, len(weight)
    size = SMALL // (M * C)  # rows of the table in a block
    if M == 1 or size < 16:
        return product(hidden, weight.T)
    logits, columns = np.empty((M, V), hidden.dtype), np.ascontiguousarray(hidden.T)

    def make(part):
        for start in range(part.start, part.stop, size):
            rows = slice(start, min(start + size, part.stop))
            logits[:, rows] = (weight[rows] @ columns).T                    # (size, C) @ (C, M) -> (size, M)

    spread(make, even_parts(V, crew()))
    return logits
