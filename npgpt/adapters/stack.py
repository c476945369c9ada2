"""The adapters of a model: adding one, choosing which are in force, taking one off, merging.

A model can have any number of adapters, each with a name. `Stack` holds what they do to one layer, and is itself an
update of that layer: the weighted sum of the updates in force. The rest of the model knows only a `lora.LoraLayer` with
an update in it.
"""

import contextlib
import dataclasses

from npgpt import ops
from npgpt.adapters.lora_config import LoraConfig
from npgpt.adapters.matching import match_targets, modules_to_save, short_name, token_rows, whole_name, whole_names
from npgpt.adapters.tables import LoraHead, TiedRows, TrainedRows
from npgpt.adapters.updates import LowRankEmbedding, LowRankHead, LowRankLinear, Replacement, output, scaled
from npgpt.autograd import Tensor
from npgpt.lora import adapted_layers, merge, put, wrap
from npgpt.nn import Linear, Module
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator


class Stack(Module):
    """The updates of one layer by several adapters.

    adapters  dict adapter name -> update
    active    dict adapter name -> weight: the adapters in force; see `set_adapter`
    routes    inside a `mixed_batch`, which adapter each row goes through

    The parameters of the adapter called "default" have the names of its update (lora_A); those of other adapters have
    the adapter's name at the end (lora_A.poet).
    """

    def __init__(self):
        self.adapters, self.active, self.routes = {}, {}, None

    def parameters(self):
        found = {}
        for name, update in self.adapters.items():
            ending = "" if name == "default" else f".{name}"
            found.update((key + ending, tensor) for key, tensor in update.parameters().items())
        return found

    def __call__(self, layer, *inputs):
        """What the layer computes under the adapters in force, or in a `mixed_batch`, for each row its own adapter."""
        if self.routes is not None:
            return self.routes.output(self, layer, *inputs)
        return self.output(self.active, layer, *inputs)

    def output(self, active, layer, *inputs):
        """What the layer computes under one adapter, or under the weighted sum of several."""
        active = {name: weight for name, weight in active.items() if name in self.adapters}
        if list(active.values()) == [1]:
            (name,) = active
            return self.adapters[name](layer, *inputs)
        y = output(layer, *inputs)
        for name, weight in active.items():
            y = ops.add(y, scaled(self.adapters[name].added(layer, *inputs), weight))
        return y

    def delta(self, layer):
        """The weighted sum of what the adapters in force add to the layer's parameters: dict name -> array."""
        total = {}
        for name, weight in self.active.items():
            for key, delta in self.adapters[name].delta(layer).items():
                delta = delta if weight == 1 else weight * delta
                total[key] = total[key] + delta if key in total else delta
        return total


def add_lora(model, config, seed=0, name="default"):
    """Freeze `model` and put an adapter called `name` on the modules that `config` names. In place; returns the model.
    The new adapter is the only one in force, and it trains.

    seed  int; each layer's A has its own random stream, so it does not depend on which other layers are adapted

    Raises ConfigError if a target is not there or cannot be adapted, or the model has an adapter of that name.
    """
    check_new(model, name)
    made, layers = make_updates(model, config), whole_names(model)
    for target, update in made.items():
        update.initialise(layers[target], generator(seed, f"{short_name(target)}.lora_A"))
    return attach(model, name, made)


def check_new(model, name):
    """Raise ConfigError if the model has an adapter called `name`."""
    if name in adapter_names(model):
        raise ConfigError(f"this model has an adapter called {name!r} already: give the new one another name, or take "
                          "that one off (delete_adapter)")


def make_updates(model, config: LoraConfig):
    """Return dict whole name ("transformer.h.0.attn.c_attn") -> update, all zeros: the adapter that `config` describes.
    The model does not change. Raises ConfigError."""
    layers, made = whole_names(model), {}
    for name in match_targets(model, config):
        kind = (LowRankLinear if isinstance(layers[name], Linear) else
                LowRankHead if name == "lm_head" else LowRankEmbedding)
        made[name] = kind(config, name, layers[name])
    for name in modules_to_save(model, config):
        made[name] = Replacement(config, layers[name], layers[name].parameters())
    for name, indices in token_rows(model, config).items():
        if name in made:
            raise ConfigError(f"{short_name(name)} is in target_modules or modules_to_save, and some of its rows are "
                              "in trainable_token_indices: name it in one of them")
        made[name] = TrainedRows(config, layers[name], indices)
    table = made.get("transformer.wte")
    tied = isinstance(table, TrainedRows) and model.config.tie_word_embeddings
    if tied and not isinstance(made.setdefault("lm_head", TiedRows(table)), TiedRows | TrainedRows):
        raise ConfigError("the head is tied to the token table, and trainable_token_indices trains some rows of that "
                          "table: lm_head can then not be in target_modules or modules_to_save")
    if config.bias == "all":
        for name, layer in layers.items():
            if name not in made and isinstance(getattr(layer, "bias", None), Tensor):
                made[name] = Replacement(config, layer, ["bias"])
    return made


def attach(model, name, made, trainable=True):
    """Put `made`, dict whole name -> update, onto the model under `name`; only this adapter is then in force. Returns
    the model."""
    for target, update in made.items():
        _stack(model, short_name(target)).adapters[name] = update
    set_adapter(model, name, trainable)
    return model


def updates(model, name="default"):
    """Return dict module name -> update: what the adapter `name` is made of. Raises ConfigError if there is none."""
    found = {module: stack.adapters[name] for module, stack in stacks(model).items() if name in stack.adapters}
    if not found:
        known = adapter_names(model)
        has = f"its adapters are {', '.join(sorted(known))}" if known else "it has none; add_lora makes one"
        raise ConfigError(f"this model has no adapter called {name!r}: {has}")
    return found


def adapter_names(model):
    """Return the names of the model's adapters."""
    return list(dict.fromkeys(name for stack in stacks(model).values() for name in stack.adapters))


def stacks(model):
    """Return dict module name -> Stack."""
    return {name: layer.update for name, layer in adapted_layers(model).items()}


def set_adapter(model, names, trainable=True):
    """Choose which adapters are in force, and which of them train; everything else is frozen. In place.

    names      one name; or a list of names, whose updates are added; or a dict name -> weight, whose updates are added
               with these weights
    trainable  True: all of `names` train; False: none; a list: these of them

    Raises ConfigError if the model has no adapter of a name.
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
    for stack in stacks(model).values():
        stack.active = {name: weight for name, weight in weights.items() if name in stack.adapters}


@contextlib.contextmanager
def disable_adapter(model):
    """Inside this block no adapter is in force: the model is its base."""
    before = {stack: stack.active for stack in stacks(model).values()}
    for stack in before:
        stack.active = {}
    try:
        yield model
    finally:
        for stack, active in before.items():
            stack.active = active


def delete_adapter(model, name):
    """Take the adapter called `name` off the model; the others stay as they are. In place. Raises ConfigError."""
    layers = adapted_layers(model)
    for module in updates(model, name):
        stack = layers[module].update
        del stack.adapters[name]
        stack.active.pop(name, None)
        if not stack.adapters:
            _unwrap(model, module, layers[module].base_layer)


def merge_lora(model):
    """Replace every adapted layer by a plain layer with weight W + s (B A)ᵀ, for the adapters in force; the model then
    has no adapter. In place; returns the model.

    If the token table and the head are one table, and an update in force changes only one use of it, they become two,
    and `model.config` says so.
    """
    layers = adapted_layers(model)
    if unties(model):
        model.config = dataclasses.replace(model.config, tie_word_embeddings=False)
        model.lm_head = layers.get("lm_head") or getattr(model.wte, "base_layer", model.wte)
    elif "lm_head" in layers:
        _unwrap(model, "lm_head", layers["lm_head"].merged())
    return merge(model)


def unties(model):
    """Tell whether the token table and the head are one table, of which the adapters in force change only one use:
    merging then makes two tables."""
    found = stacks(model)
    tables = [found[name] for name in ("wte", "lm_head") if name in found]
    active = {name for stack in tables for name in stack.active}
    return model.config.tie_word_embeddings and not all(
        isinstance(tables[-1].adapters.get(name), TiedRows) for name in active)


def _stack(model, name):
    """Return the Stack of the layer called `name`. Make it if there is none."""
    if name not in stacks(model):
        if name == "lm_head":
            tied = model.config.tie_word_embeddings
            put(model, name, LoraHead(whole_names(model)[whole_name(name)], Stack(), tied))
        else:
            wrap(model, name, Stack())
    return model.module(name).update


def _unwrap(model, name, plain):
    """Put the layer `plain` in the place of an adapted one. A tied head has no place of its own."""
    if name == "lm_head" and model.config.tie_word_embeddings:
        del model.lm_head
    else:
        put(model, name, plain)
