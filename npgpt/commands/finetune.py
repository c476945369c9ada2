"""Fine-tune GPT-2 with LoRA on a CPU.

Without flags: load gpt2 (or the small model in the package, if gpt2 cannot be had), train an adapter on the texts in
the package, show loss, perplexity and sample texts before and after, and save the adapter.
"""

import time
import warnings

from npgpt.commands import adapting, dataset, estimates, identity, lines, models, preview, running
from npgpt.commands.flags import Parser
from npgpt.commands.settings import (
    FLAGS,
    adapter_configuration,
    configuration,
    given_in_all,
    new_settings,
    resumed_settings,
    tiny_defaults,
)
from npgpt.runtime.memory import keep_freed_memory, resident
from npgpt.training.fit import FitConfig, best_step
from npgpt.training.report import write_report
from npgpt.training.run import Run, fingerprint
from npgpt.training.train import TrainConfig


def parse_arguments(argv):
    """Return what is given on the command line, and nothing that is not: dict."""
    return Parser(__doc__, FLAGS).given(argv)


def main(given):
    """Settings, model, data, adapter, estimate, run, report. Returns the exit status."""
    started = time.perf_counter()
    keep_freed_memory()
    printer = lines.Printer(given.get("quiet", False))
    given = given_in_all(given)
    run = Run.open(given["resume"]) if "resume" in given else None
    settings = resumed_settings(run, given) if run else new_settings(given)
    config, keeping = configuration(TrainConfig, settings), configuration(FitConfig, settings)
    if "preview" in given:
        return preview.show(settings, given["preview"])

    documents, adapter = dataset.read(settings), adapter_configuration(settings)  # before the model is downloaded
    dataset.check_measured(documents, settings)
    model, tokenizer = load_model(settings, {} if run else tiny_defaults(settings, given), printer)
    weights = fingerprint(tensor.data for tensor in model.parameters().values())
    added = add_tokens(model, tokenizer, settings, printer)
    training, held_out = load_data(documents, settings, model, tokenizer, printer)
    adapting.check_added_occur(added, training.sequences, tokenizer)
    opt = add_adapter(model, adapter, added, settings, printer)
    held = resident()
    if "max_memory" in given and not run:
        config = fit_into(given["max_memory"], held, model, training, config, settings, printer)

    total = config.total_steps(config.order(training.sequences.lengths))  # wrong micro-batches are refused here
    run = open_run(run, given, identity.description(settings, weights, training, held_out), opt)
    run.tokenizer = tokenizer if added else None
    threads = identity.threads_of(run.read_config(), run.folder)
    job = running.Job(settings, config, total, keeping, model, tokenizer, training, held_out, opt, run, threads)
    announce(job, "resume" in given, held, started, printer)
    place, stopped = running.train(job, printer.quiet)
    if stopped:
        printer.result(*lines.stopped(run, opt.steps, total, place))
        return 130
    report(job, place, started, printer)
    return 0


def load_model(settings, tiny, printer):
    """Return (model, tokenizer). tiny: settings that have another default for the embedded model."""
    model, tokenizer = models.load(settings["model"], settings["revision"])
    model.gradient_checkpointing = settings["checkpoint"]
    printer.detail(*lines.model(settings["model"], model.config, tiny))
    return model, tokenizer


def add_tokens(model, tokenizer, settings, printer):
    """Add the tokens of --add-tokens to model and tokenizer. Returns their ids."""
    before = model.config.vocab_size
    ids = adapting.add_tokens(model, tokenizer, settings["add_tokens"])
    printer.detail(*lines.added_tokens(settings["add_tokens"], ids, tokenizer, before, model.config.vocab_size))
    return ids


def load_data(documents, settings, model, tokenizer, printer):
    """Return two Encoded: what to train on, and what to measure on (None: nothing)."""
    encoded = dataset.encode(documents, settings, model.config, tokenizer)
    length = dataset.longest(settings, model.config)
    printer.detail(*lines.data(settings, documents, encoded, length, tokenizer))
    training, held_out = [e for _, e in encoded] if len(encoded) == 2 else (encoded[0][1], None)
    return training, held_out


def add_adapter(model, adapter, added, settings, printer):
    """Make trainable what is to be trained. Returns the AdamW over it."""
    adapting.prepare(model, adapter, added, settings)
    printer.detail(*lines.adapter(adapter, model, added))
    return adapting.optimizer(model, settings)


def fit_into(most, held, model, training, config, settings, printer):
    """Return a TrainConfig with which the process takes at most `most` bytes, and put what was chosen into settings."""
    config, takes, texts = estimates.fit_into(most, held, model, training.sequences, config, settings["checkpoint"])
    settings |= {"batch_size": config.batch_size, "batch_tokens": config.batch_tokens,
                 "accumulate": config.accumulate, "checkpoint": model.gradient_checkpointing}
    printer.detail(*lines.fitted(takes, texts, config, model.gradient_checkpointing))
    return config


def open_run(run, given, about, opt):
    """Return the Run: the one to resume, with `opt` as it was at its last checkpoint, or a new one.

    about  what config.json holds
    """
    if "config" in given:
        identity.repeat(given["config"], about)
    if run:
        identity.check_nothing_changed(run, about)
        run.resume(opt)
        return run
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    run = Run.create(given["out"]) if "out" in given else Run.create_anew("runs", now)
    run.write_config(about)
    return run


def announce(job, resumed, held, started, printer):
    """Print what the run is going to do, and what it will take. held: bytes that the process held before it."""
    config, total = job.config, job.total
    if config.warmup >= total:
        warnings.warn(f"--warmup {config.warmup}: this run has {lines.count(total, 'step')}, so the learning rate "
                      f"never reaches {config.lr:g}", stacklevel=2)
    if resumed:
        printer.detail(*lines.resumed(job.run, job.opt.steps, total))
    order = config.order(job.training.sequences.lengths)
    printer.detail(*lines.training(order, config, total, job.settings["weight_decay"]))
    if not printer.quiet:
        memory, tokens, seconds = estimates.cost(job, held)
        printer.detail(*lines.cost(memory, tokens, time.perf_counter() - started + seconds))


def report(job, place, started, printer):
    """Print what came out, and how to use it. place: folder of the adapter or the model."""
    best = best_step(job.run.evaluations()) if job.keeping.keep_best else None
    printer.result(*lines.losses(job.run, best))
    printer.detail(*lines.samples(job.run), f"report     {write_report(job.run, job.model)}")
    printer.result(*lines.saved(place, time.perf_counter() - started))
    printer.detail(*lines.use(job.settings, place))
