"""How many threads work, and on what: BLAS's own, or one for each part of a batch."""

import contextlib
import functools

import threadpoolctl

LEAST_TOKENS = 128  # a thread with fewer tokens than this waits for memory: it reads every weight for little work


@functools.cache
def _controller():
    return threadpoolctl.ThreadpoolController().select(user_api="blas")  # looks through loaded libraries: once


def available():
    """How many threads BLAS would use now: all cores, or what the environment allows it."""
    return max((info["num_threads"] for info in _controller().info()), default=1)


@contextlib.contextmanager
def blas_threads(count):
    """Let BLAS use `count` threads inside this block; its setting is put back as it was found."""
    with _controller().limit(limits=count):
        yield


def plan(batch, threads, parts_cost_little=True):
    """Choose (parts, BLAS threads a part) for one batch on `threads` threads (None: all that are available).

    Products run on all threads either way; the element-wise work in between runs in parallel only when the batch is
    split. Splitting pays when every part has enough tokens and the parts are about equal.
    """
    allowed = threads or available()
    parts = batch.split(allowed)
    largest = max(len(part.ids) for part in parts)
    even = largest * len(parts) <= 1.25 * len(batch.ids)
    if len(parts) == allowed > 1 and even and largest >= LEAST_TOKENS and parts_cost_little:
        return parts, 1
    return [batch], allowed
