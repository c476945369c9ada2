"""The folder of a run: made once, written as it goes, and enough to go on from."""

import json
from typing import NamedTuple

import numpy as np
import pytest

import npgpt
from npgpt import safetensors
from npgpt.errors import FileError, FormatError
from npgpt.run import Run

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2)
BATCH = npgpt.Batch.from_sequences([[1, 2, 3, 4], [5, 6, 7]])


class Figures(NamedTuple):
    step: int
    loss: float


def trained(steps, r=2, full=False):
    """A model after a few steps, and its optimiser."""
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
    Run.create(tmp_path / "a" / "b")  # nothing has been asked for yet
    run.write_config({"epochs": 3})
    assert run.read_config() == {"epochs": 3}
    run.log(Figures(1, 0.5))
    with pytest.raises(FileError, match=r"b holds a run already: name another --out, or go on with it by --resume"):
        Run.create(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "metrics.jsonl").read_text()


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


def test_opening_wants_settings_and_state(tmp_path):
    with pytest.raises(FileError, match=r"cannot resume .*none: it has no config.json"):
        Run.open(tmp_path / "none")
    run = Run.create(tmp_path)
    run.write_config({})
    with pytest.raises(FileError, match=r"it has no state.safetensors; a run that was stopped by Ctrl-C or came to"):
        Run.open(tmp_path)
    run.save(*trained(1))
    assert Run.open(tmp_path).folder == tmp_path


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_the_state_is_all_of_the_optimiser(tmp_path, full):
    model, opt = trained(3, full=full)
    run = Run.create(tmp_path)
    place = run.save(model, opt)
    other, fresh = trained(0 if full else 1, full=full)
    run.load_state(fresh)
    assert fresh.steps == 3
    for name, tensor in model.parameters().items():
        assert np.array_equal(other.parameters()[name].data, tensor.data), name
    for name in opt.params:
        assert np.any(opt.m[name])
        assert np.array_equal(fresh.m[name], opt.m[name])
        assert np.array_equal(fresh.v[name], opt.v[name])
    for before, after in ((model, opt), (other, fresh)):
        npgpt.train_step(before, BATCH, after)  # the arrays are its own, not views of the file
    for name, tensor in model.parameters().items():
        assert np.array_equal(other.parameters()[name].data, tensor.data), name

    assert place == tmp_path / ("model" if full else "adapter")
    if full:
        saved = npgpt.GPT2.from_pretrained(place)
    else:
        saved = npgpt.load_adapter(npgpt.GPT2(CONFIG, seed=1), place)
    run.load_state(fresh)
    assert np.array_equal(saved.logits([1, 2, 3]), other.logits([1, 2, 3]))


def test_a_later_save_takes_the_place_of_an_earlier_one(tmp_path):
    model, opt = trained(1)
    run = Run.create(tmp_path)
    run.save(model, opt)
    before = sorted(tmp_path.rglob("*"))
    npgpt.train_step(model, BATCH, opt)
    run.save(model, opt)
    assert sorted(tmp_path.rglob("*")) == before
    _, fresh = trained(0)
    run.load_state(fresh)
    assert fresh.steps == 2


@pytest.mark.parametrize("change, message", [
    ({"r": 4}, r"parameter.h.0.attn.c_attn.lora_A has shape \(2, 16\), where \(4, 16\) is right"),
    ({"full": True}, r"parameter.wte.weight has shape None, where \(31, 16\) is right"),
])
def test_the_state_of_another_run_is_refused(tmp_path, change, message):
    run = Run.create(tmp_path)
    run.save(*trained(1))
    other, opt = trained(0, **change)
    before = {name: tensor.data.copy() for name, tensor in other.parameters().items()}
    with pytest.raises(FormatError, match=f"state.safetensors is not of this run: {message}"):
        run.load_state(opt)
    assert opt.steps == 0
    for name, tensor in other.parameters().items():
        assert np.array_equal(tensor.data, before[name])


def test_a_state_with_something_missing_or_added_is_refused(tmp_path):
    model, opt = trained(1)
    run = Run.create(tmp_path)
    run.save(model, opt)
    whole = dict(safetensors.read(tmp_path / "state.safetensors"))
    for changed in ({k: v for k, v in whole.items() if k != "steps"}, {**whole, "more": np.zeros(3)}):
        safetensors.write(tmp_path / "state.safetensors", changed)
        with pytest.raises(FormatError, match=r"state.safetensors is not of this run: (steps|more) has shape"):
            run.load_state(opt)
