"""PEFT's adapter files <-> LoRA.

A folder holds adapter_config.json and adapter_model.safetensors (before 2023 adapter_model.bin, which is read as well),
whose keys are module names as PEFT sees them:

    base_model.model.transformer.h.0.attn.c_attn.lora_A.weight      (R, in)
    base_model.model.transformer.h.0.attn.c_attn.lora_B.weight      (out, R)

Reading is strict. PEFT runs an adapter that does not fit its base with a warning at most, and the result looks like a
working model: here every tensor of the file is used and every adapted module is given both of its tensors, or the
adapter is refused. The same holds for a field of the configuration that changes what the adapter computes.

Source: files written by PEFT 0.21.2, and its LoraConfig.
"""

import os
import re
import warnings
from pathlib import Path

import numpy as np

from npgpt import safetensors
from npgpt.checkpoint import READERS, cast
from npgpt.errors import ConfigError, FileError, FormatError, one_line
from npgpt.files import read_json, write_json
from npgpt.lora import LoraConfig, attach, check_new, make_updates, updates

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.transformer."

# Every field of PEFT's file with the value that PEFT assumes where it is absent.
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
# The fields that are acted on below, and those that change nothing: how A and B were first drawn, what PEFT finds out
# from the layers by itself (fan_in_fan_out), settings of features that have a switch of their own. Every other field
# must have its default.
READ = {
    "base_model_name_or_path", "init_lora_weights", "lora_alpha", "lora_dropout", "peft_type", "r", "target_modules",
    "task_type",
}  # fmt: skip
IGNORED = {
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "inference_mode",
    "loftq_config", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
}  # fmt: skip
# The initialisations that leave the base as it was. The others subtract from it what they put into A and B.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def save_adapter(model, folder, name="default"):
    """Write the adapter called `name` as PEFT does, in float32.

    folder  where the two files go; the files of a name other than "default" go to folder/name

    Each file is written whole or not at all, the configuration last: a folder that has one has its weights.
    Raises ConfigError where the model has no such adapter, FileError where the folder cannot be written.
    """
    made = updates(model, name)
    config = next(iter(made.values())).config
    if isinstance(config.target_modules, str):
        targets = [f"transformer.{module}" for module in made]  # as PEFT writes "all-linear" out
    else:
        targets = set(config.target_modules)
    values = PEFT_DEFAULTS | {
        "base_model_name_or_path": model.name_or_path,
        "fan_in_fan_out": True,
        "inference_mode": True,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "r": config.r,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
    }
    tensors = {}
    for module, update in made.items():
        for parameter, tensor in update.parameters().items():
            tensors[f"{PREFIX}{module}.{parameter}.weight"] = tensor.data.astype(np.float32, copy=False)
    place = _place(folder, name)
    safetensors.write(place / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(place / CONFIG_FILE, values, sort_keys=True)


def load_adapter(model, folder, name="default", trainable=True):
    """Put the adapter in `folder` onto `model`, in force alone; all else is frozen. In place; returns the model.

    folder     PEFT's two files; or, for a name other than "default", a folder that has them in folder/name
    name       what the adapter is called from here on
    trainable  whether its A and B are trainable

    Tensors of any float dtype are taken to the model's. The model is changed only once everything has been checked.
    Raises FileError where a file cannot be read, FormatError where the adapter cannot be used or does not fit the
    model, ConfigError where the model has an adapter of that name already.
    """
    check_new(model, name)
    if os.path.isfile(folder):
        raise FileError(f"{folder} is a file, and an adapter is a folder with {CONFIG_FILE}; convert_adapter.py makes "
                        "one of a loralib checkpoint")
    place = _place(folder, name)
    if name != "default" and not os.path.exists(place / CONFIG_FILE):
        place = Path(folder)
    values = _read_config(place / CONFIG_FILE)
    weights = find_weights(place)
    arrays = READERS[weights.suffix](weights)
    config = _lora_config(place / CONFIG_FILE, values, model, arrays)
    try:
        made = make_updates(model, config)
    except ConfigError as error:
        raise FormatError(f"{place / CONFIG_FILE}: {error}") from error
    _fill(weights, values, model, made, arrays)
    _warn_of_another_base(place, values, model)
    return attach(model, name, made, trainable)


def _place(folder, name):
    """Return the folder of the adapter called `name`."""
    if not re.fullmatch(r"[^./\\]+", name):
        raise ConfigError(f"{name!r} cannot name an adapter: it must be a word without '.', '/' and '\\'")
    return Path(folder) if name == "default" else Path(folder) / name


def _read_config(path):
    """Return the fields of the adapter_config.json at `path`. Raises FormatError for what npgpt does not support."""
    values = read_json(path)
    if values.get("peft_type") != "LORA":
        raise FormatError(f"{path}: peft_type = {values.get('peft_type')!r}, where npgpt reads 'LORA' only")
    unknown = sorted(values.keys() - PEFT_DEFAULTS.keys())
    if unknown:
        text = f"{path}: npgpt does not know {', '.join(map(repr, unknown))} and goes on without"
        warnings.warn(one_line(text), stacklevel=3)
    values = PEFT_DEFAULTS | values
    for refusal in refusals(values):
        raise FormatError(f"{path}: {refusal}")
    return values


def refusals(values):
    """Yield, a sentence each, what of an adapter's configuration npgpt does not support. `values` has every field."""
    for field in sorted(PEFT_DEFAULTS.keys() - READ - IGNORED):
        value, default = values[field], PEFT_DEFAULTS[field]
        if not (value == default or value is None or value is False or value in ([], {}, "")):
            yield (f"{field} = {value!r} changes what the adapter computes, and npgpt does not support it; it must be "
                   f"{default!r}")
    if values["init_lora_weights"] not in PLAIN_INITIALISATIONS:
        yield (f"init_lora_weights = {values['init_lora_weights']!r} rewrote the base weights, and this file does not "
               "hold them; have PEFT convert it to plain LoRA (save_pretrained with "
               "path_initial_model_for_weight_conversion)")
    base = values["base_model_name_or_path"]
    if not isinstance(base, str | None):
        yield f"base_model_name_or_path = {base!r}: it must be a string or null"
    if values["task_type"] == "SEQ_CLS":
        yield "task_type = 'SEQ_CLS' needs a classifier; npgpt has the language model's head"


def find_weights(place):
    """Return the path of the adapter's tensors; the older adapter_model.bin counts where it stands alone."""
    old = place / "adapter_model.bin"
    return old if os.path.exists(old) and not os.path.exists(place / WEIGHTS_FILE) else place / WEIGHTS_FILE


def _lora_config(path, values, model, arrays):
    """Return the LoraConfig that the fields `values` make for `model`. Raises FormatError."""
    targets = values["target_modules"]
    if targets is None:
        targets = PEFT_DEFAULTS["target_modules"]
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        # PEFT lets a list hold names that match nothing here. They may be dropped: which modules the file has weights
        # for is accounted for below. Where none is left, all are kept, for match_targets to complain about.
        modules = [f".transformer.{module}" for module, _ in model.named_modules()]
        present = [target for target in targets if any(module.endswith(f".{target}") for module in modules)]
        targets = tuple(present or targets)
    elif not isinstance(targets, str):
        raise FormatError(f"{path}: target_modules = {targets!r}: it must be a list of names or a regular expression")
    elif targets.lower() == "all-linear":
        targets = targets.lower()
    elif not any(".transformer." in f".{key}" for key in arrays):
        targets = rf"transformer\.(?:{targets})"  # trained on a model without a head, whose modules begin with "h."
    try:
        return LoraConfig(values["r"], values["lora_alpha"], values["lora_dropout"], targets)
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error


def _fill(path, values, model, made, arrays):
    """Give every tensor of `made`, dict module name -> update, its array from the file, in the tensor's dtype.

    Raises FormatError where the file holds less, more, or other shapes.
    """
    expected = {(module, parameter): tensor
                for module, update in made.items() for parameter, tensor in update.parameters().items()}
    found, unexpected, wrong = {}, [], []
    for key, array in arrays.items():
        # A state dict that was saved as it is in memory has the adapter's name before "weight".
        match = re.fullmatch(r"(?:base_model\.model\.)?(?:transformer\.)?(.+)\.(lora_[AB])(?:\.[^.]+)?\.weight", key)
        slot = match and match.groups()
        if slot not in expected or slot in found:
            unexpected.append(repr(key))
            continue
        found[slot] = array
        shape = expected[slot].shape
        if array.shape != shape or array.dtype.kind != "f":
            wrong.append(f"{key!r} has shape {array.shape}, {array.dtype}, where {shape} of floats is right")
    missing = [".".join(slot) for slot in expected if slot not in found]

    problems = [f"{kind}{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                for kind, names in (("", wrong), ("missing ", missing), ("not expected ", unexpected)) if names]
    if problems:
        base, here = (name or "(not named)" for name in (values["base_model_name_or_path"], model.name_or_path))
        raise FormatError(
            f"{path}, an adapter for {base!r}, does not fit this model, {here!r} with n_layer {model.config.n_layer} "
            f"and n_embd {model.config.n_embd}: {'; '.join(problems)}"
        )
    for (module, parameter), tensor in expected.items():
        tensor.data = cast(f"{path}: {parameter} of {module}", found[module, parameter], tensor.dtype)


def _warn_of_another_base(place, values, model):
    """Warn where both bases have a name and the last parts differ: a fine-tuned GPT-2 has GPT-2's shapes."""
    theirs, ours = values["base_model_name_or_path"], model.name_or_path
    if theirs and ours and Path(theirs).name != Path(ours).name:
        text = f"the adapter in {place} was made for {theirs!r}, and this model is {ours!r}"
        warnings.warn(one_line(text), stacklevel=3)
