"""The lock on a folder: held by one process, gone with it, and no obstacle where there are no locks."""

import errno
import os
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from npgpt.files import lock as module
from npgpt.files.lock import lock
from npgpt.runtime.errors import FileError

ROOT = Path(__file__).parents[2]
HOLDING = """
import sys, time
from npgpt.files.lock import lock
class Owner: pass
owner = Owner()
lock(sys.argv[1], owner)
print("held", flush=True)
time.sleep(60)
"""


class Owner:
    """Anything that can be gone."""


@pytest.mark.parametrize("end", ["killed", "at its end"])
def test_a_lock_ends_with_its_process(tmp_path, end):
    code = HOLDING if end == "killed" else HOLDING.replace("time.sleep(60)", "sys.stdin.read()")
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    for _ in range(2):
        with pytest.raises(FileError, match=f"^{tmp_path} is in use: another process writes into it; wait until that"):
            lock(tmp_path, Owner())
    if end == "killed":
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    lock(tmp_path, Owner())


def test_a_lock_ends_with_its_owner(tmp_path):
    owner = Owner()
    lock(tmp_path, owner)
    with pytest.raises(FileError, match="in use"):
        lock(tmp_path, Owner())
    del owner
    lock(tmp_path, Owner())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks_is_used_without(monkeypatch, tmp_path, number):
    def take(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "_take", take)
    owner = Owner()
    with pytest.warns(UserWarning, match=f"^{tmp_path} cannot be locked \\({os.strerror(number)}\\): let no other"):
        lock(tmp_path, owner)


@pytest.mark.parametrize("held", [False, True])
def test_windows_locks_a_byte(monkeypatch, tmp_path, held):
    calls = []

    def locking(descriptor, mode, size):
        calls.append((mode, size))
        if held:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if held:
            with pytest.raises(FileError, match="in use"):
                lock(tmp_path, Owner())
        else:
            lock(tmp_path, Owner())
    assert calls == [(2, 1)]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(FileError, match=f"cannot write into {tmp_path}: Is a directory"):
        lock(tmp_path, Owner())
