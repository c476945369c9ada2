"""A whole training run, kept in its folder as it goes: measured, logged, saved, and ended early where that is asked."""

import dataclasses
import math

from npgpt.runtime.errors import ConfigError
from npgpt.training.train import train


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """When a run is measured, saved and ended. Raises ConfigError, naming the field.

    save_every  steps between checkpoints; 0: the caller saves, at the end
    keep        checkpoints that are kept, the newest ones
    eval_every  steps between measurements of the held-out loss, also made after the last step; None: after each epoch
    keep_best   also save whenever the held-out loss reaches a new low, and keep that checkpoint
    patience    end after this many measurements without a new low; None: never
    """

    save_every: int = 100
    keep: int = 1
    eval_every: int | None = None
    keep_best: bool = False
    patience: int | None = None

    def __post_init__(self):
        for name, least in {"save_every": 0, "keep": 1, "eval_every": 1, "patience": 1}.items():
            value = getattr(self, name)
            if value is None and name in ("eval_every", "patience"):
                continue
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} = {value}: it must be a whole number of at least {least}")


def fit(run, model, sequences, opt, config, keeping, measure=None):
    """Train from where `opt` stands, yielding (Step, val_loss or None) when a step is done, logged and saved.

    run      Run, whose metrics.jsonl ends where `opt` stands (see `Run.resume`)
    config   TrainConfig
    keeping  FitConfig
    measure  measure() -> the held-out loss; None: nothing is held out

    Whatever is decided here depends on metrics.jsonl and the step alone, so that a run that goes on decides as one that
    was never stopped. The caller may stop at any step it is given, and saves what it then has.
    """
    order = config.order(sequences.lengths)
    total = config.total_steps(order)
    every = keeping.eval_every or order.steps_per_epoch
    evaluations = run.evaluations()
    if exhausted(evaluations, keeping.patience):
        return
    for step in train(model, sequences, opt, config):
        measured, best = {}, best_step(evaluations)
        if measure and (step.step % every == 0 or step.step == total):
            measured["val_loss"] = measure()
            evaluations.append((step.step, measured["val_loss"]))
        run.log(step, **measured)
        new_low = keeping.keep_best and best_step(evaluations) != best
        if new_low or (keeping.save_every and step.step % keeping.save_every == 0):
            save(run, model, opt, keeping)
        yield step, measured.get("val_loss")
        if exhausted(evaluations, keeping.patience):
            return


def save(run, model, opt, keeping):
    """Write a checkpoint of where `opt` stands, and remove those that are not to be kept."""
    best = best_step(run.evaluations()) if keeping.keep_best else None
    run.save_checkpoint(model, opt, keeping.keep, spare=(best,))


def best_step(evaluations):
    """Return the step of the lowest loss in [(step, val_loss), ...], the first of equals; None where there is none."""
    return min(evaluations, key=lambda evaluation: (math.isnan(evaluation[1]), evaluation[1]), default=(None,))[0]


def exhausted(evaluations, patience):
    """Tell whether the last `patience` measurements brought no new low."""
    if patience is None or not evaluations:
        return False
    steps = [step for step, _ in evaluations]
    return len(steps) - 1 - steps.index(best_step(evaluations)) >= patience


def smoothed(values, weight=0.95):
    """Yield the running mean of `values`, each counting `weight` times as much as the next; the first as it is."""
    total, count = 0.0, 0.0
    for value in values:
        total, count = weight * total + value, weight * count + 1
        yield total / count
