"""How many threads work. Operations cut their arithmetic into shares (see `shares`), which workers take one after
another; BLAS, which makes a share's product, then has one thread for each of them."""

import collections
import concurrent.futures
import contextlib
import functools
import numbers
import threading

import threadpoolctl

from npgpt.runtime.errors import ConfigError

LEAST_WIDTH = 300     # with fewer tokens than LEAST_WORK allows, a narrower model's matrices fit into one core's cache
MOST = 1024           # threads: more than the cores of any machine this is for; each further one only takes memory
LEAST_WORK = 1 << 15  # tokens times width: with less, handing shares round costs more than it gives

_lock, _inside = threading.Lock(), []  # the threads that are in a block of `blas_threads`


class _Workers(threading.local):
    """What `workers` gave to this thread."""

    count, pool = 1, None


_this = _Workers()


@functools.cache
def _controller():
    return threadpoolctl.ThreadpoolController().select(user_api="blas")  # looks through loaded libraries: once


def available():
    """How many threads BLAS would use now: all cores, or what the environment allows it."""
    return max((info["num_threads"] for info in _controller().info()), default=1)


def checked(threads):
    """Return `threads`. Raises ConfigError where so many threads cannot work.

    The bound is no machine's own number of cores, so that a run of a large one can be made again on a small one.
    """
    if isinstance(threads, bool) or not isinstance(threads, numbers.Integral) or not 1 <= threads <= MOST:
        raise ConfigError(f"threads = {threads!r}: it must be a whole number from 1 to {MOST:,}")
    return threads


def that_pay(model, tokens, threads=None):
    """How many threads should work on so many tokens at once: `threads`, or where that is None, as many as pay.
    Raises ConfigError: see `checked`."""
    if threads is not None:
        checked(threads)
    width = model.config.n_embd
    return threads or (max(available(), crew()) if width >= LEAST_WIDTH or tokens * width >= LEAST_WORK else 1)


@contextlib.contextmanager
def blas_threads(count):
    """Let BLAS use `count` threads inside this block; its setting is put back as it was found. BLAS has one setting for
    all: while another thread is in such a block, nothing is changed, since the two would undo each other's."""
    me = threading.get_ident()
    with _lock:
        limits = _controller().limit(limits=count) if all(thread == me for thread in _inside) else None
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
    """Let operations share their work among `count` threads inside this block, this one included, with one BLAS thread
    each. In another thread than the main one, BLAS gets the threads, and the rest of the work stays on this one."""
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
    """How many workers this thread has now."""
    return _this.count


def spread(work, items):
    """Return [work(item) for each of `items`]. This thread's workers do it, each taking the next when it is free. After
    an error in one, none begins another."""
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
