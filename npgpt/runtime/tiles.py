"""Tiles of attention: a few sequences and heads at a time, whose scores fit into a core's cache.

Sequences of equal length go through attention together, as one stacked product. No padding is needed: sequences of
another length form another group.
"""

import functools

import numpy as np

from npgpt.runtime.threads import spread

QUERIES = 64     # at least, in a block of queries
TILE = 1 << 17   # scores worked on at a time: half a megabyte


def spread_tiles(work, lengths, n_head, reads, writes):
    """Call work(place, *views) for each tile, on the workers of this thread.

    lengths  (B,), the sequences that lie end to end in the rows of the arrays
    reads    [(array, parts), ...]: each array (N, parts * H * D) becomes `parts` views (sequences, heads, T, D)
    writes   the same, for arrays that `work` fills
    place    a tuple of integers that names the tile
    """
    jobs, results = [], []
    for group, (rows, B, T) in enumerate(_groups(lengths)):
        views = [view for array, parts in reads for view in _heads(array[rows], B, T, parts, n_head)]
        for array, parts in writes:
            # Rows of neighbours are a view, filled in place; other rows are filled here and copied below.
            part = array[rows] if isinstance(rows, slice) else np.empty((B * T, array.shape[1]), array.dtype)
            results.append((array, rows, part))
            views.extend(_heads(part, B, T, parts, n_head))
        for tile in _tiles(B, n_head, T):
            place = group, tile[0].start, tile[1].start
            jobs.append(functools.partial(work, place, *(view[tile] for view in views)))
    spread(lambda job: job(), jobs)
    for array, rows, part in results:
        if not isinstance(rows, slice):
            array[rows] = part


def query_blocks(T):
    """Return [(queries, keys), ...]: blocks of queries, each with all keys up to its last query. The keys end where the
    block ends, so most of the masked triangle of scores is never computed."""
    starts = range(0, T, _block(T))
    stops = [*starts[1:], T]
    return [(slice(start, stop), slice(0, stop)) for start, stop in zip(starts, stops, strict=True)]


def _block(T):
    """Queries in a block: small blocks compute less of the masked triangle, large ones multiply faster."""
    return min(T, max(QUERIES, T // 8))


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


def _tiles(B, H, T):
    """Cut B sequences of H heads into pieces (sequences, heads) whose block of scores stays in a core's cache."""
    block = _block(T) * T
    heads, sequences = max(1, min(H, TILE // block)), max(1, TILE // (block * H))
    return [(slice(b, b + sequences), slice(h, h + heads)) for b in range(0, B, sequences) for h in range(0, H, heads)]


def _heads(rows, B, T, parts, n_head):
    """View (B T, parts * H * D) as `parts` arrays (B, H, T, D)."""
    return rows.reshape(B, T, parts, n_head, -1).transpose(2, 0, 3, 1, 4)
