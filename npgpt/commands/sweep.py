"""Fine-tune once for each combination of ranks, alphas, learning rates and targets, and compare the held-out losses.

    npgpt sweep --out runs/sweep --rank 4 8 16 --lr 1e-3 2e-3 -- --model tiny --epochs 3

All that follows -- goes to finetune as it is. The runs are made one after another, each in a folder of its own; the
same command continues a sweep that was stopped. At the end it prints a table, and writes sweep.html with the table and
the curves.
"""

import itertools
import signal
import subprocess
import sys

from npgpt.commands import finetune, watch
from npgpt.commands.flags import Flag, Parser, path
from npgpt.files.atomic import read_json, replacing, write_json
from npgpt.inspection import charts, html
from npgpt.runtime.errors import NpgptError
from npgpt.training.fit import best_step
from npgpt.training.run import Run

AXES = {"rank": int, "alpha": float, "lr": float, "targets": str}
# Like `python -m npgpt`, but with the search path of this process: `python -m` searches the working directory first.
CHILD = "import sys; sys.path[:] = {!r}; from npgpt.commands import console; sys.exit(console.main())"
FLAGS = [
    Flag("--out", "folder of the sweep", path, required=True, metavar="DIR"),
    *(Flag(f"--{name}", f"values of finetune's --{name}", kind, many="+") for name, kind in AXES.items()),
    Flag("finetune", "more flags for finetune", default=(), many="*", metavar="-- FLAGS"),
]


def parse_arguments(argv):
    parser = Parser(__doc__, FLAGS)
    args = parser.parse(argv)
    of_its_own = {"out", "resume", "config", *(name for name in AXES if getattr(args, name))}
    for name in of_its_own & finetune.parse_arguments(args.finetune).keys():
        parser.error(f"--{name} after --: the sweep gives each run its own; leave it out")
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
                             "--val-fraction after --")
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
    """Write down what every run of the sweep is given. Raises NpgptError if the sweep began with something else."""
    if path.exists() and any(path.parent.glob("*/config.json")):  # else no run has begun
        before = read_json(path).get("finetune")
        if before != flags:
            flags = " ".join(map(str, before or []))
            raise NpgptError(f"{path.parent} holds a sweep with -- {flags}: give the same, or name another --out")
    write_json(path, {"finetune": flags})


def fine_tune(run, chosen, flags):
    """Make the run, or the rest of it. Raises NpgptError if it fails, and KeyboardInterrupt if it is stopped."""
    if "after" in run.results():
        return
    command = [sys.executable, "-c", CHILD.format(sys.path), "finetune"]
    if (run.folder / "config.json").exists():  # it holds all the settings
        command += ["--resume", str(run.folder)]
    else:
        command += ["--out", str(run.folder), *(f"--{name}={value}" for name, value in chosen.items()), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child, watch.uninterrupted():
        status = child.wait()  # Ctrl-C reaches the child as well, which saves and ends
    if status in (130, -signal.SIGINT):  # the second: before Python was ready for Ctrl-C
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

