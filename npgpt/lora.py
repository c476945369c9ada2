"""LoRA: a frozen linear layer learns through a low-rank update (Hu et al. 2021).

    y = x W + b + s dropout(x) Aᵀ Bᵀ        A (R, in), B (out, R), s = alpha / R

W and b stay as they are; A and B are trained. B starts at zero, so training starts from the base model exactly; A
starts random, so that B's gradient is not zero. The gradients are derived in `ops.linear.lora_linear`. Names, matching
rules and the stored orientation are PEFT's.
"""

import dataclasses
import math
import re
import sys
import warnings

import numpy as np

from npgpt import ops
from npgpt.autograd import Tensor
from npgpt.errors import ConfigError
from npgpt.nn import Linear, Module
from npgpt.seeding import generator


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """How to adapt a model, in PEFT's words.

    r               rank of the update
    lora_alpha      the update is scaled by s = lora_alpha / r
    lora_dropout    probability of dropping an element of the update's input, while training
    target_modules  list of names, each a whole module name or its end ("c_attn", "attn.c_proj", "h.0.mlp.c_fc"; note
                    that "c_proj" names both attn.c_proj and mlp.c_proj); or a regular expression over the whole name
                    ("transformer.h.0.attn.c_attn"); or "all-linear"
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.1
    target_modules: list[str] | tuple[str, ...] | str = ("c_attn",)

    def __post_init__(self):
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            raise ConfigError(f"LoRA rank r = {self.r!r}: it must be a whole number of at least 1")
        if not isinstance(self.lora_alpha, int | float) or not 0 < self.lora_alpha <= sys.float_info.max:
            raise ConfigError(f"lora_alpha = {self.lora_alpha!r}: it must be a positive number")
        if not isinstance(self.lora_dropout, int | float) or not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout = {self.lora_dropout!r}: it must be a probability in [0, 1)")
        if not self.target_modules:
            raise ConfigError("target_modules is empty: name at least one module, for example c_attn")

    @property
    def scale(self):
        return self.lora_alpha / self.r


class LoraLinear(Module):
    """A Linear and its low-rank update, put in the Linear's place. Its parameters keep the Linear's names and add
    lora_A and lora_B beside them."""

    def __init__(self, base_layer, config, rng, adapter_name):
        n_in, n_out = base_layer.weight.shape
        dtype = base_layer.weight.dtype
        self.base_layer = base_layer
        self.config = config
        self.adapter_name = adapter_name
        bound = 1 / math.sqrt(n_in)  # Kaiming uniform with a = sqrt 5: sqrt(6 / ((1 + a^2) n_in)) = 1 / sqrt(n_in)
        self.lora_A = Tensor(rng.uniform(-bound, bound, (config.r, n_in)).astype(dtype), trainable=True)
        self.lora_B = Tensor(np.zeros((n_out, config.r), dtype), trainable=True)

    def parameters(self):
        return {**self.base_layer.parameters(), "lora_A": self.lora_A, "lora_B": self.lora_B}

    def __call__(self, x, rng=None):
        """x (N, in) -> (N, out); dropout on the low-rank path if and only if rng is given."""
        base, config = self.base_layer, self.config
        return ops.lora_linear(x, base.weight, base.bias, self.lora_A, self.lora_B, config.scale,
                               config.lora_dropout, rng)

    def merged(self):
        """Return a plain Linear with weight W + s (B A)ᵀ. The layer it wraps is left untouched."""
        base = self.base_layer
        merged = Linear(*base.weight.shape, base.weight.dtype)
        update = (self.lora_B.data @ self.lora_A.data).T                    # (out, R) @ (R, in) -> (in, out)
        np.multiply(update, self.config.scale, out=merged.weight.data)
        merged.weight.data += base.weight.data
        merged.bias.data[...] = base.bias.data
        merged.weight.trainable, merged.bias.trainable = base.weight.trainable, base.bias.trainable
        return merged


def add_lora(model, config, seed=0, name="default"):
    """Freeze `model` and put a LoraLinear in the place of each target. In place; returns the model.

    seed  int; each layer's A is drawn from its own stream, so the draw does not depend on which others are adapted
    name  the adapter's name

    Raises ConfigError where a target names no linear layer, or the model has an adapter already.
    """
    if adapted_layers(model):
        raise ConfigError("this model already has an adapter: merge it (merge_lora), or load the base model again")
    targets = match_targets(model, config.target_modules)
    model.freeze()
    for target in targets:
        rng = generator(seed, f"{target}.lora_A")
        _replace(model, target, lambda linear, rng=rng: LoraLinear(linear, config, rng, name))
    return model


def merge_lora(model):
    """Put a plain Linear with weight W + s (B A)ᵀ in the place of every adapted layer. In place; returns the model."""
    for target in adapted_layers(model):
        _replace(model, target, LoraLinear.merged)
    return model


def adapted_layers(model):
    """Return dict module name -> LoraLinear."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def match_targets(model, target_modules):
    """Return the names of the Linear modules that `target_modules` selects, by PEFT's rules, in model order.

    A list selects a module whose name is an entry or ends in "." + entry. A string is "all-linear" or a regular
    expression that must match the whole name, which in PEFT begins with "transformer.".
    """
    modules = {f"transformer.{name}": module for name, module in model.named_modules()}
    linear = [name for name, module in modules.items() if isinstance(module, Linear)]
    kinds = ", ".join(dict.fromkeys(re.sub(r"^transformer\.h\.\d+\.", "", name) for name in linear))
    if target_modules == "all-linear":
        chosen = set(linear)
    elif isinstance(target_modules, str):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what may come to mean something else: "[[a]"
                pattern = re.compile(target_modules)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"target {target_modules!r} is not a regular expression: {error}") from error
        chosen = {name for name in modules if pattern.fullmatch(name)}
        if not chosen:
            raise ConfigError(f"target {target_modules!r} matches no module as a regular expression over whole names "
                              f"such as {linear[0]!r}; a list of names, or 'all-linear', is the other way to say it. "
                              f"Linear modules: {kinds}")
    else:
        chosen = set()
        for target in target_modules:
            matched = {name for name in modules if name == target or name.endswith(f".{target}")}
            if not matched:
                raise ConfigError(f"target {target!r} matches no module of this model; its linear modules are {kinds} "
                                  f"(in h.0 to h.{model.config.n_layer - 1})")
            chosen |= matched
    other = sorted(chosen.difference(linear))
    if other:
        raise ConfigError(f"target {other[0]!r} is of class {type(modules[other[0]]).__name__}, not a linear layer; "
                          f"the linear modules are {kinds}")
    return [name.removeprefix("transformer.") for name in linear if name in chosen]


def _replace(model, name, make):
    """Put make(module) in the place of the module called `name`."""
    *path, attribute = name.split(".")
    parent = model
    for part in path:
        parent = parent[int(part)] if part.isdigit() else getattr(parent, part)  # "h.0": member 0 of the list h
    setattr(parent, attribute, make(getattr(parent, attribute)))
