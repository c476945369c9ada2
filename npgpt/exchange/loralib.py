"""loralib's checkpoints of GPT-2 -> PEFT's adapter files. The LoRA paper's own results are published in this form.

    transformer.h.0.attn.c_attn.lora_A      (g r, n)    g matrices A of rank r, one below the other
    transformer.h.0.attn.c_attn.lora_B      (g n, r)    and g matrices B, in the same order

c_attn computes queries, keys and values side by side, and loralib's MergedLinear gives g of the three an update of
their own: of queries and values with enable_lora = [True, False, True], as in the paper. PEFT has one A and one B a
module. The same function in that form has rank g r: all of A, and B with a block for each update, zero elsewhere. For
queries and values

    B' = [ B_q  0  ]        so that     B' A = [ B_q A_q ]
         [  0   0  ]                           [    0    ]
         [  0  B_v ]                           [ B_v A_v ]

which is exact: not one number is computed. The scale alpha / r becomes (g alpha) / (g r). What loralib's Linear makes
(g = 1, B with a row for every output) is in PEFT's form already.

PEFT itself took MergedLinear over until version 0.2, with enable_lora in adapter_config.json. Its adapter_model.bin is
read as well: ".weight" follows the names, and B, which it had made a convolution, has a third dimension of 1.

Source: github.com/microsoft/LoRA, loralib/layers.py (MergedLinear) and loralib/utils.py (lora_state_dict);
peft/tuners/lora.py of PEFT 0.2.0.
"""

import math
import re
from pathlib import Path

import numpy as np

from npgpt.adapters.peft import PREFIX, WEIGHTS_FILE
from npgpt.adapters.peft_config import CONFIG_FILE, PEFT_DEFAULTS
from npgpt.files import safetensors, torchfile
from npgpt.files.atomic import read_json, write_json
from npgpt.files.checkpoint import cast
from npgpt.files.names import MASK, parameter_name
from npgpt.runtime.errors import ConfigError, FormatError

OUTPUTS = ("q", "k", "v")  # of c_attn, in this order


def convert(path, folder, lora_alpha, enable_lora=("q", "v"), model=None):
    """Write PEFT's two files of the loralib checkpoint `path` into `folder`; returns the fields of its configuration.

    path         what torch.save made of lora_state_dict(model), or of a dict that has it under "model_state_dict"; or
                 the same tensors in a .safetensors file; or an adapter_model.bin of PEFT until 0.2
    lora_alpha   alpha of the training, which the checkpoint does not hold; 32 for the published ones
    enable_lora  which of "q", "k", "v" have an update
    model        the base GPT2, for a checkpoint that holds its weights too: they must be equal, and are left out

    Biases that were trained (bias = "lora_only" or "all") become PEFT's. Raises FileError, FormatError for a file that
    is not such a checkpoint, ConfigError for arguments that cannot be.
    """
    enabled = [OUTPUTS.index(output) for output in OUTPUTS if output in enable_lora]
    if not enabled or len(enabled) != len(enable_lora):
        raise ConfigError(f"enable_lora = {enable_lora!r}: it must be one or more of {', '.join(OUTPUTS)}")
    if not 0 < lora_alpha < math.inf:
        raise ConfigError(f"lora_alpha = {lora_alpha!r}: it must be a positive number")
    path, folder = Path(path), Path(folder)
    stored = safetensors.read(path) if path.suffix == ".safetensors" else torchfile.read(path)
    rest = {}
    for key, array in stored.items():
        name = re.sub(r"(\.lora_[AB])\.weight$", r"\1", parameter_name(key))
        if name in rest:
            raise FormatError(f"{path}: {key!r} is not the only tensor that means {name}; a file must hold one of them")
        if not MASK.fullmatch(name):
            rest[name] = cast(f"{path}: {key}", array, np.float32, copy=False)
    modules = list(dict.fromkeys(name.rpartition(".lora_")[0] for name in rest if re.search(r"\.lora_[AB]$", name)))
    if not modules:
        raise FormatError(f"{path} has no tensor whose name ends in .lora_A: it is not a loralib checkpoint")

    tensors, ranks, counts = {}, {}, {}
    for module in modules:
        A, B = (rest.pop(f"{module}.{part}", None) for part in ("lora_A", "lora_B"))
        A, B, counts[module] = _in_one(f"{path}: {module}", A, B, enabled if module.endswith(".c_attn") else None)
        ranks[module] = len(A)
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = A, B
    biases = _trained_biases(path, rest, model)
    for module, array in biases.items():
        tensors[f"{PREFIX}{module}{'.base_layer' if module in modules else ''}.bias"] = array

    rank, count = max(ranks.values()), max(counts.values())
    fields = PEFT_DEFAULTS | {
        "alpha_pattern": {f"transformer.{module}": lora_alpha * n for module, n in counts.items() if n != count},
        "base_model_name_or_path": model and model.name_or_path,
        "bias": "none" if not biases else "lora_only" if set(biases) <= set(modules) else "all",
        "fan_in_fan_out": True,
        "inference_mode": True,
        "lora_alpha": lora_alpha * count,
        "r": rank,
        "rank_pattern": {f"transformer.{module}": r for module, r in ranks.items() if r != rank},
        "target_modules": targets(modules),
        "task_type": "CAUSAL_LM",
    }
    safetensors.write(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(folder / CONFIG_FILE, fields, sort_keys=True)
    return fields


def convert_folder(source, folder):
    """The same of the folder of an adapter that PEFT wrote until version 0.2 with enable_lora, loralib's form: its
    configuration holds alpha, and which of q, k and v have an update. Raises what `convert` does."""
    path = Path(source) / CONFIG_FILE
    config = read_json(path)
    enabled, alpha = config.get("enable_lora"), config.get("lora_alpha")
    if enabled is None:
        raise FormatError(f"{path}: the adapter is in PEFT's form already: enable_lora is not set")
    if not isinstance(enabled, list) or len(enabled) != len(OUTPUTS) or not isinstance(alpha, int | float):
        raise FormatError(f"{path}: enable_lora = {enabled!r}, lora_alpha = {alpha!r}: they must be three of true and "
                          "false, for q, k and v, and a number")
    names = [name for name, on in zip(OUTPUTS, enabled, strict=True) if on]
    return convert(Path(source) / "adapter_model.bin", folder, alpha, names)


def _in_one(where, A, B, enabled):
    """Return A (g r, in) and B (out, g r) of the one adapter that computes the same, and the number g of updates in it.

    enabled  which thirds of the module's output have one, by number; None for a module that is not in thirds
    """
    if B is not None and B.ndim == 3 and B.shape[2] == 1:
        B = B[:, :, 0]
    shapes = " and ".join("none" if each is None else str(each.shape) for each in (A, B))
    if A is None or B is None or A.ndim != 2 or B.ndim != 2 or not A.size or not B.size or len(A) % B.shape[1]:
        raise FormatError(f"{where} must have a lora_A (g r, in) and a lora_B (.., r), g and r whole numbers; it has "
                          f"{shapes}")
    n, rows, r = A.shape[1], len(B), B.shape[1]
    count = len(A) // r
    if count == 1 and (enabled is None or rows == len(OUTPUTS) * n):
        return A, B, 1
    if enabled is None or count != len(enabled) or rows != count * n:
        right = "that is for c_attn only" if enabled is None else f"enable_lora names {len(enabled)} of q, k, v"
        raise FormatError(f"{where}: lora_A and lora_B, {shapes}, are {count} updates of rank {r}, and {right}")
    whole = np.zeros((len(OUTPUTS) * n, count * r), B.dtype)
    for i, output in enumerate(enabled):
        whole[output * n : (output + 1) * n, i * r : (i + 1) * r] = B[i * n : (i + 1) * n]
    return A, whole, count


def _trained_biases(path, rest, model):
    """Return dict module name -> bias of those in `rest`, what the file holds beside LoRA, that were trained.

    Where weights are there too it is a whole model, of which everything that equals the base is left out.
    """
    biases = {name.removesuffix(".bias"): array for name, array in rest.items() if name.endswith(".bias")}
    weights = [name for name in rest if not name.endswith(".bias")]
    if not weights:
        return biases
    if model is None:
        raise FormatError(f"{path} holds {len(weights)} tensors of the base too ({weights[0]!r}): name the base, for "
                          "these to be compared with it")
    base = {name: tensor.data for name, tensor in model.parameters().items()}
    base["lm_head.weight"] = base["lm_head.decoder.weight"] = model.head().data
    differ = {name for name, array in rest.items() if not np.array_equal(array, base.get(name))}
    if not differ.isdisjoint(weights):
        raise FormatError(f"{path}: {min(differ.intersection(weights))!r} is not that of {model.name_or_path!r}: the "
                          "base is another, or its weights were trained, which an adapter cannot hold")
    return biases if differ else {}


def targets(modules):
    """Return names for target_modules: without "h.N." where the modules are the same in all layers from 0 on."""
    layers, kinds = zip(*(re.fullmatch(r"h\.(\d+)\.(.+)|.+", module).groups() for module in modules), strict=True)
    kinds = list(dict.fromkeys(kinds))
    if set(modules) == {f"h.{layer}.{kind}" for layer in range(len(set(layers))) for kind in kinds}:
        return kinds
    return [f"transformer.{module}" for module in modules]
