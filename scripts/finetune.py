"""Fine-tune GPT-2 with LoRA on a CPU.

With no arguments: load gpt2 (or the embedded model where that is out of reach), adapt it to the texts in the package,
show loss, perplexity and samples before and after, and save the adapter.
"""

import cli

import dataclasses
import re
import shlex
import sys
import time
import warnings

import dataset
import watch
from settings import PROMPTS, TINY_DEFAULTS, TINY_REASON, given_in_all, new_settings, parse_arguments, resumed_settings

import npgpt
from npgpt import NpgptError
from npgpt.adapters import matching
from npgpt.adapters.loraplus import loraplus
from npgpt.adapters.stack import updates
from npgpt.adapters.tables import TrainedRows
from npgpt.evaluation import evaluate
from npgpt.files.atomic import read_json
from npgpt.runtime import machine
from npgpt.runtime.errors import ConfigError, DivergedError, FileError
from npgpt.runtime.memory import keep_freed_memory, resident
from npgpt.runtime.threads import blas_threads, checked
from npgpt.training import estimate, forecast
from npgpt.training.fit import FitConfig, best_step, fit
from npgpt.training.fit import save as save_checkpoint
from npgpt.training.recompute import set_gradient_checkpointing
from npgpt.training.report import write_report
from npgpt.training.run import Run, difference, fingerprint
from npgpt.training.train import TrainConfig

SAMPLE_TOKENS = 40
SAMPLE_TEMPERATURE = 0.3


def main(given):
    started = time.perf_counter()
    keep_freed_memory()
    given = given_in_all(given)
    say = (lambda *_: None) if given.get("quiet") else print
    run = Run.open(given["resume"]) if "resume" in given else None
    settings = resumed_settings(run, given) if run else new_settings(given)
    config, keeping = (of_class(**{field.name: settings[field.name] for field in dataclasses.fields(of_class)})
                       for of_class in (TrainConfig, FitConfig))

    if "preview" in given:
        return dataset.preview(settings, given["preview"])
    documents, adapter = dataset.read(settings), adapter_config(settings)  # before the model, which may be fetched
    if len(documents) == 1 and not settings["val_fraction"]:
        check_nothing_is_measured(settings)
    model, tokenizer = cli.load(settings["model"], settings["revision"])
    set_gradient_checkpointing(model, settings["checkpoint"])
    say(f"model      {settings['model']}: {model.config.n_layer} layers, {model.config.n_head} heads, width "
        f"{model.config.n_embd}, vocabulary {model.config.vocab_size:,}, context {model.config.n_positions}")
    chosen = [f"{name} {value}" for name, value in TINY_DEFAULTS.items() if name not in given]
    if settings["model"] == cli.FALLBACK and chosen and not run:
        say(f"           for this model {', '.join(chosen)} by default: {TINY_REASON}")
    weights = fingerprint(tensor.data for tensor in model.parameters().values())
    added = add_tokens(model, tokenizer, settings, say)
    training, held_out = dataset.encode(documents, settings, model.config, tokenizer, say)
    check_added_occur(added, training, tokenizer)
    prepare(model, adapter, added, settings, say)
    opt = optimizer(model, settings)
    held = resident()
    if "max_memory" in given and not run:
        config = fit_into(given["max_memory"], held, settings, model, training, config, say)
    about = description(settings, weights, training, held_out)
    if "config" in given:
        repeat(given["config"], about)
    order = config.order(training.sequences.lengths)
    total = config.total_steps(order)
    if config.warmup >= total:
        warnings.warn(f"--warmup {config.warmup}: this run has {dataset.count(total, 'step')}, so the learning rate "
                      f"never reaches {config.lr:g}", stacklevel=2)
    if run:
        check_nothing_changed(run, about)
        run.resume(opt)
        say(f"resumed    {run.folder} after step {opt.steps} of {total}")
    else:
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        run = Run.create(given["out"]) if "out" in given else Run.create_anew("runs", now)
        run.write_config(about)
    say(f"training   {length(order, config, total)}; AdamW, learning rate {config.lr:g} ({config.schedule}), weight "
        f"decay {settings['weight_decay']:g}")

    def measure():
        with bar.busy("measuring the held-out loss"):
            return evaluate.mean_nll(model, held_out.sequences, held_out.sequences.loss_masks).nll

    def samples():
        with bar.busy("writing samples"):
            return sample(model, tokenizer, settings)

    run.tokenizer = tokenizer if added else None
    threads = threads_of(run.read_config(), run.folder)  # those it began with: they decide the last bits
    if not given.get("quiet"):
        with blas_threads(threads):
            takes = forecast_memory(model, training.sequences, config, held)
            seconds = forecast_seconds(model, training, held_out, config, keeping, settings, run, opt.steps)
        say(f"estimate   {takes}; about {estimate.duration(time.perf_counter() - started + seconds)} in all")
    with blas_threads(threads), watch.Bar(opt.steps, total, given.get("quiet", False)) as bar:
        try:
            if "before" not in run.results():
                run.record("before", {"val_loss": measure() if held_out else None, "samples": samples()})
            steps = fit(run, model, training.sequences, opt, config, keeping, measure if held_out else None)
            with watch.Stop() as stop:
                for _ in bar.steps(steps):
                    if stop.asked:
                        break
            stopped = stop.asked and opt.steps < total
        except KeyboardInterrupt:
            stopped = True
            if len(run.metrics()) < opt.steps:  # in the midst of a step, of which there is no account
                bar.close()
                return cut_off(run)
        except FileError as error:
            raise FileError(f"{error}; {way_on(run)}") from error
        except DivergedError as error:
            kept = [run.checkpoint(step) for step in run.steps()[-1:]]
            raise NpgptError(f"{error}; the last checkpoint before it is {kept[0]}" if kept else str(error)) from error
        with watch.uninterrupted():
            place = save(run, model, opt, keeping, stopped)
            if place == run.model:
                tokenizer.save(place)
        if stopped:
            bar.close()
            print(f"stopped    after step {opt.steps} of {total}: saved in {place}; go on with --resume {run.folder}")
            return 130
        measured = dict(run.evaluations()).get(opt.steps)  # `fit` ends with a measurement, and so does what it keeps
        run.record("after", {"val_loss": measured, "samples": samples()})
    return conclude(run, model, place, settings, say, started)


def length(order, config, total):
    """Return how long training is, in words."""
    tokens = config.batch_tokens and config.batch_tokens * config.accumulate
    size = f"about {tokens} tokens" if tokens else dataset.count(config.batch_size * config.accumulate, "text")
    epochs = total / order.steps_per_epoch
    return f"{dataset.count(total, 'step')} of {size}, {epochs:.3g} epoch{'' if epochs == 1 else 's'}"


def forecast_memory(model, sequences, config, held):
    """Return what memory training will take, in words."""
    batch = estimate.largest_micro_batch(sequences, config)
    takes = estimate.memory(model, batch, config.threads, held, config.accumulate)
    return (f"{estimate.spelled(takes.total)} of memory at the most, {estimate.spelled(takes.saved)} of it saved for "
            f"the backward pass of {len(batch.ids):,} tokens")


def forecast_seconds(model, training, held_out, config, keeping, settings, run, done):
    """Return how long the rest of the run will take."""
    held_out = held_out and held_out.sequences
    amounts, batch = forecast.left(
        training.sequences, config, keeping, done, measured=int(held_out.lengths.sum()) if held_out else 0,
        sampled=settings["samples"] * SAMPLE_TOKENS, before="before" not in run.results())
    return forecast.seconds(amounts, forecast.tried(model, batch, amounts, config, held_out, run.folder))


def fit_into(most, held, settings, model, training, config, say):
    """Choose micro-batches and checkpointing, in `settings` and `model`, so that training takes at most `most` bytes,
    of which the process holds `held` already. Returns the TrainConfig. Raises NpgptError where nothing fits."""
    least = None
    for batch_size, batch_tokens, accumulate, checkpointing in estimate.ways(config):
        if checkpointing < settings["checkpoint"]:
            continue
        set_gradient_checkpointing(model, checkpointing)
        tried = dataclasses.replace(config, batch_size=batch_size, batch_tokens=batch_tokens, accumulate=accumulate)
        batch = estimate.largest_micro_batch(training.sequences, tried)
        takes = estimate.memory(model, batch, config.threads, held, accumulate).total
        if takes <= most:
            settings |= {"batch_size": batch_size, "batch_tokens": batch_tokens, "accumulate": accumulate,
                         "checkpoint": checkpointing}
            say(f"memory     {estimate.spelled(takes)} by micro-batches of {len(batch.lengths)} texts, {accumulate} a "
                "step" + ", with --checkpoint" * checkpointing)
            return tried
        least = min(takes, least or takes)
    raise NpgptError(f"--max-memory {estimate.spelled(most)}: the least that this training takes is "
                     f"{estimate.spelled(least)}; a shorter --max-length or a smaller model takes less")


def description(settings, weights, training, held_out):
    """Return what a run writes down of itself, and what must be the same where it goes on."""
    return {
        "settings": settings,
        "data": {name: e and {"texts": e.texts, "tokens": e.tokens, "learned": e.targets, "fingerprint": e.fingerprint}
                 for name, e in (("training", training), ("held_out", held_out))},
        "model": {"fingerprint": weights},
        "versions": machine.versions(),
        "machine": machine.machine(),
    }


def repeat(path, about):
    """Where the settings are those of another run, take its number of threads, and warn of what else differs."""
    before = read_json(path) if path.suffix.lower() != ".toml" else {}
    if before.get("settings") == about["settings"]:
        about["machine"]["threads"] = threads_of(before, path)
        for what in ("data", "model", "versions"):
            changed = difference(before.get(what), about[what], f"{what}.")
            if changed:
                warnings.warn(f"this is not quite the run of {path}: {changed}", stacklevel=2)


def threads_of(about, place):
    """Return the BLAS threads that a run's config.json holds. Raises NpgptError."""
    machine = about.get("machine")
    try:
        return checked(machine.get("threads") if isinstance(machine, dict) else None)
    except ConfigError as error:
        raise NpgptError(f"{place}: machine.{error}") from error


def check_nothing_is_measured(settings):
    """Raise NpgptError where a setting needs a held-out loss, of which there is none."""
    for name in ("eval_every", "keep_best", "patience"):
        if settings[name]:
            raise NpgptError(f"--{name.replace('_', '-')} needs texts to measure on: give --val-data or --val-fraction")


def check_nothing_changed(run, now):
    """Raise NpgptError where data or model are not those the run began with, and warn of other versions."""
    before = run.read_config()
    for what in ("data", "model"):
        changed = difference(before.get(what), now[what], f"{what}.")
        if changed:
            raise NpgptError(f"{run.folder} began with other {what}: {changed}; a resumed run goes on as it began")
    changed = difference(before.get("versions"), now["versions"])
    if changed:
        warnings.warn(f"{run.folder} began with other versions: {changed}; the result may differ in its last digits",
                      stacklevel=2)


def save(run, model, opt, keeping, stopped):
    """Save the run, and from it what is used: that of the best step, where the best is kept and the run has ended.
    Returns the folder of the adapter or the model."""
    save_checkpoint(run, model, opt, keeping)
    best = best_step(run.evaluations())
    if keeping.keep_best and best and not stopped:
        run.load_checkpoint(best, opt)
    return run.save(model)


def way_on(run):
    """Return what can be done after something went wrong."""
    steps = run.steps()
    if not steps:
        return f"there was no checkpoint yet: --resume {run.folder} begins again"
    return f"the checkpoint of step {steps[-1]} is whole, and --resume {run.folder} goes on from it"


def cut_off(run):
    print(f"stopped    within a step; {way_on(run)}")
    return 130


def conclude(run, model, place, settings, say, started):
    """Print what came out, and how to use it."""
    before, after = run.results()["before"], run.results()["after"]
    if after["val_loss"] is not None:
        old, new = before["val_loss"], after["val_loss"]
        best = f" at step {best_step(run.evaluations())}, the lowest" if settings["keep_best"] else ""
        ppl = [evaluate.Perplexity(loss, 1).ppl for loss in (old, new)]
        print(f"held out   loss {old:.3f} -> {new:.3f}{best}, perplexity {ppl[0]:.1f} -> {ppl[1]:.1f}")
    else:
        losses = [values["loss"] for values in run.metrics()]
        print(f"training   loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
    for (prompt, old), (_, new) in zip(before["samples"], after["samples"], strict=True):
        say(f"\n{prompt}\n  before   {old}\n  after    {new}")
    say()
    report = write_report(run, model)
    say(f"report     {report}")
    print(f"saved      {place} ({size(place)}) after {time.perf_counter() - started:.1f} s")
    use = ["--model", place] if settings["full"] else ["--model", settings["model"], "--adapter", place]
    say(f"use it     python scripts/generate.py {shlex.join(map(str, use))} --prompt \"{PROMPTS[0]}\"")
    return 0


def adapter_config(settings):
    """Return the LoraConfig, or None where all weights are trained."""
    if settings["full"]:
        return None
    targets = settings["targets"]
    if re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", targets):  # anything else is a regular expression, or all-linear
        targets = re.split(r"\s*,\s*", targets)
    return npgpt.LoraConfig(
        settings["rank"], settings["alpha"], settings["dropout"], targets, use_rslora=settings["rslora"],
        use_dora=settings["dora"], init_lora_weights=settings["init"] == "kaiming" or settings["init"])


def optimizer(model, settings):
    """Return the AdamW over what trains."""
    params = model.trainable_parameters()
    ratios = None if settings["full"] else loraplus(params, settings["lr_ratio"])
    return npgpt.AdamW(params, settings["lr"], weight_decay=settings["weight_decay"], ratios=ratios)


def add_tokens(model, tokenizer, settings, say):
    """Add the tokens that the settings ask for to the tokenizer, and rows for them to the model. Returns their ids."""
    tokens, before = settings["add_tokens"] or [], model.config.vocab_size
    ids = tokenizer.add_tokens(tokens)
    if tokens and not ids:
        raise NpgptError(f"--add-tokens {' '.join(tokens)}: the vocabulary has all of them already; leave the flag out")
    if not ids:
        return ids
    if ids[-1] >= before:
        model.resize_token_embeddings(ids[-1] + 1)
    added = {tokenizer.token(i): i for i in ids}
    listed = ", ".join(f"{token!r} ({i})" for token, i in added.items())
    known = ", ".join(repr(token) for token in dict.fromkeys(tokens) if token not in added)
    say(f"added      {listed}; rows of the token table: {before:,} -> {model.config.vocab_size:,}"
        + (f"; in the vocabulary already: {known}" if known else ""))
    return ids


def check_added_occur(added, training, tokenizer):
    """Warn of added tokens that the data hold nowhere: nothing is learned of them."""
    missing = training.sequences.missing(added)
    if missing:
        named = ", ".join(repr(tokenizer.token(i)) for i in missing)
        warnings.warn(f"--add-tokens: the data hold no token {named}; what --template spells out is a token, and what "
                      "the data spell out only with --special-tokens", stacklevel=2)


def prepare(model, config, added, settings, say):
    """Make trainable what is to be trained, and show it.

    added  ids of tokens that were added: their rows train, where no update of the whole table makes them train anyway
    """
    if config is None:
        model.set_dropout(settings["dropout"])
    else:
        model.set_dropout(0.0)  # dropout is on the LoRA path only
        tables = [name for name in matching.tables(model) if name not in matching.match_targets(model, config)]
        if added and tables:
            config = dataclasses.replace(config, trainable_token_indices=dict.fromkeys(tables, added))
        npgpt.add_lora(model, config, seed=settings["seed"])
        say(f"LoRA       rank {config.r}, alpha {config.lora_alpha:g}, scale {config.scale:g}, "
            f"dropout {config.lora_dropout:g}")
        kinds = {}
        for name, update in updates(model).items():
            if update.parameters():
                kinds.setdefault(re.sub(r"^h\.\d+\.", "", name), []).append(update)
        for kind, each in kinds.items():
            count = sum(tensor.data.size for update in each for tensor in update.parameters().values())
            if isinstance(each[0], TrainedRows):
                say(f"           {kind:12} {dataset.count(len(added), 'row')} for added tokens: {count:>9,}")
            else:
                n_in, n_out = each[0].lora_A.shape[1], each[0].lora_B.shape[0]
                say(f"           {kind:12} {n_in:>5} -> {n_out:<5} in {len(each)} layers: {count:>9,}")
    total = sum(tensor.data.size for tensor in model.parameters().values())
    trained = sum(tensor.data.size for tensor in model.trainable_parameters().values())
    say(f"           {trained:,} of {total:,} parameters train ({100 * trained / total:.2f} %)")


def sample(model, tokenizer, settings):
    """Return (prompt, continuation) for each of the first prompts that the vocabulary can spell; that of a model of
    characters may not. The same draws each time it is called."""
    texts = []
    for i, prompt in enumerate(PROMPTS[:settings["samples"]]):
        try:
            ids = tokenizer.encode(prompt)[:model.config.n_positions // 2]
        except ConfigError:
            continue
        room = min(SAMPLE_TOKENS, model.config.n_positions - len(ids))
        out = npgpt.generate(model, ids, room, temperature=SAMPLE_TEMPERATURE, seed=settings["seed"] + i,
                             eos_id=tokenizer.eos_id)
        new = out[len(ids):]
        texts.append((prompt, " ".join(tokenizer.decode(new[new != tokenizer.eos_id]).split())))
    return texts


def size(folder):
    total = sum(path.stat().st_size for path in folder.iterdir())
    return f"{total / 1e6:.1f} MB" if total >= 1e6 else f"{total / 1e3:.0f} kB"


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(parse_arguments(None, __doc__))))
