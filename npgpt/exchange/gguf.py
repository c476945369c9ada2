"""GPT2 -> a GGUF file, for llama.cpp and the programs that use it.

The file holds the configuration and the tokenizer as key/value pairs, and the tensors under llama.cpp's names, with
matrices as (out, in). llama.cpp's own package `gguf` knows these names and writes the file; it is an extra
(pip install '.[gguf]'). If llama.cpp would compute something else than the model, the model is refused.

Source: llama.cpp's converter (conversion/gpt2.py and base.py) and its graph of this architecture (src/models/gpt2.cpp).
"""

from pathlib import Path

import numpy as np

from npgpt.exchange.merge import DTYPES, merged_tensors
from npgpt.files.atomic import replacing
from npgpt.files.checkpoint import cast
from npgpt.runtime.errors import ConfigError, printable

# llama.cpp's kinds of tokens: ordinary, special (end of text), added, and a row without a token.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def export(model, tokenizer, path, dtype="float16"):
    """Write `model`, with its active adapters merged into its weights, and its tokenizer to the file `path`.

    dtype  of the matrices, "float32" or "float16"; vectors and position embeddings are always float32, as llama.cpp
           needs them

    Only one tensor is in memory at a time. Raises ConfigError if the `gguf` package is missing or llama.cpp has no such
    model or tokenizer, FormatError if a number is too large for float16, FileError if the file cannot be written.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: a GGUF file is written in {' or '.join(DTYPES)}")
    config, tensors = merged_tensors(model, "float32")
    _check(config)
    pairs = _sizes(config) | _vocabulary(tokenizer.to_dict(), tokenizer.end_id, config)
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("GGUF files are written by the gguf package: pip install '.[gguf]'") from error
    architecture = gguf.MODEL_ARCH.GPT2
    names = gguf.get_tensor_name_map(architecture, config.n_layer)

    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[architecture])
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(printable(Path(model.name_or_path or path).stem))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "float32" else gguf.LlamaFileType.MOSTLY_F16)
        for add, value in pairs.items():
            getattr(writer, add)(value)
        stored = {}
        for name, tensor in tensors.items():
            is_vector = len(tensor.shape) == 1 or name == "wpe.weight"
            stored[name] = np.dtype("float32" if is_vector else dtype)
            theirs = names.get_name(name if name == "lm_head.weight" else f"transformer.{name}", (".weight", ".bias"))
            shape = tensor.shape[::-1] if _is_linear(name) else tensor.shape
            writer.add_tensor_info(theirs, shape, stored[name], tensor.nbytes // 4 * stored[name].itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            array = cast(name, np.asarray(tensor), stored[name], copy=False)
            writer.write_tensor_data(np.ascontiguousarray(array.T if _is_linear(name) else array))
        writer.close()


def _is_linear(name):
    """Tell whether the parameter is a matrix of a linear layer: (in, out) in npgpt, (out, in) in the file."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _check(config):
    """Raise ConfigError if llama.cpp would compute something else: it knows only one activation and one scale."""
    for field, right in (("activation_function", "gelu_new"), ("scale_attn_weights", True),
                         ("scale_attn_by_inverse_layer_idx", False)):
        value = getattr(config, field)
        if value != right:
            raise ConfigError(f"{field} = {value!r}: llama.cpp computes GPT-2 with {right!r} only, so a GGUF file of "
                              "this model would be another model")


def _sizes(config):
    """Return the file's pairs for the sizes: dict of the writer's methods and their arguments."""
    return {
        "add_block_count": config.n_layer,
        "add_context_length": config.n_positions,
        "add_embedding_length": config.n_embd,
        "add_feed_forward_length": config.n_inner or 4 * config.n_embd,
        "add_head_count": config.n_head,
        "add_layer_norm_eps": config.layer_norm_epsilon,
    }


def _vocabulary(tokenizer, end, config):
    """Return the file's pairs for the tokenizer: dict of the writer's methods and their arguments.

    tokenizer  the content of tokenizer.json
    end        the id that ends a text

    Raises ConfigError unless it is byte-level BPE as in GPT-2.
    """
    bpe, before = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    if (bpe.get("type") != "BPE" or before.get("type") != "ByteLevel" or before.get("add_prefix_space")
            or not before.get("use_regex", True) or tokenizer["normalizer"]):
        raise ConfigError("the tokenizer is not GPT-2's byte-level BPE without a normalizer and a prefix space: "
                          "llama.cpp would read other tokens")
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    ids = bpe["vocab"] | {content: token["id"] for content, token in added.items()}
    largest = max(ids.values(), default=-1)
    if largest >= config.vocab_size:
        raise ConfigError(f"the tokenizer has a token with id {largest}, but the model has a vocabulary of "
                          f"{config.vocab_size}")
    tokens, kinds = [f"[PAD{i}]" for i in range(config.vocab_size)], [UNUSED] * config.vocab_size
    for content, i in ids.items():
        tokens[i] = content
        kinds[i] = NORMAL if content not in added else CONTROL if added[content]["special"] else USER_DEFINED
    pairs = {
        "add_tokenizer_model": "gpt2",
        "add_tokenizer_pre": "gpt-2",
        "add_token_list": tokens,
        "add_token_types": kinds,
        "add_token_merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]],
        "add_add_bos_token": False,
    }
    for add, i in (("add_bos_token_id", config.bos_token_id), ("add_eos_token_id", end)):
        if i is not None and 0 <= i < config.vocab_size:
            pairs[add] = i
    return pairs
