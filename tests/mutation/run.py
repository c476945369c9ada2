"""Break npgpt in one place at a time and see that a test fails: the mutants are those of mutants.py.

    python tests/mutation/run.py                        all of them, which takes minutes
    python tests/mutation/run.py --jobs 4               on four processes
    python tests/mutation/run.py --only optim           those whose file or words match a regular expression

Each mutant is made in a copy of the tree, never in the tree itself. First the tests of its module run, which take
seconds; where they pass, all tests that have neither network nor clock in them. A mutant that passes these too has
SURVIVED: a mistake of its kind would go unnoticed, and a test is missing. Exits 1 where fewer than 95 % are killed.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutants import MUTANTS, mutate

ROOT = Path(__file__).parents[2]
COPIED = "npgpt", "scripts", "tests", "pyproject.toml", "README.md"

# Not run against mutants: what is about other things or slow, or looks at the clock, so that a busy machine fails it.
LEFT_OUT = "fuzz", "hub", "mutation", "official", "parity", "commands", "files/test_hub.py", "test_readmes.py"

# The tests to run first are those that mirror the file, tests/ops/test_linear.py for ops/linear.py, and these.
EVERY_OPERATION = "ops/test_every_operation.py"
ALSO_FIRST = {
    "autograd.py": [EVERY_OPERATION], "ops/activations.py": [EVERY_OPERATION], "ops/attention.py": [EVERY_OPERATION],
    "ops/cross_entropy.py": [EVERY_OPERATION], "ops/dropout.py": [EVERY_OPERATION],
    "ops/layer_norm.py": [EVERY_OPERATION], "ops/linear.py": [EVERY_OPERATION], "ops/primitives.py": [EVERY_OPERATION],
    "runtime/erf.py": ["ops/test_activations.py"], "runtime/tiles.py": ["ops/test_attention.py", EVERY_OPERATION],
    "runtime/shares.py": ["training/test_train.py"], "runtime/threads.py": ["training/test_train.py"],
    "language_model.py": ["test_gpt2.py", "goldens/test_goldens.py"],
    "gpt2.py": ["test_language_model.py", "goldens/test_goldens.py"],
    "lora.py": ["adapters/test_stack.py", "adapters/test_updates.py"],
    "adapters/lora_config.py": ["test_lora.py", "adapters/test_updates.py"],
    "adapters/lora_init.py": ["adapters/test_updates.py", "test_lora.py"],
    "adapters/dora.py": [EVERY_OPERATION], "adapters/index_copy.py": [EVERY_OPERATION],
    "adapters/updates.py": ["adapters/test_stack.py"], "adapters/tables.py": ["adapters/test_peft_tables.py"],
    "adapters/stack.py": ["test_lora.py", "adapters/test_updates.py", "adapters/test_combine.py",
                          "adapters/test_tables.py"],
    "adapters/peft.py": ["adapters/test_updates.py"], "adapters/peft_config.py": ["adapters/test_peft.py"],
    "adapters/peft_tables.py": ["adapters/test_tables.py"],
    "files/pickles.py": ["files/test_torchfile.py"],
    "generation/decoding.py": ["generation/test_generate.py"],
    "generation/sampling.py": ["generation/test_generate.py", "generation/test_warpers.py"],
    "generation/warpers.py": ["generation/test_sampling.py", "generation/test_generate.py"],
    "data/order.py": ["training/test_training_loop.py"], "training/train.py": ["training/test_training_loop.py"],
}


def first_tests(file):
    path = Path(file)
    tests = [path.with_name(f"test_{path.name}"), *ALSO_FIRST.get(file, [])]
    return [f"tests/{test}" for test in tests if (ROOT / "tests" / test).exists()]


def whole_suite():
    return ["tests", *(f"--ignore=tests/{path}" for path in LEFT_OUT)]


def snapshot(folder):
    """Copy what the tests need into `folder`, so that work on the tree may go on meanwhile. Returns the folder."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def failure(tree, tests, change=None, limit=None):
    """Run `tests` on a copy of `tree`. Return the first failure, or None.

    change  (file within npgpt/, its text in the copy), or None
    limit   seconds after which the tests count as failed, or None
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(tree, Path(folder, "tree")))
        if change:
            file, text = change
            (copy / "npgpt" / file).write_text(text, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1",
                                    "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider",
                   "--hypothesis-seed=0", *tests]
        try:
            run = subprocess.run(command, cwd=copy, env=environment, stdout=subprocess.PIPE, text=True,
                                 stderr=subprocess.STDOUT, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"no end within {limit:.0f} s"
    if run.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    return failed[1] if failed else f"pytest's exit status {run.returncode}: {run.stdout[-300:]}"


def judge(mutant, tree, limit):
    """Return what killed the mutant, or None."""
    change = mutant.file, mutate(mutant, (tree / "npgpt" / mutant.file).read_text(encoding="utf-8"))
    return failure(tree, first_tests(mutant.file), change, limit) or failure(tree, whole_suite(), change, limit)


def try_all(mutants, tree, jobs):
    """Print what becomes of each mutant, in their order. Returns the survivors."""
    started = time.perf_counter()
    if found := failure(tree, whole_suite()):
        sys.exit(f"the tests fail on npgpt as it is: {found}")
    limit = 10 * (time.perf_counter() - started) + 60
    if not failure(tree, whole_suite(), ("__init__.py", "raise ImportError")):
        sys.exit("a copy of npgpt that cannot be imported passes: the tests do not run on the copy")
    print(f"{len(mutants)} mutants; the tests pass on npgpt as it is", flush=True)
    survivors = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        killers = pool.map(lambda mutant: judge(mutant, tree, limit), mutants)
        for mutant, killer in zip(mutants, killers, strict=True):
            if killer is None:
                survivors.append(mutant)
            print(f"{'killed  ' if killer else 'SURVIVED'}  {mutant}" + (f"  [{killer}]" if killer else ""), flush=True)
    return survivors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at the same time (default 2)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="regular expression for 'file: what is wrong'")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if re.search(args.only, str(mutant))]
    if not chosen:
        parser.error(f"no mutant matches {args.only!r}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        survivors = try_all(chosen, snapshot(Path(folder)), args.jobs)
    killed = len(chosen) - len(survivors)
    print(f"\n{killed} of {len(chosen)} mutants killed, {killed / len(chosen):.1%}, "
          f"in {(time.perf_counter() - started) / 60:.1f} minutes")
    for mutant in survivors:
        print(f"survived: {mutant}\n    {mutant.before!r}\n    {mutant.after!r}")
    return 0 if killed >= 0.95 * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
