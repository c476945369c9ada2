"""LoRA: a frozen linear layer learns through a low-rank update (Hu et al. 2021).

    y = x W + b + s dropout(x) Aᵀ Bᵀ        A (R, in), B (out, R), s = alpha / R

W and b stay as they are; A and B are trained. B starts at zero, so training starts from the base model exactly; A
starts random, so that B's gradient is not zero. The gradients are derived in `ops.linear.lora_linear`. Names, matching
rules and the stored orientation are PEFT's.
"""

import contextlib
import copy
import dataclasses
import math
import re
import sys
import warnings

import numpy as np

from npgpt import ops
from npgpt.autograd import Tensor
from npgpt.errors import ConfigError
from npgpt.nn import Linear, Module, parameter
from npgpt.seeding import generator

LARGEST_RANK = 65536  # far above any width, where a rank has its use; a file's word alone does not ask for more memory


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
        if not isinstance(self.r, int) or isinstance(self.r, bool) or not 1 <= self.r <= LARGEST_RANK:
            raise ConfigError(f"LoRA rank r = {self.r!r}: it must be a whole number from 1 to {LARGEST_RANK:,}")
        if not isinstance(self.lora_alpha, int | float) or not 0 < self.lora_alpha <= sys.float_info.max:
            raise ConfigError(f"lora_alpha = {self.lora_alpha!r}: it must be a positive number")
        if not isinstance(self.lora_dropout, int | float) or not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout = {self.lora_dropout!r}: it must be a probability in [0, 1)")
        if not self.target_modules:
            raise ConfigError("target_modules is empty: name at least one module, for example c_attn")

    @property
    def scale(self):
        return self.lora_alpha / self.r


class LowRank(Module):
    """One adapter's update of one linear layer: A, B and the scale. It holds no layer; the layer is passed in."""

    def __init__(self, config, n_in, n_out, dtype):
        self.config = config
        self.scale = config.scale
        self.lora_A = parameter((config.r, n_in), dtype)
        self.lora_B = parameter((n_out, config.r), dtype)

    def initialise(self, rng):
        """Draw A; B stays zero. Kaiming uniform with a = sqrt 5: sqrt(6 / ((1 + a^2) in)) = 1 / sqrt(in)."""
        bound = 1 / math.sqrt(self.lora_A.shape[1])
        self.lora_A.data[...] = rng.uniform(-bound, bound, self.lora_A.shape)

    def __call__(self, layer, x, rng=None):
        """What `layer` computes with this update: x (N, in) -> (N, out)."""
        return ops.lora_linear(x, layer.weight, layer.bias, self.lora_A, self.lora_B, self.scale,
                               self.config.lora_dropout, rng)

    def update(self, layer, x, rng=None):
        """What this update adds to the output of `layer`, the low-rank path alone: x (N, in) -> (N, out)."""
        u = ops.matmul(ops.dropout(x, self.config.lora_dropout, rng), ops.transpose(self.lora_A, (1, 0)))
        return scaled(ops.matmul(u, ops.transpose(self.lora_B, (1, 0))), self.scale)

    def delta(self, layer):
        """What this update adds to the parameters of `layer`, dict name -> array: s (B A)ᵀ to its weight (in, out)."""
        weight = (self.lora_B.data @ self.lora_A.data).T                    # (out, R) @ (R, in) -> (in, out)
        weight *= self.scale
        return {"weight": weight}


class LoraLayer(Module):
    """A layer under its adapters, put in the layer's place.

    base_layer  the layer, frozen; nothing ever writes to it
    adapters    dict adapter name -> update: what each does to this layer
    active      dict adapter name -> weight: those in force; see `set_adapter`

    The parameters of the layer keep their names. Those of the adapter called "default" stand beside them
    (h.0.attn.c_attn.lora_A), those of others with the adapter's name behind (h.0.attn.c_attn.lora_A.poet).
    """

    def __init__(self, base_layer):
        self.base_layer, self.adapters, self.active = base_layer, {}, {}

    def children(self):
        """None: to the rest of the model, this is the layer it wraps."""
        return ()

    def parameters(self):
        found = self.base_layer.parameters()
        for name, update in self.adapters.items():
            ending = "" if name == "default" else f".{name}"
            found.update((key + ending, tensor) for key, tensor in update.parameters().items())
        return found

    def __call__(self, *inputs):
        """The layer's output, with the update of the one active adapter, or with the weighted sum of several."""
        if list(self.active.values()) == [1]:
            (name,) = self.active
            return self.adapters[name](self.base_layer, *inputs)
        y = self.base_layer(*inputs)
        for name, weight in self.active.items():
            y = ops.add(y, scaled(self.adapters[name].update(self.base_layer, *inputs), weight))
        return y

    def merged(self):
        """Return a plain layer that computes the same. This one, and the layer it wraps, are left untouched."""
        merged = copy.copy(self.base_layer)
        deltas = [(weight, self.adapters[name].delta(self.base_layer)) for name, weight in self.active.items()]
        for key, tensor in self.base_layer.parameters().items():
            data = tensor.data.copy()
            for weight, delta in deltas:
                if key in delta:
                    data += delta[key] if weight == 1 else weight * delta[key]
            setattr(merged, key, Tensor(data, tensor.trainable))
        return merged


def scaled(x, factor):
    """x times a constant."""
    return ops.mul(x, Tensor(np.array(factor, x.dtype)))


def add_lora(model, config, seed=0, name="default"):
    """Freeze `model` and put an adapter called `name` on each target: it alone is in force, and trains. In place;
    returns the model.

    seed  int; each layer's A is drawn from its own stream, so the draw does not depend on which others are adapted

    Raises ConfigError where a target names no linear layer, or the model has an adapter of that name.
    """
    check_new(model, name)
    made = make_updates(model, config)
    for target, update in made.items():
        update.initialise(generator(seed, f"{target}.lora_A"))
    return attach(model, name, made)


def check_new(model, name):
    """Raise ConfigError where the model has an adapter called `name`."""
    if name in adapter_names(model):
        raise ConfigError(f"this model has an adapter called {name!r} already: give the new one another name, or take "
                          "that one off (delete_adapter)")


def make_updates(model, config):
    """Return dict module name -> update, A and B zero, of the adapter that `config` describes. The model is not
    changed. Raises ConfigError."""
    parameters = model.parameters()
    weights = {target: parameters[f"{target}.weight"] for target in match_targets(model, config.target_modules)}
    return {target: LowRank(config, *weight.shape, weight.dtype) for target, weight in weights.items()}


def attach(model, name, made, trainable=True):
    """Put `made`, dict module name -> update, onto the model under `name`, in force alone. Returns the model."""
    layers = adapted_layers(model)
    for target, update in made.items():
        layer = layers.get(target) or _replace(model, target, LoraLayer)
        layer.adapters[name] = update
    set_adapter(model, name, trainable)
    return model


def adapted_layers(model):
    """Return dict module name -> LoraLayer."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def updates(model, name="default"):
    """Return dict module name -> update: what the adapter `name` is made of. Raises ConfigError."""
    found = {module: layer.adapters[name] for module, layer in adapted_layers(model).items() if name in layer.adapters}
    if not found:
        known = adapter_names(model)
        has = f"its adapters are {', '.join(sorted(known))}" if known else "it has none; add_lora makes one"
        raise ConfigError(f"this model has no adapter called {name!r}: {has}")
    return found


def adapter_names(model):
    """Return the names of the model's adapters."""
    return list(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.adapters))


def set_adapter(model, names, trainable=True):
    """Choose which adapters are in force, and which of them train; everything else is frozen. In place.

    names      the name of one; or a list of names, whose updates are added; or a dict name -> weight, whose updates
               are added with these weights
    trainable  True: all of `names` train; False: none; a list: those of it

    Raises ConfigError where the model has no adapter of a name.
    """
    names = [names] if isinstance(names, str) else names
    weights = names if isinstance(names, dict) else dict.fromkeys(names, 1)
    trained = trainable if isinstance(trainable, list | tuple) else list(weights) if trainable else []
    for name in weights:
        updates(model, name)
    unfrozen = [update for name in trained for update in updates(model, name).values()]
    model.freeze()
    for update in unfrozen:
        update.unfreeze()
    for layer in adapted_layers(model).values():
        layer.active = {name: weight for name, weight in weights.items() if name in layer.adapters}


@contextlib.contextmanager
def disable_adapter(model):
    """Inside this block the model is its base: no adapter is in force."""
    before = {layer: layer.active for layer in adapted_layers(model).values()}
    for layer in before:
        layer.active = {}
    try:
        yield model
    finally:
        for layer, active in before.items():
            layer.active = active


def delete_adapter(model, name):
    """Take the adapter called `name` off the model; the others stay as they are. In place. Raises ConfigError."""
    for module in updates(model, name):
        layer = adapted_layers(model)[module]
        del layer.adapters[name]
        layer.active.pop(name, None)
        if not layer.adapters:
            _replace(model, module, lambda layer: layer.base_layer)


def merge_lora(model):
    """Put a plain layer with weight W + s (B A)ᵀ in the place of every adapted one, for the adapters in force; the
    model then has no adapter. In place; returns the model."""
    for target in adapted_layers(model):
        _replace(model, target, LoraLayer.merged)
    return model


def match_targets(model, target_modules):
    """Return the names of the Linear modules that `target_modules` selects, by PEFT's rules, in model order.

    A list selects a module whose name is an entry or ends in "." + entry. A string is "all-linear" or a regular
    expression that must match the whole name, which in PEFT begins with "transformer.".
    """
    modules = {f"transformer.{name}": getattr(module, "base_layer", module) for name, module in model.named_modules()}
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
    """Put make(module) in the place of the module called `name`, and return it."""
    *path, attribute = name.split(".")
    parent = model
    for part in path:
        parent = parent[int(part)] if part.isdigit() else getattr(parent, part)  # "h.0": member 0 of the list h
    made = make(getattr(parent, attribute))
    setattr(parent, attribute, made)
    return made
