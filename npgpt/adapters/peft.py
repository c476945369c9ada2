"""PEFT's adapter files <-> LoRA.

A folder holds adapter_config.json and adapter_model.safetensors. (Before 2023 it was adapter_model.bin, which is read
too.) The keys of the tensors are PEFT's names of modules:

    base_model.model.transformer.h.0.attn.c_attn.lora_A.weight      (R, in)
    base_model.model.transformer.h.0.attn.c_attn.lora_B.weight      (out, R)

Reading is strict. If an adapter does not fit its base, PEFT warns at most, and the result looks like a working model.
Here, every tensor of the file must be used, and every adapted module must get all its tensors; otherwise the adapter is
refused. It is also refused if the configuration has a field that changes what the adapter computes and that npgpt does
not know: see `adapter_config`.

peft itself does not run without torch. Source: files written by PEFT 0.21.2, and its LoraConfig.
"""

import os
import re
import warnings
from pathlib import Path

import numpy as np

from npgpt.adapters.matching import short_name, whole_name, whole_names
from npgpt.adapters.peft_config import CONFIG_FILE, FIELDS, PEFT_DEFAULTS, lora_config, read_config
from npgpt.adapters.peft_tables import needs_tables, other_vocabulary, take_tables, with_tables
from npgpt.adapters.stack import attach, check_new, make_updates, updates
from npgpt.autograd import Tensor
from npgpt.files import hub, safetensors
from npgpt.files.atomic import write_json
from npgpt.files.checkpoint import READERS, cast
from npgpt.files.names import parameter_name
from npgpt.lora import LowRank
from npgpt.runtime.errors import ConfigError, FileError, FormatError, one_line
from npgpt.runtime.seeding import generator

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model.transformer."

# The names of tensors in the file, if they differ from the names of the model's parameters.
IN_FILE = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_B_bias": "lora_B.bias",
           "trained_weight": "weight", "trained_bias": "bias",
           "trainable_tokens_delta": "token_adapter.trainable_tokens_delta"}


def save_adapter(model, folder, name="default", save_embedding_layers="auto"):
    """Write the adapter called `name` as PEFT does, in float32.

    folder                 the folder for the two files; an adapter with another name than "default" goes to folder/name
    save_embedding_layers  whether to write the whole token table and the head too. "auto": if the vocabulary was
                           resized and the adapter does not hold all new rows itself

    Each file is written whole or not at all, and the configuration last: if a folder has it, it has the weights too.
    Raises ConfigError if the model has no such adapter, FileError if the folder cannot be written.
    """
    made = {whole_name(module): update for module, update in updates(model, name).items()}
    if save_embedding_layers not in (True, False, "auto"):
        raise ConfigError(f'save_embedding_layers = {save_embedding_layers!r}: it must be True, False or "auto"')
    if needs_tables(model, made) if save_embedding_layers == "auto" else save_embedding_layers:
        made = with_tables(model, made)
    config = next(iter(made.values())).config
    tensors, ranks, alphas = _to_write(made)
    # For a regular expression, the file lists the modules that it matched, as PEFT's does for "all-linear". Ranks and
    # alphas get whole names: the first expression that matches decides, and the file's sorting would change the order.
    given = not isinstance(config.target_modules, str)
    r, alpha = _most(ranks.values(), config.r), _most(alphas.values(), config.lora_alpha)
    write_files(_place(folder, name), tensors, {field: _json(getattr(config, field)) for field in FIELDS} | {
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "base_model_name_or_path": model.name_or_path,
        "exclude_modules": _json(config.exclude_modules) if given else None,
        "init_lora_weights": True if config.init_lora_weights in ("pissa", "olora") else config.init_lora_weights,
        "lora_alpha": alpha,
        "r": r,
        "rank_pattern": {module: value for module, value in ranks.items() if value != r},
        "target_modules": sorted(set(config.target_modules)) if given else list(ranks),
    })


def write_files(folder, tensors, fields):
    """Write PEFT's two files of an adapter, and return all fields of its configuration. Raises FileError.

    tensors  dict key -> array
    fields   dict of the configuration's fields that differ from PEFT's defaults
    """
    fields = PEFT_DEFAULTS | {"fan_in_fan_out": True, "inference_mode": True, "task_type": "CAUSAL_LM"} | fields
    safetensors.write(Path(folder) / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(Path(folder) / CONFIG_FILE, fields, sort_keys=True)
    return fields


def _to_write(made):
    """Return (tensors, ranks, alphas) of the updates: dict key -> array, dict module -> rank, dict module -> alpha."""
    tensors, ranks, alphas = {}, {}, {}
    for module, update in made.items():
        arrays, rank, alpha = update.plain()
        if rank is not None:
            ranks[module], alphas[module] = rank, alpha
        for parameter, array in arrays.items():
            low_rank_bias = parameter == "trained_bias" and isinstance(update, LowRank)
            key = f"{module}.{'base_layer.' if low_rank_bias else ''}{IN_FILE.get(parameter, parameter)}"
            tensors[f"base_model.model.{key}"] = array.astype(np.float32, copy=False)
    return tensors, ranks, alphas


def load_adapter(model, folder, name="default", trainable=True):
    """Load the adapter in `folder` into `model`, as its only active adapter. In place; returns the model.

    folder     the folder of PEFT's two files, or the hub id of an adapter; with another name than "default", the files
               may be in folder/name
    name       the name of the adapter in the model
    trainable  whether the adapter's parameters are trainable; all others are frozen

    Tensors of any float dtype are converted to the model's. The model changes only after all checks have passed.
    Raises FileError if a file cannot be read, FormatError if the adapter cannot be used or does not fit the model,
    ConfigError if the model has an adapter of this name already.
    """
    check_new(model, name)
    if os.path.isfile(folder):
        raise FileError(f"{folder} is a file, but an adapter is a folder with {CONFIG_FILE}; convert a loralib "
                        "checkpoint with convert_adapter.py")
    folder = hub.adapter_folder(folder)
    place = _place(folder, name)
    if name != "default" and not os.path.exists(place / CONFIG_FILE):
        place = Path(folder)
    values = read_config(place / CONFIG_FILE)
    weights, arrays = read_weights(place)
    tensors = {}
    for key, array in arrays.items():
        tensors.setdefault(_canonical(key), []).append((key, array))
    try:
        config = lora_config(values, model, tensors)
        made = make_updates(model, config)
    except ConfigError as error:
        raise FormatError(f"{place / CONFIG_FILE}: {error}") from error
    if config.init_lora_weights == "pissa":
        layers = whole_names(model)
        for module, update in made.items():
            update.initialise(layers[module], generator(0, module))  # only to change the base; `_fill` sets A and B
    take_tables(weights, model, config, made, tensors)
    _fill(weights, values, model, made, tensors)
    _warn_of_another_base(place, values, model)
    return attach(model, name, made, trainable)


def make_room(model, folder):
    """Give `model` rows for all tokens that the adapter in `folder` was trained with, if it has fewer. In place.

    Raises FileError, FormatError, and what `resize_token_embeddings` raises.
    """
    place = hub.adapter_folder(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `load_adapter` will warn
        values = read_config(place / CONFIG_FILE)
    _, arrays = read_weights(place)
    axes = {"wte.weight": 0, "lm_head.weight": 0, "wte.lora_embedding_A": 1, "lm_head.lora_B.weight": 0}
    rows = [array.shape[axes[name]] for key, array in arrays.items()
            if (name := _canonical(key)) in axes and array.ndim == 2]
    indices = values.get("trainable_token_indices") or []
    for listed in indices.values() if isinstance(indices, dict) else [indices]:
        rows += [row + 1 for row in listed if type(row) is int]
    if max(rows, default=0) > model.config.vocab_size:
        model.resize_token_embeddings(max(rows))


def _most(values, default):
    """Return the most frequent value (the first, if there are several), or `default` if there are no values."""
    values = list(values)
    return max(values, key=values.count, default=default)


def _json(value):
    """Return a field's value as JSON has it: a list for a tuple."""
    return list(value) if isinstance(value, tuple) else value


def _place(folder, name):
    """Return the folder of the adapter called `name`."""
    if not re.fullmatch(r"[^./\\]+", name):
        raise ConfigError(f"{name!r} cannot name an adapter: a name must not be empty or hold '.', '/' or '\\'")
    return Path(folder) if name == "default" else Path(folder) / name


def read_weights(place):
    """Return the path of the adapter's tensors, and the tensors as a dict key -> array.

    The older adapter_model.bin is read if it is there alone. Raises FileError, and FormatError. The latter also if
    there are no tensors or one is empty: DeepSpeed's ZeRO-3 saves such files, and so does filtering a state dict twice.
    """
    old = place / "adapter_model.bin"
    path = old if os.path.exists(old) and not os.path.exists(place / WEIGHTS_FILE) else place / WEIGHTS_FILE
    arrays = READERS[path.suffix](path)
    empty = next((f"{key!r} in it holds no numbers" for key, array in arrays.items() if not array.size), None)
    if empty or not arrays:
        raise FormatError(f"{path} is not a whole adapter, {empty or 'it holds no tensors'}: it was saved without its "
                          "weights, as happens with ZeRO-3 (zero_to_fp32.py gathers them) or a replaced state_dict; "
                          "look for the weights in the training's checkpoints")
    return path, arrays


def _canonical(key):
    """Return the name by which a key of the file is compared with others.

    It has no names of the classes around the model, and no adapter's name, which a state dict in memory has.
    """
    key = parameter_name(key).replace(".token_adapter.", ".").replace(".base_layer.", ".")
    key = re.sub(r"\.(lora_[AB])(?:\.[^.]+)?\.(weight|bias)$", r".\1.\2", key)
    key = re.sub(r"\.(lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta)(?:\.[^.]+){0,2}$", r".\1", key)
    return re.sub(r"\.modules_to_save(?:\.[^.]+)?\.(weight|bias)$", r".\1", key)


def _fill(path, values, model, made, tensors):
    """Give every tensor of `made`, dict whole name -> update, its array from the file, in the tensor's dtype.

    The file may hold tensors of the base too, if somebody saved the state of a whole PeftModel; they must equal the
    model's. Raises FormatError if the file lacks a tensor, or has another one or another shape.
    """
    base = {f"{short_name(module)}.{name}": getattr(layer, name, None) for module, layer in whole_names(model).items()
            for name in ("weight", "bias")}
    expected = {}
    for module, update in made.items():
        short = short_name(module)
        for parameter, tensor in update.parameters().items():
            expected[_canonical(f"{short}.{IN_FILE.get(parameter, parameter)}")] = f"{short}.{parameter}", tensor
    found, unexpected, wrong = {}, [], []
    for name, ((key, array), *others) in tensors.items():
        if name not in expected:
            own = isinstance(base.get(name), Tensor) and np.array_equal(array, base[name].data)
            others = others if own else [(key, array), *others]
        else:
            found[name] = array
            shape = expected[name][1].shape
            if array.shape != shape or array.dtype.kind != "f":
                wrong.append(f"{key!r} has shape {array.shape}, {array.dtype}, but {shape} of floats is right"
                             f"{other_vocabulary(model, array.shape, shape)}")
        unexpected += [repr(key) for key, _ in others]
    missing = [called for name, (called, _) in expected.items() if name not in found]

    problems = [f"{kind}{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                for kind, names in (("", wrong), ("missing ", missing), ("not expected ", unexpected)) if names]
    if problems:
        base, here = (name or "(not named)" for name in (values["base_model_name_or_path"], model.name_or_path))
        raise FormatError(
            f"{path}, an adapter for {base!r}, does not fit this model, {here!r} with n_layer {model.config.n_layer} "
            f"and n_embd {model.config.n_embd}: {'; '.join(problems)}"
        )
    for name, (called, tensor) in expected.items():
        module, _, parameter = called.rpartition(".")
        tensor.data = cast(f"{path}: {parameter} of {module}", found[name], tensor.dtype)


def _warn_of_another_base(place, values, model):
    """Warn if the last parts of the two bases' names differ: a fine-tuned GPT-2 has the same shapes as GPT-2."""
    theirs, ours = values["base_model_name_or_path"], model.name_or_path
    if theirs and ours and Path(theirs).name != Path(ours).name:
        text = f"the adapter in {place} was made for {theirs!r}, but this model is {ours!r}"
        warnings.warn(one_line(text), stacklevel=3)
