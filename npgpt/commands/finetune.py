"""Fine-tune GPT-2 with LoRA on a CPU.

Without flags: load gpt2 (or the small model in the package, if gpt2 cannot be had), train an adapter on the texts in
the package, show loss, perplexity and sample texts before and after, and save the adapter.
"""

import dataclasses
import time
import warnings

import npgpt
from npgpt.adapters import pretrained
from npgpt.adapters.lora_config import LoraConfig
from npgpt.commands import (
    adapting,
    dataset,
    effects,
    estimates,
    identity,
    lines,
    preview,
    running,
    samples,
    settings,
    start,
)
from npgpt.commands.flags import Parser
from npgpt.commands.settings import FLAGS
from npgpt.runtime.errors import NpgptError
from npgpt.runtime.memory import keep_freed_memory, resident
from npgpt.training.fit import FitConfig, best_step
from npgpt.training.recompute import has_gradient_checkpointing, set_gradient_checkpointing
from npgpt.training.run import Run, fingerprint
from npgpt.training.train import TrainConfig


def parse_arguments(argv):
    """Return what is given on the command line, and nothing that is not: dict."""
    return Parser(__doc__, FLAGS).given(argv)


def main(given):
    """Settings, model, data, adapter, estimate, run, report. Returns the exit status."""
    started = time.perf_counter()
    keep_freed_memory()
    plan = make_plan(given)
    if "preview" in given:
        return preview.show(plan.settings, given["preview"])
    documents = dataset.read(plan.settings)  # before the model, which may have to be downloaded
    dataset.check_measured(documents, plan.settings)
    base = load_base(plan)
    training, held_out = load_data(plan, documents, base)
    opt = add_adapter(plan, base)
    held = resident()
    fit_into_memory(plan, base, training, held_out, held)
    found = samples.prompts_of(plan.settings, documents, training, held_out, base.model, base.tokenizer)
    job = open_run(plan, base, training, held_out, opt, found)
    job.run.recipe = dataset.recipe(documents, plan.settings, base.model.config)
    announce(plan, job, held, started)
    place, stopped = running.train(job, plan.printer.quiet)
    if stopped:
        plan.printer.result(*lines.stopped(job.run, opt.steps, job.total, place))
        return start.status()
    report(plan, job, place, started)
    return 0


@dataclasses.dataclass
class Plan:
    """What this run does. adapter: of a new adapter, else None; run: the run to resume, None for a new one."""

    given: dict
    settings: dict
    adapter: LoraConfig | None
    config: TrainConfig
    keeping: FitConfig
    run: Run | None
    printer: lines.Printer


def make_plan(given):
    """Return the Plan for what the command line gives. Wrong settings are refused here."""
    given = settings.given_in_all(given)
    run = Run.open(given["resume"]) if "resume" in given else None
    chosen = settings.resumed_settings(run, given) if run else settings.new_settings(given)
    if run and "preview" not in given:
        run.lock()
    if chosen["adapter"] is not None:
        pretrained.base_name(chosen["adapter"])  # now, before data and model are read: is there an adapter?
    config, keeping = (settings.configuration(of_class, chosen) for of_class in (TrainConfig, FitConfig))
    printer = lines.Printer(given.get("quiet", False))
    return Plan(given, chosen, settings.adapter_configuration(chosen), config, keeping, run, printer)


@dataclasses.dataclass
class Base:
    """The model that is adapted. weights: their fingerprint as they were loaded; added: ids of added tokens."""

    model: npgpt.GPT2
    tokenizer: npgpt.Tokenizer
    weights: str
    added: list


def load_base(plan):
    """Load model and tokenizer, and add the tokens of --add-tokens to them. Returns the Base."""
    name, tokens, adapter = (plan.settings[key] for key in ("model", "add_tokens", "adapter"))
    model, tokenizer = pretrained.base_of(name, plan.settings["revision"], [adapter] if adapter else [],
                                          plan.settings["tokenizer"])
    set_gradient_checkpointing(model, plan.settings["checkpoint"])
    tiny = {} if plan.run else settings.tiny_defaults(plan.settings, plan.given)
    plan.printer.detail(*lines.model(name, model.config, tiny))
    weights, rows = fingerprint(tensor.data for tensor in model.parameters().values()), model.config.vocab_size
    added = adapting.add_tokens(model, tokenizer, tokens)
    plan.printer.detail(*lines.added_tokens(tokens, added, tokenizer, rows, model.config.vocab_size))
    return Base(model, tokenizer, weights, added)


def load_data(plan, documents, base):
    """Return two data.Encoded: what to train on, and what to measure on (None: nothing)."""
    encoded = dataset.encode(documents, plan.settings, base.model.config, base.tokenizer)
    length = dataset.longest(plan.settings, base.model.config)
    plan.printer.detail(*lines.data(plan.settings, documents, encoded, length, base.tokenizer))
    training, held_out = [e for _, e in encoded] if len(encoded) == 2 else (encoded[0][1], None)
    adapting.check_added_occur(base.added, training.sequences, base.tokenizer)
    return training, held_out


def add_adapter(plan, base):
    """Make trainable what the run trains. Returns the AdamW over it."""
    config = adapting.prepare(base.model, plan.adapter, base.added, plan.settings)
    plan.printer.detail(*lines.adapter(config, base.model, base.added, plan.settings["adapter"]))
    return adapting.optimizer(base.model, plan.settings)


def fit_into_memory(plan, base, training, held_out, held):
    """Choose micro-batches for --max-memory, and put them into the plan. held: bytes that the process holds already."""
    if "max_memory" not in plan.given or plan.run:
        return
    most, checkpoint = plan.given["max_memory"], plan.settings["checkpoint"]
    if not held:
        raise NpgptError("--max-memory: this system does not tell how much memory the process holds; install psutil, "
                         "or leave the flag out and choose a smaller --batch-size")
    plan.config, takes, texts = estimates.fit_into(most, held, base.model, training.sequences, plan.config, checkpoint,
                                                   held_out and held_out.sequences)
    for name in ("batch_size", "batch_tokens", "accumulate"):
        plan.settings[name] = getattr(plan.config, name)
    checkpointing = plan.settings["checkpoint"] = has_gradient_checkpointing(base.model)
    plan.printer.detail(*lines.fitted(takes, texts, plan.config, checkpointing))


def open_run(plan, base, training, held_out, opt, prompts):
    """Open the run to resume, and set `opt` to its last checkpoint, or make a new run. Returns the Job to do in it."""
    total = plan.config.total_steps(plan.config.order(training.sequences.lengths))
    begun = fingerprint(tensor.data for tensor in opt.params.values()) if plan.settings["adapter"] else None
    about = identity.description(plan.settings, base.weights, begun, training, held_out)
    if "config" in plan.given:
        identity.repeat(plan.given["config"], about)
    run = plan.run
    if run:
        identity.check_nothing_changed(run, about)
        run.resume(opt)
    else:
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        run = Run.create(plan.given["out"]) if "out" in plan.given else Run.create_anew("runs", now)
        run.write_config(about)
    run.tokenizer = base.tokenizer if base.added or pretrained.has_tokenizer(plan.settings["adapter"]) else None
    threads = identity.threads_of(run.read_config(), run.folder)
    return running.Job(plan.settings, plan.config, total, plan.keeping, base.model, base.tokenizer, training, held_out,
                       opt, run, threads, prompts)


def announce(plan, job, held, started):
    """Print what the run is going to do, and what it will take."""
    config, printer = job.config, plan.printer
    for line in effects.missing(job):
        warnings.warn(line, stacklevel=2)
    if plan.run:
        printer.detail(*lines.resumed(job.run, job.opt.steps, job.total))
    order = config.order(job.training.sequences.lengths)
    printer.detail(*lines.training(order, config, job.total, job.settings))
    if not printer.quiet:
        memory, tokens, seconds = estimates.cost(job, held)
        printer.detail(*lines.cost(memory, tokens, time.perf_counter() - started + seconds))


def report(plan, job, place, started):
    """Print what came out, and how to use it. place: folder of the adapter or the model."""
    if "after" in job.run.results():  # else they could not be recorded
        best = best_step(job.run.evaluations()) if job.keeping.keep_best else None
        plan.printer.result(*lines.losses(job.run, best))
        plan.printer.detail(*lines.samples(job.run), *lines.page(job.run))
    plan.printer.result(*lines.saved(place, time.perf_counter() - started))
    plan.printer.detail(*lines.use(job.settings, place, job.prompts))
