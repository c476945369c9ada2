"""Shares of an operation's arithmetic: each fits into a core's cache, and there is at least one for each worker."""

import itertools

import numpy as np

from npgpt.runtime.threads import crew, spread

MANY_ROWS = 512         # for each worker: a product with so many is shared by rows, any other by its longer side
LEAST_BYTES = 1 << 16   # of element-wise work for a worker: it finishes less before another worker has begun
LEAST_PRODUCT = 1 << 21  # multiplications for a worker


def row_blocks(array, block_bytes=1 << 20):
    """Return slices that cut the rows of a 2-d array into even blocks, the same number for every worker.

    block_bytes  a block has at most about so many bytes, but at least one row

    Several passes over one block find it in the cache. Several passes over a whole activation read main memory each
    time, and this is what element-wise work costs. A core's second cache holds a megabyte. Smaller blocks need more
    calls, and threads that meet between two calls wait for each other.
    """
    busy = min(crew(), max(1, array.nbytes // LEAST_BYTES))
    blocks_each = max(1, -(-array.nbytes // (block_bytes * busy)))
    return even_parts(len(array), busy * blocks_each)


def product(a, b, then=None):
    """Return the matrix product a b; each worker makes some of its rows or columns. a (N, I), b (I, O) -> (N, O).

    then  then(part, rows, columns) goes on with each part while it is in the cache; part is a view, out[rows, columns]

    Each worker's BLAS copies the parts of `a` and `b` that it reads into its own order. It copies least if the workers
    share the longer side of the result.
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
    """Return [(rows, columns), ...]: the slices of a product (rows, inner) @ (inner, columns), one for each worker."""
    busy = max(1, min(crew(), rows * inner * columns // LEAST_PRODUCT))
    if rows >= MANY_ROWS * busy or rows > columns:
        return [(part, slice(None)) for part in even_parts(rows, busy)]
    return [(slice(None), part) for part in even_parts(columns, busy)]


def even_parts(length, count):
    """Cut range(length) into at most `count` slices of about equal length."""
    edges = [length * k // count for k in range(count + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges) if edge[0] < edge[1]]
