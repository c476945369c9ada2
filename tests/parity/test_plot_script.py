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
        lines = "".join(f'{{"step": {i}, "loss": {4 - i / rank}, "val_loss": {4 - i / 9}}}\n' for i in range(1, 9))
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    command = [sys.executable, ROOT / "scripts" / "plot.py", "one", "two", "--out", f"picture.{ending}"]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.stdout == f"saved      picture.{ending}\n", result.stderr
    assert (tmp_path / f"picture.{ending}").read_bytes().startswith(start)
