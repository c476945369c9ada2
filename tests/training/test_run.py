"""The folder of a run: it is made once, written during the run, and enough to resume from."""

import builtins
import concurrent.futures
import errno
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import npgpt
from npgpt.files import safetensors
from npgpt.runtime.errors import FileError, FormatError
from npgpt.training.run import Run, difference, fingerprint

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2)
BATCH = npgpt.Batch.from_sequences([[1, 2, 3, 4], [5, 6, 7]])


class Figures(NamedTuple):
    step: int
    loss: float


def trained(steps, r=2, full=False):
    """Return a model after a few steps, and its optimiser."""
    model = npgpt.GPT2(CONFIG, seed=1)
    if not full:
        npgpt.add_lora(model, npgpt.LoraConfig(r=r, lora_dropout=0.0), seed=steps)
    opt = npgpt.AdamW(model.trainable_parameters())
    for _ in range(steps):
        npgpt.train_step(model, BATCH, opt)
    return model, opt


def test_a_run_is_made_once(tmp_path):
    run = Run.create(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "metrics.jsonl").read_text() == ""
    with pytest.raises(FileError, match=r"b is in use: another process writes into it"):
        Run.create(tmp_path / "a" / "b")
    del run
    run = Run.create(tmp_path / "a" / "b")  # allowed, because the folder has no settings yet
    run.write_config({"epochs": 3})
    assert run.read_config() == {"epochs": 3}
    run.log(Figures(1, 0.5))
    with pytest.raises(FileError, match=r"b holds a run already: name another --out, or continue this run with --"):
        Run.create(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "metrics.jsonl").read_text()


def test_runs_that_start_at_the_same_moment_have_folders_of_their_own(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: Run.create_anew(tmp_path / "runs", "now"), range(8)))
    assert {run.folder.name for run in runs} == {"now", *(f"now-{number}" for number in range(2, 9))}
    assert all((run.folder / "metrics.jsonl").read_text() == "" for run in runs)
    (tmp_path / "runs" / "then").write_text("")  # a file can also take the name
    assert Run.create_anew(tmp_path / "runs", "then").folder == tmp_path / "runs" / "then-2"
    with pytest.raises(FileError, match=r"cannot write into .*then: File exists"):
        Run.create_anew(tmp_path / "runs" / "then", "now")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileError, match=f"cannot write into {folder}: "):
            Run.create(folder)
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(FileError, match=r"cannot write into .*run: Is a directory"):
        Run.create(tmp_path / "run")
    with pytest.raises(FileError, match=r"cannot write .*metrics.jsonl: Is a directory"):
        Run(tmp_path / "run").log(Figures(1, 0.5))
    assert (tmp_path / "file").read_text() == ""


def test_metrics_are_lines_of_json(tmp_path):
    run = Run.create(tmp_path)
    run.log(Figures(1, 0.5))
    run.log(Figures(2, 0.25), val_loss=0.75)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "val_loss": 0.75}]


def test_a_line_cut_short_is_no_line(tmp_path):
    run = Run.create(tmp_path)
    run.log(Figures(1, 0.5))
    run.log(Figures(2, 0.25), val_loss=0.75)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert run.evaluations() == [(2, 0.75)]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(FormatError, match=r"metrics.jsonl:2: expected a line of a run"):
        run.metrics()


def test_opening_wants_a_run(tmp_path):
    with pytest.raises(FileError, match=r"none holds no run, because it has no config.json"):
        Run.open(tmp_path / "none")
    Run.create(tmp_path).write_config({})
    assert Run.open(tmp_path).folder == tmp_path


def saved(folder, model, opt):
    """Return a run with a checkpoint after step `opt.steps` and a line for every step."""
    run = Run(folder) if (folder / "config.json").exists() else Run.create(folder)
    if not (folder / "config.json").exists():
        run.write_config({"settings": {"lr": 0.1}})
    for step in range(len(run.metrics()) + 1, opt.steps + 1):
        run.log(Figures(step, 0.5))
    run.save_checkpoint(model, opt)
    return run


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_a_checkpoint_is_all_of_the_optimiser(tmp_path, full):
    model, opt = trained(3, full=full)
    run = saved(tmp_path, model, opt)
    place = run.save(model)
    other, fresh = trained(0 if full else 1, full=full)
    run.resume(fresh)
    assert fresh.steps == 3
    for name, tensor in model.parameters().items():
        assert np.array_equal(other.parameters()[name].data, tensor.data), name
    for name in opt.params:
        assert np.any(opt.m[name])
        assert np.array_equal(fresh.m[name], opt.m[name])
        assert np.array_equal(fresh.v[name], opt.v[name])
    for before, after in ((model, opt), (other, fresh)):
        npgpt.train_step(before, BATCH, after)  # the arrays must not be views of the file
    for name, tensor in model.parameters().items():
        assert np.array_equal(other.parameters()[name].data, tensor.data), name

    assert place == tmp_path / ("model" if full else "adapter")
    folders = [place] if full else [place, run.checkpoint(3) / "adapter"]
    run.load_checkpoint(3, fresh)
    for folder in folders:
        loaded = (npgpt.GPT2.from_pretrained(folder) if full
                  else npgpt.load_adapter(npgpt.GPT2(CONFIG, seed=1), folder))
        assert np.array_equal(loaded.logits([1, 2, 3]), other.logits([1, 2, 3]))


def test_old_checkpoints_are_removed(tmp_path):
    model, opt = trained(1)
    for expected in ([1], [1, 2], [1, 2, 3], [1, 3, 4], [1, 4, 5]):
        run = saved(tmp_path, model, opt)
        run.prune(keep=2, spare=(1,))
        assert run.steps() == expected
        npgpt.train_step(model, BATCH, opt)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-4", "step-5"]
    run.save_checkpoint(model, opt)
    assert run.steps() == [1, 4, 5, 6]


def test_a_checkpoint_that_cannot_be_removed_stays(tmp_path, monkeypatch):
    for steps in (1, 2):
        run = saved(tmp_path, *trained(steps))
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "not allowed")))
    with pytest.warns(UserWarning, match=r"cannot remove .*step-1: not allowed; remove it by hand"):
        run.prune(keep=1)
    assert run.steps() == [1, 2]


def test_going_on_cuts_what_is_behind_the_checkpoint_and_what_a_killed_process_left(tmp_path):
    model, opt = trained(2)
    run = saved(tmp_path, model, opt)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run.log(Figures(3, 0.5))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (tmp_path / "checkpoints" / ".step-4.77.tmp" / "adapter").mkdir(parents=True)
    (tmp_path / ".results.json.77.tmp").write_text("{")
    _, fresh = trained(0)
    run.resume(fresh)
    assert fresh.steps == 2
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_going_on_without_a_checkpoint_begins_again(tmp_path):
    run = Run.create(tmp_path)
    run.write_config({})
    run.log(Figures(1, 0.5))
    _, fresh = trained(0)
    run.resume(fresh)
    assert fresh.steps == 0
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_checkpoint_without_the_lines_before_it_is_refused(tmp_path):
    run = saved(tmp_path, *trained(3))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(lines[0] + lines[2])
    with pytest.raises(FormatError, match=r"metrics.jsonl lacks step 2, but its checkpoint is after step 3"):
        run.resume(trained(0)[1])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run = saved(tmp_path, *trained(1))
    run.write_config({"settings": {"lr": 0.2}})
    with pytest.raises(FormatError, match=r"config.json has changed since .*step-1 was written: settings.lr was 0.1 and"
                                          r" is 0.2; a resumed run goes on as it began"):
        run.resume(trained(0)[1])


def test_differences_are_named():
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert difference(before, {"a": {"b": 1, "c": [1, 2]}, "d": None}) is None
    assert difference(before, {"a": {"b": 1, "c": [1, 3]}, "d": None}) == "a.c was [1, 2] and is [1, 3]"
    assert difference(before, {"a": {"b": 1, "c": [1, 2]}}) == "d is missing"
    assert difference(before, {**before, "e": 1}) == "e is new"
    assert difference(before, {"a": 3, "d": None}, "x.") == "x.a was {'b': 1, 'c': [1, 2]} and is 3"


def test_fingerprints_tell_arrays_apart():
    arrays = [np.arange(6, dtype=np.int32), np.ones(2, np.int32)]
    others = [[np.arange(6, dtype=np.int64), arrays[1]], [arrays[0].reshape(2, 3), arrays[1]], arrays[::-1],
              [np.concatenate(arrays)], [arrays[0]]]
    prints = [fingerprint(each) for each in [arrays, *others]]
    assert len(set(prints)) == len(prints)
    assert fingerprint([array.copy() for array in arrays]) == prints[0]


@pytest.mark.parametrize("change, message", [
    ({"r": 4}, r"parameter.h.0.attn.c_attn.lora_A has shape \(2, 16\), expected \(4, 16\)"),
    ({"full": True}, r"parameter.wte.weight has shape None, expected \(31, 16\)"),
])
def test_the_state_of_another_run_is_refused(tmp_path, change, message):
    run = saved(tmp_path, *trained(1))
    other, opt = trained(0, **change)
    before = {name: tensor.data.copy() for name, tensor in other.parameters().items()}
    with pytest.raises(FormatError, match=f"state.safetensors does not belong to this run: {message}"):
        run.resume(opt)
    assert opt.steps == 0
    for name, tensor in other.parameters().items():
        assert np.array_equal(tensor.data, before[name])


def test_a_state_with_something_missing_added_or_of_another_step_is_refused(tmp_path):
    model, opt = trained(1)
    run = saved(tmp_path, model, opt)
    path = run.checkpoint(1) / "state.safetensors"
    whole = dict(safetensors.read(path))
    for changed in ({k: v for k, v in whole.items() if k != "steps"}, {**whole, "more": np.zeros(3)}):
        safetensors.write(path, changed)
        with pytest.raises(FormatError, match=r"state.safetensors does not belong to this run: (steps|more) has shape"):
            run.resume(opt)
    safetensors.write(path, {**whole, "steps": np.array(7)})
    with pytest.raises(FormatError, match=r"state.safetensors: steps is 7, expected 1"):
        run.resume(opt)


def full(after):
    """Simulate a disk that is full after `after` operations: each later one fails with ENOSPC."""
    left = [after]

    def failing(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)
        return call

    return failing


@pytest.mark.parametrize("after", range(12))
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, after):
    model, opt = trained(1)
    run = saved(tmp_path, model, opt)
    npgpt.train_step(model, BATCH, opt)
    run.log(Figures(2, 0.5))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        failing = full(after)
        for owner, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (builtins, "open"), (Path, "mkdir")):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        with pytest.raises(FileError, match=r"cannot write .*: No space left on device"):
            run.save_checkpoint(model, opt)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    _, fresh = trained(0)
    run.resume(fresh)
    assert fresh.steps == 1


def test_a_run_goes_on_from_the_newest_of_its_checkpoints(tmp_path):
    """It resumes from the newest checkpoint. From an older one the result would be the same, but later."""
    run = Run.create(tmp_path)
    run.write_config({})
    for steps in range(1, 4):
        run.log(Figures(steps, 0.5))
        run.save_checkpoint(*trained(steps))
    fresh = trained(0)[1]
    run.resume(fresh)
    assert fresh.steps == 3
    assert len(run.metrics()) == 3
