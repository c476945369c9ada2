"""loralib's checkpoints of GPT-2 -> PEFT's adapter files. The LoRA paper's own results are published in this form.

    transformer.h.0.attn.c_attn.lora_A      (g r, n)    g matrices A of rank r, one below the other
    transformer.h.0.attn.c_attn.lora_B      (g n, r)    and g matrices B, in the same order

c_attn computes queries, keys and values side by side. loralib's MergedLinear gives g of the three their own update:
with enable_lora = [True, False, True], as in the paper, queries and values. PEFT has one A and one B for each module.
In PEFT's form, the same function has rank g r: A stays whole, and B has a block for each update and zeros elsewhere.
For queries and values,

    B' = [ B_q  0  ]        so that     B' A = [ B_q A_q ]
         [  0   0  ]                           [    0    ]
         [  0  B_v ]                           [ B_v A_v ]

This is exact, because no number is computed. The scale alpha / r becomes (g alpha) / (g r). An update of loralib's
Linear (g = 1, B has a row for every output) is in PEFT's form already.

PEFT itself had MergedLinear until version 0.2, with enable_lora in adapter_config.json. Its adapter_model.bin is read
too: its names end in ".weight", and B was a convolution there, so it has a third dimension of 1.

Source: github.com/microsoft/LoRA, loralib/layers.py (MergedLinear) and loralib/utils.py (lora_state_dict);
peft/tuners/lora.py of PEFT 0.2.0.
"""

import math
import re
from pathlib import Path

import numpy as np

from npgpt.adapters.peft import PREFIX, write_files
from npgpt.adapters.peft_config import CONFIG_FILE
from npgpt.files import safetensors, torchfile
from npgpt.files.atomic import read_json
from npgpt.files.checkpoint import cast
from npgpt.files.names import MASK, parameter_name
from npgpt.runtime.errors import ConfigError, FormatError

OUTPUTS = ("q", "k", "v")  # of c_attn, in this order


def convert(path, folder, lora_alpha, enable_lora=("q", "v"), model=None):
    """Convert the loralib checkpoint `path` to PEFT's two files in `folder`; returns the fields of its configuration.

    path         a file that torch.save made of lora_state_dict(model), or of a dict that has it under
                 "model_state_dict"; or a .safetensors file of these tensors; or PEFT's adapter_model.bin until 0.2
    lora_alpha   alpha in training, which the checkpoint does not hold; 32 for the published checkpoints
    enable_lora  which of "q", "k", "v" have an update
    model        the base GPT2, if the checkpoint holds the base's weights too: they must be equal, and are left out

    Trained biases (bias = "lora_only" or "all") become PEFT's. Raises FileError, FormatError if the file is not such a
    checkpoint, ConfigError for impossible arguments.
    """
    enabled = [OUTPUTS.index(output) for output in OUTPUTS if output in enable_lora]
    if not enabled or len(enabled) != len(enable_lora):
        raise ConfigError(f"enable_lora = {enable_lora!r}: it must be one or more of {', '.join(OUTPUTS)}")
    if not 0 < lora_alpha < math.inf:
        raise ConfigError(f"lora_alpha = {lora_alpha!r}: it must be a positive number")
    path = Path(path)
    rest = _read_by_name(path)
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
    return write_files(folder, tensors, {
        "alpha_pattern": {f"transformer.{module}": lora_alpha * n for module, n in counts.items() if n != count},
        "base_model_name_or_path": model and model.name_or_path,
        "bias": "none" if not biases else "lora_only" if set(biases) <= set(modules) else "all",
        "lora_alpha": lora_alpha * count,
        "r": rank,
        "rank_pattern": {f"transformer.{module}": r for module, r in ranks.items() if r != rank},
        "target_modules": targets(modules),
    })


def convert_folder(source, folder):
    """Convert the folder of an adapter that PEFT wrote until version 0.2 with enable_lora, so in loralib's form.

    Its configuration holds alpha, and which of q, k and v have an update. Returns and raises the same as `convert`.
    """
    path = Path(source) / CONFIG_FILE
    config = read_json(path)
    enabled, alpha = config.get("enable_lora"), config.get("lora_alpha")
    if enabled is None:
        raise FormatError(f"{path}: enable_lora is not set, so the adapter is in PEFT's form already; use it as it is")
    if not isinstance(enabled, list) or len(enabled) != len(OUTPUTS) or not isinstance(alpha, int | float):
        raise FormatError(f"{path}: enable_lora = {enabled!r}, lora_alpha = {alpha!r}: they must be a list of three "
                          "truth values, for q, k and v, and a number")
    names = [name for name, on in zip(OUTPUTS, enabled, strict=True) if on]
    return convert(Path(source) / "adapter_model.bin", folder, alpha, names)


def _read_by_name(path):
    """Return the file's tensors in float32, without the masks: dict name in gpt2's files -> array."""
    tensors = {}
    stored = safetensors.read(path) if path.suffix == ".safetensors" else torchfile.read(path)
    for key, array in stored.items():
        name = re.sub(r"(\.lora_[AB])\.weight$", r"\1", parameter_name(key))
        if name in tensors:
            raise FormatError(f"{path}: {key!r} is not the only tensor for {name}; a file must hold only one")
        if not MASK.fullmatch(name):
            tensors[name] = cast(f"{path}: {key}", array, np.float32, copy=False)
    return tensors


def _in_one(where, A, B, enabled):
    """Return A (g r, in) and B (out, g r) of one adapter that computes the same, and its number g of updates.

    enabled  numbers of the thirds of the module's output that have an update; None if the output has no thirds
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
        right = "only c_attn can have that" if enabled is None else f"enable_lora names {len(enabled)} of q, k, v"
        raise FormatError(f"{where}: lora_A and lora_B, {shapes}, are {count} updates of rank {r}, but {right}")
    whole = np.zeros((len(OUTPUTS) * n, count * r), B.dtype)
    for i, output in enumerate(enabled):
        whole[output * n : (output + 1) * n, i * r : (i + 1) * r] = B[i * n : (i + 1) * n]
    return A, whole, count


def _trained_biases(path, rest, model):
    """Return the trained biases in `rest`, the file's tensors besides LoRA: dict module name -> bias.

    If `rest` has weights too, the file is a whole model. Then its weights must equal the base's, and so do its biases
    if they were not trained.
    """
    biases = {name.removesuffix(".bias"): array for name, array in rest.items() if name.endswith(".bias")}
    weights = [name for name in rest if not name.endswith(".bias")]
    if not weights:
        return biases
    if model is None:
        raise FormatError(f"{path} holds {len(weights)} tensors of the base too ({weights[0]!r}): name the base, to "
                          "compare them with it")
    base = {name: tensor.data for name, tensor in model.parameters().items()}
    base["lm_head.weight"] = base["lm_head.decoder.weight"] = model.head().data
    differ = {name for name, array in rest.items() if not np.array_equal(array, base.get(name))}
    if not differ.isdisjoint(weights):
        raise FormatError(f"{path}: {min(differ.intersection(weights))!r} differs from {model.name_or_path!r}: the "
                          "base is another one, or its weights were trained too, and an adapter cannot hold them")
    return biases if differ else {}


def targets(modules):
    """Return names for target_modules: without "h.N." if the modules are the same in all layers from 0 on."""
    layers, kinds = zip(*(re.fullmatch(r"h\.(\d+)\.(.+)|.+", module).groups() for module in modules), strict=True)
    kinds = list(dict.fromkeys(kinds))
    if set(modules) == {f"h.{layer}.{kind}" for layer in range(len(set(layers))) for kind in kinds}:
        return kinds
    return [f"transformer.{module}" for module in modules]
