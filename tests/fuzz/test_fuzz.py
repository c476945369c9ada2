"""A sample of fuzzing (fuzz.py runs more, and says what counts as a failure); and the fuzzer does see failures."""

import os
import subprocess
import sys
from pathlib import Path

import npgpt

FOLDER = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(npgpt.__file__).parents[1]), str(FOLDER)]),
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",  # a process with threads is better not forked
}  # fmt: skip

BAD_READERS = """
import os, signal, sys, warnings
import numpy as np
import fuzz, subjects
from npgpt.runtime.errors import FormatError, NpgptError

class TwoLines(NpgptError):
    def __str__(self):
        return "one\\ntwo"

def recurse(self):
    recurse(self)

def raising(error):
    def load(self):
        raise error
    return load

def hang(self):
    signal.setitimer(signal.ITIMER_REAL, 60)  # a busy machine may take long to give it its 0.2 s of work
    return any(iter(int, 1))

def kind(load, check=lambda self, loaded: None):
    return type("Bad", (subjects.Subject,), {"damage": lambda self, rng: None, "load": load, "check": check})

fuzz.SECONDS = 0.2
fuzz.STUCK = 1
subjects.KINDS = {
    "foreign": kind(raising(KeyError("x"))),
    "recursion": kind(recurse),
    "panic": kind(raising(BaseException("x"))),
    "two-lines": kind(raising(TwoLines("x"))),
    "nameless": kind(raising(FormatError("x is wrong"))),
    "warning": kind(lambda self: warnings.warn("x", RuntimeWarning)),
    "memory": kind(lambda self: np.empty(10**8)),
    "hang": kind(hang),
    "waiting": kind(lambda self: __import__("time").sleep(9)),
    "crash": kind(lambda self: os.abort()),
    "exit": kind(lambda self: os._exit(0)),
    "wrong": kind(lambda self: 3, lambda self, loaded: exec("assert loaded == 4, 'not 4'")),
    "fine": kind(lambda self: 3),
    "refused": kind(lambda self: raising(FormatError(f"{self.folder}/x is wrong"))(self)),
}
sys.exit(fuzz.main())
"""
SEEN = {
    "foreign": "KeyError: 'x'",
    "recursion": "RecursionError",
    "panic": "BaseException: x",
    "two-lines": "AssertionError: not one printable line",
    "nameless": "AssertionError: does not name the file: x is wrong",
    "warning": "AssertionError: RuntimeWarning: x",
    "memory": "MemoryError",
    "hang": "more than 0.2 s of work",
    "waiting": "stuck for 1 s",
    "crash": "the process died of signal 6",
    "exit": "the process died of signal 0",
    "wrong": "AssertionError: not 4",
}

if os.name == "posix":

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )

    def table(output):
        """Return kind -> (files, loaded, refused, failed)."""
        rows = output.partition("kind ")[2].splitlines()[1:]
        return {row.split()[0]: tuple(map(int, row.split()[1:])) for row in rows}

    def test_a_sample_of_corrupted_files_is_loaded_correctly_or_refused():
        done = run(FOLDER / "fuzz.py", "--count", 600)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = table(done.stdout)
        assert rows["safetensors"][0] == 600
        assert len(rows) == 13 + ("parquet" in rows)
        for files, loaded, refused, failed in rows.values():
            assert loaded + refused == files
            assert loaded and refused and not failed

    def test_the_fuzzer_sees_every_kind_of_failure_and_goes_on():
        done = run("-c", BAD_READERS, "--count", 1)
        seen = SEEN if sys.platform == "linux" else {kind: text for kind, text in SEEN.items() if kind != "memory"}
        for kind, text in seen.items():
            assert f"FAILED --seed 0 --kinds {kind} --index 0: {text}" in done.stdout, done.stdout + done.stderr
        rows = table(done.stdout)
        assert all(rows[kind] == (1, 0, 0, 1) for kind in seen)
        assert rows["fine"] == (1, 1, 0, 0)
        assert rows["refused"] == (1, 0, 1, 0)
        assert done.returncode == 1
