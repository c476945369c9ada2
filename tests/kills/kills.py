"""Kill fine-tuning at random moments, go on with it each time, and compare every byte of what comes out.

    python tests/kills/kills.py --kills 200

Each run is a process that SIGKILL ends: after a random time, or exactly before one of its operations on a file (the
opening, renaming or removing, as Python's audit events tell), or some hundred microseconds after it. Some therefore die
inside a save. When a run has died often enough it may come to its end, and its folder must then hold what the
folder of a run that was never stopped holds. Prints one line a run, and exits with 1 where one differs.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
               "TOKENIZERS_PARALLELISM": "false"}  # before NumPy: a process without threads can be forked
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "commands")]

import conftest  # noqa: E402

from npgpt.commands import cli, finetune  # noqa: E402

COMMON = ["--model", "model", "--data", "texts.txt", "--val-data", "held-out.txt", "--quiet", "--samples", "1",
          "--batch-size", "2", "--max-steps", "24", "--eval-every", "3"]
KINDS = {
    "adapter": ["--save-every", "2", "--lr", "0.02", "--dropout", "0.2"],
    "best of it": ["--save-every", "5", "--keep", "2", "--keep-best", "--patience", "3", "--lr", "0.05"],
    "full": ["--save-every", "3", "--full", "--lr", "0.01", "--dropout", "0.1", "--accumulate", "2"],
}
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


def start(folder, arguments, prepare=lambda: None):
    """Run finetune.py in a process of its own; returns its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        prepare()
        status = cli.run(lambda: finetune.main(finetune.parse_arguments(arguments)))
    finally:
        os._exit(status)


def killed_at_event(count, delay):
    """Return what makes a process kill itself `delay` seconds after the `count`-th file operation in a run's folder."""
    def die():
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def prepare():
        left = [count]

        def hook(event, arguments):
            if event in EVENTS and arguments and "run/" in os.fsdecode(arguments[0] if isinstance(
                    arguments[0], str | bytes | os.PathLike) else b""):
                left[0] -= 1
                if left[0] == 0:
                    threading.Thread(target=die).start() if delay else die()

        sys.addaudithook(hook)

    return prepare


def attempt(folder, arguments, draw, seconds):
    """Let the run go on until it is killed; `seconds` is what a whole one takes. Returns whether it was."""
    resume = ["--resume", "run", "--quiet"] if (folder / "run" / "config.json").exists() else [*arguments, "--out",
                                                                                              "run"]
    if draw.random() < 0.5:
        process = start(folder, resume, killed_at_event(draw.randint(1, 120), draw.choice([0, 0, 1e-4, 5e-4, 2e-3])))
    else:
        process = start(folder, resume)
        time.sleep(draw.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        sys.exit(f"a run that went on failed: {(folder / 'output.txt').read_text()}")
    return False


def contents(run):
    """Return dict path -> bytes of the files of a run, without what tells the time."""
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    files["metrics.jsonl"] = [{**line, "seconds": None} for line in lines]
    return {path: data for path, data in files.items() if path != "report.html"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--most", type=int, default=20, help="kills of one run, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    args = parser.parse_args()
    draw, total, inside, runs = random.Random(args.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        conftest.save_model(place / "model")
        (place / "texts.txt").write_text(conftest.TEXTS)
        (place / "held-out.txt").write_text("better late than never\nmany hands make light work\n")
        expected, seconds = {}, {}
        for kind, options in KINDS.items():
            began = time.perf_counter()
            _, status = os.waitpid(start(place, [*COMMON, *options, "--out", kind]), 0)
            seconds[kind] = time.perf_counter() - began
            if status:
                sys.exit((place / "output.txt").read_text())
            expected[kind] = contents(place / kind)
        while total < args.kills:
            kind = list(KINDS)[runs % len(KINDS)]
            folder = place / f"{runs}"
            folder.mkdir()
            for name in ("model", "texts.txt", "held-out.txt"):
                (folder / name).symlink_to(place / name)
            kills = draw.randint(1, min(args.most, args.kills - total))
            for _ in range(kills):
                if not attempt(folder, [*COMMON, *KINDS[kind]], draw, seconds[kind]):
                    break
                total += 1
                inside += any(folder.rglob("run/**/.*.tmp"))
            _, status = os.waitpid(start(folder, ["--resume", "run", "--quiet"] if (
                folder / "run" / "config.json").exists() else [*COMMON, *KINDS[kind], "--out", "run"]), 0)
            if status:
                sys.exit((folder / "output.txt").read_text())
            found, runs = contents(folder / "run"), runs + 1
            different = sorted(path for path in found.keys() | expected[kind].keys()
                               if found.get(path) != expected[kind].get(path))
            print(f"{kind:10}  {total:4} kills, {inside:3} inside a save: "
                  f"{'differs in ' + ', '.join(different) if different else 'every byte equal'}")
            if different:
                return 1
    print(f"{total} kills of {runs} runs, {inside} of them inside a save: every run ended with the same bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
