"""plot.py, where matplotlib is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from npgpt.training.run import Run

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("ending, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_runs_are_drawn(tmp_path, ending, start):
    for name, rank in (("one", 4), ("two", 8)):
        run = Run.create(tmp_path / name)
        run.write_config({"settings": {"rank": rank, "lr": 0.1}})
        run.record("before", {"val_loss": 4.0})
        lines = "".join(f'{{"step": {i}, "loss": {4 - i / rank}, "val_loss": {4 - i / 9}}}\n' for i in range(1, 9))
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    command = [sys.executable, ROOT / "scripts" / "plot.py", "one", "two", "--out", f"picture.{ending}"]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.stdout == f"saved      picture.{ending}\n", result.stderr
    assert (tmp_path / f"picture.{ending}").read_bytes().startswith(start)


def test_both_panels_have_the_same_axes(tmp_path, monkeypatch):
    """The held-out curve begins at step 0. A setting that the folder's name says is not said again."""
    from matplotlib import pyplot

    from npgpt.commands import plot

    for rank in (4, 8):
        run = Run.create(tmp_path / f"rank={rank}")
        run.write_config({"settings": {"rank": rank, "lr": 0.1 / rank}})
        run.record("before", {"val_loss": 5.5})
        (run.folder / "metrics.jsonl").write_text('{"step": 20, "loss": 4, "val_loss": 4.5}\n{"step": 60, "loss": 3}\n')
    monkeypatch.setattr(pyplot, "close", lambda *_: None)
    arguments = ["rank=4", "rank=8", "--out", "x.svg"]
    monkeypatch.chdir(tmp_path)
    plot.main(plot.parse_arguments(arguments))
    training, held_out = pyplot.gcf().axes
    assert training.get_xlim() == held_out.get_xlim()
    assert held_out.lines[0].get_xydata().tolist() == [[0, 5.5], [20, 4.5]]
    names = [text.get_text() for text in held_out.get_legend().get_texts()]
    assert names == ["rank=4, lr 0.025", "rank=8, lr 0.0125"]
