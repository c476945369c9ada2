"""How many threads work, and on what: BLAS's own, or one for each part of a batch."""

import concurrent.futures
import contextlib
import functools
import threading

import threadpoolctl

from npgpt.errors import ConfigError

LEAST_TOKENS = 128          # a part with fewer tokens reads every weight for little work, and waits for memory
MOST_GRADIENTS = 10_000_000  # each part returns a gradient of every trainable parameter; above this they are too many
LEAST_WIDTH = 300           # a narrower model's matrices fit into a core's own cache: handing them round costs more


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


def spread(work, items, threads=None):
    """Call work(item) for each of `items`, on as many threads as BLAS would use now, with one BLAS thread each. From
    another thread than the main one, on that alone: BLAS has one setting for all, and two would undo each other's."""
    threads = min(len(items), available() if threads is None else threads)
    if threads <= 1 or threading.current_thread() is not threading.main_thread():
        for item in items:
            work(item)
        return
    with blas_threads(1), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))  # a list, so that an error in `work` comes out


def for_products(model, threads=None):
    """How many threads BLAS should use for the model's products: `threads`, or where that is None, as many as pay."""
    if threads is not None and threads < 1:
        raise ConfigError(f"threads = {threads}: it must be at least 1")
    return threads or (available() if model.config.n_embd >= LEAST_WIDTH else 1)


def plan(model, batch, threads=None):
    """Choose (parts, BLAS threads a part) for one batch on `threads` threads (None: as many as pay).

    With the batch whole, products run on all threads and the element-wise work between them on one. Split by sequences
    over threads with one BLAS thread each, all of it runs in parallel. That pays when every part has enough tokens, the
    parts are about equal, and there are not too many gradients to add up.
    """
    whole = [batch], for_products(model, threads)
    allowed = threads or available()
    parts = batch.split(allowed)
    largest = max(len(part.ids) for part in parts)
    few = sum(tensor.data.size for tensor in model.trainable_parameters().values()) <= MOST_GRADIENTS
    even = largest * len(parts) <= 1.25 * len(batch.ids)
    if len(parts) == allowed > 1 and even and few and largest >= LEAST_TOKENS:
        return parts, 1
    return whole
