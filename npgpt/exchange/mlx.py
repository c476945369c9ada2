"""MLX's adapter folders of GPT-2 -> PEFT's. The two compute the same, and write it down the other way round.

    adapters.safetensors    model.h.0.attn.c_attn.lora_a (in, r), .lora_b (r, out), and with DoRA .m (out,)
    adapter_config.json     {"fine_tune_type": "lora" or "dora", "lora_parameters": {"scale", "dropout", ..}, ..}

    MLX   y = x W + b + scale (x a) b           so  A = aᵀ,  B = bᵀ,  alpha = scale r
    PEFT  y = x W + b + alpha / r (x Aᵀ) Bᵀ

m is DoRA's magnitude vector in both. Not one number is computed but alpha.

Source: github.com/ml-explore/mlx-lm, mlx_lm/tuner/lora.py, dora.py and utils.py, and mlx_lm/models/gpt2.py.
"""

import math
import re
from pathlib import Path

import numpy as np

from npgpt.adapters.peft import PREFIX, WEIGHTS_FILE
from npgpt.adapters.peft_config import CONFIG_FILE, PEFT_DEFAULTS
from npgpt.exchange.loralib import targets
from npgpt.files import safetensors
from npgpt.files.atomic import read_json, write_json
from npgpt.files.checkpoint import cast
from npgpt.files.names import parameter_name
from npgpt.runtime.errors import FormatError

PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
MODULE = re.compile(r"h\.\d+\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)")


def convert(source, folder):
    """Write PEFT's two files of the MLX adapter in the folder `source` into `folder`; returns the fields of its
    configuration. Raises FileError, FormatError for a folder that holds no such adapter."""
    source, folder = Path(source), Path(folder)
    config = read_json(source / CONFIG_FILE)
    kind, given = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    scale, dropout = (given.get("scale"), given.get("dropout", 0.0)) if isinstance(given, dict) else (None, None)
    if kind not in ("lora", "dora") or not _is_number(scale) or not _is_number(dropout):
        raise FormatError(f"{source / CONFIG_FILE} is not that of an MLX adapter: fine_tune_type must be 'lora' or "
                          f"'dora', and lora_parameters have scale and dropout; they are {kind!r} and {given!r}")
    path = source / "adapters.safetensors"
    modules = {}
    for key, array in safetensors.read(path).items():
        module, _, part = parameter_name(key).rpartition(".")
        tensors = modules.setdefault(module, {})
        if not MODULE.fullmatch(module) or part not in PARTS or part in tensors:
            raise FormatError(f"{path}: {key!r} has no place in an adapter of PEFT: it must be lora_a, lora_b or m of "
                              "a linear layer, each once")
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
        raise FormatError(f"{path} holds no tensors")
    fields = PEFT_DEFAULTS | {
        "fan_in_fan_out": True,
        "inference_mode": True,
        "lora_alpha": scale * rank,
        "lora_dropout": dropout,
        "r": rank,
        "target_modules": targets(modules),
        "task_type": "CAUSAL_LM",
        "use_dora": kind == "dora",
    }
    safetensors.write(folder / WEIGHTS_FILE, {f"{PREFIX}{module}.{PARTS[part]}": array
                                              for module, tensors in modules.items()
                                              for part, array in tensors.items()}, {"format": "pt"})
    write_json(folder / CONFIG_FILE, fields, sort_keys=True)
    return fields


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)
