"""How many threads work, and the workers that share one job.

An operation cuts its arithmetic into shares (see `shares`). The workers take the shares one after another, and BLAS
computes the product of a share with one thread. An executor's `map` would do less: with it, the calling thread would
only wait, and the others would go on after an error.
"""

import collections
import concurrent.futures
import contextlib
import functools
import numbers
import threading

import threadpoolctl

from npgpt.runtime.cores import cores
from npgpt.runtime.errors import ConfigError, FileError

LEAST_WIDTH = 300     # the matrices of a narrower model fit into one core's cache, so it needs LEAST_WORK to gain
MOST = 1024           # threads: more than the cores of any machine this is for; each further thread only takes memory
LEAST_WORK = 1 << 15  # tokens times width: with less, handing out shares costs more than it gains

_lock, _inside = threading.Lock(), []  # the threads that are inside a block of `blas_threads`


class _Workers(threading.local):
    """What `workers` gave to this thread."""

    count, pool = 1, None


_this = _Workers()


@functools.cache
def blas():
    """Return threadpoolctl's controller of BLAS. It searches the loaded libraries, so this happens once.

    Raises FileError: on Python 3.10 the search needs a temporary file.
    """
    try:
        return threadpoolctl.ThreadpoolController().select(user_api="blas")
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"cannot find out about BLAS: {reason}; set TMPDIR to another folder") from error


def available():
    """Return how many threads there would be now: one for each processor that this process may use, or fewer if the
    environment says so to BLAS; inside a block of `blas_threads`, as many as that says."""
    count = max((info["num_threads"] for info in blas().info()), default=1)
    return count if _inside else min(count, cores())


def checked(threads):
    """Return `threads`. Raises ConfigError unless it is a whole number from 1 to MOST.

    The bound does not depend on this machine's cores, so that a small machine can repeat the run of a large one.
    """
    if isinstance(threads, bool) or not isinstance(threads, numbers.Integral) or not 1 <= threads <= MOST:
        raise ConfigError(f"threads = {threads!r}: it must be a whole number from 1 to {MOST:,}")
    return threads


def that_pay(model, tokens, threads=None):
    """Return how many threads should work on `tokens` tokens: `threads`, or if it is None, as many as make it faster.

    Raises ConfigError: see `checked`.
    """
    if threads is not None:
        checked(threads)
    width = model.config.n_embd
    return threads or (max(available(), crew()) if width >= LEAST_WIDTH or tokens * width >= LEAST_WORK else 1)


@contextlib.contextmanager
def blas_threads(count):
    """Let BLAS use `count` threads inside this block, and restore its setting afterwards.

    BLAS has one setting for all threads. While another thread is inside such a block, this one changes nothing: the two
    would undo each other's settings.
    """
    me = threading.get_ident()
    with _lock:
        limits = blas().limit(limits=count) if all(thread == me for thread in _inside) else None
        if limits:
            _inside.append(me)
    try:
        yield
    finally:
        if limits:
            with _lock:
                _inside.pop()
                limits.restore_original_limits()


@contextlib.contextmanager
def workers(count):
    """Let operations share their work among `count` threads inside this block, each with one thread of BLAS.

    The thread that enters the block is one of them. If it is not the main thread, BLAS gets all `count` threads, and
    this thread does the rest of the work alone.
    """
    before = _this.count, _this.pool
    alone = count == 1 or threading.current_thread() is not threading.main_thread()
    with contextlib.ExitStack() as stack:
        stack.enter_context(blas_threads(count if alone else 1))
        _this.count, _this.pool = 1, None
        if not alone:
            _this.pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(count - 1))
            _this.count = count
        try:
            yield
        finally:
            _this.count, _this.pool = before


def crew():
    """Return how many workers this thread has now."""
    return _this.count


def spread(work, items):
    """Return [work(item) for item in items], done by this thread's workers: each takes the next item when it is free.

    After an error in one item, no worker begins another. Raises what `work` raised.
    """
    left = collections.deque(enumerate(items))
    results = [None] * len(left)
    helpers = min(len(left), crew()) - 1

    def take():
        try:
            while True:
                try:
                    i, item = left.popleft()
                except IndexError:
                    return
                results[i] = work(item)
        except BaseException:
            left.clear()
            raise

    helping = [_this.pool.submit(take) for _ in range(helpers)]
    try:
        take()
    finally:
        concurrent.futures.wait(helping)
    for helper in helping:
        helper.result()  # raises what `work` raised there
    return results
