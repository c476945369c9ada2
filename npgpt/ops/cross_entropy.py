"""The loss: the output head and the softmax cross-entropy, together and in blocks of the vocabulary."""

import functools

import numpy as np

from npgpt.autograd import Tensor, needs_grad, record
from npgpt.ops import primitives as plain
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.shares import even_parts
from npgpt.runtime.threads import crew, spread

ROWS, TOKENS = 1024, 1024  # in a block of logits: rows of the batch, tokens of the vocabulary; a block for each worker


def plain_cross_entropy(hidden, weight, targets):
    """The plain form of `cross_entropy`, from primitives, with all logits (M, V) in memory."""
    rows = np.flatnonzero(targets != -100)
    Z = plain.matmul(plain.take(hidden, rows), plain.transpose(weight, (1, 0)))  # (M, V)
    L = plain.log(plain.sum(plain.exp(Z), axis=1))
    at_target = plain.take(Z, (np.arange(len(rows)), targets[rows]))
    losses = plain.add(L, plain.mul(at_target, Tensor(np.array(-1.0))))
    return plain.mul(plain.sum(losses), Tensor(np.array(1 / len(rows))))


def cross_entropy(hidden, weight, targets, block_rows=ROWS, block_tokens=TOKENS):
    """Mean negative log-likelihood (nats) of the target tokens under softmax(hidden weightᵀ).

    Shapes    hidden (N, C), weight (V, C) (the token table, where the head is tied), targets (N,) integers in [0, V),
              or -100 for a row without target -> scalar
    Forward   Z = hidden weightᵀ                                (M, V) for the M rows with a target
              L_m = log sum_v exp(Z_mv);    y = mean_m (L_m - Z_mt), t the target of row m
    Backward  ∂L_m/∂Z_mv = exp(Z_mv - L_m) = P_mv, the softmax: dZ = dy (P - onehot(t)) / M
              Z = hidden weightᵀ:   dhidden = dZ weight,   dweight = dZᵀ hidden
              At the target, P_mt - 1 = - q_m, with q_m the sum of P_mv over all other tokens. So with
              E_m = sum of P_mv weight_v over the other tokens,  dhidden_m = dy (E_m - q_m weight_t) / M
    Saves     L, q and, if the table is frozen, E, which the same visit to the table gives. If the table is trainable,
              the logits are computed again for P, once L is known.
    In code   the logits would be the largest array of the whole step (N x 50,257). They never exist together: each
              worker has a part of the table and visits it block by block (`_blocks`). It keeps the sums of exp(Z), and
              of rows of the table weighted by exp(Z), relative to the highest logit Z* so far, which cannot overflow.
              When Z* rises, or two parts are joined, the sums are multiplied by exp(Z*_old - Z*_new).
              The sums leave out the target: if the model is sure of it, 1 - P_mt would have no exact digit.
              Rows without a target are in no product. The plain form stands above.
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
        blocks = functools.partial(_blocks, x[rows], W, targets[rows], block_tokens)
        visit = functools.partial(_visit, blocks, x[rows], need_hidden and not need_weight)
        highs, at_target, others, weighted = zip(*spread(visit, parts), strict=True)
        highest = functools.reduce(np.maximum, highs)
        scales = [np.exp(high - highest) for high in highs]
        at_target = sum(at_target) - highest
        others = sum(map(np.multiply, scales, others))
        all_tokens = others + np.exp(at_target)
        total += float((np.log(all_tokens) - at_target).sum(dtype=np.float64))
        E = sum(map(np.multiply, scales, weighted)) / all_tokens
        saved.append((rows, highest + np.log(all_tokens), others / all_tokens, E))

    def rule(dy):
        dx = np.zeros_like(x, order="C") if need_hidden else None
        dW = np.zeros_like(W, order="C") if need_weight else None
        share = dy.item() / M
        for rows, L, q, E in saved:
            if need_weight:
                blocks, h = functools.partial(_blocks, x[rows], W, targets[rows], block_tokens), x[rows] * share
                E = sum(spread(functools.partial(_revisit, blocks, h, L, need_hidden, dW), parts))
                np.subtract.at(dW, targets[rows], h * q)
            if need_hidden:
                dx[rows] = (E - q * W[targets[rows]]) * share
        return dx, dW

    return record("cross_entropy", np.asarray(total / M, x.dtype), (hidden, weight), rule)


def _visit(blocks, h, averaging, part):
    """Return four things about each row of h over a part of the vocabulary. Three are (rows, 1): the highest logit; the
    target's logit, or 0 if the target is in another part; the sum of exp(Z - highest) over the other tokens. The
    fourth, if averaging, is the sum of the other tokens' rows of the table weighted by exp(Z - highest), (rows, C),
    else 0."""
    highest, at_target, others = np.full((len(h), 1), -np.inf, h.dtype), np.zeros((len(h), 1), h.dtype), 0
    weighted = np.zeros_like(h) if averaging else 0
    for _, table, Z, (own_rows, own_columns) in blocks(part):
        at_target[own_rows, 0] = Z[own_rows, own_columns]
        before, highest = highest, np.maximum(highest, Z.max(axis=1, keepdims=True))
        Z -= highest
        np.exp(Z, out=Z)
        Z[own_rows, own_columns] = 0
        shrink = np.exp(before - highest)
        others = shrink * others + Z.sum(axis=1, keepdims=True)
        if averaging:
            weighted *= shrink
            weighted += Z @ table                                           # (rows, block) -> (rows, C)
    return highest, at_target, others, weighted


def _revisit(blocks, h, L, averaging, dW, part):
    """Add P h to a part of dW, without the targets; return E over this part, or 0 if not averaging."""
    E = 0
    for tokens, table, Z, own in blocks(part):
        Z -= L
        P = np.exp(Z, out=Z)
        P[own] = 0
        dW[tokens] += P.T @ h                                               # (rows, C) -> (block, C)
        if averaging:
            E += P @ table
    return E


def _blocks(h, W, targets, size, part):
    """Walk over a part of the vocabulary. Yield for each block of tokens their slice, their rows of W, their logits
    (one buffer serves all blocks), and where in these the targets' logits are."""
    Z = np.empty((len(h), min(size, part.stop - part.start)), h.dtype)
    for start in range(part.start, part.stop, size):
        tokens = slice(start, min(start + size, part.stop))
        rows = np.flatnonzero((targets >= start) & (targets < tokens.stop))
        logits = np.matmul(h, W[tokens].T, out=Z[:, :tokens.stop - start])  # (rows, C) -> (rows, block)
        yield tokens, W[tokens], logits, (rows, targets[rows] - start)
