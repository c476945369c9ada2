"""Hugging Face's files <-> a model: config.json with model.safetensors, whole or in shards.

If there is no model.safetensors, the older pytorch_model.bin is read. Reading is strict: every parameter must be in
the file, and every tensor in the file must be a parameter or one of the known tensors that nobody needs. Anything else
is an error. The names differ between files, but the shapes never do:

    "h.0.attn.c_attn.weight"               the released gpt2 files, and the names of GPT2.parameters()
    "transformer.h.0.attn.c_attn.weight"   saved from GPT2LMHeadModel: `names` removes the names of what is around it
    "h.0.attn.bias", "..masked_bias"       causal masks, stored as buffers: dropped ("attn.c_attn.bias" is a parameter)
    "lm_head.weight"                       the head; if the config ties it, it must repeat "wte.weight"
    "v_head.summary.weight", "score.weight", ..    other heads, which do not change the language model: TRL's value
                                           head, GPT2DoubleHeadsModel's second head, and the heads of classifiers:
                                           left out, and named in a warning, as in transformers

A file that is not a plain language model is refused with the reason: LoRA that was not merged, quantised weights.
"""

import math
import re
import warnings
from pathlib import Path

import numpy as np

from npgpt.files import atomic, hub, safetensors, torchfile
from npgpt.files.model_config import UNQUANTISED, read_config
from npgpt.files.names import MASK, parameter_name
from npgpt.runtime.errors import ConfigError, FileError, FormatError, one_line

READERS = {".json": atomic.read_json, ".safetensors": safetensors.read, ".bin": torchfile.read}
WHOLE = hub.WEIGHTS[0]
BESIDE_THE_HEAD = ("v_head.", "multiple_choice_head.", "score.", "classifier.", "qa_outputs.")


def load(model_class, name, revision=None, dtype=np.float32, local_files_only=False):
    """Load a model of this class.

    model_class         GPT2
    name                "tiny" (the model in this package), a folder, or a hub id ("gpt2", "distilbert/distilgpt2")
    revision            branch, tag or commit on the hub
    dtype               np.float32 or np.float64; a tensor that is stored so stays in the mapped file, read-only, and
                        any other is converted
    local_files_only    use the folder or the cache, never the network

    Every weight is read once, to refuse NaN and infinity: see `cast`.
    Raises FileError (missing or unreadable files), FormatError (corrupt or foreign files), ConfigError (a configuration
    that npgpt cannot run) and HubError.
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ConfigError(f"GPT2 cannot compute in dtype {np.dtype(dtype)}; float32 or float64 would be right")

    def find(filename):
        return hub.file(name, filename, revision=revision, local_files_only=local_files_only)

    def read(path):
        with hub.reading(name, path.name, revision):
            return READERS[path.suffix](path)

    config = read_config(model_class.config_class, name, revision, local_files_only)
    weights_path = find(hub.WEIGHTS)
    if weights_path is None:
        raise FileError(
            f"{name} has no weights that npgpt reads: none of {', '.join(hub.WEIGHTS)}; "
            "convert other frameworks' weights first (transformers: from_pretrained, then save_pretrained)"
        )
    stored = _read_shards(weights_path, find, read) if weights_path.suffix == ".json" else read(weights_path)
    tensors = _by_parameter(stored, config, weights_path)
    _check_sizes(tensors, config, weights_path)
    model = model_class(config, seed=None, dtype=dtype)
    model.name_or_path = str(name)
    assign(model, tensors, weights_path)
    return model


def _read_shards(index_path, find, read):
    """Return the tensors of all shards that the index lists. Raises FormatError unless index and shards agree."""
    suffix = Path(index_path.name.removesuffix(".index.json")).suffix
    weight_map = read(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and re.fullmatch(r"[\w.-]+" + re.escape(suffix), shard) for shard in weight_map.values()
    ):
        raise FormatError(f"{index_path}: weight_map must map each tensor to a {suffix} file beside the index")
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        path = find(shard)
        if path is None:
            raise FileError(f"{index_path} lists {shard}, which is missing; fetch all shards")
        held = read(path)
        listed = {key for key, place in weight_map.items() if place == shard}
        if listed != held.keys():
            raise FormatError(
                f"{path} and {index_path.name} disagree on {_some(listed ^ held.keys())}; "
                "each shard must hold exactly the tensors that the index lists for it"
            )
        tensors.update(held)
    return tensors


def _by_parameter(stored, config, path):
    """Return the stored tensors under the names of GPT2.parameters(), without masks, other heads and a tied head."""
    tensors, keys, heads = {}, {}, []
    for key, array in stored.items():
        name = parameter_name(key)
        if MASK.fullmatch(name):
            continue
        if name.startswith(BESIDE_THE_HEAD):
            heads.append(key)
            continue
        _check_kind(f"{path}: {key!r}", name, array)
        if name == "lm_head.decoder.weight":  # the name in the original DialoGPT files
            name = "lm_head.weight"
        if name in tensors:
            raise FormatError(f"{path}: {keys[name]!r} and {key!r} both mean {name}; a file must hold one of them")
        tensors[name], keys[name] = array, key
    if heads:
        warnings.warn(one_line(f"{path}: left out {_some(heads)}, of a head beside the language model's; the model is "
                               "read as a language model"), stacklevel=4)
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        head = tensors.pop("lm_head.weight")
        # A file may store a shared tensor only once, under either name.
        if not np.array_equal(head, tensors.setdefault("wte.weight", head)):
            raise FormatError(
                f"{path}: {keys['lm_head.weight']!r} differs from {keys['wte.weight']!r}, but config.json ties them; "
                'to use the head, set "tie_word_embeddings": false there'
            )
    return tensors


def _check_kind(where, name, array):
    """Raise FormatError if the tensor shows that the file is not a plain language model."""
    if ".lora_" in name:
        raise FormatError(f"{where} belongs to LoRA that was not merged: make a plain model with PEFT's "
                          "merge_and_unload(), or save the adapter alone with its save_pretrained; "
                          "convert_adapter.py reads loralib's files")
    if not array.size:
        raise FormatError(f"{where} holds no numbers: DeepSpeed's ZeRO-3 saves such a tensor if several processes hold "
                          "its parts; gather them with its zero_to_fp32.py")
    if array.dtype.kind != "f":
        raise FormatError(f"{where} holds {array.dtype} numbers; weights must be F64, F32, F16 or BF16; if the model "
                          f"is quantised, {UNQUANTISED}")


def _check_sizes(tensors, config, path):
    """Compare config.json's sizes with the file's, before any array of config.json's sizes is made."""
    linear = tensors.get("h.0.attn.c_attn.weight")
    if linear is not None and linear.ndim == 2 and len(linear) == 3 * linear.shape[1]:
        raise FormatError(f"{path} stores the weights of linear layers as (out, in), like nanoGPT and MLX; GPT-2's are "
                          "(in, out); convert the file with convert_checkpoint.py")
    for field, said, name, axis in (
        ("vocab_size", config.vocab_size, "wte.weight", 0),
        ("n_embd", config.n_embd, "wte.weight", 1),
        ("n_positions", config.n_positions, "wpe.weight", 0),
        ("n_inner", config.n_inner or 4 * config.n_embd, "h.0.mlp.c_fc.weight", 1),
    ):
        if name not in tensors or tensors[name].ndim != 2:
            raise FormatError(f"{path}: missing matrix {name}; every GPT-2 has it, and this file has {_some(tensors)}")
        held = tensors[name].shape[axis]
        if said != held:
            raise FormatError(
                f"{path}: {name} has {held} {'columns' if axis else 'rows'}, but config.json says {field} {said}; "
                "the two must come from one model"
            )
    # Count layers by their largest matrix: a file cannot claim it without holding its bytes. `assign` names the tensors
    # that are missing from a few layers.
    matrix = tensors["h.0.mlp.c_fc.weight"].shape
    layers = sum(name.endswith(".mlp.c_fc.weight") and array.shape == matrix for name, array in tensors.items())
    if 2 * layers < config.n_layer:
        raise FormatError(
            f"{path}: missing layers: it has {layers}, but config.json says n_layer {config.n_layer}; "
            "the two must come from one model"
        )


def assign(model, tensors, path):
    """Give every parameter its tensor. Raises FormatError unless all names and shapes are the model's."""
    parameters = model.parameters()
    missing, unexpected = parameters.keys() - tensors.keys(), tensors.keys() - parameters.keys()
    if missing or unexpected:
        lists = (("missing", missing), ("unexpected", unexpected))
        raise FormatError(
            f"{path} does not hold this GPT-2: "
            + "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in lists if names)
        )
    wrong = {name for name in parameters if parameters[name].shape != tensors[name].shape}
    if wrong:
        name = min(wrong)
        raise FormatError(
            f"{path}: {name} has shape {tensors[name].shape}, but this configuration needs {parameters[name].shape}; "
            f"the file has another size or architecture ({len(wrong)} wrong: {_some(wrong)})"
        )
    for name, parameter in parameters.items():
        parameter.data = cast(f"{path}: {name}", tensors[name], parameter.dtype, copy=False)


def cast(where, array, dtype, copy=True):
    """Return `array` as `dtype`. Raises FormatError if a number in it is NaN or infinite, or would become infinite.

    This reads the array once: 25 ms for the 0.5 GB of gpt2 if the file is in the system's cache.
    """
    with np.errstate(over="raise", invalid="ignore"):
        try:
            array = array.astype(dtype, copy=copy)
        except FloatingPointError as error:
            raise FormatError(f"{where} holds numbers that are too large for {dtype}") from error
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(array.sum())  # fast, and NaN or infinity stays in a sum
    if not finite and (count := array.size - np.count_nonzero(np.isfinite(array))):  # a sum can overflow
        raise FormatError(f"{where} holds NaN or infinity, {count:,} of {array.size:,} numbers: the file is damaged, "
                          "or its training diverged; use an earlier checkpoint or another copy")
    return array


def _some(names):
    """Return the first few of the names, for an error message."""
    names = sorted(names)
    return ", ".join(map(repr, names[:4])) + (f", .. ({len(names)} in all)" if len(names) > 4 else "")


def save(model, folder):
    """Write config.json and model.safetensors into `folder`, as transformers' GPT2LMHeadModel does.

    Both files are complete before either of them gets its name. Raises ConfigError if the model has LoRA layers,
    FileError if the folder cannot be written.
    """
    if any(hasattr(module, "base_layer") for _, module in model.named_modules()):
        raise ConfigError(
            f"cannot save the model to {folder}: it has LoRA layers; call merge_lora(model) first, or save_adapter"
        )
    write(folder, model.config, {name: tensor.data for name, tensor in model.parameters().items()})


def write(folder, config, tensors, max_shard_size=None):
    """Write config.json and `tensors`, dict parameter name -> array, all of one dtype, into `folder`.

    max_shard_size  bytes of tensors in one file; if there are more, they go into several files and an index, as
                    transformers writes them. A tensor that is larger has its own file

    An array may be any object with shape, dtype and nbytes that NumPy can turn into an array; this happens when the
    tensor is written. config.json gets its name last. Raises FileError.
    """
    folder = Path(folder)
    tensors = {name if name == "lm_head.weight" else f"transformer.{name}": array for name, array in tensors.items()}
    shards = _shards(tensors, max_shard_size or math.inf)
    dtype = next(iter(tensors.values())).dtype.name
    with atomic.replacing(folder / "config.json") as temporary:
        fields = {"architectures": ["GPT2LMHeadModel"], "dtype": dtype, **config.to_dict()}
        atomic.write_json(temporary, fields, sort_keys=True)
        for shard, names in shards.items():
            safetensors.write(folder / shard, {name: tensors[name] for name in names}, {"format": "pt"})
        if len(shards) > 1:
            totals = {"total_parameters": sum(math.prod(array.shape) for array in tensors.values()),
                      "total_size": sum(array.nbytes for array in tensors.values())}
            places = {name: shard for shard, names in shards.items() for name in names}
            atomic.write_json(folder / f"{WHOLE}.index.json", {"metadata": totals, "weight_map": places},
                              sort_keys=True)


def _shards(tensors, largest):
    """Return dict file name -> names of its tensors, in order; a new file begins when the next tensor is too much."""
    groups, size = [[]], 0
    for name, array in tensors.items():
        if groups[-1] and size + array.nbytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += array.nbytes
    if len(groups) == 1:
        return {WHOLE: groups[0]}
    stem = WHOLE.removesuffix(".safetensors")
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, start=1)}
