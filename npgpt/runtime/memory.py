"""Memory of the process: how much it holds, and freed memory kept at hand for the next step."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def keep_freed_memory():
    """Let this process keep the memory it frees, up to its peak, for what it allocates next. For programs that train.

    Every training step allocates the arrays of the step before. glibc returns them to the system in between, and what
    it gets back is zeroed page by page at the first touch: for one sequence of 1,024 tokens, 5 to 10 % of the step.
    A thread's own heap is returned whatever the threshold, so all threads share one.
    The settings are the whole process's and cannot be taken back, so a library does not choose them for its user.
    Elsewhere than with glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # bytes, the most it takes: larger arrays are still returned
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(M_ARENA_MAX, 1)


def resident():
    """Return the bytes of memory that this process holds now; where the system does not tell, 0."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
