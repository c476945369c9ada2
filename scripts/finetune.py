"""Fine-tune GPT-2 with LoRA on a CPU.

With no arguments: load gpt2 (or the embedded model where that is out of reach), adapt it to the texts in the package,
show loss, perplexity and samples before and after, and save the adapter.
"""

import dataclasses
import platform
import re
import signal
import sys
import time
from pathlib import Path

import cli
import dataset
import numpy as np
from settings import PROMPTS, TINY_DEFAULTS, TINY_REASON, new_settings, parse_arguments, resumed_settings
from tqdm import tqdm

import npgpt
from npgpt import evaluate, lora
from npgpt.memory import keep_freed_memory
from npgpt.run import Run
from npgpt.train import TrainConfig, train

SAMPLE_TOKENS = 40
SAMPLE_TEMPERATURE = 0.3


def main(given):
    started = time.perf_counter()
    keep_freed_memory()
    say = (lambda *_: None) if given.get("quiet") else print
    run = Run.open(given["resume"]) if "resume" in given else None
    settings = resumed_settings(run, given) if run else new_settings(given)
    config = TrainConfig(threads=given.get("threads"), **{
        field.name: settings[field.name] for field in dataclasses.fields(TrainConfig) if field.name in settings})

    if "preview" in given:
        return dataset.preview(settings, given["preview"])
    documents, adapter = dataset.read(settings), adapter_config(settings)  # before the model, which may be fetched
    model, tokenizer = cli.load(settings["model"], settings["revision"])
    model.gradient_checkpointing = given.get("checkpoint", False)
    say(f"model      {settings['model']}: {model.config.n_layer} layers, {model.config.n_head} heads, width "
        f"{model.config.n_embd}, vocabulary {model.config.vocab_size:,}, context {model.config.n_positions}")
    if settings["model"] == cli.FALLBACK:
        say(f"           for this model {', '.join(f'{n} {v}' for n, v in TINY_DEFAULTS.items() if n not in given)} "
            f"by default: {TINY_REASON}")
    sequences, held_out = dataset.encode(documents, settings, model.config, tokenizer, say)
    prepare(model, adapter, settings, say)
    opt = optimizer(model, settings)
    total = config.total_steps(config.order(sequences.lengths))
    if run:
        run.load_state(opt)
        say(f"resumed    {run.folder} after step {opt.steps} of {total}")
    else:
        run = Run.create(given.get("out") or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
        run.write_config({"settings": settings, "python": platform.python_version(), "numpy": np.__version__})
    tokens = config.batch_tokens and config.batch_tokens * config.accumulate
    step_size = f"about {tokens} tokens" if tokens else f"{config.batch_size * config.accumulate} texts"
    say(f"training   {total:,} steps of {step_size}, {config.epochs} epochs; AdamW, "
        f"learning rate {config.lr:g} ({config.schedule}), weight decay {settings['weight_decay']:g}")

    try:
        before = evaluate.mean_nll(model, held_out, held_out.loss_masks) if held_out else None
        samples_before = sample(model, tokenizer, settings)
        losses = fit(run, model, sequences, held_out, opt, config, given.get("quiet", False))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressing again does not cut the saving short
        place = save(run, model, opt, tokenizer)
        print(f"stopped    after step {opt.steps} of {total}: saved in {place}; go on with --resume {run.folder}")
        return 130
    place = save(run, model, opt, tokenizer)

    if held_out:
        after = evaluate.mean_nll(model, held_out, held_out.loss_masks)
        print(f"held out   loss {before.nll:.3f} -> {after.nll:.3f}, perplexity {before.ppl:.1f} -> {after.ppl:.1f}")
    elif losses:
        print(f"training   loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
    for prompt, old, new in zip(PROMPTS, samples_before, sample(model, tokenizer, settings), strict=False):
        say(f"\n{prompt}\n  before   {old}\n  after    {new}")
    say()
    print(f"saved      {place} ({size(place)}) after {time.perf_counter() - started:.1f} s")
    use = f"--model {place}" if settings["full"] else f"--model {settings['model']} --adapter {place}"
    say(f"use it     python scripts/generate.py {use} --prompt \"{PROMPTS[0]}\"")
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
    ratios = None if settings["full"] else lora.loraplus(params, settings["lr_ratio"])
    return npgpt.AdamW(params, settings["lr"], weight_decay=settings["weight_decay"], ratios=ratios)


def prepare(model, config, settings, say):
    """Make trainable what is to be trained, and show it."""
    if config is None:
        model.set_dropout(settings["dropout"])
    else:
        model.set_dropout(0.0)  # dropout is on the LoRA path only
        npgpt.add_lora(model, config, seed=settings["seed"])
        say(f"LoRA       rank {config.r}, alpha {config.lora_alpha:g}, scale {config.scale:g}, "
            f"dropout {config.lora_dropout:g}")
        kinds = {}
        for name, update in lora.updates(model).items():
            kinds.setdefault(re.sub(r"^h\.\d+\.", "", name), []).append(update)
        for kind, updates in kinds.items():
            n_in, n_out = updates[0].A.shape[1], updates[0].B.shape[0]
            added = sum(tensor.data.size for update in updates for tensor in update.parameters().values())
            say(f"           {kind:12} {n_in:>5} -> {n_out:<5} in {len(updates)} layers: {added:>9,}")
    total = sum(tensor.data.size for tensor in model.parameters().values())
    trained = sum(tensor.data.size for tensor in model.trainable_parameters().values())
    say(f"           {trained:,} of {total:,} parameters train ({100 * trained / total:.2f} %)")


def fit(run, model, sequences, held_out, opt, config, quiet):
    """Train to the end, with a progress bar, and log every step. Returns the losses of the steps."""
    order = config.order(sequences.lengths)
    total, per_epoch = config.total_steps(order), order.steps_per_epoch
    losses, tokens, seconds = [], 0, 0.0
    with tqdm(total=total, initial=opt.steps, unit="step", disable=quiet) as bar:
        for step in train(model, sequences, opt, config):
            measured = {}
            try:
                if held_out and (step.step % per_epoch == 0 or step.step == total):
                    measured["val_loss"] = evaluate.mean_nll(model, held_out, held_out.loss_masks).nll
            finally:
                run.log(step, **measured)  # after Ctrl-C too: the step is done
            losses.append(step.loss)
            tokens, seconds = tokens + step.tokens, seconds + step.seconds
            bar.set_postfix_str(f"loss {step.loss:.3f}, {tokens / seconds:,.0f} tokens/s", refresh=False)
            bar.update()
    return losses


def save(run, model, opt, tokenizer):
    """Save the run, a whole model with its tokenizer. Returns the folder of the adapter or the model."""
    place = run.save(model, opt)
    if place == run.model:
        tokenizer.save(place)
    return place


def sample(model, tokenizer, settings):
    """Return one continuation for each of the first prompts, the same draws each time it is called."""
    texts = []
    for i, prompt in enumerate(PROMPTS[:settings["samples"]]):
        ids = tokenizer.encode(prompt)[:model.config.n_positions // 2]
        room = min(SAMPLE_TOKENS, model.config.n_positions - len(ids))
        out = npgpt.generate(model, ids, room, temperature=SAMPLE_TEMPERATURE, seed=settings["seed"] + i,
                             eos_id=tokenizer.eos_id)
        new = out[len(ids):]
        texts.append(" ".join(tokenizer.decode(new[new != tokenizer.eos_id]).split()))
    return texts


def size(folder):
    total = sum(path.stat().st_size for path in folder.iterdir())
    return f"{total / 1e6:.1f} MB" if total >= 1e6 else f"{total / 1e3:.0f} kB"


if __name__ == "__main__":
    arguments = parse_arguments(None, __doc__)
    sys.exit(cli.run(lambda: main(arguments)))
