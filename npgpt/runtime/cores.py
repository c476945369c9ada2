"""How many processors this process may use: fewer than the machine has, if it runs in a container or under a scheduler.

Docker's --cpus, Kubernetes' limits and Slurm give a process a quota of processor time, or a set of processors. With
more threads than that, the system stops them all for a part of each moment, and threads that wait for each other lose
more than they gain.
"""

import functools
import math
import os
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # Linux's control groups, and those of this process


@functools.cache
def cores():
    """Return how many processors this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(min(quota(), allowed))))


def quota(groups=GROUPS, own=OWN):
    """Return how many processors' time the control groups of this process may use together; infinity: no limit.

    Each group has a limit, and so has each group above it. Version 2 has one tree of groups, version 1 one for each
    kind of limit.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return math.inf
    least = math.inf
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:
            trees, read = [groups], _limit
        elif "cpu" in kinds.split(","):
            trees, read = [groups / kinds, groups / "cpu"], _limit_of_version_1
        else:
            continue
        for folder in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents):
            least = min(least, *(read(tree / folder) for tree in trees))
    return least


def _limit(folder):
    """Return the limit of a group of version 2."""
    return _ratio(_words(folder / "cpu.max"))


def _limit_of_version_1(folder):
    return _ratio(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))


def _words(path):
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:  # a container does not see the groups above its own
        return []


def _ratio(words):
    """Return the time in each period over the length of the period: infinity for "max" (version 2), -1 and no words."""
    if len(words) != 2 or not words[0].isdecimal() or not words[1].isdecimal() or not int(words[1]):
        return math.inf
    return int(words[0]) / int(words[1])
