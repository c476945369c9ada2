"""The settings of finetune.py: its flags, their defaults, and what a resumed run may be told."""

import argparse
from pathlib import Path

import cli
import dataset

import npgpt
from npgpt.errors import FormatError

PROMPTS = ["Overfitting is", "A good model", "The learning rate is", "Gradient descent is", "Attention lets a model",
           "A neural network is"]
DEFAULTS = {
    **dataset.DEFAULTS, "model": None, "revision": None, "rank": 8, "alpha": 16.0, "dropout": 0.1,
    "dora": False, "rslora": False, "init": "kaiming", "lr_ratio": 1.0,
    "targets": "c_attn", "epochs": 3, "max_steps": None, "batch_size": 4, "batch_tokens": None, "accumulate": 1,
    "lr": 3e-4, "weight_decay": 0.01, "warmup": 0, "schedule": "linear", "grad_clip": 1.0, "seed": 0, "full": False,
    "samples": 3, "threads": None, "checkpoint": False, "save_every": 100, "keep": 1, "eval_every": None,
    "keep_best": False, "patience": None,
}
TINY_DEFAULTS = {"lr": 2e-3, "targets": "all-linear", "epochs": 5}
TINY_REASON = "a model of 2.4 M parameters needs larger steps, and more of them, than gpt2"


def parse_arguments(argv, description):
    """Return what was given on the command line, and nothing that was not: dict."""
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                        argument_default=argparse.SUPPRESS)
    cli.add_model_arguments(parser)
    tiny = "; {} for tiny".format

    def add(flag, text, type=str, **options):
        name = flag[2:].replace("-", "_")
        default = DEFAULTS.get(name)
        if default is not None and default is not False:
            text += f" (default {default}{tiny(TINY_DEFAULTS[name]) if name in TINY_DEFAULTS else ''})"
        parser.add_argument(flag, help=text, **({"type": type} | options if options.get("action") is None else options))

    dataset.add_flags(add)
    add("--out", "folder of the run (default runs/<time>)", type=Path)
    add("--rank", "LoRA rank", type=int)
    add("--alpha", "LoRA alpha: the update is scaled by alpha / rank", type=float)
    add("--rslora", "scale the update by alpha / sqrt(rank) instead", action="store_true")
    add("--dora", "train direction and magnitude of the weights apart (DoRA)", action="store_true")
    add("--init", "where A and B start", choices=("kaiming", "gaussian", "orthogonal", "pissa", "olora"))
    add("--lr-ratio", "learning rate of B, in multiples of --lr (LoRA+; 16 is usual)", type=float)
    add("--dropout", "dropout on the LoRA path; with --full, the model's own dropout", type=float)
    add("--targets", "modules to adapt: names separated by commas, a regular expression, or all-linear")
    add("--epochs", "passes over the texts", type=int)
    add("--max-steps", "stop after this many steps", type=int)
    add("--batch-size", "texts a micro-batch", type=int)
    add("--batch-tokens", "tokens a micro-batch, about, instead", type=int)
    add("--accumulate", "micro-batches a step", type=int)
    add("--lr", "highest learning rate", type=float)
    add("--weight-decay", "decoupled weight decay", type=float)
    add("--warmup", "steps over which the learning rate rises", type=int)
    add("--schedule", "of the learning rate", choices=("constant", "linear", "cosine"))
    add("--grad-clip", "largest norm of the gradient; 0: no clipping", type=float)
    add("--seed", "of the adapter, the order of the texts, dropout and samples", type=int)
    add("--threads", "CPU threads (default: all that BLAS may use)", type=int)
    add("--checkpoint", "keep only the input of each block and compute the block again in the backward pass: less "
        "memory, a third more time, the same result", action="store_true")
    add("--save-every", "steps between checkpoints; 0: only at the end", type=int)
    add("--keep", "checkpoints to keep, the newest ones", type=int)
    add("--eval-every", "steps between measurements of the held-out loss (default: an epoch)", type=int)
    add("--keep-best", "keep the checkpoint of the lowest held-out loss, and end with its adapter", action="store_true")
    add("--patience", "end after this many measurements without a new lowest loss", type=int)
    add("--resume", "go on with the run in this folder, however it ended, from its last checkpoint", type=Path,
        metavar="RUN")
    add("--full", "train all weights instead of an adapter", action="store_true")
    add("--samples", "how many sample texts to show before and after", type=int, choices=range(len(PROMPTS) + 1))
    add("--preview", "show the first N sequences, token by token with what is learned in brackets, and do nothing else",
        type=int, metavar="N")
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
