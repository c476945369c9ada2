"""Causal self-attention over sequences laid end to end: the one operation that is not row by row."""

import numpy as np

from npgpt.autograd import needs_grad, record
from npgpt.ops.dropout import keep_mask


def causal_attention(qkv, lengths, n_head, scale, p=0.0, rng=None):
    """Let each token gather values from itself and the tokens before it in its own sequence.

    Shapes    qkv (N, 3C): queries, keys and values side by side, each of H heads of width D = C / H;
              lengths (B,) integers that sum to N -> y (N, C)
    Forward   for each sequence and head, with Q, K, V (T, D):
              S = scale Q Kᵀ where key <= query, else -inf        (T, T)
              P = softmax of each row of S,   P~ = dropout(P),    Y = P~ V
    Backward  given dY.      Y = P~ V:    dV = P~ᵀ dY,   dP~ = dY Vᵀ,   dP = m dP~ / (1 - p)
              softmax of a row: dP_j/dS_k = P_j (delta_jk - P_k), so dS = P * (dP - rowsum(dP * P))
              where P is 0 by the mask, dS is 0 too
              S = scale Q Kᵀ:             dQ = scale dS K,        dK = scale dSᵀ Q
    Saves     qkv, and the rows of P (and m) that are not masked.
    In code   sequences of equal length go through as one stacked product, and so do their heads. Queries are taken in
              blocks: a block's keys end where the block ends, so most of the masked triangle is never computed.
              The row's maximum is subtracted before exp, which changes nothing in P and cannot overflow.
    Source    Vaswani et al. 2017, eq. 1; Radford et al. 2019 (causal, heads side by side).
    """
    (saving,) = needs_grad(qkv)
    N, C = qkv.shape[0], qkv.shape[1] // 3
    y = np.empty((N, C), qkv.dtype)
    saved = []
    for rows, B, T in _groups(lengths):
        q, k, v = _heads(qkv.data[rows], B, T, 3, n_head)                   # (B T, 3C) -> 3 x (B, H, T, D)
        out = np.empty((B, T, n_head, C // n_head), y.dtype)
        for queries in query_blocks(T):
            keys = slice(0, queries.stop)
            P = (q[:, :, queries] * scale) @ k[:, :, keys].swapaxes(-1, -2)  # (B, H, queries, keys)
            _causal_softmax(P, queries)
            keep = None
            dropped = P
            if rng is not None and p > 0:
                mask, keep_probability = keep_mask(P.shape, p, rng)
                keep = mask.astype(P.dtype)
                keep *= 1 / keep_probability
                dropped = P * keep
            np.matmul(dropped, v[:, :, keys], out=out.swapaxes(1, 2)[:, :, queries])
            if saving:
                saved.append((P, keep))
        y[rows] = out.reshape(B * T, C)

    data = qkv.data if saving else None

    def rule(dy):
        dqkv = np.empty_like(data, order="C")
        blocks = iter(saved)
        for rows, B, T in _groups(lengths):
            q, k, v = _heads(data[rows], B, T, 3, n_head)
            (dout,) = _heads(dy[rows], B, T, 1, n_head)                     # (B T, C) -> (B, H, T, D)
            dgroup = np.zeros((B * T, 3 * C), dqkv.dtype)
            dq, dk, dv = _heads(dgroup, B, T, 3, n_head)                    # views: writing them fills dgroup
            for queries in query_blocks(T):
                keys = slice(0, queries.stop)
                P, keep = next(blocks)
                dY = dout[:, :, queries]
                dv[:, :, keys] += (P if keep is None else P * keep).swapaxes(-1, -2) @ dY
                dS = dY @ v[:, :, keys].swapaxes(-1, -2)
                if keep is not None:
                    dS *= keep
                dS -= np.einsum("bhqk,bhqk->bhq", dS, P)[..., None]
                dS *= P
                dS *= scale
                dq[:, :, queries] = dS @ k[:, :, keys]
                dk[:, :, keys] += dS.swapaxes(-1, -2) @ q[:, :, queries]
            dqkv[rows] = dgroup
        return (dqkv,)

    return record("causal_attention", y, (qkv,), rule)


def _groups(lengths):
    """Yield (rows, B, T) for each distinct length T: which rows hold its B sequences, one after another."""
    lengths = np.asarray(lengths)
    starts = np.cumsum(lengths) - lengths
    for T in np.unique(lengths).tolist():
        members = starts[lengths == T]
        if (np.diff(members) == T).all():
            yield slice(int(members[0]), int(members[-1]) + T), len(members), T  # neighbours: a view, no copy
        else:
            yield (members[:, None] + np.arange(T)).ravel(), len(members), T


def _heads(rows, B, T, parts, n_head):
    """View (B T, parts * H * D) as `parts` arrays (B, H, T, D)."""
    return rows.reshape(B, T, parts, n_head, -1).transpose(2, 0, 3, 1, 4)


def query_blocks(T, block=128):
    for start in range(0, T, block):
        yield slice(start, min(start + block, T))


def _causal_softmax(S, queries):
    """Turn scores (B, H, queries, keys up to the last query) into probabilities, in place; later keys get 0."""
    size = queries.stop - queries.start
    S[..., queries.start:] += np.triu(np.full((size, size), -np.inf, S.dtype), k=1)
    S -= S.max(axis=-1, keepdims=True)
    np.exp(S, out=S)
    S /= S.sum(axis=-1, keepdims=True)
