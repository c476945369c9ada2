"""Fine-tune once for each combination of ranks, alphas, learning rates and targets, and compare the held-out losses.

    npgpt sweep --out runs/sweep --rank 4 8 16 --lr 1e-3 2e-3 -- --model tiny --epochs 3

All that follows -- goes to finetune as it is. The runs are made one after another, each in a folder of its own; the
same command continues a sweep that was stopped. At the end it prints a table, and writes sweep.html with the table and
the curves.
"""

import itertools
import re
import signal
import subprocess
import sys
import zlib

from npgpt.commands import dataset, finetune, settings, start, watch
from npgpt.commands.flags import Flag, Parser, path
from npgpt.data.text_files import is_read_once
from npgpt.files.atomic import read_json, write_json, write_text
from npgpt.files.lock import lock
from npgpt.inspection import charts, html
from npgpt.runtime.errors import FileError, NpgptError
from npgpt.training.fit import best_step
from npgpt.training.run import Run
from npgpt.training.train import TrainConfig

AXES = {"rank": int, "alpha": float, "lr": float, "targets": str}
# Like `python -m npgpt`, but with the search path of this process: `python -m` searches the working directory first.
CHILD = "import sys; sys.path[:] = {!r}; from npgpt.commands import console; sys.exit(console.main())"
FLAGS = [
    Flag("--out", "folder of the sweep", path, required=True, metavar="DIR"),
    *(Flag(f"--{name}", f"values of finetune's --{name}", kind, many="+", sets=settings.all_settings()[name].sets)
      for name, kind in AXES.items()),
    Flag("finetune", "more flags for finetune", default=(), many="*", metavar="-- FLAGS"),
]


class SweepParser(Parser):
    """Says where flags of finetune belong."""

    def error(self, message):
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if any(word.partition("=")[0] == flag.name for word in unknown for flag in finetune.FLAGS):
            message += ": flags of finetune come last, after --"
        super().error(message)


def parse_arguments(argv):
    parser = SweepParser(__doc__, FLAGS)
    args = parser.parse(argv)
    given = finetune.parse_arguments(args.finetune)
    for name in ("data", "val_data"):
        if is_read_once(given.get(name, ".")):
            parser.error(f"--{name.replace('_', '-')} {given[name]}: each run reads the data, and a pipe can be read "
                         "only once; write them to a file")
    for name in ("preview", "out", "resume", "config", *(name for name in AXES if getattr(args, name))):
        if name in given:
            why = "it trains nothing" if name == "preview" else "the sweep gives each run its own"
            parser.error(f"--{name} after --: {why}; leave it out")
    return args


def main(args):
    axes = {name: getattr(args, name) for name in AXES if getattr(args, name)}
    if not axes:
        raise NpgptError(f"nothing to compare: give values to at least one of --{', --'.join(AXES)}")
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    check(combinations, finetune.parse_arguments(args.finetune))
    claim(args)
    rows = []
    for chosen in combinations:
        run = Run(args.out / folder_name(chosen))
        print(f"{', '.join(f'{name} {value}' for name, value in chosen.items())}")
        fine_tune(run, chosen, args.finetune)
        evaluations = run.evaluations()
        best = best_step(evaluations)
        rows.append([*chosen.values(), dict(evaluations)[best], best, evaluations[-1][1], run])
    rows.sort(key=lambda row: row[len(axes)])
    head = [*axes, "lowest", "at step", "at the end"]
    show(head, [row[:-1] for row in rows])
    page = args.out / "sweep.html"
    write_text(page, picture(axes, head, rows))
    print(f"\nsaved      {page}")


def check(combinations, given):
    """Check what can be checked before the first run. Raises NpgptError.

    given  the flags of finetune that all runs get: dict
    """
    for chosen in combinations:
        everything = {key: flag.default for key, flag in settings.all_settings().items()}
        everything |= settings.given_in_all(given | chosen)
        settings.adapter_configuration(everything)
        settings.configuration(TrainConfig, everything)
    if not everything["val_fraction"] and not dataset.sources_of(everything)[1]:
        raise NpgptError("a sweep compares held-out losses, and nothing is held out: give --val-data or "
                         "--val-fraction after --")


def folder_name(chosen):
    """Return the name of a run's folder, which any file system takes."""
    name = ",".join(f"{name}={value}" for name, value in chosen.items())
    plain = re.sub(r"[^\w=,.+-]", "_", name)[:100]  # a regular expression may hold anything
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def claim(args):
    """Make the folder of the sweep and lock it, as long as there are `args`. Write down what every run is given."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write into {args.out}: {error.strerror or error}") from error
    lock(args.out, args)
    note_down(args.out / "sweep.json", args.finetune)


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
        # Nobody sees the samples, unless they are asked for: then --samples comes again, and the last one counts.
        command += ["--out", str(run.folder), *(f"--{name}={value}" for name, value in chosen.items()), "--samples=0",
                    *flags]
    status = wait_for(command)
    if status:
        raise NpgptError(f"the run in {run.folder} ended with exit status {status}, for the reason above")


def wait_for(command):
    """Run a command and return its exit status. Raises KeyboardInterrupt if a signal stopped it.

    Ctrl-C reaches the child without our help, because it reaches all processes of a terminal's foreground group.
    SIGTERM is passed on. For both, the child saves and ends.
    """
    asked, children = [], []

    def stop(number, frame):
        asked.append(number)
        if number == signal.SIGTERM:
            for child in children:
                child.terminate()

    with watch.handled(stop), subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        children.append(child)
        if signal.SIGTERM in asked:  # it came before there was a child
            child.terminate()
        status = child.wait()
    for number in start.SIGNALS:
        if number in asked or status in (128 + number, -number):  # the last: before Python was ready for the signal
            start.interrupt(number)
    return status


def show(head, rows):
    """Print a table of numbers and words."""
    columns = [column if isinstance(column[0], str) else html.numbers(column) for column in zip(*rows, strict=True)]
    cells = [head, *zip(*columns, strict=True)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print()
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def picture(axes, head, rows):
    """Return a page with the table and the held-out loss of each run by step."""
    curves = {}
    for row in rows:
        name = ", ".join(f"{axis} {value}" for axis, value in zip(axes, row[:len(axes)], strict=True))
        curves[name] = tuple(zip(*row[-1].held_out(), strict=True))
    return html.page(f"Sweep over {' and '.join(axes)}",
                     html.section("Held-out loss", charts.line_chart(curves, x="step", y="nats per token")),
                     html.section("The runs, the best first", html.table(head, [row[:-1] for row in rows])))

