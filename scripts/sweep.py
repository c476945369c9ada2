"""Fine-tune once for each combination of ranks, alphas, learning rates and targets, and compare the held-out losses.

    python scripts/sweep.py --out runs/sweep --rank 4 8 16 --lr 1e-3 2e-3 -- --model tiny --epochs 3

What stands behind -- goes to finetune.py as it is. The runs are made one after another, each in a folder of its own;
the same command again goes on where the last one stopped. It ends with a table, and with sweep.html: the table and
the curves.
"""

import cli

import argparse
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import watch
from settings import parse_arguments as parse_finetune_arguments

from npgpt.files.atomic import read_json, replacing, write_json
from npgpt.inspection import charts, html
from npgpt.runtime.errors import NpgptError
from npgpt.training.fit import best_step
from npgpt.training.run import Run

AXES = {"rank": int, "alpha": float, "lr": float, "targets": str}


def parse_arguments(argv):
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=cli.path, required=True, help="folder of the sweep")
    for name, kind in AXES.items():
        parser.add_argument(f"--{name}", type=kind, nargs="+", help=f"values of finetune.py's --{name}")
    parser.add_argument("finetune", nargs="*", metavar="-- FLAGS", help="what else finetune.py is given")
    args = parser.parse_args(argv)
    of_its_own = {"out", "resume", "config", *(name for name in AXES if getattr(args, name))}
    for name in of_its_own & parse_finetune_arguments(args.finetune, None).keys():
        parser.error(f"--{name} behind --: the sweep gives each run its own; leave it out")
    return args


def main(args):
    axes = {name: getattr(args, name) for name in AXES if getattr(args, name)}
    if not axes:
        raise NpgptError(f"nothing to compare: give values to at least one of --{', --'.join(AXES)}")
    note_down(args.out / "sweep.json", args.finetune)
    rows = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        run = Run(args.out / ",".join(f"{name}={value}" for name, value in chosen.items()).replace("/", "_"))
        print(f"{', '.join(f'{name} {value}' for name, value in chosen.items())}")
        fine_tune(run, chosen, args.finetune)
        evaluations = run.evaluations()
        if not evaluations:
            raise NpgptError("a sweep compares held-out losses, and nothing is held out: give --val-data or "
                             "--val-fraction behind --")
        best = best_step(evaluations)
        rows.append([*values, dict(evaluations)[best], best, evaluations[-1][1], run])
    rows.sort(key=lambda row: row[len(axes)])
    head = [*axes, "lowest", "at step", "at the end"]
    show(head, [row[:-1] for row in rows])
    page = args.out / "sweep.html"
    with replacing(page) as temporary:
        temporary.write_text(picture(axes, head, rows), encoding="utf-8")
    print(f"\nsaved      {page}")


def note_down(path, flags):
    """Write down what every run of the sweep is given. Raises NpgptError where the sweep began with something else."""
    if path.exists() and any(path.parent.glob("*/config.json")):  # else no run has begun
        before = read_json(path).get("finetune")
        if before != flags:
            flags = " ".join(map(str, before or []))
            raise NpgptError(f"{path.parent} holds a sweep with -- {flags}: give the same, or name another --out")
    write_json(path, {"finetune": flags})


def fine_tune(run, chosen, flags):
    """Make the run, or what is missing of it. Raises NpgptError where it fails, KeyboardInterrupt where it is stopped.
    """
    if "after" in run.results():
        return
    command = [sys.executable, str(Path(__file__).with_name("finetune.py"))]
    if (run.folder / "config.json").exists():  # which has all the settings
        command += ["--resume", str(run.folder)]
    else:
        command += ["--out", str(run.folder), *(f"--{name}={value}" for name, value in chosen.items()), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child, watch.uninterrupted():
        status = child.wait()  # Ctrl-C reaches the child as well, which saves and ends
    if status in (130, -signal.SIGINT):  # the second: so early that Python was not ready for it
        raise KeyboardInterrupt
    if status:
        raise NpgptError(f"the run in {run.folder} ended with exit status {status}, for the reason above")


def show(head, rows):
    """Print a table of numbers and words."""
    cells = [head, *([value if isinstance(value, str) else html.number(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print()
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def picture(axes, head, rows):
    """Return a page with the table and the held-out loss of each run by step."""
    curves = {}
    for row in rows:
        name = ", ".join(f"{axis} {value}" for axis, value in zip(axes, row[:len(axes)], strict=True))
        curves[name] = tuple(zip(*row[-1].evaluations(), strict=True))
    return html.page(f"Sweep over {' and '.join(axes)}",
                     html.section("Held-out loss", charts.line_chart(curves, x="step", y="nats per token")),
                     html.section("The runs, the best first", html.table(head, [row[:-1] for row in rows])))


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None))))
