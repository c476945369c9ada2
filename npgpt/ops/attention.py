"""Causal self-attention over sequences laid end to end: the one operation that is not row by row."""

import functools

import numpy as np

from npgpt.autograd import Tensor, record
from npgpt.ops import primitives as plain
from npgpt.ops.dropout import keep_mask
from npgpt.runtime.seeding import generator
from npgpt.runtime.tiles import query_blocks, spread_tiles


def plain_attention(qkv, lengths, n_head, scale, mask=None):
    """The plain form of `causal_attention`, from primitives: all tokens of the batch against all others (H, N, N), with
    -inf for what a token may not see. mask (H, N, N): what dropout multiplies P by."""
    N, D = len(qkv.data), qkv.shape[1] // (3 * n_head)
    sequence, position = np.repeat(np.arange(len(lengths)), lengths), np.arange(N)
    visible = (sequence[:, None] == sequence) & (position[:, None] >= position)
    parts = plain.transpose(plain.reshape(qkv, (N, 3, n_head, D)), (1, 2, 0, 3))  # (N, 3C) -> (3, H, N, D)
    Q, K, V = (plain.take(parts, i) for i in range(3))
    S = plain.mul(plain.matmul(Q, plain.transpose(K, (0, 2, 1))), Tensor(np.array(scale)))  # (H, N, N)
    E = plain.exp(plain.add(S, Tensor(np.where(visible, 0, -np.inf))))
    P = plain.mul(E, plain.exp(plain.mul(plain.log(plain.sum(E, axis=2, keepdims=True)), Tensor(np.array(-1.0)))))
    P = P if mask is None else plain.mul(P, Tensor(mask))
    return plain.reshape(plain.transpose(plain.matmul(P, V), (1, 0, 2)), (N, n_head * D))  # (H, N, D) -> (N, C)


def causal_attention(qkv, lengths, n_head, scale, p=0.0, rng=None):
    """Let each token gather values from itself and the tokens before it in its own sequence.

    Shapes    qkv (N, 3C): queries, keys and values side by side, each of H heads of width D = C / H;
              lengths (B,) integers that sum to N -> y (N, C)
    Forward   for each sequence and head, with Q, K, V (T, D):
              S = scale Q Kᵀ where key <= query, else -inf        (T, T)
              P = softmax of each row of S = exp(S - L), L = log rowsum(exp S)
              P~ = dropout(P) = m P / (1 - p),    Y = P~ V
    Backward  given dY.      Y = P~ V:    dV = P~ᵀ dY,   dP~ = dY Vᵀ,   dP = m dP~ / (1 - p)
              softmax of a row: ∂P_j/∂S_k = P_j (delta_jk - P_k), so dS = P * (dP - rowsum(dP * P))
              where P is 0 by the mask, dS is 0 too
              S = scale Q Kᵀ:             dQ = scale dS K,        dK = scale dSᵀ Q
    Saves     qkv, L and, with dropout, m, a byte an element. P (T x T a head) is computed again from S and L: storing
              and reading it would take as long as that, and four times the memory of m.
    In code   `spread_tiles` hands out tiles of sequences and heads, and `query_blocks` cuts a tile's queries into
              blocks. The row's maximum is subtracted before exp, which changes nothing in P and cannot overflow; rows
              are divided by their sum after the product with V, where they are short. The plain form stands above.
    Source    Vaswani et al. 2017, eq. 1; Radford et al. 2019 (causal, heads side by side); Dao et al. 2022 (P from L).
    """
    data, (N, width) = qkv.data, qkv.shape
    y, L = np.empty((N, width // 3), data.dtype), np.empty((N, n_head), data.dtype)
    seed = int(rng.integers(1 << 62)) if rng is not None and p > 0 else None
    masks = {}  # (tile, block of queries) -> what dropout keeps there

    def forward(place, q, k, v, Y, L):                                      # each (sequences, heads, T, D or 1)
        draws = None if seed is None else generator(seed, "attention", *place)  # one random stream for each tile
        for queries, keys in query_blocks(q.shape[2]):
            S = _scores(q[:, :, queries], k[:, :, keys], queries, scale)
            highest = S.max(axis=-1, keepdims=True)
            S -= highest
            E = np.exp(S, out=S)
            total = E.sum(axis=-1, keepdims=True)
            L[:, :, queries] = highest + np.log(total)
            if draws is not None:
                mask = masks[place, queries.start] = keep_mask(E.shape, p, draws)
                _drop(E, mask)
            np.divide(E @ v[:, :, keys], total, out=Y[:, :, queries])

    def backward(place, q, k, v, L, dY, dq, dk, dv):
        T = q.shape[2]
        for queries, keys in reversed(query_blocks(T)):                    # the last block, of all keys, comes first
            first = queries.stop == T
            q_block, k_block, dY_block = q[:, :, queries], k[:, :, keys], dY[:, :, queries]
            P = _scores(q_block, k_block, queries, scale)
            P -= L[:, :, queries]
            np.exp(P, out=P)
            dS = dY_block @ v[:, :, keys].swapaxes(-1, -2)                  # dP~, which becomes dS step by step
            dropped = P
            if seed is not None:
                mask = masks[place, queries.start]
                dS, dropped = _drop(dS, mask), _drop(P.copy(), mask)
            _add_product(dv[:, :, keys], dropped.swapaxes(-1, -2), dY_block, first)
            dS -= np.vecdot(dS, P)[..., None]
            dS *= P
            dS *= scale
            np.matmul(dS, k_block, out=dq[:, :, queries])
            _add_product(dk[:, :, keys], dS.swapaxes(-1, -2), q_block, first)

    def rule(dy):
        dqkv = np.empty_like(data, order="C")
        spread_tiles(backward, lengths, n_head, [(data, 3), (L, 1), (dy, 1)], [(dqkv, 3)])
        return (dqkv,)

    spread_tiles(forward, lengths, n_head, [(data, 3)], [(y, 1), (L, 1)])
    return record("causal_attention", y, (qkv,), rule)


def _scores(q, k, queries, scale):
    """scale q kᵀ for one block of queries and all keys up to its last: (B, H, queries, keys), later keys -inf."""
    S = (q * scale) @ k.swapaxes(-1, -2)
    S[..., queries.start:] += _later_keys(queries.stop - queries.start, S.dtype)
    return S


@functools.lru_cache(maxsize=64)
def _later_keys(size, dtype):
    """-inf where the key comes after the query, else 0: (size, size)."""
    return np.triu(np.full((size, size), -np.inf, dtype), k=1)


def _drop(P, mask):
    """Zero what the mask drops and scale up the rest, in place. mask: what `keep_mask` returns."""
    keep, keep_probability = mask
    P *= keep
    P *= 1 / keep_probability
    return P


def _add_product(target, a, b, first):
    """target = a @ b for the first term, target += a @ b for the others."""
    if first:
        np.matmul(a, b, out=target)
    else:
        target += a @ b
