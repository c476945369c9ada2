"""PEFT's rules: which modules of a model a LoraConfig names.

PEFT sees a GPT2LMHeadModel, in which a module has a whole name: "transformer.h.0.attn.c_attn", or "lm_head". A name in
a list means a module if it is the module's whole name, or the end of it in whole parts ("attn.c_attn", not
"tn.c_attn"). A regular expression has to match the whole name.
"""

import re

from npgpt.adapters.expressions import compiled
from npgpt.nn import Embedding, Linear
from npgpt.runtime.errors import ConfigError


def whole_name(name):
    """Return PEFT's name of a module from the model's own name."""
    return name if name == "lm_head" else f"transformer.{name}"


def short_name(name):
    """Return the model's own name of a module from its whole name."""
    return name.removeprefix("transformer.")


def whole_names(model):
    """Return dict whole name -> module, without adapters. The head is included, tied or not."""
    modules = {whole_name(name): getattr(module, "base_layer", module) for name, module in model.named_modules()}
    return {**modules, "lm_head": modules.get("lm_head", modules["transformer.wte"])}


def named(modules, name):
    """Return the names in `modules` that `name` means."""
    return {module for module in modules if module == name or module.endswith(f".{name}")}


def matches(patterns, module):
    """Return the values in `patterns`, a rank_pattern or alpha_pattern, whose key matches the module, in order."""
    return [value for key, value in (patterns or {}).items() if compiled(rf"(.*\.)?({key})$").match(module)]


def rank_and_alpha(config, module):
    """Return (rank, alpha) of the module with this whole name."""
    return (next(iter(matches(config.rank_pattern, module)), config.r),
            next(iter(matches(config.alpha_pattern, module)), config.lora_alpha))


def match_targets(model, config):
    """Return the whole names of the modules that get an update, in model order.

    The targets, without those that exclude_modules names, and without those in modules_to_save, which train whole.
    Raises ConfigError if a target is not there, or is neither a linear layer nor an embedding, or if none is left.
    """
    modules = whole_names(model)
    linear = [name for name, module in modules.items() if isinstance(module, Linear)]
    kinds = ", ".join(dict.fromkeys(re.sub(r"^transformer\.h\.\d+\.", "", name) for name in linear))
    chosen = _targets(model, config, modules, linear, kinds)
    other = sorted(name for name in chosen if not isinstance(modules[name], Linear | Embedding))
    if other:
        raise ConfigError(f"target {other[0]!r} is of class {type(modules[other[0]]).__name__}, neither a linear layer "
                          f"nor an embedding; the linear modules are {kinds}")
    excluded = config.exclude_modules or ()
    if isinstance(excluded, str):
        pattern = compiled(excluded)
        chosen = {name for name in chosen if not pattern.fullmatch(name)}
    else:
        chosen -= set().union(*(named(modules, name) for name in excluded))
    whole = modules_to_save(model, config)
    chosen = [name for name in modules if name in chosen and name not in whole]
    if not chosen:
        raise ConfigError("target_modules, exclude_modules, layers_to_transform and modules_to_save together leave no "
                          "module to adapt")
    return chosen


def _targets(model, config, modules, linear, kinds):
    """Return the set of whole names that target_modules means, in the layers of layers_to_transform."""
    targets, chosen = config.target_modules, set()
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return set(linear)
    if isinstance(targets, str):
        pattern = compiled(targets)
        chosen = {name for name in modules if pattern.fullmatch(name)}
        if not chosen:
            raise ConfigError(f"target {targets!r} matches no module as a regular expression over whole names such as "
                              f"{linear[0]!r}; give a list of names instead, or 'all-linear'. Linear modules: {kinds}")
        return chosen
    for target in targets:
        matched = named(modules, target)
        if not matched:
            raise ConfigError(f"target {target!r} matches no module of this model; its linear modules are {kinds} (in "
                              f"h.0 to h.{model.config.n_layer - 1})")
        chosen |= matched
    return {name for name in chosen if name in targets or _in_layers(name, config, model)}


def _in_layers(name, config, model):
    """Tell whether layers_to_transform includes the layer of this module."""
    layers, patterns = config.layers(), config.layers_pattern or r"[^.]*"
    if not layers:
        return True
    if max(layers) >= model.config.n_layer:
        raise ConfigError(f"layers_to_transform names layer {max(layers)}; this model has layers 0 to "
                          f"{model.config.n_layer - 1}")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    number = re.search(r"\.(\d+)\.", name)  # a name of GPT-2 holds one at the most
    return number is not None and int(number[1]) in layers and any(
        compiled(rf"(?:^|.*?\.){pattern}\.(\d+)\.").match(name) for pattern in patterns)


def modules_to_save(model, config):
    """Return the whole names of the modules that modules_to_save means: for a block, the layers in it that hold
    parameters. Raises ConfigError if a name means no module."""
    modules, found = whole_names(model), []
    for entry in config.modules_to_save or ():
        heads = named(modules, entry)
        if not heads:
            raise ConfigError(f"{entry!r} in modules_to_save is no module of this model; it has "
                              "wte, wpe, h.0 (ln_1, attn, ln_2, mlp), .., ln_f and lm_head")
        found += [name for name in modules if hasattr(modules[name], "weight")
                  and any(name == head or name.startswith(f"{head}.") for head in heads)]
    return [name for name in modules if name in found]


def tables(model):
    """Return the whole names of the tables that have a row for each token."""
    return ["transformer.wte"] + ["lm_head"] * (not model.config.tie_word_embeddings)


def token_rows(model, config):
    """Return dict whole name of a table -> token ids: what trainable_token_indices means in this model.

    Raises ConfigError if there is no such table, or it has no such row.
    """
    modules, found = whole_names(model), {}
    for name, rows in config.token_indices().items():
        tables = [module for module in named(modules, name) if isinstance(modules[module], Embedding)]
        if len(tables) != 1:
            raise ConfigError(f"{name!r} in trainable_token_indices is not the name of a table; it must be wte, wpe or "
                              "lm_head")
        count = len(modules[tables[0]].weight.data)
        if max(rows) >= count:
            raise ConfigError(f"trainable_token_indices names row {max(rows)} of {name}, which has {count:,} rows; for "
                              f"tokens that were added, call model.resize_token_embeddings({max(rows) + 1}) first")
        found[tables[0]] = rows
    return found
