"""How many processors a process may use: control groups of both versions, and sets of processors."""

import math
import os

import pytest

from npgpt.runtime import cores, threads


def tree(tmp_path, own, files):
    """A file that says which groups this process is in, and the groups. Returns the arguments of `quota`."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "groups", tmp_path / "own"


V1 = "12:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n3:cpuset:/docker/a\n1:name=systemd:/docker/a\n0::/system\n"


@pytest.mark.parametrize("own, files, expected", [
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),                                   # docker run --cpus 1.5
    ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
    ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),      # the limit of the pod
    ("0::/a/b\n", {"a/cpu.max": "900000 100000", "a/b/cpu.max": "300000 100000"}, 3),
    ("0::/kubepods/pod/x\n", {"cpu.max": "50000 100000"}, 0.5),                         # only its own group is seen
    (V1, {"cpu,cpuacct/docker/a/cpu.cfs_quota_us": "40000\n",
          "cpu,cpuacct/docker/a/cpu.cfs_period_us": "10000\n"}, 4),
    (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
    (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    (V1, {"cpu/cpu.cfs_quota_us": "5\n", "cpu/cpu.cfs_period_us": "0\n"}, math.inf),
    (V1, {"cpu/cpu.cfs_quota_us": "5\n"}, math.inf),
    (V1, {"memory/cpu.cfs_quota_us": "5\n"}, math.inf),
    ("0::/\n", {}, math.inf),
    ("", {}, math.inf),
])
def test_quota(tmp_path, own, files, expected):
    assert cores.quota(*tree(tmp_path, own, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cores.quota(tmp_path, tmp_path / "none") == math.inf


@pytest.fixture
def fresh():
    """`cores` asks once."""
    cores.cores.cache_clear()
    yield
    cores.cores.cache_clear()


@pytest.mark.parametrize("affinity, quota, expected", [(8, math.inf, 8), (8, 1.5, 2), (8, 0.2, 1), (3, 6.0, 3)])
def test_cores(monkeypatch, fresh, affinity, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(affinity), raising=False)
    monkeypatch.setattr(cores, "quota", lambda: quota)
    assert cores.cores() == expected


@pytest.mark.parametrize("count, expected", [(4, 4), (None, 1)])
def test_where_no_affinity_is_told_the_machine_counts(monkeypatch, fresh, count, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr(cores, "quota", lambda: math.inf)
    assert cores.cores() == expected


def test_threads_follow_the_quota_unless_their_number_is_given(monkeypatch):
    with threads.blas_threads(4):
        assert threads.available() == 4  # as a run that began on a larger machine
    monkeypatch.setattr(threads, "cores", lambda: 1)
    assert threads.available() == 1
    with threads.blas_threads(4):
        assert threads.available() == 4
