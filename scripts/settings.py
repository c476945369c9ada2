"""The settings of finetune.py: its flags, their defaults, files of settings, and what a resumed run may be told."""

import cli

import argparse
import difflib
import sys

import dataset

import npgpt
from npgpt.files.atomic import read_json, read_text
from npgpt.runtime.errors import FormatError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROMPTS = ["Overfitting is", "A good model", "The learning rate is", "Gradient descent is", "Attention lets a model",
           "A neural network is"]
DEFAULTS = {
    **dataset.DEFAULTS, "model": None, "revision": None, "rank": 8, "alpha": 16.0, "dropout": 0.1,
    "dora": False, "rslora": False, "init": "kaiming", "lr_ratio": 1.0,
    "targets": "c_attn", "add_tokens": None, "epochs": 3, "max_steps": None, "batch_size": 4, "batch_tokens": None,
    "accumulate": 1, "lr": 3e-4, "weight_decay": 0.01, "warmup": 0, "schedule": "linear", "grad_clip": 1.0, "seed": 0,
    "full": False, "samples": 3, "threads": None, "checkpoint": False, "save_every": 100, "keep": 1,
    "eval_every": None, "keep_best": False, "patience": None,
}
TINY_DEFAULTS = {"lr": 2e-3, "targets": "all-linear", "epochs": 5}
PLACES = ("data", "val_data")
# A setting, and those that have no effect beside it.
WITHOUT_EFFECT = {"full": ("rank", "alpha", "dora", "rslora", "init", "targets", "lr_ratio"),
                  "batch_tokens": ("batch_size",)}
TINY_REASON = "a model of 2.4 M parameters needs larger steps, and more of them, than gpt2"


class Parser(cli.Parser):
    """Says where what is wrong stands: on the command line, or in the file at `path`."""

    def __init__(self, **options):
        super().__init__(argument_default=argparse.SUPPRESS, **options)
        self.path = None

    def error(self, message):
        if self.path:
            raise FormatError(f"{self.path}: {message}")
        super().error(message)


def parse_arguments(argv, description):
    """Return what was given on the command line, and nothing that was not: dict."""
    return vars(make_parser(description).parse_args(argv))


def given_in_all(given):
    """Return what was given on the command line and in the file of `--config`, where the former goes before: dict.

    Raises NpgptError for a setting that has no effect beside another. The config.json of a run holds every setting
    there is, so those in it are not blamed.
    """
    if "resume" in given:  # then the run says what its settings are
        return given
    from_file, of_run = read_settings(given["config"]) if "config" in given else ({}, False)
    everything = from_file | given
    for name, others in WITHOUT_EFFECT.items():
        idle = [flag_of(other) for other in others if other in (given if of_run else everything)]
        if name in everything and idle:
            raise npgpt.NpgptError(f"{', '.join(idle)} would have no effect beside {flag_of(name)}: leave one or the "
                                   "other out")
    return everything


def flag_of(name):
    return f"--{name.replace('_', '-')}"


def read_settings(path):
    """Return the settings in a TOML file, or in the config.json of a run, as the command line would give them, and
    whether it was a run's: dict, bool.

    Names are those of the flags, with "-" or "_". Raises FileError (unreadable), FormatError (a name or a value that is
    no setting, with the nearest that is).
    """
    values = read_toml(path) if path.suffix.lower() == ".toml" else read_json(path)
    of_run = path.suffix.lower() != ".toml" and isinstance(values.get("settings"), dict)
    if of_run:
        values = values["settings"]
    parser = make_parser()
    flags = {action.dest: action for action in parser._actions if action.dest not in ("help", "config", "resume")}
    argv = []
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in flags:
            (nearest,) = difflib.get_close_matches(name, flags, n=1, cutoff=0)
            raise FormatError(f"{path}: {key} is no setting; {nearest} is the nearest that is one")
        flag = flag_of(name)
        if flags[name].nargs == 0:
            if not isinstance(value, bool):
                raise FormatError(f"{path}: {key} = {value!r}: it must be true or false")
            argv += [flag] * value
        elif isinstance(value, bool | dict):
            raise FormatError(f"{path}: {key} = {value!r}: it must be a number or a string")
        elif value is not None:  # as of JSON: it was not given
            several = flags[name].nargs == "+" and isinstance(value, list)
            argv += [flag, *map(str, value)] if several else [
                f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    parser.path = path
    return vars(parser.parse_args(argv)), of_run


def read_toml(path):
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{path} is not valid TOML: {error}") from error


def make_parser(description=None):
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_model_arguments(parser)
    tiny = "; {} for tiny".format

    def add(flag, text, type=str, **options):
        name = flag[2:].replace("-", "_")
        default = DEFAULTS.get(name)
        if default is not None and default is not False:
            text += f" (default {default}{tiny(TINY_DEFAULTS[name]) if name in TINY_DEFAULTS else ''})"
        parser.add_argument(flag, help=text, **({"type": type} | options if options.get("action") is None else options))

    dataset.add_flags(add)
    add("--out", "folder of the run (default runs/<time>, or runs/<time>-2, .. where that is taken)", type=cli.path)
    add("--rank", "LoRA rank", type=int)
    add("--alpha", "LoRA alpha: the update is scaled by alpha / rank", type=float)
    add("--rslora", "scale the update by alpha / sqrt(rank) instead", action="store_true")
    add("--dora", "train direction and magnitude of the weights apart (DoRA)", action="store_true")
    add("--init", "where A and B start", choices=("kaiming", "gaussian", "orthogonal", "pissa", "olora"))
    add("--lr-ratio", "learning rate of B, in multiples of --lr (LoRA+; 16 is usual)", type=float)
    add("--dropout", "dropout on the LoRA path; with --full, the model's own dropout", type=float)
    add("--targets", "modules to adapt: names separated by commas, a regular expression, or all-linear")
    add("--add-tokens", "tokens to add to the vocabulary, such as '<|user|>'; their rows of the token table train "
        "with the adapter, which keeps them and the tokenizer", nargs="+", action="extend", metavar="TOKEN")
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
    add("--threads", "CPU threads (default: all that BLAS may use, or 1 where there is little to do)",
        type=cli.threads)
    add("--checkpoint", "keep only the input of each block and compute the block again in the backward pass: less "
        "memory, a third more time, the same result", action="store_true")
    add("--max-memory", "what the process may take, such as 3GB: smaller micro-batches and, if need be, --checkpoint "
        "are chosen so that it fits", type=cli.size)
    add("--save-every", "steps between checkpoints; 0: only at the end", type=int)
    add("--keep", "checkpoints to keep, the newest ones", type=int)
    add("--eval-every", "steps between measurements of the held-out loss (default: an epoch)", type=int)
    add("--keep-best", "keep the checkpoint of the lowest held-out loss, and end with its adapter", action="store_true")
    add("--patience", "end after this many measurements without a new lowest loss", type=int)
    add("--resume", "go on with the run in this folder, however it ended, from its last checkpoint", type=cli.path,
        metavar="RUN")
    add("--full", "train all weights instead of an adapter", action="store_true")
    add("--samples", "how many sample texts to show before and after", type=int, choices=range(len(PROMPTS) + 1))
    add("--preview", "show the first N sequences, token by token with what is learned in brackets, and do nothing else",
        type=int, metavar="N")
    add("--quiet", "print only the result", action="store_true")
    add("--config", "take the settings from this TOML file, or from the config.json of a run; flags given beside it go "
        "before", type=cli.path, metavar="FILE")
    return parser


def new_settings(given):
    """Return the settings of a new run: what was given, else the defaults, which depend on the model."""
    settings = DEFAULTS | {name: value for name, value in given.items() if name in DEFAULTS}
    settings["model"] = cli.choose_model(settings["model"], settings["revision"])
    if settings["model"] == cli.FALLBACK:
        settings |= {name: value for name, value in TINY_DEFAULTS.items() if name not in given}
    return settings


def resumed_settings(run, given):
    """Return the settings of the run to resume, which nothing given may contradict."""
    settings = run.read_config().get("settings")
    for name in ("config", "max_memory"):
        if name in given:
            raise npgpt.NpgptError(f"{flag_of(name)} {given[name]}: {run.folder} has its settings; leave the flag out")
    if not isinstance(settings, dict) or settings.keys() != DEFAULTS.keys():
        raise FormatError(f"{run.folder}/config.json does not hold the settings of a run: "
                          f"expected {', '.join(DEFAULTS)}")
    if "out" in given and not cli.same_place(given["out"], run.folder):
        raise npgpt.NpgptError(f"--out {given['out']}: a resumed run stays in its folder, {run.folder}; "
                               "leave the flag out")
    for name, value in given.items():
        place = name in PLACES and settings[name] is not None and cli.same_place(value, settings[name])
        if name in DEFAULTS and value != settings[name] and not place:
            raise npgpt.NpgptError(f"{flag_of(name)} {value} differs from {settings[name]} in {run.folder}: "
                                   "a resumed run goes on as it began; leave the flag out")
    return settings
