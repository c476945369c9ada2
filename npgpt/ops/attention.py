"""Causal self-attention over sequences laid end to end: the one operation that is not row by row."""

import functools

import numpy as np

from npgpt.autograd import record
from npgpt.ops.dropout import keep_mask
from npgpt.runtime.seeding import generator
from npgpt.runtime.threads import spread

QUERIES = 64     # at least, in a block of queries
TILE = 1 << 17   # scores worked on at a time: half a megabyte


def causal_attention(qkv, lengths, n_head, scale, p=0.0, rng=None):
    """Let each token gather values from itself and the tokens before it in its own sequence.

    Shapes    qkv (N, 3C): queries, keys and values side by side, each of H heads of width D = C / H;
              lengths (B,) integers that sum to N -> y (N, C)
    Forward   for each sequence and head, with Q, K, V (T, D):
              S = scale Q Kᵀ where key <= query, else -inf        (T, T)
              P = softmax of each row of S = exp(S - L), L = log rowsum(exp S)
              P~ = dropout(P) = m P / (1 - p),    Y = P~ V
    Backward  given dY.      Y = P~ V:    dV = P~ᵀ dY,   dP~ = dY Vᵀ,   dP = m dP~ / (1 - p)
              softmax of a row: dP_j/dS_k = P_j (delta_jk - P_k), so dS = P * (dP - rowsum(dP * P))
              where P is 0 by the mask, dS is 0 too
              S = scale Q Kᵀ:             dQ = scale dS K,        dK = scale dSᵀ Q
    Saves     qkv, L and, with dropout, m. P (T x T a head) is made again from S and L: reading it back would take about
              as long, and hold the largest array of a long sequence.
    In code   sequences of equal length go through together, cut into tiles of sequences and heads that fit into the
              cache, for the workers. Queries are taken in blocks: a block's keys end where the block ends, so most of
              the masked triangle is never computed. The row's maximum is subtracted before exp, which changes nothing
              in P and cannot overflow; rows are divided by their sum after the product with V, where they are short.
    Source    Vaswani et al. 2017, eq. 1; Radford et al. 2019 (causal, heads side by side); Dao et al. 2022 (P from L).
    """
    data, C = qkv.data, qkv.shape[1] // 3
    y = np.empty((len(data), C), data.dtype)
    dropping = rng is not None and p > 0
    seed = int(rng.integers(1 << 62)) if dropping else None
    groups, work = [], []
    for rows, B, T in _groups(lengths):
        Y, L = _room(y, rows), np.empty((B, n_head, T, 1), data.dtype)
        masks = {} if dropping else None
        arrays = *_heads(data[rows], B, T, 3, n_head), *_heads(Y, B, T, 1, n_head), L  # views: Y gets filled
        draw = functools.partial(generator, seed, "attention", len(groups))  # a stream for each tile, on any thread
        work += [functools.partial(_forward, arrays, scale, p, draw, masks, tile) for tile in _tiles(B, n_head, T)]
        groups.append((rows, B, T, Y, L, masks))
    spread(lambda tile: tile(), work)
    saved = []
    for rows, B, T, Y, L, masks in groups:
        _put(Y, y, rows)
        saved.append((rows, B, T, L, masks))

    def rule(dy):
        dqkv, groups, work = np.empty_like(data, order="C"), [], []
        for rows, B, T, L, masks in saved:
            group = _room(dqkv, rows)
            arrays = (*_heads(data[rows], B, T, 3, n_head), L,
                      *_heads(dy[rows], B, T, 1, n_head), *_heads(group, B, T, 3, n_head))
            work += [functools.partial(_backward, arrays, scale, masks, tile) for tile in _tiles(B, n_head, T)]
            groups.append((rows, group))
        spread(lambda tile: tile(), work)
        for rows, group in groups:
            _put(group, dqkv, rows)
        return (dqkv,)

    return record("causal_attention", y, (qkv,), rule)


def _forward(arrays, scale, p, draw, masks, tile):
    """Write Y and L of one tile. masks: dict to keep dropout's masks in, or None for no dropout."""
    q, k, v, Y, L = (array[tile] for array in arrays)                       # each (sequences, heads, T, D or 1)
    rng = None if masks is None else draw(tile[0].start, tile[1].start)
    for queries, keys in query_blocks(q.shape[2]):
        S = _scores(q[:, :, queries], k[:, :, keys], queries, scale)
        highest = S.max(axis=-1, keepdims=True)
        S -= highest
        E = np.exp(S, out=S)
        total = E.sum(axis=-1, keepdims=True)
        L[:, :, queries] = highest + np.log(total)
        if masks is not None:
            mask = masks[_place(tile, queries)] = keep_mask(E.shape, p, rng)
            _drop(E, mask)
        np.divide(E @ v[:, :, keys], total, out=Y[:, :, queries])


def _backward(arrays, scale, masks, tile):
    """Write dQ, dK and dV of one tile."""
    q, k, v, L, dY, dq, dk, dv = (array[tile] for array in arrays)
    T = q.shape[2]
    for queries, keys in reversed(query_blocks(T)):                        # the last block, of all keys, comes first
        first = queries.stop == T
        q_block, k_block, dY_block = q[:, :, queries], k[:, :, keys], dY[:, :, queries]
        P = _scores(q_block, k_block, queries, scale)
        P -= L[:, :, queries]
        np.exp(P, out=P)
        dS = dY_block @ v[:, :, keys].swapaxes(-1, -2)                      # dP~, on its way to dS
        dropped = P
        if masks is not None:
            mask = masks[_place(tile, queries)]
            dS, dropped = _drop(dS, mask), _drop(P.copy(), mask)
        _add_product(dv[:, :, keys], dropped.swapaxes(-1, -2), dY_block, first)
        dS -= np.vecdot(dS, P)[..., None]
        dS *= P
        dS *= scale
        np.matmul(dS, k_block, out=dq[:, :, queries])
        _add_product(dk[:, :, keys], dS.swapaxes(-1, -2), q_block, first)


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
    """target = a @ b where it is the first term, target += a @ b otherwise."""
    if first:
        np.matmul(a, b, out=target)
    else:
        target += a @ b


def _place(tile, queries):
    """A key for what belongs to one block of queries of one tile."""
    return tile[0].start, tile[1].start, queries.start


def _tiles(B, H, T):
    """Cut B sequences of H heads into pieces (sequences, heads) whose block of scores stays in a core's cache."""
    block = _block(T) * T
    heads, sequences = max(1, min(H, TILE // block)), max(1, TILE // (block * H))
    return [(slice(b, b + sequences), slice(h, h + heads)) for b in range(0, B, sequences) for h in range(0, H, heads)]


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


def _room(array, rows):
    """Return where results for some rows of `array` are written: there, where the rows are neighbours; see `_put`."""
    return array[rows] if isinstance(rows, slice) else np.empty((len(rows), array.shape[1]), array.dtype)


def _put(results, array, rows):
    if not isinstance(rows, slice):
        array[rows] = results


def _heads(rows, B, T, parts, n_head):
    """View (B T, parts * H * D) as `parts` arrays (B, H, T, D)."""
    return rows.reshape(B, T, parts, n_head, -1).transpose(2, 0, 3, 1, 4)


def query_blocks(T):
    """Return [(queries, keys), ...]: blocks of queries, each with all keys up to its last query."""
    starts = range(0, T, _block(T))
    stops = [*starts[1:], T]
    return [(slice(start, stop), slice(0, stop)) for start, stop in zip(starts, stops, strict=True)]


def _block(T):
    """Queries in a block: small ones compute less of the masked triangle, large ones multiply faster."""
    return min(T, max(QUERIES, T // 8))
