"""The training of a run, from its first step to what is saved, with a progress bar. Ctrl-C and SIGTERM stop it."""

import contextlib
import dataclasses
import functools
import signal
import warnings

import npgpt
from npgpt.commands import lines, watch
from npgpt.data import Encoded
from npgpt.evaluation import evaluate
from npgpt.runtime.errors import DivergedError, FileError, NpgptError
from npgpt.runtime.threads import blas_threads
from npgpt.training.fit import FitConfig, best_step, fit, prune
from npgpt.training.report import write_report
from npgpt.training.run import Run
from npgpt.training.train import TrainConfig

SAMPLE_TOKENS = 40
SAMPLE_TEMPERATURE = 0.3


@dataclasses.dataclass
class Job:
    """Everything that a run works with. total: its steps; threads: those it began with, which decide the last bits;
    prompts: (text, ids) of each sample."""

    settings: dict
    config: TrainConfig
    total: int
    keeping: FitConfig
    model: npgpt.GPT2
    tokenizer: npgpt.Tokenizer
    training: Encoded
    held_out: Encoded | None
    opt: npgpt.AdamW
    run: Run
    threads: int
    prompts: list


def train(job, quiet):
    """Train to the end, or until Ctrl-C or SIGTERM. Returns (place, stopped).

    place    folder of the adapter or the model that was saved; None: the run was stopped within a step
    stopped  whether it was stopped before its end
    """
    with blas_threads(job.threads), watch.Bar(job.opt.steps, job.total, quiet) as bar:
        try:
            stopped = take_steps(job, bar)
        except KeyboardInterrupt:
            stopped = True
            if len(job.run.metrics()) < job.opt.steps:  # within a step, which metrics.jsonl does not have
                return None, stopped
        except FileError as error:
            raise FileError(f"{error}; {rescue(job)}{lines.way_on(job.run)}") from error
        except DivergedError as error:
            kept = [job.run.checkpoint(step) for step in job.run.steps()[-1:]]
            raise NpgptError(f"{error}; the last checkpoint before it is {kept[0]}" if kept else str(error)) from error
        with watch.handled(signal.SIG_IGN):
            place = save(job, stopped)
        if not stopped:
            finish(job, bar)
    return place, stopped


def take_steps(job, bar):
    """Measure the model as it is, then train it. Returns whether the training was stopped."""
    measured = functools.partial(measure, job, bar) if job.held_out else None
    if "before" not in job.run.results():
        job.run.record("before", {"val_loss": measured and measured(), "samples": samples(job, bar)})
    steps = fit(job.run, job.model, job.training.sequences, job.opt, job.config, job.keeping, measured)
    stop = watch.Stop()
    with watch.handled(stop.press):
        for _ in bar.steps(steps):
            if stop.asked:
                break
    return stop.asked and job.opt.steps < job.total


def measure(job, bar):
    """Return the held-out loss."""
    with bar.busy("measuring the held-out loss") as progress:
        sequences = job.held_out.sequences
        return evaluate.mean_nll(job.model, sequences, sequences.loss_masks, progress=progress).nll


def samples(job, bar):
    """Return (prompt, continuation) for each of the run's prompts. The draws are the same each time."""
    texts, model, tokenizer = [], job.model, job.tokenizer
    with bar.busy("writing samples"):
        for i, (prompt, ids) in enumerate(job.prompts):
            room = min(SAMPLE_TOKENS, model.config.n_positions - len(ids))
            out = npgpt.generate(model, ids, room, temperature=SAMPLE_TEMPERATURE, seed=job.settings["seed"] + i,
                                 eos_id=tokenizer.end_ids)
            new = out[len(ids):]
            new = [i for i in new.tolist() if i not in tokenizer.end_ids]
            texts.append((prompt, " ".join(tokenizer.decode(new).split())))
    return texts


def save(job, stopped):
    """Save the run, and its adapter or model: as of the best step, if the best is kept and the run has ended. Returns
    the folder of the adapter or the model.

    The result counts for more than the checkpoints: if one of those cannot be written or read, that is a warning.
    """
    try:
        job.run.save_checkpoint(job.model, job.opt)
        best = best_step(job.run.evaluations()) if job.keeping.keep_best and not stopped else None
        if best:
            job.run.load_checkpoint(best, job.opt)
    except NpgptError as error:
        warnings.warn(f"{error}; the result is that of step {job.opt.steps}", stacklevel=2)
    try:
        place = save_result(job)
    except FileError as error:
        raise FileError(f"{error}; {lines.way_on(job.run)}") from error
    prune(job.run, job.keeping)
    return place


def save_result(job):
    """Save the adapter or the model as it is now. Returns its folder."""
    place = job.run.save(job.model)
    if place == job.run.model:
        job.tokenizer.save(place)
    return place


def rescue(job):
    """Save the adapter or the model after a step whose record could not be written. Returns what there is to say."""
    if job.opt.steps:
        with contextlib.suppress(FileError):
            return f"what it has learned in {lines.count(job.opt.steps, 'step')} is saved in {save_result(job)}; "
    return ""


def finish(job, bar):
    """Record the results and write the report. All else is saved by now, so an error here is only a warning."""
    try:
        # `fit` ends with a measurement, and what --keep-best keeps was measured too.
        job.run.record("after", {"val_loss": dict(job.run.evaluations()).get(job.opt.steps),
                                 "samples": samples(job, bar)})
        write_report(job.run, job.model)
    except Exception as error:
        reason = error if isinstance(error, NpgptError) else f"{type(error).__name__}: {error}"
        warnings.warn(f"the report of {job.run.folder} is not complete: {reason}", stacklevel=2)
