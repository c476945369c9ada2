"""The names of parameters in other people's files, without what their programs put around a model.

A program that wraps a module puts the wrapper's name into the name of every parameter inside: torch.compile
"_orig_mod", DistributedDataParallel and DeepSpeed "module", FSDP "_fsdp_wrapped_module", and so on, in any order, and
in the middle of a name where one block alone was wrapped:

    "module._orig_mod.transformer.h.0.attn.c_attn.weight", "transformer.h.0._orig_mod.attn.c_attn.weight"

None of these names occurs in GPT-2 itself, so that they can be taken out wherever they stand.
"""

import re

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
            "_forward_module")
# What the classes around a model call it: PEFT, TRL's value head, Lightning, transformers.
OUTER = ("base_model", "pretrained_model", "model", "gpt", "transformer")
MASK = re.compile(r"h\.\d+\.attn\.(?:bias|masked_bias)")  # causal masks, stored as buffers; nobody needs them
_WRAPPER = re.compile(rf"(?:(?<=\.)|^)(?:{'|'.join(WRAPPERS)})\.")
_OUTER = re.compile(rf"^(?:(?:{'|'.join(OUTER)})\.)+")


def unwrapped(name):
    """Return the name of a module or parameter without the names of wrappers, wherever they stand in it."""
    return _WRAPPER.sub("", name)


def parameter_name(key):
    """Return the name that a key of a file has in the released gpt2 files: "h.0.attn.c_attn.weight", "wte.weight".

    Different keys may come to the same name; a reader must not take both.
    """
    return _OUTER.sub("", unwrapped(key))
