"""A whole run: when it measures, saves and stops, and that a resumed run does the same."""

import numpy as np
import pytest

import npgpt
from npgpt.data import Sequences
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator
from npgpt.training.fit import FitConfig, best_step, fit, out_of_patience, smoothed
from npgpt.training.run import Run
from npgpt.training.train import TrainConfig

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.2)
SEQUENCES = Sequences.of([generator(0, "test", i).integers(0, 31, 6) for i in range(6)])
TRAINING = TrainConfig(epochs=4, batch_size=2, threads=1)
LOSSES = [3.0, 2.0, 2.5, 1.5, 1.6, 1.7, 1.4, 1.8]  # one for each measurement


def start(folder):
    model = npgpt.GPT2(CONFIG, seed=1)
    npgpt.add_lora(model, npgpt.LoraConfig(r=2))
    run = Run.create(folder)
    run.write_config({})
    return run, model, npgpt.AdamW(model.trainable_parameters())


def steps(run, model, opt, keeping, losses=LOSSES, config=TRAINING):
    """Return [(step, val_loss), ...] of a run of 12 steps, 3 in each epoch."""
    left = iter(losses or [])
    return [(step.step, loss) for step, loss in fit(run, model, SEQUENCES, opt, config, keeping,
                                                    losses and (lambda: next(left)))]


@pytest.mark.parametrize("eval_every, expected", [(None, [3, 6, 9, 12]), (5, [5, 10, 12]), (12, [12]), (50, [12])])
def test_when_it_is_measured(tmp_path, eval_every, expected):
    run, model, opt = start(tmp_path)
    yielded = steps(run, model, opt, FitConfig(eval_every=eval_every))
    assert [step for step, _ in yielded] == list(range(1, 13))
    assert [(step, loss) for step, loss in yielded if loss is not None] == run.evaluations()
    assert run.evaluations() == list(zip(expected, LOSSES, strict=False))


def test_nothing_is_measured_where_nothing_is_held_out(tmp_path):
    run, model, opt = start(tmp_path)
    assert all(loss is None for _, loss in steps(run, model, opt, FitConfig(), losses=None))
    assert run.evaluations() == []


@pytest.mark.parametrize("keeping, expected", [
    (FitConfig(save_every=5, keep=9), [5, 10]),
    (FitConfig(save_every=5), [10]),
    (FitConfig(save_every=0), []),
    (FitConfig(save_every=4, keep=2), [8, 12]),
    (FitConfig(save_every=0, keep=9, eval_every=2, keep_best=True), [2, 4, 8]),
    (FitConfig(save_every=3, eval_every=2, keep_best=True), [8, 12]),
])
def test_what_is_kept(tmp_path, keeping, expected):
    run, model, opt = start(tmp_path)
    steps(run, model, opt, keeping)
    assert run.steps() == expected


@pytest.mark.parametrize("patience, last", [(None, 12), (1, 6), (2, 12), (9, 12)])
def test_patience(tmp_path, patience, last):
    """The measurements after steps 2, 4, 6 ... find 3.0, 2.0, 2.5, 1.5, 1.6 and 1.7."""
    run, model, opt = start(tmp_path)
    keeping = FitConfig(eval_every=2, patience=patience)
    assert steps(run, model, opt, keeping)[-1][0] == last
    assert steps(run, model, opt, keeping) == []  # the run has ended


@pytest.mark.parametrize("stop", [1, 4, 5, 8, 11])
def test_going_on_decides_as_if_never_stopped(tmp_path, stop):
    keeping = FitConfig(save_every=2, eval_every=1, keep_best=True, patience=5, keep=2)
    losses = [9, 8, 7, 7.5, 7.5, 7.5, 6, 6.5, 6.5, 6.5, 6.5, 6.5]
    run, model, opt = start(tmp_path / "whole")
    whole = steps(run, model, opt, keeping, losses)
    assert whole[-1][0] == 12

    other, model, opt = start(tmp_path / "other")
    left = iter(losses)
    for step, _ in fit(other, model, SEQUENCES, opt, TRAINING, keeping, lambda: next(left)):
        if step.step == stop:
            break
    again = npgpt.GPT2(CONFIG, seed=1)
    npgpt.add_lora(again, npgpt.LoraConfig(r=2), seed=7)
    opt = npgpt.AdamW(again.trainable_parameters())
    other.resume(opt)
    steps(other, again, opt, keeping, losses[opt.steps:])
    assert other.evaluations() == run.evaluations()
    assert other.steps() == run.steps() == [7, 10, 12]
    for step in run.steps():
        files = [each.checkpoint(step) / "state.safetensors" for each in (run, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_best_step():
    assert best_step([]) is None
    assert best_step([(2, 3.0), (4, 2.0), (6, 2.0), (8, 2.5)]) == 4
    assert best_step([(2, float("nan")), (4, 2.0)]) == 4
    assert not out_of_patience([], 1)
    assert not out_of_patience([(1, 1.0)], 1)
    assert out_of_patience([(1, 1.0), (2, 1.0)], 1)
    assert not out_of_patience([(1, 1.0), (2, 1.5), (3, 0.5), (4, 0.7)], 2)


def test_smoothing_is_a_mean_that_forgets():
    assert list(smoothed([])) == []
    assert list(smoothed([3.0, 3.0, 3.0])) == pytest.approx([3, 3, 3])
    assert list(smoothed([4.0, 1.0], weight=0.5)) == pytest.approx([4, (0.5 * 4 + 1) / 1.5])
    noise = np.random.default_rng(0).normal(size=1000)
    assert np.std(list(smoothed(noise))[100:]) < 0.25


@pytest.mark.parametrize("field, value", [("save_every", -1), ("save_every", 1.5), ("keep", 0), ("keep", None),
                                          ("eval_every", 0), ("patience", 0)])
def test_unusable_settings_are_named(field, value):
    with pytest.raises(ConfigError, match=f"{field} = {value}: it must be a whole number of at least"):
        FitConfig(**{field: value})
