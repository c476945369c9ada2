"""MLX's adapter folders of GPT-2 <-> PEFT's. The two compute the same, but store their matrices transposed.

    adapters.safetensors    model.h.0.attn.c_attn.lora_a (in, r), .lora_b (r, out), and with DoRA .m (out,)
    adapter_config.json     {"fine_tune_type": "lora" or "dora", "lora_parameters": {"scale", "dropout", ..}, ..}

    MLX   y = x W + b + scale (x a) b           so  A = aᵀ,  B = bᵀ,  alpha = scale r
    PEFT  y = x W + b + alpha / r (x Aᵀ) Bᵀ

m is DoRA's magnitude vector in both. Only alpha is computed. MLX has one rank and one scale for a whole adapter: a
smaller rank is filled up with zeros, and the ratio of two scales goes into b.

Source: github.com/ml-explore/mlx-lm, mlx_lm/tuner/lora.py, dora.py and utils.py, and mlx_lm/models/gpt2.py.
"""

import math
import re
from pathlib import Path

import numpy as np

from npgpt.adapters.peft import PREFIX, write_files
from npgpt.adapters.peft_config import CONFIG_FILE
from npgpt.adapters.stack import updates
from npgpt.exchange.loralib import targets
from npgpt.files import safetensors
from npgpt.files.atomic import read_json, write_json
from npgpt.files.checkpoint import cast
from npgpt.files.names import parameter_name
from npgpt.runtime.errors import ConfigError, FormatError

PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
MODULE = re.compile(r"h\.\d+\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)")


def convert(source, folder):
    """Convert the MLX adapter in the folder `source` to PEFT's two files in `folder`; returns the fields of its
    configuration. Raises FileError, FormatError if the folder does not hold such an adapter."""
    source = Path(source)
    config = read_json(source / CONFIG_FILE)
    kind, given = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    scale, dropout = (given.get("scale"), given.get("dropout", 0.0)) if isinstance(given, dict) else (None, None)
    if kind not in ("lora", "dora") or not _is_number(scale) or not _is_number(dropout):
        raise FormatError(f"{source / CONFIG_FILE} does not describe an MLX adapter: fine_tune_type must be 'lora' or "
                          "'dora', and lora_parameters must have scale and dropout; "
                          f"they are {kind!r} and {given!r}")
    modules, rank = _read_modules(source / "adapters.safetensors", kind)
    tensors = {f"{PREFIX}{module}.{PARTS[part]}": array
               for module, arrays in modules.items() for part, array in arrays.items()}
    return write_files(folder, tensors, {
        "lora_alpha": scale * rank,
        "lora_dropout": dropout,
        "r": rank,
        "target_modules": targets(modules),
        "use_dora": kind == "dora",
    })


def export(model, folder, name="default"):
    """Write the adapter called `name` of a model as MLX's two files; returns the fields of its configuration.

    Raises ConfigError if the model has no such adapter or MLX has no such update, FileError if writing fails.
    """
    made, tensors = {}, {}
    for module, update in updates(model, name).items():
        arrays, rank, alpha = update.plain()
        parts = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
        if not MODULE.fullmatch(module) or not arrays.keys() <= parts.keys():
            raise ConfigError(f"MLX has no place for {', '.join(sorted(arrays))} of {module}: its adapters of GPT-2 "
                              "hold lora_A, lora_B and lora_magnitude_vector of linear layers")
        made[module] = {parts[part]: array for part, array in arrays.items()}, update.config.scale_of(rank, alpha)
    rank, scale = max(len(arrays["lora_a"]) for arrays, _ in made.values()), next(iter(made.values()))[1]
    for module, (arrays, own) in made.items():
        arrays["lora_b"] = arrays["lora_b"] * (own / scale)
        missing = rank - len(arrays["lora_a"])
        arrays["lora_a"] = np.pad(arrays["lora_a"], ((0, missing), (0, 0)))
        arrays["lora_b"] = np.pad(arrays["lora_b"], ((0, 0), (0, missing)))
        for part, array in arrays.items():
            tensors[f"model.{module}.{part}"] = np.ascontiguousarray(array.T, np.float32)
    config = next(iter(updates(model, name).values())).config
    fields = {
        "fine_tune_type": "dora" if config.use_dora else "lora",
        "lora_parameters": {"dropout": config.lora_dropout, "keys": sorted({_kind(module) for module in made}),
                            "rank": rank, "scale": scale},
        "model": model.name_or_path,
        "num_layers": model.config.n_layer,
    }
    safetensors.write(Path(folder) / "adapters.safetensors", tensors, {"format": "mlx"})
    write_json(Path(folder) / CONFIG_FILE, fields)
    return fields


def _kind(module):
    """Return a module's name within its layer: "attn.c_attn"."""
    return module.split(".", 2)[2]


def _read_modules(path, kind):
    """Return dict module -> {"lora_a": A, "lora_b": B, ...}, transposed as PEFT has them, and the rank of all.

    Raises FormatError unless each module has its parts, all of one rank.
    """
    modules = {}
    for key, array in safetensors.read(path).items():
        module, _, part = parameter_name(key).rpartition(".")
        tensors = modules.setdefault(module, {})
        if not MODULE.fullmatch(module) or part not in PARTS or part in tensors:
            raise FormatError(f"{path}: {key!r} has no place in PEFT's adapter: it must be lora_a, lora_b or m of a "
                              "linear layer, each once")
        tensors[part] = cast(f"{path}: {key}", array, np.float32, copy=False).T
    rank = max((len(tensors["lora_a"]) for tensors in modules.values() if "lora_a" in tensors), default=0)
    for module, tensors in modules.items():
        shapes = {part: array.shape for part, array in tensors.items()}
        right = {"lora_a": (rank, *shapes.get("lora_a", ())[1:2]), "lora_b": (*shapes.get("lora_b", ())[:1], rank)}
        if kind == "dora":
            right["m"] = right["lora_b"][:1]
        if shapes != right or any(not array.size for array in tensors.values()):
            also = " and m (out,)" if kind == "dora" else ""
            raise FormatError(f"{path}: {module} must have lora_a (in, r), lora_b (r, out){also} with r = {rank}; it "
                              f"has {', '.join(sorted(shapes))}")
    if not modules:
        raise FormatError(f"{path} holds no tensors; an adapter has at least one module")
    return modules, rank


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)
