"""LoRA: a frozen layer learns through a low-rank update (Hu et al. 2021).

    y = x W + b + s dropout(x) Aᵀ Bᵀ        A (R, in), B (out, R), s = alpha / R

W and b stay as they are; A and B are trained. B starts at zero, so training starts from the base model exactly; A
starts random, so that B's gradient is not zero. The gradients are derived in `ops.linear.lora_linear`; what an adapter
does to one layer is in `adapters.updates`; names, matching rules and the stored orientation are PEFT's
(`adapters.lora_config`).

A layer under adapters holds the frozen layer and each adapter's update by name, and stands in the layer's place. Any
number of adapters is there at once; which are in force is chosen by `set_adapter`.
"""

import contextlib
import copy
import dataclasses
import math
import re

import numpy as np

from npgpt import ops
from npgpt.adapters.lora_config import match_targets, modules_to_save, short_name, token_rows, whole_name, whole_names
from npgpt.adapters.tables import TiedRows, TrainedRows
from npgpt.adapters.updates import LowRank, LowRankEmbedding, LowRankHead, Replacement, output, scaled
from npgpt.autograd import Tensor, no_grad
from npgpt.nn import Linear, Module
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator


class LoraLayer(Module):
    """A layer under its adapters, put in the layer's place.

    base_layer  the layer, frozen; nothing ever writes to it
    adapters    dict adapter name -> update: what each does to this layer
    active      dict adapter name -> weight: those in force; see `set_adapter`
    routes      Routes, inside a `mixed_batch`

    The parameters of the layer keep their names. Those of the adapter called "default" stand beside them
    (h.0.attn.c_attn.lora_A), those of others with the adapter's name behind (h.0.attn.c_attn.lora_A.poet).
    """

    def __init__(self, base_layer):
        self.base_layer, self.adapters, self.active, self.routes = base_layer, {}, {}, None

    def children(self):
        """None: to the rest of the model, this is the layer it wraps."""
        return ()

    def parameters(self):
        found = self.base_layer.parameters()
        for name, update in self.adapters.items():
            ending = "" if name == "default" else f".{name}"
            found.update((key + ending, tensor) for key, tensor in update.parameters().items())
        return found

    @property
    def weight(self):
        """The layer's own weight: what a tied head reads."""
        return self.base_layer.weight

    def __call__(self, *inputs):
        """The layer's output under the adapters in force, or, in a `mixed_batch`, under each sequence's own."""
        if self.routes is None:
            return self.output(self.active, *inputs)
        x, *_ = inputs
        y = None
        for active, rows in self.routes.rows(len(x.data if isinstance(x, Tensor) else x)):
            part = self.output(active, Tensor(x.data[rows]) if isinstance(x, Tensor) else x[rows]).data
            y = np.empty((len(rows), part.shape[1]), part.dtype) if y is None else y
            y[rows] = part
        return Tensor(y)

    def output(self, active, *inputs):
        """The layer's output with the update of one adapter, or with the weighted sum of several."""
        active = {name: weight for name, weight in active.items() if name in self.adapters}
        if list(active.values()) == [1]:
            (name,) = active
            return self.adapters[name](self.base_layer, *inputs)
        y = output(self.base_layer, *inputs)
        for name, weight in active.items():
            y = ops.add(y, scaled(self.adapters[name].added(self.base_layer, *inputs), weight))
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


class LoraHead(LoraLayer):
    """The head under its adapters. The model reads its weight, the table: here, the one that the adapters make of it.
    Where the head is tied to the token table, that is the layer it holds, and is no parameter a second time."""

    def __init__(self, base_layer, tied):
        super().__init__(base_layer)
        self.tied = tied

    def parameters(self):
        found = super().parameters()
        return {name: tensor for name, tensor in found.items() if not (self.tied and name == "weight")}

    @property
    def weight(self):
        return self.output(self.active)


def add_lora(model, config, seed=0, name="default"):
    """Freeze `model` and put an adapter called `name` on what `config` names: it alone is in force, and trains. In
    place; returns the model.

    seed  int; each layer's A is drawn from its own stream, so the draw does not depend on which others are adapted

    Raises ConfigError where a target is not there or cannot be adapted, or the model has an adapter of that name.
    """
    check_new(model, name)
    made, layers = make_updates(model, config), whole_names(model)
    for target, update in made.items():
        update.initialise(layers[target], generator(seed, f"{short_name(target)}.lora_A"))
    return attach(model, name, made)


def loraplus(params, ratio):
    """Return dict name -> ratio, for AdamW: the B matrices and the vectors (biases, magnitudes) of `params`.

    A and B have different sizes and starts, and B learns best at a rate several times that of A: 16 is usual.
    Source    Hayou et al. 2024 (LoRA+). What is named is what PEFT's create_loraplus_optimizer names, except for
              embeddings, which it gives a rate of their own.
    """
    if not 0 < ratio < math.inf:
        raise ConfigError(f"the learning rate of B is to be {ratio:g} times that of A: the ratio must be positive")
    return {name: ratio for name, tensor in params.items()
            if re.search(r"\.lora_B(\.|$)", name) or len(tensor.shape) == 1}


def check_new(model, name):
    """Raise ConfigError where the model has an adapter called `name`."""
    if name in adapter_names(model):
        raise ConfigError(f"this model has an adapter called {name!r} already: give the new one another name, or take "
                          "that one off (delete_adapter)")


def make_updates(model, config):
    """Return dict whole name ("transformer.h.0.attn.c_attn") -> update, of zeros, of the adapter that `config`
    describes. The model is not changed. Raises ConfigError."""
    layers, made = whole_names(model), {}
    for name in match_targets(model, config):
        kind = LowRank if isinstance(layers[name], Linear) else LowRankHead if name == "lm_head" else LowRankEmbedding
        made[name] = kind(config, name, layers[name])
    for name in modules_to_save(model, config):
        made[name] = Replacement(config, layers[name], layers[name].parameters())
    for name, indices in token_rows(model, config).items():
        if name in made:
            raise ConfigError(f"{short_name(name)} is among the target_modules or modules_to_save, and some of its "
                              "rows are among trainable_token_indices: name it in one of them")
        made[name] = TrainedRows(config, layers[name], indices)
    table = made.get("transformer.wte")
    tied = isinstance(table, TrainedRows) and model.config.tie_word_embeddings
    if tied and not isinstance(made.setdefault("lm_head", TiedRows(table)), TiedRows | TrainedRows):
        raise ConfigError("the head is tied to the token table, some of whose rows are among trainable_token_indices, "
                          "and so lm_head cannot be among the target_modules or modules_to_save")
    if config.bias == "all":
        for name, layer in layers.items():
            if name not in made and isinstance(getattr(layer, "bias", None), Tensor):
                made[name] = Replacement(config, layer, ["bias"])
    return made


def attach(model, name, made, trainable=True):
    """Put `made`, dict whole name -> update, onto the model under `name`, in force alone. Returns the model."""
    for target, update in made.items():
        _wrapped(model, short_name(target)).adapters[name] = update
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
            _put(model, module, layer.base_layer)


def merge_lora(model):
    """Put a plain layer with weight W + s (B A)ᵀ in the place of every adapted one, for the adapters in force; the
    model then has no adapter. In place; returns the model.

    Where the token table and the head are one, and an update in force changes only one use of it, they become two, and
    `model.config` says so.
    """
    layers = adapted_layers(model)
    if unties(model):
        model.config = dataclasses.replace(model.config, tie_word_embeddings=False)
        model.lm_head = layers.get("lm_head") or getattr(model.wte, "base_layer", model.wte)
    for name, layer in layers.items():
        _put(model, name, layer.merged())
    return model


def unties(model):
    """Tell whether the adapters in force change the token table for the look-up or for the head alone, where the two
    are one table: merging then makes two of it."""
    layers = adapted_layers(model)
    tables = [layers[name] for name in ("wte", "lm_head") if name in layers]
    active = {name for layer in tables for name in layer.active}
    return model.config.tie_word_embeddings and not all(
        isinstance(tables[-1].adapters.get(name), TiedRows) for name in active)


@contextlib.contextmanager
def mixed_batch(model, names, lengths=None):
    """Inside this block each sequence of a batch goes through an adapter of its own. For model.logits and
    model.hidden_states: nothing is recorded, and what orders sequences by itself (generation, evaluation) refuses.

    names    for each sequence, the name of an adapter, or None for the base
    lengths  (B,), tokens in each sequence; None: all are equally long, as in model.logits of (B, T)

    Raises ConfigError where the model has no such adapter, or where one of several changes the head, which is used
    whole.
    """
    for name in filter(None, names):
        updates(model, name)
    layers = adapted_layers(model)
    if "lm_head" in layers and layers["lm_head"].adapters.keys() & set(names) and len(set(names)) > 1:
        raise ConfigError("a batch cannot mix adapters of which one changes the head (lm_head): run each alone")
    routes = Routes(names, lengths)
    with disable_adapter(model), no_grad():
        for layer in layers.values():
            layer.routes = routes
        if "lm_head" in layers:
            layers["lm_head"].active = {name: 1 for name in set(names) & layers["lm_head"].adapters.keys()}
        try:
            yield model
        finally:
            for layer in layers.values():
                layer.routes = None


def check_not_mixed(model):
    """Raise ConfigError inside a `mixed_batch`: for what puts sequences into an order of its own."""
    if any(layer.routes for layer in adapted_layers(model).values()):
        raise ConfigError("in a mixed_batch each sequence has its adapter by its place, which model.logits and "
                          "model.hidden_states keep and generation and evaluation do not: run the adapters one by one")


@dataclasses.dataclass(frozen=True)
class Routes:
    """Which adapter each row goes through. See `mixed_batch`."""

    names: list
    lengths: list | None

    def rows(self, count):
        """Yield ({name: 1} or {}, bool array (count,)): the rows of each adapter among `count` rows."""
        B = len(self.names)
        lengths = np.full(B, count // max(B, 1)) if self.lengths is None else np.asarray(self.lengths)
        if len(lengths) != B or lengths.sum() != count:
            raise ConfigError(f"{B} adapter names for {count} tokens in sequences of {lengths.tolist()}: give one name "
                              "for each sequence, and the lengths where they differ")
        sequence = np.repeat(np.arange(B), lengths)
        for name in dict.fromkeys(self.names):
            wanted = np.array([each == name for each in self.names])
            yield {} if name is None else {name: 1}, wanted[sequence]


def _wrapped(model, name):
    """Return the LoraLayer called `name`, made where there is none."""
    layers = adapted_layers(model)
    if name not in layers:
        base = whole_names(model)[whole_name(name)]
        layers[name] = LoraHead(base, model.config.tie_word_embeddings) if name == "lm_head" else LoraLayer(base)
        _put(model, name, layers[name])
    return layers[name]


def _put(model, name, module):
    """Put `module` in the place of the one called `name`. A tied head, when it is plain again, has no place."""
    *path, attribute = name.split(".")
    parent = model
    for part in path:
        parent = parent[int(part)] if part.isdigit() else getattr(parent, part)  # "h.0": member 0 of the list h
    if name == "lm_head" and model.config.tie_word_embeddings and not isinstance(module, LoraLayer):
        del parent.lm_head
    else:
        setattr(parent, attribute, module)
