"""A whole training run: it measures the held-out loss, logs and saves into its folder, and can stop early."""

import dataclasses
import math

from npgpt.runtime.errors import ConfigError
from npgpt.training.train import train


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """When a run measures, saves and stops. Raises ConfigError, naming the field.

    save_every  steps between checkpoints; 0: only the caller saves, at the end
    keep        how many of the newest checkpoints to keep
    eval_every  steps between measurements of the held-out loss; None: measure after each epoch. The last step is always
                measured
    keep_best   also save after each new low of the held-out loss, and keep that checkpoint
    patience    stop after this many measurements without a new low; None: never
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
    """Train from step `opt.steps` on. Yields (Step, val_loss or None) when a step is done, logged and saved.

    run      Run, whose metrics.jsonl ends at step `opt.steps` (see `Run.resume`)
    config   TrainConfig
    keeping  FitConfig
    measure  measure() -> the held-out loss; None: there are no held-out data

    All decisions here depend only on metrics.jsonl and the step, so that a resumed run decides like a run that was
    never stopped. The caller may stop after any step, and saves then.
    """
    order = config.order(sequences.lengths)
    total = config.total_steps(order)
    every = keeping.eval_every or order.steps_per_epoch
    evaluations = run.evaluations()
    if out_of_patience(evaluations, keeping.patience):
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
        if out_of_patience(evaluations, keeping.patience):
            return


def save(run, model, opt, keeping):
    """Write a checkpoint after step `opt.steps`, and remove the checkpoints that `keeping` does not keep."""
    run.save_checkpoint(model, opt)
    prune(run, keeping)


def prune(run, keeping):
    """Remove the checkpoints that `keeping` does not keep."""
    run.prune(keeping.keep, spare=(best_step(run.evaluations()),) if keeping.keep_best else ())


def best_step(evaluations):
    """Return the step of the lowest loss in [(step, val_loss), ...], the first if several are equal; None if empty."""
    return min(evaluations, key=lambda evaluation: (math.isnan(evaluation[1]), evaluation[1]), default=(None,))[0]


def out_of_patience(evaluations, patience):
    """Return whether the last `patience` measurements had no new low."""
    if patience is None or not evaluations:
        return False
    steps = [step for step, _ in evaluations]
    return len(steps) - 1 - steps.index(best_step(evaluations)) >= patience


def smoothed(values, weight=0.95):
    """Yield the running mean of `values`. Each value has `weight` times the weight of the next one."""
    total, count = 0.0, 0.0
    for value in values:
        total, count = weight * total + value, weight * count + 1
        yield total / count
