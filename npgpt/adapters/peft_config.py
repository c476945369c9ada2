"""PEFT's adapter_config.json: which fields npgpt uses, ignores and refuses, and the LoraConfig that they make."""

import dataclasses
import warnings

from npgpt.adapters.lora_config import INITIALISATIONS, LoraConfig
from npgpt.adapters.matching import match_targets, matches, short_name, whole_names
from npgpt.files.atomic import read_json
from npgpt.files.names import unwrapped
from npgpt.runtime.errors import ConfigError, FileError, FormatError, one_line

CONFIG_FILE = "adapter_config.json"

# Every field of PEFT's file, with the value that PEFT assumes if the field is absent.
PEFT_DEFAULTS = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": None, "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": False,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 8,
    "rank_pattern": {}, "revision": None, "target_modules": ["c_attn"], "target_parameters": None, "task_type": None,
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    "velora_config": None,
}  # fmt: skip
# Fields that PEFT had in the past. enable_lora is refused unless it is null. The other two say when and where PEFT
# computes, so they change nothing.
FORMER = {"enable_lora", "merge_weights", "runtime_config"}
# npgpt uses the fields of READ, among them those of its own LoraConfig. Those of IGNORED change nothing: PEFT finds
# some from the layers (fan_in_fan_out), and some are settings of a feature that has its own switch. Every other field
# must have its default.
FIELDS = [field.name for field in dataclasses.fields(LoraConfig)]
READ = {*FIELDS, "base_model_name_or_path", "peft_type", "task_type"}
IGNORED = {
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "inference_mode",
    "loftq_config", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
}  # fmt: skip
# The fields that hold names of modules.
NAMES = ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern")
# The initialisations that leave the base as it was, besides npgpt's own. The others subtract from the base what they
# put into A and B. "pissa" can be repeated exactly from the base, so npgpt does this.
PLAIN_INITIALISATIONS = (None, "eva", "mica")


def read_fields(path):
    """Return what the adapter_config.json at `path` holds. Raises FileError, which says what the folder is if it is
    another one: that of a run, or that of a model."""
    folder = path.parent
    if folder.is_dir() and not path.exists():
        if (folder / "adapter" / CONFIG_FILE).exists():
            raise FileError(f"{folder} is the folder of a run; its adapter is {folder / 'adapter'}")
        if (folder / "checkpoints").is_dir():
            raise FileError(f"{folder} is the folder of a run that has no adapter")
        if (folder / "config.json").exists():
            raise FileError(f"{folder} is the folder of a model, not of an adapter: there is no {CONFIG_FILE}")
    return read_json(path)


def read_config(path):
    """Return the fields of the adapter_config.json at `path`. Raises FormatError if npgpt does not support them."""
    values = read_fields(path)
    if "peft_type" not in values and "lora_parameters" in values:
        raise FormatError(f"{path} is MLX's, not PEFT's; convert its folder with convert_adapter.py")
    if values.get("peft_type") != "LORA":
        raise FormatError(f"{path}: peft_type = {values.get('peft_type')!r}, but npgpt reads only 'LORA'")
    unknown = sorted(values.keys() - PEFT_DEFAULTS.keys() - FORMER)
    if unknown:
        text = f"{path}: npgpt does not know {', '.join(map(repr, unknown))} and ignores this"
        warnings.warn(one_line(text), stacklevel=3)
    values = PEFT_DEFAULTS | values
    for refusal in refusals(values):
        raise FormatError(f"{path}: {refusal}")
    if values["init_lora_weights"] in PLAIN_INITIALISATIONS:
        values["init_lora_weights"] = True
    return without_wrappers(values)


def without_wrappers(values):
    """Return the fields `values`, with the names of wrappers removed from the names of modules.

    `values` has every field. A regular expression is not a name, so it stays as it is.
    """
    def plain(value):
        if isinstance(value, list):
            return [unwrapped(name) if isinstance(name, str) else name for name in value]
        return {unwrapped(name): item for name, item in value.items()} if isinstance(value, dict) else value

    return values | {field: plain(values[field]) for field in NAMES}


def refusals(values):
    """Yield one sentence for each field of `values` that npgpt does not support. `values` has every field."""
    for field in sorted(PEFT_DEFAULTS.keys() - READ - IGNORED):
        value, default = values[field], PEFT_DEFAULTS[field]
        if not (value == default or value is None or value is False or value in ([], {}, "")):
            yield (f"{field} = {value!r} changes what the adapter computes, and npgpt does not support it; it must be "
                   f"{default!r}")
    if values.get("enable_lora") is not None:
        yield (f"enable_lora = {values['enable_lora']!r} means A and B for each of q, k and v, as PEFT wrote until "
               "version 0.2; convert the folder with convert_adapter.py")
    init = values["init_lora_weights"]
    if init == "olora" or not (isinstance(init, bool) or init in (*PLAIN_INITIALISATIONS, *INITIALISATIONS[2:])):
        yield (f"init_lora_weights = {init!r} rewrote the base weights, and this file does not hold them; have PEFT "
               "convert it to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)")
    base = values["base_model_name_or_path"]
    if not isinstance(base, str | None):
        yield f"base_model_name_or_path = {base!r}: it must be a string or null"
    if values["task_type"] in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"):
        yield f"task_type = {values['task_type']!r} needs a classifier; npgpt has only the language model's head"


def lora_config(values, model, tensors):
    """Return the LoraConfig of the fields `values` for `model`, with whole names of modules for its patterns.

    tensors  dict canonical name -> [(key, array), ...] of the file

    Raises ConfigError.
    """
    fields = {field: PEFT_DEFAULTS[field] if values[field] in (None, {}, "") else values[field] for field in FIELDS}
    fields["target_modules"] = targets = ["c_attn"] if values["target_modules"] is None else values["target_modules"]
    patterns = {field: fields.pop(field) for field in ("rank_pattern", "alpha_pattern")}
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        # PEFT's list may hold names that match nothing here. They can be dropped: whether each module gets its weights
        # is checked later. If no name matches, all are kept, so that match_targets reports them.
        present = [target for target in targets if any(f".{module}".endswith(f".{target}")
                                                       for module in whole_names(model))]
        fields["target_modules"] = tuple(present or targets)
    elif isinstance(targets, str) and targets.lower() != "all-linear" and not any(
            ".transformer." in f".{key}" for entries in tensors.values() for key, _ in entries):
        for field in ("target_modules", "exclude_modules"):
            if isinstance(fields[field], str):  # for a model without a head, whose modules begin with "h."
                fields[field] = rf"transformer\.(?:{fields[field]})"
    config = LoraConfig(**fields, **patterns)
    ranks, alphas = _resolved(patterns, match_targets(model, config), tensors)
    return dataclasses.replace(config, rank_pattern=ranks or None, alpha_pattern=alphas or None)


def _resolved(patterns, modules, tensors):
    """Return the two patterns with whole names: dict module -> rank, dict module -> alpha. Raises ConfigError."""
    ranks, alphas = {}, {}
    for module in modules:
        short = short_name(module)
        stored = [array.shape[0] for name in ("lora_A.weight", "lora_embedding_A")
                  for _, array in tensors.get(f"{short}.{name}", ()) if array.ndim]
        for field, resolved in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            found = list(dict.fromkeys(matches(patterns[field], module)))
            if field == "rank_pattern":  # the file's tensors tell which one was meant
                found = [value for value in found if value in stored] or found[:1]
            if len(found) > 1:
                raise ConfigError(f"alpha_pattern gives {module} the values {', '.join(map(str, found))}: the first "
                                  "one was used in training, but the file has sorted its keys, so it is not known; "
                                  "there must be one value")
            if found:
                resolved[module] = found[0]
    return ranks, alphas
