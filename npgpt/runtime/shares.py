"""Shares of an operation's arithmetic: small enough for a core's cache, and at least one for each worker."""

import itertools

import numpy as np

from npgpt.runtime.threads import crew, spread

MANY_ROWS = 512         # for each worker: then a product's rows are shared out, and otherwise the longer side of it
LEAST_BYTES = 1 << 16   # of element-wise work for a worker: less is done before another has begun
LEAST_PRODUCT = 1 << 21  # multiplications for a worker


def row_blocks(array, block_bytes=1 << 20):
    """Return slices that cut the rows of a 2-d array into even blocks of at most about `block_bytes` (but at least one
    row each), as many for every worker.

    Several passes over one block find it in the cache; several passes over a whole activation read main memory each
    time, which is what element-wise work costs. A megabyte is what a core's second cache holds; smaller blocks cost
    more in calls, and threads that meet between two calls wait for each other.
    """
    busy = min(crew(), max(1, array.nbytes // LEAST_BYTES))
    blocks_each = max(1, -(-array.nbytes // (block_bytes * busy)))
    return even_parts(len(array), busy * blocks_each)


def product(a, b, then=None):
    """The matrix product a b, each worker making a part of its rows or columns: a (N, I), b (I, O) -> (N, O).

    then  then(part, rows, columns) goes on with each part, while it is in the cache: out[rows, columns], a view

    Each worker's BLAS copies the part of `a` and `b` that it reads into its own order, and sharing out the longer side
    of the result copies least.
    """
    out = np.empty((len(a), b.shape[1]), np.result_type(a, b))

    def make(share):
        rows, columns = share
        part = np.matmul(a[rows], b[:, columns], out=out[share])
        if then is not None:
            then(part, rows, columns)

    spread(make, product_shares(len(a), *b.shape))
    return out


def product_shares(rows, inner, columns):
    """Return [(rows, columns), ...]: which slices of a product (rows, inner) @ (inner, columns) each worker makes."""
    busy = max(1, min(crew(), rows * inner * columns // LEAST_PRODUCT))
    if rows >= MANY_ROWS * busy or rows > columns:
        return [(part, slice(None)) for part in even_parts(rows, busy)]
    return [(slice(None), part) for part in even_parts(columns, busy)]


def even_parts(length, count):
    """Cut range(length) into at most `count` slices of about equal length."""
    edges = [length * k // count for k in range(count + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges) if edge[0] < edge[1]]
