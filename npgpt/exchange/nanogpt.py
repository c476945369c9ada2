"""nanoGPT's and minGPT's checkpoints -> a model folder. They are GPT-2 with other layers, saved in another way.

    nanoGPT  ckpt.pt   {"model": tensors, "model_args": sizes, "optimizer": .., "iter_num": .., "config": ..}
    minGPT   model.pt  the tensors alone, with causal masks among them
    MLX      model.safetensors of a GPT-2 that it saved: the tensors alone

The names are GPT-2's, perhaps after torch.compile's "_orig_mod.". The differences, and what happens with each:

    weights of linear layers   (out, in), but (in, out) in GPT-2's files: transposed
    bias = False               linear layers and layer norms have no biases: they get zeros, which compute the same
    vocab_size = 50304         GPT-2's 50,257 tokens, padded: kept, so that logits and losses stay the same; no text has
                               the ids beyond, and training has made them unlikely
    head                       minGPT does not tie it to the token table: tied if there is no head or the two are equal
    activation                 GPT-2, minGPT, MLX, and nanoGPT until June 2023 have the tanh form, "gelu_new"; nanoGPT
                               since then has the exact form, "gelu". A file does not say which one, unless it is so
                               old that its model_args have no "bias"

No number is computed.

Source: github.com/karpathy/nanoGPT (model.py, train.py; pull request 274 for the activation); mingpt/model.py in
github.com/karpathy/minGPT; mlx_lm/models/gpt2.py in github.com/ml-explore/mlx-lm.
"""

import re
from pathlib import Path

import numpy as np

from npgpt.files import atomic, pickles, safetensors, torchfile
from npgpt.files.checkpoint import assign
from npgpt.files.names import MASK, parameter_name
from npgpt.files.tokenizer import Tokenizer
from npgpt.gpt2 import GPT2, GPT2Config
from npgpt.runtime.errors import ConfigError, FormatError

LINEAR = re.compile(r"h\.\d+\.(?:attn|mlp)\.c_\w+\.weight")
# The names of sizes in nanoGPT's model_args -> their names in config.json. The shapes of the tensors tell them too.
SIZES = {"n_layer": "n_layer", "n_embd": "n_embd", "block_size": "n_positions", "vocab_size": "vocab_size"}
MODEL_ARGS = {*SIZES, "n_head", "bias", "dropout"}
GPT2_END_OF_TEXT = 50256  # the last of GPT-2's tokens


def convert(path, folder, n_head=None, activation=None, tokenizer=None):
    """Convert the checkpoint `path` to a new folder, which npgpt and transformers load; returns the GPT2.

    n_head      number of heads; None: the file's (minGPT's files do not have it)
    activation  "gelu", the exact form, or "gelu_new", the tanh form; None: the form in the newest nanoGPT that can have
                written the file (for minGPT's files, this is not known)
    tokenizer   the Tokenizer to write beside the model; None: none

    Raises FileError; FormatError if the file is not such a checkpoint, or if it is a variant that computes something
    else; ConfigError if an argument is missing or contradicts the file.
    """
    path = Path(path)
    stored, beside = (safetensors.read(path), {}) if path.suffix == ".safetensors" else torchfile.read_checkpoint(path)
    tensors = _by_parameter(path, stored)
    config = _config(path, tensors, beside.get("model_args"), n_head, activation, tokenizer)
    model = GPT2(config, seed=None, dtype=np.float32)
    biases = {name: np.zeros(tensor.shape, np.float32) for name, tensor in model.parameters().items()
              if name.endswith(".bias")}
    if biases.keys().isdisjoint(tensors):
        tensors |= biases
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    assign(model, {name: array.T if LINEAR.fullmatch(name) else array for name, array in tensors.items()}, path)
    with atomic.new_folder(folder) as place:
        model.save_pretrained(place)
        if tokenizer is not None:
            tokenizer.save(place)
            if tokenizer.to_dict()["model"]["type"] != "BPE":  # else transformers would load it as GPT-2's tokenizer
                atomic.write_json(place / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return model


def _by_parameter(path, stored):
    """Return the stored tensors under the names of GPT2.parameters(), without the masks."""
    tensors = {}
    for key, array in stored.items():
        name = parameter_name(key)
        if MASK.fullmatch(name):
            continue
        if name in tensors:
            raise FormatError(f"{path}: {key!r} is not the only tensor for {name}; a file must hold only one")
        if array.dtype.kind != "f":
            raise FormatError(f"{path}: {key!r} holds {array.dtype} numbers, but weights must be floats")
        tensors[name] = array
    for name in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"):
        if name not in tensors or tensors[name].ndim != 2:
            raise FormatError(f"{path}: missing matrix {name}, which nanoGPT and minGPT have; this file has "
                              f"{', '.join(sorted(tensors)[:4]) or 'no tensors'}")
    shape, width = tensors["h.0.attn.c_attn.weight"].shape, tensors["wte.weight"].shape[1]
    if shape == (width, 3 * width):
        raise FormatError(f"{path} stores its weights as (in, out), like transformers, so it is not a checkpoint "
                          "of nanoGPT; do not convert it: name it pytorch_model.bin in a folder with its config.json")
    if shape != (3 * width, width):  # before any array of this size is made
        raise FormatError(f"{path}: h.0.attn.c_attn.weight has shape {shape}, but {(3 * width, width)} is right")
    return tensors


def _config(path, tensors, arguments, n_head, activation, tokenizer):
    """Return the GPT2Config of the tensors and of `arguments`, the file's model_args or None."""
    if arguments is None and (n_head is None or activation is None):
        raise ConfigError(f"{path} has no model_args, and tensors tell neither the number of heads nor the activation: "
                          "give n_head and activation (gelu_new for minGPT and MLX)")
    arguments = {"bias": True} if arguments is None else arguments
    sizes, inner = _sizes(path, tensors, arguments)
    heads = arguments.get("n_head", n_head)
    if n_head not in (None, heads):
        raise ConfigError(f"n_head = {n_head}, but the model_args of {path} say {heads!r}")
    head, table = tensors.get("lm_head.weight"), tensors["wte.weight"]
    end = GPT2_END_OF_TEXT if len(table) > GPT2_END_OF_TEXT else None
    if tokenizer is not None:
        end = tokenizer.end_id
        if tokenizer.vocab_size > len(table):
            raise ConfigError(f"the tokenizer has {tokenizer.vocab_size:,} tokens, but {path} has {len(table):,}: the "
                              "model was trained with another tokenizer")
    dropout = {} if "dropout" not in arguments else dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"),
                                                                 arguments["dropout"])
    try:
        return GPT2Config(
            **sizes, n_head=heads, n_inner=None if inner == 4 * sizes["n_embd"] else inner, **dropout,
            activation_function=activation or ("gelu" if "bias" in arguments else "gelu_new"),
            tie_word_embeddings=head is None or np.array_equal(head, table, equal_nan=True),
            bos_token_id=end, eos_token_id=end,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _sizes(path, tensors, arguments):
    """Return the sizes of the tensors, dict field of config.json -> number, and n_inner.

    Raises FormatError if model_args are not nanoGPT's, or if they contradict the tensors.
    """
    if not isinstance(arguments, dict) or not MODEL_ARGS.issuperset(arguments):
        strange = sorted(map(str, arguments.keys() - MODEL_ARGS)) if isinstance(arguments, dict) else [arguments]
        raise FormatError(f"{path}: its model_args have {strange[0]!r}, which nanoGPT does not have, so it is not "
                          f"known what such a variant computes; nanoGPT has {', '.join(sorted(MODEL_ARGS))}")
    vocab_size, n_embd = tensors["wte.weight"].shape
    widen = tensors["h.0.mlp.c_fc.weight"].shape  # (inner, C)
    sizes = {
        "vocab_size": vocab_size, "n_embd": n_embd, "n_positions": len(tensors["wpe.weight"]),
        # layers are counted by a large matrix: a file cannot claim it without holding its bytes
        "n_layer": sum(name.endswith(".mlp.c_fc.weight") and array.shape == widen for name, array in tensors.items()),
    }
    biased = any(name.endswith(".bias") for name in tensors)
    held = {**{name: sizes[field] for name, field in SIZES.items()}, "bias": biased}
    for name, value in held.items():
        if arguments.get(name, value) != value:
            raise FormatError(f"{path}: its model_args say {name} = {arguments[name]!r}, but its tensors {value!r}")
    return sizes, widen[0]


def character_tokenizer(path):
    """Return the Tokenizer of nanoGPT's meta.pkl, in which each character is a token.

    The file is {"vocab_size": V, "itos": {id: character}, "stoi": {character: id}}. A character that is not in it
    cannot be encoded. Raises FileError, and FormatError for any other file.
    """
    import tokenizers

    meta = pickles.read(path)
    ids = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(ids, dict) or not all(isinstance(text, str) and len(text) == 1 for text in ids) or \
            not all(type(i) is int for i in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise FormatError(f"{path} is not nanoGPT's meta.pkl: its 'stoi' must map characters to the numbers from 0 on, "
                          "each once")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(tokenizer)
