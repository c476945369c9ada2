"""The loss: the output head and the softmax cross-entropy, together and in blocks of rows."""

import numpy as np

from npgpt.autograd import needs_grad, record
from npgpt.errors import ConfigError
from npgpt.ops.rows import row_blocks

ROWS = 256  # of logits at a time


def cross_entropy(hidden, weight, targets, block_rows=ROWS):
    """Mean negative log-likelihood (nats) of the target tokens under softmax(hidden weightᵀ).

    Shapes    hidden (N, C), weight (V, C) (the token table, where the head is tied), targets (N,) integers in [0, V),
              or -100 for a row without target -> scalar
    Forward   Z = hidden weightᵀ                                (M, V) for the M rows with a target
              l_m = log sum_v exp(Z_mv) - Z_mt, t the target;   y = mean_m l_m
    Backward  d l_m / d Z_mv = exp(Z_mv) / sum_v exp(Z_mv) - [v = t]: dZ = dy (softmax(Z) - onehot(t)) / M
              Z = hidden weightᵀ:   dhidden = dZ weight,   dweight = dZᵀ hidden
    Saves     dhidden (and dweight where the table is trainable), for dy = 1; the result is linear in dy.
    In code   the logits are the largest array of the whole step (N x 50,257), so they never exist together: each block
              of rows is turned into its share of the loss, then in place into dZ, and at once into the gradients.
              The row's maximum is subtracted first, which changes nothing in the softmax and cannot overflow.
              Rows without a target are left out of every product.
    Raises    ConfigError when no row has a target.
    """
    need_hidden, need_weight = needs_grad(hidden, weight)
    W = weight.data
    targets = np.asarray(targets)
    chosen = np.flatnonzero(targets != -100)
    M = len(chosen)
    if M == 0:
        raise ConfigError("the batch has no target: every row's target is -100; a sequence needs two tokens or more")
    dhidden = np.zeros_like(hidden.data, order="C") if need_hidden else None
    dweight = np.zeros_like(W, order="C") if need_weight else None
    logits = np.empty((min(M, block_rows), len(W)), W.dtype)
    total = 0.0
    for start in range(0, M, block_rows):
        rows = chosen[start:start + block_rows]
        h = hidden.data[rows]
        Z = np.matmul(h, W.T, out=logits[:len(rows)])                       # (rows, C) -> (rows, V)
        losses = np.empty(len(rows), Z.dtype)
        for block in row_blocks(Z):
            losses[block] = _softmax_minus_onehot(Z[block], targets[rows[block]], M)
        total += float(losses.sum(dtype=np.float64))
        if need_hidden:
            dhidden[rows] = Z @ W                                           # (rows, V) -> (rows, C)
        if need_weight:
            dweight += Z.T @ h                                              # -> (V, C)

    def rule(dy):
        dy = dy.item()
        return dhidden * dy if need_hidden else None, dweight * dy if need_weight else None

    return record("cross_entropy", np.asarray(total / M, hidden.dtype), (hidden, weight), rule)


def _softmax_minus_onehot(Z, targets, M):
    """Return the losses of some rows of the logits, and turn Z into dZ = (softmax(Z) - onehot) / M."""
    at = np.arange(len(Z)), targets
    Z -= Z.max(axis=1, keepdims=True)
    at_target = Z[at]
    np.exp(Z, out=Z)
    sums = Z.sum(axis=1)
    Z *= (1 / (sums * M))[:, None]
    Z[at] -= 1 / M
    return np.log(sums) - at_target
