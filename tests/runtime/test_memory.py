import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest

import npgpt
from npgpt.runtime.memory import resident

FAULTS = """
import concurrent.futures, resource, sys
import numpy as np
from npgpt.runtime.memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

def work():
    arrays = [np.empty(3_000_000, np.uint8) for _ in range(30)]  # more than the 64 MB that a heap of a thread has
    for array in arrays:
        array.fill(1)

def step():
    if "threads" in sys.argv:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
    else:
        work()

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(npgpt.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", FAULTS, *arguments], env=environment, capture_output=True, check=True)
    return int(done.stdout)


if platform.libc_ver()[0] == "glibc":

    def test_memory_that_was_freed_is_used_again_without_asking_the_system():
        assert page_faults("keep") < 10
        assert page_faults() > 10_000  # of 21,970 pages: keep_freed_memory saves these

    def test_the_threads_of_a_step_leave_their_memory_to_those_of_the_next():
        assert page_faults("keep", "threads") < 100  # a thread's own stack among them


@pytest.fixture
def no_proc(monkeypatch):
    """A system without /proc."""
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)


def module_of(peak):
    return types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: types.SimpleNamespace(ru_maxrss=peak))


def test_psutil_tells_what_the_system_has_no_file_for(monkeypatch, no_proc):
    process = types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(rss=12345))
    monkeypatch.setitem(sys.modules, "psutil", types.SimpleNamespace(Process=lambda: process))
    assert resident() == 12345


@pytest.mark.parametrize("system, expected", [("darwin", 5000), ("freebsd14", 5000 * 1024)])
def test_without_psutil_the_peak_counts(monkeypatch, no_proc, system, expected):
    """macOS gives it in bytes, the others in units of 1,024."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setitem(sys.modules, "resource", module_of(5000))
    monkeypatch.setattr(sys, "platform", system)
    assert resident() == expected


def test_where_nothing_tells_it_is_not_known(monkeypatch, no_proc):
    for name in ("psutil", "resource"):
        monkeypatch.setitem(sys.modules, name, None)
    assert resident() == 0
