"""The lines of training/README.md that turn metrics.jsonl into TensorBoard's and W&B's files, where these are
installed."""

import json
import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "npgpt" / "training" / "README.md").read_text(encoding="utf-8").splitlines()
METRICS = [{"step": 1, "loss": 4.5, "lr": 0.002}, {"step": 2, "loss": 4.25, "lr": 0.001, "val_loss": 4.75}]


def run_the_line(tmp_path, package):
    """Run the only command of the README that imports this package, beside a run of two steps."""
    (line,) = [line for line in LINES if line.startswith("$ python") and f"import json, {package};" in line]
    (tmp_path / "runs" / "first").mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in METRICS)
    (tmp_path / "runs" / "first" / "metrics.jsonl").write_text(text)
    subprocess.run([sys.executable, *shlex.split(line)[2:]], cwd=tmp_path, check=True,
                   env=os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"})


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_the_line(tmp_path, "tensorboardX")
    found = accumulator.EventAccumulator(str(tmp_path / "runs" / "first"))
    found.Reload()
    assert {"loss", "lr", "val_loss"} <= set(found.Tags()["scalars"])
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 4.5), (2, 4.25)]
    assert [(event.step, event.value) for event in found.Scalars("val_loss")] == [(2, 4.75)]


def records(content):
    """Yield the records of W&B's file: LevelDB's log format after a head of 7 bytes, in blocks of 32 kB."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:  # no head of a piece fits
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7:at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last piece
            yield record
            record = b""


def test_weights_and_biases(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run_the_line(tmp_path, "wandb")
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = [wandb_internal_pb2.Record.FromString(record) for record in records(path.read_bytes())]
    steps = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
             for record in found if record.WhichOneof("record_type") == "history"]
    assert [{key: step[key] for key in line} for step, line in zip(steps, METRICS, strict=True)] == METRICS
