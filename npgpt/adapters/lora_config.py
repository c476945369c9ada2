"""What an adapter changes in a model, and how: LoraConfig, and PEFT's rules of which modules it means."""

import dataclasses
import math
import re
import sys
import warnings

from npgpt.nn import Embedding, Linear
from npgpt.runtime.errors import ConfigError

LARGEST_RANK = 65536  # far above any width, where a rank has its use; a file's word alone does not ask for more memory
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "pissa", "olora")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """How to adapt a model, in PEFT's words.

    r                    rank of the update
    lora_alpha           the update is scaled by s = lora_alpha / r
    lora_dropout         probability of dropping an element of the update's input, while training; it falls on linear
                         layers, and neither on embeddings, as in PEFT, nor on the head
    target_modules       list of names, each a whole module name or its end ("c_attn", "attn.c_proj", "h.0.mlp.c_fc",
                         "wte", "lm_head"; note that "c_proj" names both attn.c_proj and mlp.c_proj); or a regular
                         expression over the whole name ("transformer.h.0.attn.c_attn"); or "all-linear", which leaves
                         the head alone
    exclude_modules      list of names, or a regular expression: targets that are left alone after all
    layers_to_transform  number of a layer, or list of numbers: only there, with target_modules a list
    layers_pattern       name of the list that the layers are in (GPT-2's is "h"), or several; None: any
    rank_pattern         dict name or expression for the end of a name -> rank of those modules in place of r; where
    alpha_pattern        several match, the first decides. The same for lora_alpha
    use_rslora           s = lora_alpha / sqrt(r), which keeps the update's size at any rank (Kalajdzievski 2023)
    use_dora             train direction and magnitude of the weight apart (Liu et al. 2024): see `ops.dora_linear`
    lora_bias            a trained bias beside B: y = ... + s (u Bᵀ + bias)
    bias                 "lora_only" trains the biases of the targets too, "all" every bias of the model; the adapter
                         holds its own, and the base's stay
    modules_to_save      list of names: modules that the adapter replaces by a trained copy of its own ("ln_f", "wte")
    trainable_token_indices  list of token ids: only these rows of the token table train, for the head too where it is
                         tied; or a dict from the names of tables ("wte", "lm_head") to such lists
    init_lora_weights    True: A Kaiming uniform and B zero; False: B random too, for tests; "gaussian", "orthogonal",
                         "pissa", "olora": see `lora_init`
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.1
    target_modules: list[str] | tuple[str, ...] | str = ("c_attn",)
    exclude_modules: list[str] | tuple[str, ...] | str | None = None
    layers_to_transform: list[int] | tuple[int, ...] | int | None = None
    layers_pattern: list[str] | tuple[str, ...] | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    modules_to_save: list[str] | tuple[str, ...] | None = None
    init_lora_weights: bool | str = True
    trainable_token_indices: list[int] | tuple[int, ...] | dict[str, list[int]] | None = None

    def __post_init__(self):
        for field, value in (("r", self.r), *self._patterns("rank_pattern")):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_RANK:
                raise ConfigError(f"LoRA rank {field} = {value!r}: it must be a whole number from 1 to "
                                  f"{LARGEST_RANK:,}")
        for field, value in (("lora_alpha", self.lora_alpha), *self._patterns("alpha_pattern")):
            if not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
                raise ConfigError(f"{field} = {value!r}: it must be a positive number")
        if not isinstance(self.lora_dropout, int | float) or not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout = {self.lora_dropout!r}: it must be a probability in [0, 1)")
        if not self.target_modules:
            raise ConfigError("target_modules is empty: name at least one module, for example c_attn")
        for field in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            value = getattr(self, field)
            names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
            if not (names or value is None or (isinstance(value, str) and field != "modules_to_save")):
                right = "a list of names" + ("" if field == "modules_to_save" else " or a regular expression")
                raise ConfigError(f"{field} = {value!r}: it must be {right}")
        layers = self._layers()
        if not all(isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 for layer in layers):
            raise ConfigError(f"layers_to_transform = {self.layers_to_transform!r}: it must be a layer's number, from "
                              "0, or a list of them")
        if layers and isinstance(self.target_modules, str):
            raise ConfigError("layers_to_transform goes with a list of target_modules; a regular expression can name "
                              r"the layers itself: transformer\.h\.[01]\.attn\.c_attn")
        if self.layers_pattern and not layers:
            raise ConfigError(f"layers_pattern = {self.layers_pattern!r} without layers_to_transform: give both")
        for field in ("use_rslora", "use_dora", "lora_bias"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"{field} = {getattr(self, field)!r}: it must be true or false")
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError(f"bias = {self.bias!r}: it must be 'none', 'all' or 'lora_only'")
        init = self.init_lora_weights
        if not (isinstance(init, bool) or init in INITIALISATIONS[2:]):
            raise ConfigError(f"init_lora_weights = {init!r}: it must be true, false, "
                              f"{', '.join(map(repr, INITIALISATIONS[2:]))}")
        if self.lora_bias and (self.use_dora or not isinstance(init, bool)):
            raise ConfigError("lora_bias does not go together with use_dora, nor with an init_lora_weights other than "
                              "true and false")
        if self.use_dora and init in ("pissa", "olora"):
            raise ConfigError(f"use_dora does not go together with init_lora_weights = {init!r}: DoRA's magnitudes are "
                              "those of the base, which that initialisation takes apart")

        for rows in self.token_indices().values():
            if not (isinstance(rows, list | tuple) and rows and len(set(map(str, rows))) == len(rows)
                    and all(type(row) is int and row >= 0 for row in rows)):
                raise ConfigError(f"trainable_token_indices = {self.trainable_token_indices!r}: it must be a list of "
                                  "different whole numbers of at least 0, or a dict from names of tables to such lists")

    def token_indices(self):
        """trainable_token_indices as dict name of a table -> token ids."""
        indices = self.trainable_token_indices
        return {} if indices is None else indices if isinstance(indices, dict) else {"wte": indices}

    def _patterns(self, field):
        """The entries of rank_pattern or alpha_pattern, for checking. Raises ConfigError where it is no dict."""
        patterns = getattr(self, field) or {}
        if not isinstance(patterns, dict) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigError(f"{field} = {patterns!r}: it must be a dict from names to numbers")
        return [(f"{field}[{pattern!r}]", value) for pattern, value in patterns.items()]

    def _layers(self):
        layers = self.layers_to_transform
        return [] if layers is None else layers if isinstance(layers, list | tuple) else [layers]

    @property
    def scale(self):
        """s of the modules that no pattern names."""
        return self.scale_of(self.r, self.lora_alpha)

    def scale_of(self, r, lora_alpha):
        return lora_alpha / (math.sqrt(r) if self.use_rslora else r)

    def rank_and_alpha(self, module):
        """Return (rank, alpha) of the module with this whole name, "transformer.h.0.attn.c_attn"."""
        return (next(iter(matches(self.rank_pattern, module)), self.r),
                next(iter(matches(self.alpha_pattern, module)), self.lora_alpha))


def matches(patterns, module):
    """Return the values in `patterns`, a rank_pattern or alpha_pattern, whose key matches the module, in order."""
    return [value for key, value in (patterns or {}).items() if _compiled(rf"(.*\.)?({key})$").match(module)]


def whole_name(name):
    """The name that PEFT has for a module of a GPT2LMHeadModel, from the model's own."""
    return name if name == "lm_head" else f"transformer.{name}"


def short_name(name):
    """The model's own name of a module, from its whole name."""
    return name.removeprefix("transformer.")


def whole_names(model):
    """Return dict whole name -> module, without adapters, as PEFT sees a GPT2LMHeadModel: "transformer.h.0", "lm_head".
    The head is there where it is tied, too."""
    modules = {whole_name(name): getattr(module, "base_layer", module) for name, module in model.named_modules()}
    return {**modules, "lm_head": modules.get("lm_head", modules["transformer.wte"])}


def named(modules, name):
    """Return those of `modules` that `name` means: the whole name or its end, in whole parts."""
    return {module for module in modules if module == name or module.endswith(f".{name}")}


def match_targets(model, config):
    """Return the whole names of the modules that get an update, in model order, by PEFT's rules.

    A list selects a module whose name is an entry or ends in "." + entry. A string is "all-linear" or a regular
    expression that must match the whole name, which begins with "transformer.". What is in modules_to_save is trained
    whole and gets no update. Raises ConfigError where something that is named is not there.
    """
    modules, targets = whole_names(model), config.target_modules
    linear = [name for name, module in modules.items() if isinstance(module, Linear)]
    kinds = ", ".join(dict.fromkeys(re.sub(r"^transformer\.h\.\d+\.", "", name) for name in linear))
    if isinstance(targets, str) and targets.lower() == "all-linear":
        chosen = set(linear)
    elif isinstance(targets, str):
        pattern = _compiled(targets)
        chosen = {name for name in modules if pattern.fullmatch(name)}
        if not chosen:
            raise ConfigError(f"target {targets!r} matches no module as a regular expression over whole names "
                              f"such as {linear[0]!r}; a list of names, or 'all-linear', is the other way to say it. "
                              f"Linear modules: {kinds}")
    else:
        chosen = set()
        for target in targets:
            matched = named(modules, target)
            if not matched:
                raise ConfigError(f"target {target!r} matches no module of this model; its linear modules are {kinds} "
                                  f"(in h.0 to h.{model.config.n_layer - 1})")
            chosen |= matched
        chosen = {name for name in chosen if name in targets or _in_layers(name, config, model)}
    other = sorted(name for name in chosen if not isinstance(modules[name], Linear | Embedding))
    if other:
        raise ConfigError(f"target {other[0]!r} is of class {type(modules[other[0]]).__name__}, neither a linear layer "
                          f"nor an embedding; the linear modules are {kinds}")
    excluded = config.exclude_modules or ()
    if isinstance(excluded, str):
        pattern = _compiled(excluded)
        chosen = {name for name in chosen if not pattern.fullmatch(name)}
    else:
        chosen -= set().union(*(named(modules, name) for name in excluded))
    whole = modules_to_save(model, config)
    chosen = [name for name in modules if name in chosen and name not in whole]
    if not chosen:
        raise ConfigError("of the target_modules, exclude_modules, layers_to_transform and modules_to_save leave "
                          "nothing over to adapt")
    return chosen


def _in_layers(name, config, model):
    """Tell whether layers_to_transform lets this module through."""
    layers, patterns = config._layers(), config.layers_pattern or r"[^.]*"
    if not layers:
        return True
    if max(layers) >= model.config.n_layer:
        raise ConfigError(f"layers_to_transform names layer {max(layers)}; this model has 0 to "
                          f"{model.config.n_layer - 1}")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = (_compiled(rf"(?:^|.*?\.){pattern}\.(\d+)\.").match(name) for pattern in patterns)
    number = next((int(match.group(1)) for match in found if match), None)
    return number in layers


def modules_to_save(model, config):
    """Return the whole names of the modules that modules_to_save means, taken apart into those that hold parameters.
    Raises ConfigError where a name means none."""
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
    """Return the whole names of the tables with a row for each token."""
    return ["transformer.wte"] + ["lm_head"] * (not model.config.tie_word_embeddings)


def token_rows(model, config):
    """Return dict whole name of a table -> token ids: what trainable_token_indices means in this model.

    Raises ConfigError where there is no such table, or it has no such row.
    """
    modules, found = whole_names(model), {}
    for name, rows in config.token_indices().items():
        tables = [module for module in named(modules, name) if isinstance(modules[module], Embedding)]
        if len(tables) != 1:
            raise ConfigError(f"{name!r} in trainable_token_indices names no table of rows; it must be wte, wpe or "
                              "lm_head")
        count = len(modules[tables[0]].weight.data)
        if max(rows) >= count:
            raise ConfigError(f"trainable_token_indices names row {max(rows)} of {name}, which has {count:,} rows; for "
                              f"tokens that were added, call model.resize_token_embeddings({max(rows) + 1}) first")
        found[tables[0]] = rows
    return found


def _compiled(expression):
    """Return the compiled regular expression. Raises ConfigError where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what may come to mean something else: "[[a]"
            return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{expression!r} is not a regular expression: {error}") from error
