"""Draw the losses of several runs in one picture: the running mean of the training loss, and the held-out loss.

    npgpt plot runs/first runs/second --out comparison.png

Each run is named by its folder and by the settings in which it differs from the others. Needs matplotlib:
pip install '.[plot]'.
"""

from pathlib import Path

from npgpt.commands.flags import Flag, Parser, path
from npgpt.files.atomic import replacing
from npgpt.runtime.errors import NpgptError, printable
from npgpt.training.fit import smoothed
from npgpt.training.run import Run

FLAGS = [
    Flag("runs", "folder of a run, finished or not", path, many="+", metavar="RUN"),
    Flag("--out", "picture to write: .png, .svg or .pdf", path, Path("comparison.png"), metavar="FILE"),
]


def parse_arguments(argv):
    return Parser(__doc__, FLAGS).parse(argv)


def main(args):
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise NpgptError("plot needs matplotlib: pip install '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = [Run.open(folder) for folder in args.runs]
    figure, (training, held_out) = pyplot.subplots(1, 2, sharex=True, sharey=True, figsize=(12, 4.5),
                                                   layout="constrained")
    for run, name in zip(runs, names(runs), strict=True):
        lines = run.metrics()
        steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
        (line,) = training.plot(steps, list(smoothed(losses)), label=name)
        training.plot(steps, losses, color=line.get_color(), alpha=0.2, linewidth=0.7)
        if run.held_out():
            held_out.plot(*zip(*run.held_out(), strict=True), color=line.get_color(), marker=".", label=name)
    for axes, title in ((training, "training, running mean"), (held_out, "held out")):
        axes.set(title=title, xlabel="step", ylabel="nats per token")
        axes.yaxis.set_tick_params(labelleft=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    try:
        with replacing(args.out) as temporary:
            figure.savefig(temporary, format=args.out.suffix[1:].lower() or None, dpi=150)
    except ValueError as error:  # matplotlib knows no format with this ending
        raise NpgptError(f"cannot write {args.out}: {error}") from error
    print(f"saved      {args.out}")


def names(runs):
    """Return a name for each run: its folder, and the settings that are not the same in all of them.

    The folders of a sweep have these settings in their names already.
    """
    settings = [run.read_config().get("settings") for run in runs]
    for run, each in zip(runs, settings, strict=True):
        if not isinstance(each, dict):
            raise NpgptError(f"{run.folder}/config.json does not hold the settings of a run")
    every = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in every if len({str(each.get(name)) for each in settings}) > 1]
    return [printable(", ".join([run.folder.name, *(f"{name} {each.get(name)}" for name in differing
                                          if f"{name}={each.get(name)}" not in run.folder.name.split(","))]))
            for run, each in zip(runs, settings, strict=True)]

