"""Row blocks: how element-wise work stays in the processor's cache."""


def row_blocks(array, block_bytes=1 << 20):
    """Return slices that cut the rows of a 2-d array into blocks of about `block_bytes` (at least one row each).

    Several passes over one block find it in the cache; several passes over a whole activation read main memory each
    time, which is what element-wise work costs. A megabyte is what a core's second cache holds; smaller blocks cost
    more in calls, and threads that meet between two calls wait for each other.
    """
    rows, columns = array.shape
    step = max(1, block_bytes // (columns * array.itemsize))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
