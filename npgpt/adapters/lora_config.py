"""LoraConfig: what an adapter changes in a model, and how, in PEFT's words."""

import dataclasses
import math
import sys

from npgpt.runtime.errors import ConfigError

LARGEST_RANK = 65536  # far above every useful rank: a wrong number in a file must not ask for huge matrices
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "pissa", "olora")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """How to adapt a model.

    r                    rank of the update
    lora_alpha           the update is scaled by s = lora_alpha / r
    lora_dropout         probability of dropping an element of the update's input, while training; for linear layers
                         only: embeddings (as in PEFT) and the head have none
    target_modules       list of names, each a whole module name or its end ("c_attn", "attn.c_proj", "h.0.mlp.c_fc",
                         "wte", "lm_head"; note that "c_proj" names both attn.c_proj and mlp.c_proj); or a regular
                         expression over the whole name ("transformer.h.0.attn.c_attn"); or "all-linear": every linear
                         layer but the head
    exclude_modules      list of names, or a regular expression: modules that are no targets after all
    layers_to_transform  number of a layer, or list of numbers: only there, with target_modules a list
    layers_pattern       name of the list of layers (GPT-2's is "h"), or several names; None: any name
    rank_pattern         dict from a name, or an expression for the end of a name, to the rank of these modules instead
    alpha_pattern        of r; if several match, the first one counts. The same for lora_alpha
    use_rslora           s = lora_alpha / sqrt(r), which keeps the update's size at any rank (Kalajdzievski 2023)
    use_dora             train direction and magnitude of the weight separately (Liu et al. 2024): see `dora`
    lora_bias            a trained bias beside B: y = ... + s (u Bᵀ + bias)
    bias                 "lora_only" trains the biases of the targets too, "all" every bias of the model; the adapter
                         holds the trained biases, and those of the base stay
    modules_to_save      list of names: modules that the adapter replaces by its own trained copy ("ln_f", "wte")
    trainable_token_indices  list of token ids: only these rows of the token table train, and of the head if it is tied;
                         or a dict from the names of tables ("wte", "lm_head") to such lists
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
        layers = self.layers()
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
        """The entries of rank_pattern or alpha_pattern, to be checked. Raises ConfigError if it is no dict."""
        patterns = getattr(self, field) or {}
        if not isinstance(patterns, dict) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigError(f"{field} = {patterns!r}: it must be a dict from names to numbers")
        return [(f"{field}[{pattern!r}]", value) for pattern, value in patterns.items()]

    def layers(self):
        """layers_to_transform as a list."""
        layers = self.layers_to_transform
        return [] if layers is None else layers if isinstance(layers, list | tuple) else [layers]

    @property
    def scale(self):
        """s of the modules that rank_pattern and alpha_pattern do not name."""
        return self.scale_of(self.r, self.lora_alpha)

    def scale_of(self, r, lora_alpha):
        return lora_alpha / (math.sqrt(r) if self.use_rslora else r)