"""GPT-2, from its configuration to its hidden states; Radford et al. 2019. Names are those of the released checkpoints.

`language_model` says what every model shares: the layout of a batch, the function `attend`, the loss.
"""

import dataclasses
import math

import numpy as np

from npgpt import ops
from npgpt.language_model import LanguageModel
from npgpt.nn import Embedding, LayerNorm, Linear, Module
from npgpt.runtime.checks import Count, CountOrNone, Flag, Id, Ids, Positive, Probability, check, check_fields, one_of
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator

PLACE = "the model's configuration"


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The fields of config.json that change the mathematics, with Hugging Face's names and defaults (GPT-2 small).

    Raises ConfigError, which names the field, for a value that the model cannot use.
    """

    vocab_size: Count = 50257           # V
    n_positions: Count = 1024           # the longest sequence
    n_embd: Count = 768                 # C
    n_layer: Count = 12
    n_head: Count = 12                  # H; n_embd is a multiple of it
    n_inner: CountOrNone = None         # width of the MLP; None: 4 n_embd
    activation_function: one_of(ops.ACTIVATIONS) = "gelu_new"
    resid_pdrop: Probability = 0.1      # dropout probabilities, used if a generator is passed
    embd_pdrop: Probability = 0.1
    attn_pdrop: Probability = 0.1
    layer_norm_epsilon: Positive = 1e-5
    initializer_range: Positive = 0.02
    scale_attn_weights: Flag = True     # divide scores by sqrt(C / H)
    scale_attn_by_inverse_layer_idx: Flag = False   # and by layer + 1
    reorder_and_upcast_attn: Flag = False           # for float16; no effect in float32 and float64
    tie_word_embeddings: Flag = True    # the head is the token table
    bos_token_id: Id = 50256
    eos_token_id: Ids = 50256  # one or several

    def __post_init__(self):
        check_fields(self, PLACE)
        check(self.n_embd % self.n_head == 0, "n_head", self.n_head, PLACE, f"a divisor of n_embd = {self.n_embd}")

    @classmethod
    def from_dict(cls, values):
        """Make a configuration from the object in a config.json. Other fields than those above are ignored."""
        if values.get("model_type", "gpt2") != "gpt2":
            raise ConfigError(f"model_type = {values['model_type']!r} in {PLACE}: it must be 'gpt2'")
        if values.get("add_cross_attention"):
            raise ConfigError(f"add_cross_attention = true in {PLACE}: npgpt has no encoder to attend to; it must be "
                              "false")
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})

    def to_dict(self):
        """Return the fields as config.json holds them."""
        return {"model_type": "gpt2", **dataclasses.asdict(self)}


class Attention(Module):
    """Each token gathers from those before it: queries, keys and values in one product, attention, and a projection."""

    def __init__(self, config, layer, dtype):
        C = config.n_embd
        self.c_attn = Linear(C, 3 * C, dtype)
        self.c_proj = Linear(C, C, dtype)
        self.layer = layer
        self.scale = 1 / math.sqrt(C // config.n_head) if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def __call__(self, x, attend, rng):
        qkv = self.c_attn(x, rng)                                           # (N, C) -> (N, 3C)
        return self.c_proj(attend(self.layer, qkv, self.scale), rng)        # (N, 3C) -> (N, C)


class MLP(Module):
    """Each token by itself: widen, activate, narrow."""

    def __init__(self, config, dtype):
        C, inner = config.n_embd, config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(C, inner, dtype)
        self.c_proj = Linear(inner, C, dtype)
        self.act = ops.ACTIVATIONS[config.activation_function]

    def __call__(self, x, rng):
        return self.c_proj(self.act(self.c_fc(x, rng)), rng)                # (N, C) -> (N, inner) -> (N, C)


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, layer, dtype):
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon, dtype)
        self.attn = Attention(config, layer, dtype)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon, dtype)
        self.mlp = MLP(config, dtype)
        self.resid_pdrop = config.resid_pdrop

    def __call__(self, x, attend, rng):
        x = ops.add(x, ops.dropout(self.attn(self.ln_1(x), attend, rng), self.resid_pdrop, rng))
        return ops.add(x, ops.dropout(self.mlp(self.ln_2(x), rng), self.resid_pdrop, rng))


class GPT2(LanguageModel):
    """The model. All parameters are trainable until `freeze` or `add_lora`.

    config  GPT2Config
    seed    int: fresh weights by GPT-2's rule, each parameter from its own random stream; None: zeros, to be loaded
    dtype   np.float32 for work, np.float64 for truth
    """

    config_class = GPT2Config

    def __init__(self, config, seed=0, dtype=np.float32):
        super().__init__(config)
        self.wte = Embedding(config.vocab_size, config.n_embd, dtype)
        self.wpe = Embedding(config.n_positions, config.n_embd, dtype)
        self.h = [Block(config, layer, dtype) for layer in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.n_embd, dtype)
        if seed is not None:
            self._initialise(seed)

    def _initialise(self, seed):
        """Draw weights from N(0, initializer_range^2). Those that feed the residual stream, two in a block, are divided
        by sqrt(2 n_layer). Norms start at 1, biases at 0."""
        for name, tensor in self.parameters().items():
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                tensor.data.fill(1)
            elif name.endswith("weight"):
                std = self.config.initializer_range
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                # The draw is in float64 for every dtype, so that a float64 oracle has the weights of its model.
                tensor.data[...] = generator(seed, name).normal(0, std, tensor.shape)

    def set_dropout(self, p):
        """Use p for all three dropout probabilities: of embeddings, attention and residual branches."""
        self.config = dataclasses.replace(self.config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
        for block in self.h:
            block.resid_pdrop = p

    def hidden(self, ids, positions, attend, rng=None):
        """Run every block: ids (N,), positions (N,) -> the last hidden states, normalised, Tensor (N, C)."""
        x = ops.add(self.wte(ids), self.wpe(positions))                     # (N,) -> (N, C)
        x = ops.dropout(x, self.config.embd_pdrop, rng)
        for block in self.h:
            x = self.run_block(block, x, attend, rng)
        return self.ln_f(x)

    def head(self):
        """The table (V, C) that turns hidden states into logits: the token table, or a table of its own."""
        return getattr(self, "lm_head", self.wte).weight
