"""The names of parameters in other programs' files, without the names of the wrappers around a model.

A program that wraps a module puts the wrapper's name into the name of every parameter inside it: torch.compile puts
"_orig_mod", DistributedDataParallel and DeepSpeed put "module", FSDP puts "_fsdp_wrapped_module". Several can come in
any order. If only one block was wrapped, the wrapper's name is in the middle:

    "module._orig_mod.transformer.h.0.attn.c_attn.weight", "transformer.h.0._orig_mod.attn.c_attn.weight"

GPT-2 itself has none of these names, so they can be removed anywhere in a name.
"""

import re

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
            "_forward_module")
# The names that the classes around a model give it: PEFT, TRL's value head, Lightning, transformers.
OUTER = ("base_model", "pretrained_model", "model", "gpt", "transformer")
MASK = re.compile(r"h\.\d+\.attn\.(?:bias|masked_bias)")  # causal masks, stored as buffers; nobody needs them
_WRAPPER = re.compile(rf"(?:(?<=\.)|^)(?:{'|'.join(WRAPPERS)})\.")
_OUTER = re.compile(rf"^(?:(?:{'|'.join(OUTER)})\.)+")


def unwrapped(name):
    """Return the name of a module or parameter without the names of wrappers."""
    return _WRAPPER.sub("", name)


def parameter_name(key):
    """Return the released gpt2 files' name for a key of a file: "h.0.attn.c_attn.weight", "wte.weight".

    Two keys may give the same name; a reader must refuse the second.
    """
    return _OUTER.sub("", unwrapped(key))
