"""GPT-2, from its configuration to its loss. Names are those of the released checkpoints; Radford et al. 2019.

A batch is sequences laid end to end: every layer works on rows (N, C), N tokens in all, and only attention has to know
where one sequence stops and the next begins. It is therefore passed down as a function, attend(layer, qkv, scale) ->
values: the training pass passes causal attention over the batch's lengths, generation passes one that keeps what it has
seen in a cache, and the model is written once.
"""

import dataclasses
import math
import sys

import numpy as np

from npgpt import ops
from npgpt.autograd import no_grad
from npgpt.nn import Embedding, LayerNorm, Linear, Module, recompute
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The fields of config.json that change the mathematics, with Hugging Face's names and defaults (GPT-2 small).

    Raises ConfigError, naming the field, when a value cannot be used.
    """

    vocab_size: int = 50257             # V
    n_positions: int = 1024             # longest sequence
    n_embd: int = 768                   # C
    n_layer: int = 12
    n_head: int = 12                    # H; n_embd is a multiple of it
    n_inner: int | None = None          # width of the MLP; None: 4 n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1            # dropout probabilities, in force where a generator is passed
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True     # divide scores by sqrt(C / H)
    scale_attn_by_inverse_layer_idx: bool = False   # and by layer + 1
    reorder_and_upcast_attn: bool = False           # a float16 matter; no effect in float32 and float64
    tie_word_embeddings: bool = True    # the head is the token table
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if not (name == "n_inner" and value is None):
                self._check(name, isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                            "a whole number of at least 1")
        self._check("n_head", self.n_embd % self.n_head == 0, f"a divisor of n_embd = {self.n_embd}")
        activation = self.activation_function
        self._check("activation_function", isinstance(activation, str) and activation in ops.ACTIVATIONS,
                    f"one of {', '.join(ops.ACTIVATIONS)}")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            value = getattr(self, name)
            self._check(name, isinstance(value, int | float) and 0 <= value < 1, "a probability in [0, 1)")
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            self._check(name, isinstance(value, int | float) and 0 < value <= sys.float_info.max, "a positive number")
        for name in ("bos_token_id", "eos_token_id"):
            self._check(name, type(getattr(self, name)) in (int, type(None)), "a whole number or null")
        for field in dataclasses.fields(self):
            if field.type is bool:
                self._check(field.name, isinstance(getattr(self, field.name), bool), "true or false")

    def _check(self, name, holds, right):
        if not holds:
            raise ConfigError(f"{name} = {getattr(self, name)!r} in the model's configuration: it must be {right}")

    @classmethod
    def from_dict(cls, values):
        """Build from the object in a config.json. Fields that do not change the mathematics are passed over."""
        if values.get("model_type", "gpt2") != "gpt2":
            raise ConfigError(f"model_type = {values['model_type']!r} in the model's configuration: it must be 'gpt2'")
        if values.get("add_cross_attention"):
            raise ConfigError("add_cross_attention = true in the model's configuration: npgpt has no encoder to attend "
                              "to; it must be false")
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


class GPT2(Module):
    """The model. All parameters are trainable until `freeze` or `add_lora`.

    config        GPT2Config
    seed          int: fresh weights by GPT-2's rule, each parameter from its own stream; None: zeros, to be loaded
    dtype         np.float32 for work, np.float64 for truth
    name_or_path  where the weights came from, or None; kept for adapters, which name their base
    kept_rows     how many rows of the token table are those of the weights, where `resize_token_embeddings` made others
                  beside them, or None: all

    Set `gradient_checkpointing` to keep only the input of each block for the backward pass: less memory, more time.
    """

    def __init__(self, config, seed=0, dtype=np.float32):
        self.config = config
        self.name_or_path = None
        self.kept_rows = None
        self.gradient_checkpointing = False
        self.wte = Embedding(config.vocab_size, config.n_embd, dtype)
        self.wpe = Embedding(config.n_positions, config.n_embd, dtype)
        self.h = [Block(config, layer, dtype) for layer in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.n_embd, dtype)
        if seed is not None:
            self._initialise(seed)

    def _initialise(self, seed):
        """Weights N(0, initializer_range^2), those that feed the residual stream divided by sqrt(2 n_layer) (two of
        them a block); norms 1; biases 0."""
        for name, tensor in self.parameters().items():
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                tensor.data.fill(1)
            elif name.endswith("weight"):
                std = self.config.initializer_range
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                # Drawn in float64 whatever the dtype, so that a float64 oracle holds the same weights as its model.
                tensor.data[...] = generator(seed, name).normal(0, std, tensor.shape)

    def set_dropout(self, p):
        """Use p for all three dropout probabilities: of embeddings, attention and residual branches."""
        self.config = dataclasses.replace(self.config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
        for block in self.h:
            block.resid_pdrop = p

    def hidden(self, ids, positions, attend, rng=None):
        """Run every block: ids (N,), positions (N,) -> the final normalised hidden states, Tensor (N, C)."""
        x = ops.add(self.wte(ids), self.wpe(positions))                     # (N,) -> (N, C)
        x = ops.dropout(x, self.config.embd_pdrop, rng)
        for block in self.h:
            x = recompute(block, x, attend, rng) if self.gradient_checkpointing else block(x, attend, rng)
        return self.ln_f(x)

    def head(self):
        """The table (V, C) that turns hidden states into logits: the token table itself where there is no other."""
        return getattr(self, "lm_head", self.wte).weight

    def loss(self, batch, rng=None):
        """Mean cross-entropy in nats over the batch's targets, a scalar Tensor. Dropout if and only if rng is given."""
        hidden = self.hidden_states(batch.ids, batch.lengths, rng)
        return ops.cross_entropy(hidden, self.head(), batch.targets)

    def logits(self, ids):
        """ids (T,) or (B, T) -> logits (T, V) or (B, T, V), an array. Keeps no graph; no dropout.

        Raises ConfigError for ids outside the vocabulary and sequences longer than n_positions.
        """
        ids = np.asarray(ids)
        if ids.ndim not in (1, 2) or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ConfigError(f"ids of shape {ids.shape}, {ids.dtype}: logits takes integers (T,) or (B, T), T >= 1")
        T = ids.shape[-1]
        with no_grad():
            hidden = self.hidden_states(ids.ravel(), np.full(ids.size // T, T))
            logits = hidden.data @ self.head().data.T                       # (N, C) -> (N, V)
        return logits.reshape(*ids.shape, -1)

    def hidden_states(self, ids, lengths, rng=None):
        """Hidden states of whole sequences laid end to end, each starting at position 0."""
        config = self.config
        self.check_ids(ids, lengths.max())
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)

        def attend(_layer, qkv, scale):
            return ops.causal_attention(qkv, lengths, config.n_head, scale, config.attn_pdrop, rng)

        return self.hidden(ids, positions, attend, rng)

    def check_ids(self, ids, longest):
        """Raise ConfigError where an id is outside the vocabulary or a sequence longer than n_positions."""
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ConfigError(f"token id {low if low < 0 else high} is outside this model's vocabulary of "
                              f"{self.config.vocab_size}; the text was made with another tokenizer")
        if longest > self.config.n_positions:
            raise ConfigError(f"a sequence of {longest} tokens is longer than this model's context of "
                              f"{self.config.n_positions}; shorten or split it")

    # What follows is here for the reader's convenience. It reaches up to modules that build and change models, and so
    # stand above this one.

    def resize_token_embeddings(self, n):
        """Give the token table, and a head of its own, n rows. See `files.vocabulary.resize_token_embeddings`."""
        from npgpt.files.vocabulary import resize_token_embeddings
        resize_token_embeddings(self, n)

    @classmethod
    def from_pretrained(cls, name, revision=None, dtype=np.float32, local_files_only=False):
        """Load a model: a hub id ("gpt2"), a folder, or "tiny". See `files.checkpoint.from_pretrained`."""
        from npgpt.files.checkpoint import from_pretrained
        return from_pretrained(name, revision, dtype, local_files_only)

    def save_pretrained(self, folder):
        """Write config.json and model.safetensors, which transformers loads. See `files.checkpoint.save_pretrained`."""
        from npgpt.files.checkpoint import save_pretrained
        save_pretrained(self, folder)
