"""The forecast of the time: the amounts of work equal those of `fit`, and a fake clock gives the times."""

import numpy as np
import pytest

import npgpt
from npgpt.batch import NO_TARGET, Batch
from npgpt.data import Sequences
from npgpt.runtime.seeding import generator
from npgpt.training import forecast
from npgpt.training.fit import FitConfig, fit
from npgpt.training.forecast import Work
from npgpt.training.recompute import has_gradient_checkpointing, set_gradient_checkpointing
from npgpt.training.run import Run
from npgpt.training.train import TrainConfig

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.2)
LENGTHS = [3, 9, 4, 7, 5, 8, 6, 2, 5, 5]
SEQUENCES = Sequences.of([generator(0, "test", i).integers(0, 31, length) for i, length in enumerate(LENGTHS)])


def adapted(seed=1):
    return npgpt.add_lora(npgpt.GPT2(CONFIG, seed=seed), npgpt.LoraConfig(r=2))


# Amounts


@pytest.mark.parametrize("config, keeping", [
    (TrainConfig(epochs=4, batch_size=3), FitConfig()),
    (TrainConfig(epochs=4, batch_size=3), FitConfig(eval_every=5, save_every=3)),
    (TrainConfig(epochs=4, batch_size=3, max_steps=7), FitConfig(eval_every=7, save_every=7)),
    (TrainConfig(epochs=2, batch_tokens=20, accumulate=2), FitConfig(save_every=0)),
    (TrainConfig(epochs=3, batch_size=1, accumulate=3), FitConfig(eval_every=2, save_every=2, keep_best=True)),
    (TrainConfig(epochs=3, batch_size=3), FitConfig(eval_every=2, save_every=0, keep_best=True)),
])
@pytest.mark.parametrize("done", [0, 2, 3])
def test_what_is_left_is_what_a_run_then_does(tmp_path, config, keeping, done):
    """The losses fall, so each is a new low. The caller saves at the end, as finetune.py does."""
    model = adapted()
    run, opt, measured, saved = Run.create(tmp_path), npgpt.AdamW(model.trainable_parameters()), [], set()
    run.write_config({})
    steps = fit(run, model, SEQUENCES, opt, config, keeping, lambda: -len(measured.append(opt.steps) or measured))
    for step, _ in steps:
        saved |= {*run.steps()}
        if step.step == done:
            measured.clear()
            saved = {step for step in saved if step > done}
    saved = {step for step in saved | {opt.steps} if step > done}
    work, batch = forecast.left(SEQUENCES, config, keeping, done, measured=100, sampled=40, before=done == 0)
    assert work.updates == opt.steps - done
    assert work.measured == 100 * (len([step for step in measured if step > done]) + (done == 0))
    assert work.sampled == 40 * (1 + (done == 0))
    if keeping.keep_best:  # each measurement writes a checkpoint, unless one was due anyway
        assert len(saved) <= work.checkpoints <= 2 * len(saved)
    else:
        assert work.checkpoints == len(saved)
    tokens = sum(line["tokens"] for line in run.metrics()[done:])
    assert work.micro_batches * len(batch.ids) == pytest.approx(tokens)
    assert 1 <= len(batch.lengths) <= 3 or config.batch_tokens


def test_the_typical_micro_batch_is_of_the_mean_size():
    config = TrainConfig(epochs=1, batch_size=2, accumulate=2)
    work, batch = forecast.left(SEQUENCES, config, FitConfig())
    order = config.order(SEQUENCES.lengths)
    parts = [part for step in range(3) for part in SEQUENCES.batch(order[step]).split(2)]
    assert any(np.array_equal(batch.ids, part.ids) for part in parts)
    assert abs(len(batch.ids) - sum(LENGTHS) / 5) <= 2
    assert work.micro_batches == pytest.approx(sum(LENGTHS) / len(batch.ids))


def test_one_long_text_is_not_typical():
    """The parts of the only step have 20, 10 and 10 tokens."""
    sequences = Sequences.of([np.arange(length) for length in (20, *[2] * 10)])
    work, batch = forecast.left(sequences, TrainConfig(epochs=1, batch_size=3, accumulate=4), FitConfig())
    assert (len(batch.ids), work.micro_batches) == (10, 4)


def test_a_run_that_has_ended_has_nothing_left_but_samples():
    config = TrainConfig(epochs=1, batch_size=5)
    work, _ = forecast.left(SEQUENCES, config, FitConfig(), done=2, measured=100, sampled=40, before=False)
    assert work == Work(0, 0, 0, 40, 0)


def test_what_is_not_done_costs_nothing():
    assert forecast.seconds(Work(10, 5, 100, 40, 2), Work(0.5, 0.1, 0.01, 0.2, 3)) == 5 + 0.5 + 1 + 8 + 6
    work, _ = forecast.left(SEQUENCES, TrainConfig(), FitConfig())
    assert (work.measured, work.sampled) == (0, 0)


# Prices, by a clock that advances only when work is done


class Clock:
    """Make each kind of work take the given seconds."""

    def __init__(self, monkeypatch, fixed=0.01, token=0.001, loss=0.0002, sample=0.02, update=0.003):
        self.now, self.tokens, self.counts = 0.0, 0, dict.fromkeys(("batch", "loss", "sample", "update"), 0)

        def takes(name, seconds):
            def work(*args, **kwargs):
                self.counts[name] += 1
                self.now += seconds(*args)

            return work

        def batch(model, piece, rng):
            self.tokens += len(piece.ids)
            return fixed + token * len(piece.ids)

        monkeypatch.setattr(forecast, "loss_and_gradients", takes("batch", batch))
        monkeypatch.setattr(forecast, "token_losses", takes("loss", lambda model, piece: loss * (len(piece.ids) + 10)))
        monkeypatch.setattr(forecast, "generate", takes("sample", lambda model, ids, count: sample * count))
        monkeypatch.setattr(npgpt.AdamW, "step", takes("update", lambda opt, grads: update))

    def __call__(self):
        return self.now


def long(length):
    return Sequences.of([generator(0, "test", 0).integers(0, 31, length)])


def test_the_prices(monkeypatch):
    clock = Clock(monkeypatch)
    amounts, batch = Work(9, 9, 100, 40, 0), SEQUENCES.batch([0, 1, 2])
    prices = forecast.tried(adapted(), batch, amounts, TrainConfig(), SEQUENCES, clock=clock)
    assert prices == pytest.approx(Work(0.01 + 0.001 * 16, 0.003, 0.0002 * 64 / 54, 0.02, 0))
    assert clock.now < 4 * forecast.MOMENT


def test_an_update_and_a_checkpoint_are_tried_in_part(monkeypatch, tmp_path):
    """An adapter of rank 2 on c_attn of width 16 has 2 x 16 + 48 x 2 numbers; the update is timed on a row of 16. With
    the moments and the adapter itself they make 2,048 bytes; the trial writes 512 of them."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(forecast, "SOME", 16)
    monkeypatch.setattr(forecast, "WRITTEN", 512)
    monkeypatch.setattr(forecast.os, "fsync", lambda _: setattr(clock, "now", clock.now + 0.001))
    prices = forecast.tried(adapted(), SEQUENCES.batch([0]), Work(1, 1, 0, 0, 1), TrainConfig(), folder=tmp_path,
                            clock=clock)
    assert prices.updates == pytest.approx(0.003 * 128 / 16)
    assert prices.checkpoints == pytest.approx(0.001 * forecast.FILES * 4)


def test_what_there_is_none_of_is_not_tried(monkeypatch):
    clock = Clock(monkeypatch)
    prices = forecast.tried(adapted(), SEQUENCES.batch([0]), Work(9, 0, 0, 0, 0), TrainConfig(), SEQUENCES, clock=clock)
    assert prices[1:] == (0, 0, 0, 0)
    assert clock.counts["batch"] and not any(clock.counts[name] for name in ("loss", "sample", "update"))


@pytest.mark.parametrize("count, whole", [(5, False), (12, False), (25, True)])
def test_a_large_micro_batch_is_tried_in_pieces_where_there_are_few(monkeypatch, count, whole):
    """1,000 tokens take 11 s. The line through the times of two pieces gives exactly this."""
    clock = Clock(monkeypatch, fixed=1.0, token=0.01)
    batch = long(1000).batch([0])
    prices = forecast.tried(adapted(), batch, Work(count, 0, 0, 0, 0), TrainConfig(), clock=clock)
    assert prices.micro_batches == pytest.approx(11.0)
    assert clock.now < 11 * count / 8  # a small part of the whole run
    assert (clock.tokens >= 1000) == whole


def test_long_held_out_texts_are_tried_in_pieces_too(monkeypatch):
    clock = Clock(monkeypatch, fixed=0.1, token=0.01, loss=0.003)
    prices = forecast.tried(adapted(), long(64).batch([0]), Work(1, 0, 9, 0, 0), TrainConfig(), long(2000), clock=clock)
    assert prices.measured == pytest.approx(0.003 * 2010 / 2000)
    assert clock.counts["loss"] == 2


def test_noise_does_not_turn_the_line(monkeypatch):
    """The first piece took longer than the second, or no time at all."""
    for low, least, most in ((9.0, 0.5, 1.0), (0.0, 0.999, 1.001)):
        time = forecast._extrapolate({10: low, 20: 2.0}.get, 10, 20, 100)
        assert least * 10 <= time <= most * 10


def test_the_first_time_does_not_count_where_there_are_others():
    ticks = iter([0, 5, 5, 6, 6, 8, 8, 9])
    assert forecast._median_time(lambda: None, lambda: next(ticks), moment=9) == 1
    ticks = iter([0, 5])
    assert forecast._median_time(lambda: None, lambda: next(ticks), moment=1) == 5


def test_a_clock_that_stands_still():
    prices = forecast.tried(adapted(), SEQUENCES.batch([0]), Work(9, 9, 100, 40, 0), TrainConfig(), SEQUENCES,
                            clock=lambda: 0.0)
    assert prices == Work(0, 0, 0, 0, 0)


def test_a_piece_has_as_many_targets_for_its_tokens():
    """A piece has at least one target, even if all targets of the batch come later, as after a long prompt."""
    ids = np.arange(20)
    batch = Batch(ids, np.where(ids < 15, NO_TARGET, ids), np.array([8, 12]))
    piece = forecast._piece(batch, 12)
    assert piece.ids.tolist() == [*range(12)]
    assert piece.lengths.tolist() == [8, 4]
    assert piece.n_targets == 3
    piece = forecast._piece(batch, 2)
    assert (piece.lengths.tolist(), piece.n_targets) == ([2], 1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trying_changes_nothing(tmp_path, full, checkpointing):
    model = npgpt.GPT2(CONFIG, seed=1) if full else adapted()
    set_gradient_checkpointing(model, checkpointing)
    before = {name: (tensor.data, tensor.data.copy(), tensor.trainable) for name, tensor in model.parameters().items()}
    config = TrainConfig(batch_size=3)
    amounts, batch = forecast.left(SEQUENCES, config, FitConfig(), measured=54, sampled=40)
    prices = forecast.tried(model, batch, amounts, config, SEQUENCES, tmp_path)
    assert all(price > 0 for price in prices)
    assert [*tmp_path.iterdir()] == []
    assert has_gradient_checkpointing(model) == checkpointing
    for name, tensor in model.parameters().items():
        data, copy, trainable = before[name]
        assert tensor.data is data and tensor.trainable == trainable
        np.testing.assert_array_equal(data, copy)


def test_a_folder_that_cannot_be_written_is_no_business_of_a_forecast(tmp_path):
    amounts = Work(1, 0, 0, 0, 1)
    prices = forecast.tried(adapted(), SEQUENCES.batch([0]), amounts, TrainConfig(), folder=tmp_path / "none")
    assert prices.checkpoints == 0
