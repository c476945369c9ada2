"""Fine-tune GPT-2 with LoRA on a CPU.

With no arguments: load gpt2 (or the embedded model where that is out of reach), adapt it to the texts in the package,
show loss, perplexity and samples before and after, and save the adapter.
"""

import argparse
import dataclasses
import platform
import re
import signal
import sys
import time
from pathlib import Path

import cli
import numpy as np
from tqdm import tqdm

import npgpt
from npgpt import data, evaluate, lora
from npgpt.errors import FormatError
from npgpt.memory import keep_freed_memory
from npgpt.run import Run
from npgpt.train import TrainConfig, train

TEXTS = Path(npgpt.__file__).parent / "texts"
TRAINING, HELD_OUT = TEXTS / "train.txt", TEXTS / "validation.txt"
PROMPTS = ["Overfitting is", "A good model", "The learning rate is", "Gradient descent is", "Attention lets a model",
           "A neural network is"]
SAMPLE_TOKENS = 40
SAMPLE_TEMPERATURE = 0.3

DEFAULTS = {
    "model": None, "revision": None, "data": None, "val_data": None, "rank": 8, "alpha": 16.0, "dropout": 0.1,
    "targets": "c_attn", "epochs": 3, "max_steps": None, "batch_size": 4, "accumulate": 1, "max_length": None,
    "lr": 3e-4, "weight_decay": 0.01, "warmup": 0, "schedule": "linear", "grad_clip": 1.0, "seed": 0, "full": False,
    "samples": 3,
}
TINY_DEFAULTS = {"lr": 2e-3, "targets": "all-linear", "epochs": 5}
TINY_REASON = "a model of 2.4 M parameters needs larger steps, and more of them, than gpt2"


def parse_arguments(argv):
    """Return what was given on the command line, and nothing that was not: dict."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                        argument_default=argparse.SUPPRESS)
    cli.add_model_arguments(parser)
    tiny = "; {} for tiny".format

    def add(flag, text, type=str, **options):
        name = flag[2:].replace("-", "_")
        default = DEFAULTS.get(name)
        if default is not None and default is not False:
            text += f" (default {default}{tiny(TINY_DEFAULTS[name]) if name in TINY_DEFAULTS else ''})"
        parser.add_argument(flag, help=text, **({"type": type} | options if options.get("action") is None else options))

    add("--data", "texts to train on: .txt, one a line; .jsonl, {\"text\": ...} a line (default: those in the package)")
    add("--val-data", "texts to measure on, before, after each epoch and after (default: held-out ones in the package)")
    add("--out", "folder of the run (default runs/<time>)", type=Path)
    add("--rank", "LoRA rank", type=int)
    add("--alpha", "LoRA alpha: the update is scaled by alpha / rank", type=float)
    add("--dropout", "dropout on the LoRA path; with --full, the model's own dropout", type=float)
    add("--targets", "modules to adapt: names separated by commas, a regular expression, or all-linear")
    add("--epochs", "passes over the texts", type=int)
    add("--max-steps", "stop after this many steps", type=int)
    add("--batch-size", "texts a micro-batch", type=int)
    add("--accumulate", "micro-batches a step", type=int)
    add("--max-length", "longest sequence in tokens; longer texts are split (default: the model's context)", type=int)
    add("--lr", "highest learning rate", type=float)
    add("--weight-decay", "decoupled weight decay", type=float)
    add("--warmup", "steps over which the learning rate rises", type=int)
    add("--schedule", "of the learning rate", choices=("constant", "linear", "cosine"))
    add("--grad-clip", "largest norm of the gradient; 0: no clipping", type=float)
    add("--seed", "of the adapter, the order of the texts, dropout and samples", type=int)
    add("--threads", "CPU threads (default: all that BLAS may use)", type=int)
    add("--checkpoint", "keep only the input of each block and compute the block again in the backward pass: less "
        "memory, a third more time, the same result", action="store_true")
    add("--resume", "go on with the run in this folder, stopped by Ctrl-C, with its settings", type=Path, metavar="RUN")
    add("--full", "train all weights instead of an adapter", action="store_true")
    add("--samples", "how many sample texts to show before and after", type=int, choices=range(len(PROMPTS) + 1))
    add("--quiet", "print only the result", action="store_true")
    return vars(parser.parse_args(argv))


def new_settings(given):
    """Return the settings of a new run: what was given, else the defaults, which depend on the model."""
    settings = DEFAULTS | {name: value for name, value in given.items() if name in DEFAULTS}
    settings["model"] = cli.choose_model(settings["model"], settings["revision"])
    if settings["model"] == cli.FALLBACK:
        settings |= {name: value for name, value in TINY_DEFAULTS.items() if name not in given}
    return settings


def resumed_settings(run, given):
    """Return the settings of the run that is gone on with, which nothing given may contradict."""
    settings = run.read_config().get("settings")
    if not isinstance(settings, dict) or settings.keys() != DEFAULTS.keys():
        raise FormatError(f"{run.folder}/config.json does not hold the settings of a run: "
                          f"expected {', '.join(DEFAULTS)}")
    if "out" in given:
        raise npgpt.NpgptError(f"--out {given['out']}: a run that is gone on with stays in its folder, {run.folder}; "
                               "leave the flag out")
    for name, value in given.items():
        if name in DEFAULTS and value != settings[name]:
            raise npgpt.NpgptError(f"--{name.replace('_', '-')} {value} differs from {settings[name]} in {run.folder}: "
                                   "a resumed run goes on as it began; leave the flag out")
    return settings


def main(given):
    started = time.perf_counter()
    keep_freed_memory()
    say = (lambda *_: None) if given.get("quiet") else print
    run = Run.open(given["resume"]) if "resume" in given else None
    settings = resumed_settings(run, given) if run else new_settings(given)
    config = TrainConfig(threads=given.get("threads"), **{
        field.name: settings[field.name] for field in dataclasses.fields(TrainConfig) if field.name in settings})

    texts, adapter = read_data(settings), adapter_config(settings)  # before the model, which may have to be fetched
    model, tokenizer = cli.load(settings["model"], settings["revision"])
    model.gradient_checkpointing = given.get("checkpoint", False)
    say(f"model      {settings['model']}: {model.config.n_layer} layers, {model.config.n_head} heads, width "
        f"{model.config.n_embd}, vocabulary {model.config.vocab_size:,}, context {model.config.n_positions}")
    if settings["model"] == cli.FALLBACK:
        say(f"           for this model {', '.join(f'{n} {v}' for n, v in TINY_DEFAULTS.items() if n not in given)} "
            f"by default: {TINY_REASON}")
    sequences, held_out = encode(texts, settings, model, tokenizer, say)
    prepare(model, adapter, settings, say)
    opt = npgpt.AdamW(model.trainable_parameters(), settings["lr"], weight_decay=settings["weight_decay"])
    total = config.total_steps(len(sequences))
    if run:
        run.load_state(opt)
        say(f"resumed    {run.folder} after step {opt.steps} of {total}")
    else:
        run = Run.create(given.get("out") or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
        run.write_config({"settings": settings, "python": platform.python_version(), "numpy": np.__version__})
    say(f"training   {total:,} steps of {config.batch_size * config.accumulate} texts, {config.epochs} epochs; AdamW, "
        f"learning rate {config.lr:g} ({config.schedule}), weight decay {settings['weight_decay']:g}")

    try:
        before = evaluate.mean_nll(model, held_out) if held_out else None
        samples_before = sample(model, tokenizer, settings)
        losses = fit(run, model, sequences, held_out, opt, config, given.get("quiet", False))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressing again does not cut the saving short
        place = save(run, model, opt, tokenizer)
        print(f"stopped    after step {opt.steps} of {total}: saved in {place}; go on with --resume {run.folder}")
        return 130
    place = save(run, model, opt, tokenizer)

    if held_out:
        after = evaluate.mean_nll(model, held_out)
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


def read_data(settings):
    """Return [(place, texts), ...]: those to train on and, where there are any, those to measure on."""
    paths = [TRAINING if settings["data"] is None else settings["data"]]
    if settings["val_data"] is not None or settings["data"] is None:
        paths.append(HELD_OUT if settings["val_data"] is None else settings["val_data"])
    return [(f"npgpt/texts/{path.name}" if path in (TRAINING, HELD_OUT) else path, data.read_texts(path))
            for path in paths]


def encode(places_and_texts, settings, model, tokenizer, say):
    """Return the sequences to train on and those to measure on (None where there are none)."""
    context = model.config.n_positions
    max_length = context if settings["max_length"] is None else settings["max_length"]
    if not 2 <= max_length <= context:
        raise npgpt.NpgptError(f"--max-length {max_length}: it must be from 2 to the model's context of {context}")
    encoded = [None, None]
    for i, (place, texts) in enumerate(places_and_texts):
        e = data.encode_texts(tokenizer, texts, max_length)
        for sequence in e.sequences:
            model.check_ids(sequence, len(sequence))
        split = f"; {e.split:,} longer than {max_length} tokens were split: {len(e.sequences):,} sequences"
        say(f"{('data', 'held out')[i]:10} {place}: {e.texts:,} texts, {e.tokens:,} tokens{split if e.split else ''}")
        encoded[i] = e.sequences
    return encoded


def adapter_config(settings):
    """Return the LoraConfig, or None where all weights are trained."""
    if settings["full"]:
        return None
    targets = settings["targets"]
    if re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", targets):  # anything else is a regular expression, or all-linear
        targets = re.split(r"\s*,\s*", targets)
    return npgpt.LoraConfig(settings["rank"], settings["alpha"], settings["dropout"], targets)


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
        for name, layer in lora.adapted_layers(model).items():
            kinds.setdefault(name.split(".", 2)[2], []).append(layer)
        for kind, layers in kinds.items():
            n_in, n_out = layers[0].base_layer.weight.shape
            added = sum(layer.lora_A.data.size + layer.lora_B.data.size for layer in layers)
            say(f"           {kind:12} {n_in:>5} -> {n_out:<5} in {len(layers)} layers: {added:>9,}")
    total = sum(tensor.data.size for tensor in model.parameters().values())
    trained = sum(tensor.data.size for tensor in model.trainable_parameters().values())
    say(f"           {trained:,} of {total:,} parameters train ({100 * trained / total:.2f} %)")


def fit(run, model, sequences, held_out, opt, config, quiet):
    """Train to the end, with a progress bar, and log every step. Returns the losses of the steps."""
    total, per_epoch = config.total_steps(len(sequences)), config.steps_per_epoch(len(sequences))
    losses, tokens, seconds = [], 0, 0.0
    with tqdm(total=total, initial=opt.steps, unit="step", disable=quiet) as bar:
        for step in train(model, sequences, opt, config):
            measured = {}
            try:
                if held_out and (step.step % per_epoch == 0 or step.step == total):
                    measured["val_loss"] = evaluate.mean_nll(model, held_out).nll
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
    arguments = parse_arguments(None)
    sys.exit(cli.run(lambda: main(arguments)))
