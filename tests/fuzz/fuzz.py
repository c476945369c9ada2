"""Feed npgpt thousands of corrupted files. Each must be loaded correctly or refused with npgpt's own one-line error.

    python tests/fuzz/fuzz.py                                        all kinds, 10,000 safetensors files
    python tests/fuzz/fuzz.py --seed 7 --count 50000 --kinds safetensors
    python tests/fuzz/fuzz.py --seed 7 --kinds adapter --index 812   one file again, with its traceback

A failure is: an exception that is not an NpgptError; a message that is not one printable line naming the file; a
warning that is not about the file; a crash of the process, two seconds of work, an allocation beyond 64 MB; a file that
was loaded as something it does not say, or refused although it is valid; anything changed by a file that was refused.

The files are read in a forked process whose memory and processor time the system limits, so nothing a reader does can
stop the count. A file depends only on the seed, its kind and its index. Needs a POSIX system; memory is limited where
it can be measured, on Linux.
"""

import argparse
import collections
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import subjects

from npgpt.runtime.errors import LONGEST, NpgptError

SECONDS = 2  # of the processor, for one file
STUCK = 60  # seconds on the clock, for one that waits
MEMORY = 64_000_000  # bytes, beyond what the process has before the first file


def outcome(subject, rng):
    """Write one corrupted file and read it. Returns "loaded" or "refused", and the message; else AssertionError."""
    subject.damage(rng)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = subject.load()
        except NpgptError as error:
            result, messages = "refused", [str(error)]
            subject.check_refusal()
        else:
            result, messages = "loaded", []
            subject.check(loaded)
    for warning in caught:
        assert warning.category is UserWarning, f"{warning.category.__name__}: {warning.message}"
        messages.append(str(warning.message))
    for message in messages:
        assert message.isprintable(), f"not one printable line: {message!r}"
        assert str(subject.folder) in message, f"does not name the file: {message}"
        assert len(message) <= LONGEST, f"a message of {len(message)} characters: {message}"
    return result, " ".join(messages)


def attempt(subject, kind, seed, index):
    """Return `outcome` of one file, or ("FAILED", what happened)."""
    try:
        return outcome(subject, random.Random(f"{seed} {kind} {index}"))
    except BaseException as error:  # as a panic in Rust is
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "npgpt" in frame.filename]
        at = f" (npgpt/{Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
        return "FAILED", f"{type(error).__name__}{at}: {error}"[:500]


def work(made, cases, seed, pipe):
    """Read the files of all cases in this process, and write a line of JSON for each into the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where a library written in another language reports its own crash
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind, index in cases:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # when it is over, the signal ends the process
        signal.setitimer(signal.ITIMER_REAL, STUCK)
        result = attempt(made[kind], kind, seed, index)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(pipe, json.dumps(result).encode() + b"\n")


def supervise(made, cases, seed):
    """Yield (kind, index, result, message) for every case, also if it ends the process that reads the file."""
    done = 0
    while done < len(cases):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                work(made, cases[done:], seed, writing)
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                yield *cases[done], *json.loads(line)
                done += 1
        _, status = os.waitpid(child, 0)
        if done < len(cases):
            number = os.WTERMSIG(status)
            limits = {signal.SIGPROF: f"more than {SECONDS} s of work", signal.SIGALRM: f"stuck for {STUCK} s"}
            yield *cases[done], "FAILED", limits.get(number, f"the process died of signal {number}")
            done += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="safetensors files; a fifth as many of other kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=subjects.KINDS, default=list(subjects.KINDS))
    parser.add_argument("--index", type=int, help="only this file of one kind, here, and leave it where it is")
    given = parser.parse_args()
    if given.index is not None:
        if len(given.kinds) > 1:
            parser.error("--index needs one of --kinds")
        (kind,) = given.kinds
        folder = Path(tempfile.mkdtemp()) / kind
        print("files in", folder)
        print(*outcome(subjects.KINDS[kind](folder), random.Random(f"{given.seed} {kind} {given.index}")))
        return 0

    counts = {kind: given.count if kind == "safetensors" else -(-given.count // 5) for kind in given.kinds}
    table = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        made = {kind: subjects.KINDS[kind](Path(folder) / kind) for kind in counts}
        cases = [(kind, index) for kind, count in counts.items() for index in range(count)]
        for kind, index, result, message in supervise(made, cases, given.seed):
            table[kind, result] += 1
            if result == "FAILED":
                print(f"FAILED --seed {given.seed} --kinds {kind} --index {index}: {message}", flush=True)
    print(f"{'kind':12}" + "".join(f"{title:>10}" for title in ("files", "loaded", "refused", "FAILED")))
    for kind, count in counts.items():
        print(f"{kind:12}{count:10}" + "".join(f"{table[kind, each]:10}" for each in ("loaded", "refused", "FAILED")))
    return 1 if any(result == "FAILED" for _, result in table) else 0


if __name__ == "__main__":
    sys.exit(main())
