"""The memory of the process: how much it holds, and how to keep freed memory for the next step."""

import contextlib
import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def keep_freed_memory():
    """Let this process keep the memory that it frees, up to its peak, for later use. For programs that train.

    Every training step allocates the same arrays as the step before. Between two steps, glibc returns the memory to
    the system, and the system zeroes each page again at its first use: for one sequence of 1,024 tokens, this takes
    5 to 10 % of the step. glibc returns a thread's own heap whatever the threshold is, so all threads share one heap.
    The settings apply to the whole process and cannot be undone, so a library does not choose them for its user.
    Without glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # bytes, glibc's maximum: larger arrays are still returned
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_ARENA_MAX, 1)


def resident():
    """Return the bytes of memory that this process holds now, or 0 if the system does not tell.

    Linux tells it in a file. Elsewhere psutil knows, if it is installed, or the system tells the most that the process
    has held so far, which is hardly more before the training.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    with contextlib.suppress(ImportError, OSError):
        import psutil

        return psutil.Process().memory_info().rss
    with contextlib.suppress(ImportError, OSError):  # Windows has no such module
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0
