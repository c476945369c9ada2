"""The loss: the output head and the softmax cross-entropy, together and in blocks of the vocabulary."""

import functools

import numpy as np

from npgpt.autograd import needs_grad, record
from npgpt.errors import ConfigError
from npgpt.ops.shares import even_parts
from npgpt.threads import crew, spread

ROWS, TOKENS = 1024, 1024  # of the vocabulary: how many logits exist at a time, for each worker


def cross_entropy(hidden, weight, targets, block_rows=ROWS, block_tokens=TOKENS):
    """Mean negative log-likelihood (nats) of the target tokens under softmax(hidden weightᵀ).

    Shapes    hidden (N, C), weight (V, C) (the token table, where the head is tied), targets (N,) integers in [0, V),
              or -100 for a row without target -> scalar
    Forward   Z = hidden weightᵀ                                (M, V) for the M rows with a target
              L_m = log sum_v exp(Z_mv);    y = mean_m (L_m - Z_mt), t the target of row m
    Backward  dL_m / dZ_mv = exp(Z_mv - L_m) = P_mv, the softmax: dZ = dy (P - onehot(t)) / M
              Z = hidden weightᵀ:   dhidden = dZ weight,   dweight = dZᵀ hidden. Row by row,
              dhidden_m = dy (E_m - weight_t) / M, with E = P weight, the row of the table expected under P
    Saves     hidden, L and, where the table is frozen, E, which comes out of the same visit as L. Where the table is
              trainable, the logits are made again for P, once L is known.
    In code   the logits would be the largest array of the whole step (N x 50,257), and never exist together: blocks of
              the vocabulary are visited one after another, each worker having a part of the table. With L' and E' over
              the tokens seen before, and L" and E" over some more, it is for all of them
                  L = log(exp L' + exp L"),   E = exp(L' - L) E' + exp(L" - L) E".
              Rows without a target are left out of every product.
    Source    Milakov & Gimelshein 2018 (softmax in one visit), Dao et al. 2022 (with the weighted rows, in attention),
              Wijmans et al. 2024 (in the loss).
    Raises    ConfigError when no row has a target.
    """
    need_hidden, need_weight = needs_grad(hidden, weight)
    x, W, targets = hidden.data, weight.data, np.asarray(targets)
    chosen = np.flatnonzero(targets != -100)
    M = len(chosen)
    if M == 0:
        raise ConfigError("the batch has no target: every row's target is -100; a sequence needs two tokens or more")
    parts = even_parts(len(W), crew())
    total, saved = 0.0, []
    for start in range(0, M, block_rows):
        rows = chosen[start:start + block_rows]
        visit = functools.partial(_visit, x[rows], W, block_tokens, need_hidden and not need_weight)
        visits = spread(visit, parts)
        L = functools.reduce(np.logaddexp, [part_L for part_L, _ in visits])
        E = sum(np.exp(part_L - L) * part_E for part_L, part_E in visits)
        total += float((L[:, 0] - np.vecdot(x[rows], W[targets[rows]])).sum(dtype=np.float64))
        saved.append((rows, L, E))

    def rule(dy):
        dx = np.zeros_like(x, order="C") if need_hidden else None
        dW = np.zeros_like(W, order="C") if need_weight else None
        share = dy.item() / M
        for rows, L, E in saved:
            if need_weight:
                revisit = functools.partial(_revisit, x[rows], W, block_tokens, L, share, need_hidden, dW)
                E = sum(spread(revisit, parts))
                np.subtract.at(dW, targets[rows], x[rows] * share)
            if need_hidden:
                dx[rows] = (E - W[targets[rows]]) * share
        return dx, dW

    return record("cross_entropy", np.asarray(total / M, x.dtype), (hidden, weight), rule)


def _visit(h, W, size, averaging, part):
    """Return L (rows, 1) and, if averaging, E (rows, C), otherwise 0, over a part of the vocabulary.

    exp(Z) is summed relative to the highest logit so far, so that it cannot overflow.
    """
    highest, total, weighted = np.full((len(h), 1), -np.inf, h.dtype), 0, np.zeros_like(h) if averaging else 0
    for table, Z in _logits(h, W, size, part):
        before, highest = highest, np.maximum(highest, Z.max(axis=1, keepdims=True))
        Z -= highest
        np.exp(Z, out=Z)
        shrink = np.exp(before - highest)
        total = shrink * total + Z.sum(axis=1, keepdims=True)
        if averaging:
            weighted *= shrink
            weighted += Z @ table                                           # (rows, block) -> (rows, C)
    return highest + np.log(total), weighted / total


def _revisit(h, W, size, L, share, averaging, dW, part):
    """Add Pᵀ h * share to a part of dW; return its E, or 0 where that is not asked for."""
    E = 0
    for (table, Z), slope in zip(_logits(h, W, size, part), _blocks(dW, size, part), strict=True):
        Z -= L
        P = np.exp(Z, out=Z)
        slope += P.T @ (h * share)                                          # -> (block, C)
        if averaging:
            E += P @ table
    return E


def _logits(h, W, size, part):
    """Yield (table, Z) for each block of `size` tokens in a part of the vocabulary: its rows of W, and its logits, all
    in one buffer."""
    Z = np.empty((len(h), min(size, part.stop - part.start)), h.dtype)
    for table in _blocks(W, size, part):
        yield table, np.matmul(h, table.T, out=Z[:, :len(table)])           # (rows, C) -> (rows, block)


def _blocks(table, size, part):
    return (table[start:min(start + size, part.stop)] for start in range(part.start, part.stop, size))
