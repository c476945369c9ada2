"""The settings of finetune: one table of flags, and what is made of it.

A new flag is a row of FLAGS. The parser, --help, files of settings, config.json, the check of a resumed run, the
defaults for tiny and the configurations are all made from these rows.
"""

import dataclasses
import difflib
import re
import sys

from npgpt.adapters.lora_config import LoraConfig
from npgpt.commands import models
from npgpt.commands.flags import Flag, Parser, filled, path, positive, size, threads
from npgpt.files.atomic import read_json, read_text
from npgpt.runtime.errors import ConfigError, FormatError, NpgptError
from npgpt.training.fit import FitConfig
from npgpt.training.train import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROMPTS = ["Overfitting is", "A good model", "The learning rate is", "Gradient descent is", "Attention lets a model",
           "A neural network is"]
NO_NEW = "full", "adapter"  # with one of these flags there is no new adapter
TINY_REASON = "a model of 2.4 M parameters needs larger steps, and more of them, than gpt2"


def targets(text):
    """Return names of modules as a list; anything else is a regular expression, or all-linear."""
    return re.split(r"\s*,\s*", text) if re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", text) else text


def section(group, *flags):
    """Return flags under one heading of --help."""
    return [dataclasses.replace(flag, group=group) for flag in flags]


FLAGS = [
    *section(
        "model and data", *models.MODEL,
        Flag("--data", "what to train on: a file that ends in .txt, .jsonl, .json, .csv, .tsv or .parquet, a pipe, a "
             "folder of such files, of which those named train are used, or a data set on the hub, "
             "hf://datasets/OWNER/NAME; a record has one of these sets of fields: text; prompt and completion; "
             "instruction, input and output; messages; conversations (default: the texts in the package)",
             filled, place=True, metavar="PATH"),
        Flag("--val-data", "what to measure the held-out loss on: before training, after each epoch and at the end "
             "(default: in a folder, the files named validation, valid, val or dev; without --data, the held-out texts "
             "in the package)", filled, place=True, metavar="PATH"),
        Flag("--val-fraction", "hold out about this fraction of the data, instead of --val-data; a hash of each text "
             "(of each block, with --split none) decides which", float, 0.0),
        Flag("--split", "how to cut a plain text file into texts: line (each line is a text), blank (each paragraph), "
             "none (the whole file, cut into blocks), or at a mark such as '<|endoftext|>' (default: line; in a folder "
             "without a file named train, none)", metavar="HOW"),
        Flag("--separator", "what stands between prompt and completion in plain text, such as '||'; \\n and \\t as in "
             "--template", metavar="TEXT"),
        Flag("--template", "the text that is made of each record: fields in braces, \\n for a new line, \\t for a tab "
             "(\\\\n for a backslash and an n); the last field and what follows it is learned (default: one for each "
             "kind of record)", metavar="TEXT"),
        Flag("--train-on-prompt", "learn the prompts too", bool, False),
        Flag("--special-tokens", "treat <|endoftext|> and other special tokens in the data as tokens; without this "
             "flag they are plain text, and only those in --template are tokens", bool, False),
        Flag("--max-length", "longest sequence in tokens; longer texts are split (default: the model's context)", int),
    ),
    *section(
        "adapter",
        Flag("--rank", "rank of the LoRA update", int, 8, sets=(LoraConfig, "r"), idle_with=NO_NEW),
        Flag("--alpha", "LoRA alpha: the update is multiplied by alpha / rank", float, 16.0,
             sets=(LoraConfig, "lora_alpha"), idle_with=NO_NEW),
        Flag("--dropout", "dropout before the LoRA update; with --full, the model's own dropout", float, 0.1,
             sets=(LoraConfig, "lora_dropout"), idle_with=("adapter",)),
        Flag("--targets", "modules to adapt: names separated by commas, a regular expression, or all-linear", str,
             "c_attn", metavar="NAMES", tiny="all-linear", sets=(LoraConfig, "target_modules"), made=targets,
             idle_with=NO_NEW),
        Flag("--rslora", "multiply the update by alpha / sqrt(rank) instead", bool, False,
             sets=(LoraConfig, "use_rslora"), idle_with=NO_NEW),
        Flag("--dora", "train the length and the direction of the weights separately (DoRA)", bool, False,
             sets=(LoraConfig, "use_dora"), idle_with=NO_NEW),
        Flag("--init", "how A and B start", str, "kaiming", ("kaiming", "gaussian", "orthogonal", "pissa", "olora"),
             sets=(LoraConfig, "init_lora_weights"), made=lambda name: name == "kaiming" or name,
             idle_with=NO_NEW),
        Flag("--lr-ratio", "learning rate of B as a multiple of --lr; 16 is usual for LoRA+", positive, 1.0,
             idle_with=("full",)),
        Flag("--add-tokens", "new tokens for the vocabulary, such as '<|user|>'; their rows of the token table are "
             "trained and saved with the adapter, and the tokenizer is saved too", many="+", again=True,
             metavar="TOKEN", idle_with=("adapter",)),
        Flag("--adapter", "train this adapter further instead of a new one: a folder with PEFT's two files, or a hub "
             "id; it keeps its rank, its targets and its other settings", filled, place=True, metavar="DIR",
             idle_with=("full",)),
        Flag("--full", "train all weights instead of an adapter", bool, False),
    ),
    *section(
        "training",
        Flag("--epochs", "passes over the texts", int, 3, tiny=5, sets=(TrainConfig, "epochs")),
        Flag("--max-steps", "stop after this many steps", int, sets=(TrainConfig, "max_steps")),
        Flag("--batch-size", "texts in a micro-batch", int, 4, sets=(TrainConfig, "batch_size"),
             idle_with=("batch_tokens",)),
        Flag("--batch-tokens", "about this many tokens in a micro-batch, instead of --batch-size", int,
             sets=(TrainConfig, "batch_tokens")),
        Flag("--accumulate", "micro-batches in a step", int, 1, sets=(TrainConfig, "accumulate")),
        Flag("--lr", "highest learning rate", float, 3e-4, tiny=2e-3, sets=(TrainConfig, "lr")),
        Flag("--weight-decay", "weight decay of AdamW; with --full, biases and norms have none", float, 0.01, least=0),
        Flag("--decay-all", "with --full, let biases and norms decay too", bool, False, needs="full"),
        Flag("--warmup", "number of steps in which the learning rate rises", int, 0, sets=(TrainConfig, "warmup")),
        Flag("--schedule", "how the learning rate changes after the warm-up", str, "linear",
             ("constant", "linear", "cosine"),
             sets=(TrainConfig, "schedule")),
        Flag("--grad-clip", "largest norm of the gradient; 0: no clipping", float, 1.0,
             sets=(TrainConfig, "grad_clip")),
        Flag("--seed", "seed of the adapter's start, the order of the texts, dropout and the samples", int, 0,
             sets=(TrainConfig, "seed")),
        Flag("--threads", "CPU threads (default: all that NumPy's BLAS may use; 1 for small models)",
             threads, metavar="N", sets=(TrainConfig, "threads")),
        Flag("--checkpoint", "gradient checkpointing: keep only the input of each block, and compute the block again "
             "in the backward pass: less memory, about 40 % more time, the same result", bool, False),
        Flag("--max-memory", "memory limit of this process, such as 3GB: micro-batches are made smaller, and "
             "--checkpoint is switched on if necessary, to stay below it", size, of_the_call=True, metavar="SIZE"),
    ),
    *section(
        "the run and what it shows",
        Flag("--out", "folder of the run (default: runs/TIME; if that is taken, runs/TIME-2, and so on)", path,
             of_the_call=True, metavar="DIR"),
        Flag("--config", "read settings from this TOML file, or from the config.json of a run; flags on the command "
             "line take precedence", path, of_the_call=True, metavar="FILE"),
        Flag("--resume", "continue the run in this folder from its last checkpoint, however it ended", path,
             of_the_call=True, metavar="RUN"),
        Flag("--save-every", "steps between checkpoints; 0: only at the end", int, 100,
             sets=(FitConfig, "save_every")),
        Flag("--keep", "keep the newest N checkpoints", int, 1, sets=(FitConfig, "keep")),
        Flag("--eval-every", "steps between measurements of the held-out loss (default: one epoch)", int,
             sets=(FitConfig, "eval_every")),
        Flag("--keep-best", "also keep the checkpoint with the lowest held-out loss, and save its adapter at the end",
             bool, False, sets=(FitConfig, "keep_best")),
        Flag("--patience", "stop after this many measurements without a new lowest loss", int,
             sets=(FitConfig, "patience")),
        Flag("--samples", "how many sample texts to show before and after training; they begin like the first texts "
             "that are held out, or else that are learned", int, 3, least=0),
        Flag("--sample-prompts", "what the samples begin with instead: a text file with a prompt in each line (\\n for "
             "a new line), or records, which the template makes prompts of", filled, place=True, metavar="FILE"),
        Flag("--preview", "show the first N sequences token by token, with what is learned in brackets, and stop", int,
             of_the_call=True, metavar="N"),
        Flag("--quiet", "print only the result", bool, False, of_the_call=True),
    ),
]


def all_settings():
    """Return the Flags that are settings of a run: dict key -> Flag."""
    return {flag.key: flag for flag in FLAGS if not flag.of_the_call}


def given_in_all(given):
    """Return what the command line and the file of --config give; the command line takes precedence: dict.

    Raises NpgptError for a setting that has no effect with another. The config.json of a run holds every setting, so
    its settings are not refused for that.
    """
    if "resume" in given:  # the run holds its settings
        return given
    from_file, of_run = read_settings(given["config"]) if "config" in given else ({}, False)
    everything = from_file | given
    chosen = given if of_run else everything
    for name in dict.fromkeys(name for flag in FLAGS for name in flag.idle_with if name in everything):
        idle = [flag.name for flag in FLAGS if name in flag.idle_with and flag.key in chosen]
        if idle:
            raise NpgptError(f"{', '.join(idle)} would have no effect with {all_settings()[name].name}: leave one or "
                             "the other out")
    for flag in FLAGS:
        if flag.needs and flag.key in chosen and flag.needs not in everything:
            raise NpgptError(f"{flag.name} has no effect without {all_settings()[flag.needs].name}: leave it out")
    return everything


def read_settings(file):
    """Return the settings in a TOML file or in the config.json of a run, and whether it is a run's: dict, bool.

    Names are the names of flags, with "-" or "_". Raises FileError if the file cannot be read, and FormatError for a
    name that is no setting, with the nearest that is one, for a wrong value, and for YAML.
    """
    if file.suffix.lower() in (".yaml", ".yml"):
        raise FormatError(f"{file}: settings are read from a TOML file or from the config.json of a run, not from "
                          "YAML; write them into a .toml file, one a line: rank = 8")
    values = read_toml(file) if file.suffix.lower() == ".toml" else read_json(file)
    of_run = file.suffix.lower() != ".toml" and isinstance(values.get("settings"), dict)
    known, argv = all_settings(), []
    for name, value in (values["settings"] if of_run else values).items():
        key = name.replace("-", "_")
        if key not in known:
            raise FormatError(f"{file}: {name} {why_no_setting(key, value, known)}")
        try:
            argv += typed(known[key], value)
        except ValueError as error:
            raise FormatError(f"{file}: {name} = {value!r}: {error}") from error
    return FileParser(file).given(argv), of_run


def why_no_setting(key, value, known):
    """Return, in words, why a key of a file is not a setting, and what was probably meant."""
    if any(flag.key == key for flag in FLAGS):
        return "belongs to one call: give it on the command line"
    if isinstance(value, dict):
        return "is a section; settings are not in sections"
    nearest = difflib.get_close_matches(key, known, n=1)
    return "is not a setting" + "".join(f"; did you mean {name}?" for name in nearest)


def typed(flag, value):
    """Return a value of TOML or JSON as words on a command line. Raises ValueError for one of another kind."""
    if value is None:  # JSON's null: the flag was not given
        return []
    if flag.type is bool:
        if not isinstance(value, bool):
            raise ValueError("it must be true or false")
        return [flag.name] * value
    if isinstance(value, bool | dict):
        raise ValueError("it must be a number or a string")
    if isinstance(value, list):
        value = list(map(str, value))
        if flag.many:
            return [flag.name, *value]
        value = ",".join(value)
    return [f"{flag.name}={value}"]


class FileParser(Parser):
    """Reads settings from a file, and names the file if one of them is wrong."""

    def __init__(self, file):
        super().__init__("", FLAGS)
        self._file = file

    def error(self, message):
        raise FormatError(f"{self._file}: {message}")


def read_toml(file):
    try:
        return tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{file} is not valid TOML: {error}") from error


def new_settings(given):
    """Return the settings of a new run: what was given, else the defaults, which depend on the model."""
    settings = {key: given.get(key, flag.default) for key, flag in all_settings().items()}
    adapters = [settings["adapter"]] if settings["adapter"] else []
    settings["model"] = models.choose_model(settings["model"], settings["revision"], adapters)
    return settings | tiny_defaults(settings, given) | dict.fromkeys(kept_by_adapter(settings))


def kept_by_adapter(settings):
    """Return the keys of the settings that --adapter decides, if it is given."""
    return [flag.key for flag in FLAGS if "adapter" in flag.idle_with] if settings["adapter"] is not None else []


def tiny_defaults(settings, given):
    """Return the settings that have another default for the embedded model, if that is what is trained: dict."""
    if settings["model"] != models.FALLBACK:
        return {}
    decided = {*given, *kept_by_adapter(settings)}
    return {key: flag.tiny for key, flag in all_settings().items() if flag.tiny is not None and key not in decided}


def resumed_settings(run, given):
    """Return the settings of the run to resume. Raises NpgptError if anything given differs from them."""
    settings, known = run.read_config().get("settings"), all_settings()
    for name in ("config", "max_memory"):
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            raise NpgptError(f"{flag} {given[name]}: {run.folder} has its settings; leave the flag out")
    if not isinstance(settings, dict) or settings.keys() != known.keys():
        raise FormatError(f"{run.folder}/config.json does not hold the settings of a run: expected {', '.join(known)}")
    if "out" in given and not models.same_place(given["out"], run.folder):
        raise NpgptError(f"--out {given['out']}: a resumed run stays in its folder, {run.folder}; leave the flag out")
    for key, flag in known.items():
        if key not in given or given[key] == settings[key]:
            continue
        if not (flag.place and settings[key] is not None and models.same_place(given[key], settings[key])):
            raise NpgptError(f"{flag.name} {given[key]} differs from {settings[key]} in {run.folder}: a resumed run "
                             "goes on as it began; leave the flag out")
    try:
        configuration(TrainConfig, settings), configuration(FitConfig, settings), adapter_configuration(settings)
    except ConfigError as error:
        raise FormatError(f"{run.folder}/config.json: {error}") from error
    return settings


def configuration(of_class, settings):
    """Return a LoraConfig, TrainConfig or FitConfig with the fields that settings give. Raises ConfigError."""
    return of_class(**{flag.sets[1]: settings[flag.key] if flag.made is None else flag.made(settings[flag.key])
                       for flag in FLAGS if flag.sets[0] is of_class})


def adapter_configuration(settings):
    """Return the LoraConfig of a new adapter, or None if there is none to make. Raises ConfigError."""
    return None if settings["full"] or settings["adapter"] is not None else configuration(LoraConfig, settings)
