"""What one adapter does to one layer: a low-rank update, or a trained copy in the layer's place.

An update holds its own tensors and no layer; the layer, frozen, is passed in. Each kind is

    a function       update(layer, *inputs): what the layer computes under this update alone
    a difference     update.added(layer, *inputs): what that adds to the layer's own output; a stack adds several
    a set of arrays  update.delta(layer): what it adds to the layer's parameters, dict name -> array; merging adds them

Attributes that are Tensors have the names that they have in the model's parameters.
"""

import copy

import numpy as np

from npgpt import ops
from npgpt.adapters.lora_init import initial
from npgpt.autograd import Tensor
from npgpt.nn import Module, parameter
from npgpt.ops.dora import column_norms
from npgpt.runtime.errors import ConfigError


def scaled(x, factor):
    """x times a constant."""
    return ops.mul(x, Tensor(np.array(factor, x.dtype)))


def transposed(x):
    return ops.transpose(x, (1, 0))


def output(layer, *inputs):
    """What `layer` computes; the head has no inputs, and its output is its table."""
    return layer(*inputs) if inputs else layer.weight


class Update(Module):
    """What the kinds share."""

    def added(self, layer, *inputs):
        return ops.add(self(layer, *inputs), scaled(output(layer, *inputs), -1))


class LowRank(Update):
    """The update of a linear layer: y = x W + b + s dropout(x) Aᵀ Bᵀ, with A (R, in) and B (out, R).

    config, module  what is asked for, and the layer's whole name, on which rank and alpha may depend
    start           A and B as they were drawn, where they were taken from the base ("pissa", "olora"): instead of
                    changing W to W - s (B0 A0)ᵀ, this update takes the low-rank path of the start off. The function is
                    the same, W stays, and what is learnt is plain LoRA of rank 2R: [A; A0] with [B, -B0]
    """

    names = "lora_A", "lora_B"

    def __init__(self, config, module, layer):
        weight = self.oriented(layer.weight.data)
        n_in, n_out = weight.shape
        self.config, self.start = config, None
        self.rank, self.alpha = config.rank_and_alpha(module)
        self.scale = config.scale_of(self.rank, self.alpha)
        setattr(self, self.names[0], parameter((self.rank, n_in), weight.dtype))
        setattr(self, self.names[1], parameter((n_out, self.rank), weight.dtype))
        self.lora_B_bias = parameter(n_out, weight.dtype) if config.lora_bias else None
        self.lora_magnitude_vector = parameter(n_out, weight.dtype) if config.use_dora else None
        has_bias = getattr(layer, "bias", None) is not None
        self.trained_bias = parameter(n_out, weight.dtype) if config.bias != "none" and has_bias else None
        if config.lora_bias and not has_bias:
            raise ConfigError(f"lora_bias cannot be used on {module}, which has no bias")

    @property
    def A(self):
        return getattr(self, self.names[0])

    @property
    def B(self):
        return getattr(self, self.names[1])

    @staticmethod
    def oriented(weight):
        """The layer's weight as (in, out), or back: for a linear layer it is that."""
        return weight

    def initialise(self, layer, rng):
        """Draw A and B, and let everything else start from the layer."""
        weight = self.oriented(layer.weight.data)
        A, B, changed = initial(self.config.init_lora_weights, weight, self.rank, self.scale, rng)
        self.A.data[...], self.B.data[...] = A, B
        if changed:
            self.start = Tensor(self.A.data.copy()), Tensor(self.B.data.copy())
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.data[...] = self.norms(layer)
        if self.trained_bias is not None:
            self.trained_bias.data[...] = layer.bias.data

    def norms(self, layer):
        """The lengths (out,) of the columns of W + s (B A)ᵀ, for DoRA."""
        return column_norms(self.oriented(layer.weight.data), self.A.data, self.B.data, self.scale)

    def __call__(self, layer, x, rng=None):
        """x (N, in) -> (N, out)."""
        bias = layer.bias if self.trained_bias is None else self.trained_bias
        A, B, p = self.A, self.B, self.config.lora_dropout
        if self.lora_magnitude_vector is not None:
            return ops.dora_linear(x, layer.weight, bias, A, B, self.lora_magnitude_vector, self.norms(layer),
                                   self.scale, p, rng)
        y = ops.lora_linear(x, layer.weight, bias, A, B, self.scale, p, rng)
        if self.lora_B_bias is not None:
            y = ops.add(y, scaled(self.lora_B_bias, self.scale))
        return y if self.start is None else ops.add(y, self.path(x, *self.start, -self.scale))

    def is_plain(self):
        """Whether A and B are all there is."""
        return self.lora_B_bias is self.lora_magnitude_vector is self.trained_bias is None

    def path(self, x, A, B, scale):
        """s x Aᵀ Bᵀ: (N, in) -> (N, R) -> (N, out)."""
        return scaled(ops.matmul(ops.matmul(x, transposed(A)), transposed(B)), scale)

    def added(self, layer, x, rng=None):
        """The low-rank path by itself, where there is nothing else: the layer's product is not computed again."""
        if self.start is not None or not self.is_plain():
            return super().added(layer, x, rng)
        return self.path(ops.dropout(x, self.config.lora_dropout, rng), self.A, self.B, self.scale)

    def delta(self, layer):
        weight = self.oriented(layer.weight.data)
        added = (self.B.data @ self.A.data).T                     # (out, R) @ (R, in) -> (in, out)
        if self.start is not None:
            A, B = self.start
            added -= (B.data @ A.data).T
        added *= self.scale
        if self.lora_magnitude_vector is not None:
            added += weight
            added *= self.lora_magnitude_vector.data / self.norms(layer)
            added -= weight
        delta = {"weight": self.oriented(added)}
        if self.lora_B_bias is not None:
            delta["bias"] = self.scale * self.lora_B_bias.data
        if self.trained_bias is not None:
            delta["bias"] = delta.get("bias", 0) + self.trained_bias.data - layer.bias.data
        return delta

    def plain(self):
        """Return (dict parameter name -> array, rank, alpha) as they are saved: plain LoRA, whatever the start was."""
        arrays = {name: tensor.data for name, tensor in self.parameters().items()}
        if self.start is None:
            return arrays, self.rank, self.alpha
        A, B = self.start
        arrays[self.names[0]] = np.concatenate([self.A.data, A.data])
        arrays[self.names[1]] = np.concatenate([self.B.data, -B.data], axis=1)
        return arrays, 2 * self.rank, self.alpha * (2**0.5 if self.config.use_rslora else 2)


class LowRankEmbedding(LowRank):
    """The update of a table of rows: y = W[ids] + s A[:, ids]ᵀ Bᵀ, with A (R, V) and B (C, R). No dropout, as in PEFT.

    It starts with A zero and B normal, whatever init_lora_weights says: the rows are looked up, so that A is what a
    token's gradient reaches.
    """

    names = "lora_embedding_A", "lora_embedding_B"

    def __init__(self, config, module, layer):
        if config.lora_bias:
            raise ConfigError(f"lora_bias cannot be used on {module}, which has no bias")
        super().__init__(config, module, layer)

    def initialise(self, layer, rng):
        self.B.data[...] = rng.standard_normal(self.B.shape)
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.data[...] = self.norms(layer)

    def __call__(self, layer, ids):
        """ids (N,) -> (N, C)."""
        u = ops.embedding(transposed(self.A), ids)                     # (R, V) -> (N, R)
        y = ops.add(layer(ids), scaled(ops.matmul(u, transposed(self.B)), self.scale))
        return self.magnified(y, layer)

    def magnified(self, y, layer):
        """y times DoRA's m / |V|, column by column, where it is asked for."""
        if self.lora_magnitude_vector is None:
            return y
        return ops.mul(y, ops.mul(self.lora_magnitude_vector, Tensor(1 / self.norms(layer))))

    def added(self, layer, ids):
        return Update.added(self, layer, ids)


class LowRankHead(LowRank):
    """The update of the head, the table (V, C) that turns hidden states into logits: W + s B A, with A (R, C) and
    B (V, R). The head is used as a table, so dropout does not fall on this path."""

    @staticmethod
    def oriented(weight):
        """As a linear layer the head is (C, V)."""
        return weight.T

    def __call__(self, layer):
        """-> (V, C)."""
        table = ops.add(layer.weight, scaled(ops.matmul(self.B, self.A), self.scale))
        if self.start is not None:
            A, B = self.start
            table = ops.add(table, scaled(ops.matmul(B, A), -self.scale))
        if self.lora_magnitude_vector is None:
            return table
        factor = ops.mul(self.lora_magnitude_vector, Tensor(1 / self.norms(layer)))
        return ops.mul(table, ops.reshape(factor, (-1, 1)))                 # a factor for each row, a token's

    def added(self, layer):
        return Update.added(self, layer)


class Replacement(Update):
    """A trained copy of a layer's parameters, or of its bias alone: modules_to_save, and bias = "all"."""

    def __init__(self, config, layer, names):
        self.config = config
        for name in names:
            tensor = getattr(layer, name)
            setattr(self, f"trained_{name}", parameter(tensor.shape, tensor.dtype))

    def initialise(self, layer, rng):
        for name, tensor in self.parameters().items():
            tensor.data[...] = getattr(layer, name.removeprefix("trained_")).data

    def __call__(self, layer, *inputs):
        trained = copy.copy(layer)
        for name, tensor in self.parameters().items():
            setattr(trained, name.removeprefix("trained_"), tensor)
        return output(trained, *inputs)

    def delta(self, layer):
        return {name.removeprefix("trained_"): tensor.data - getattr(layer, name.removeprefix("trained_")).data
                for name, tensor in self.parameters().items()}

    def plain(self):
        return {name: tensor.data for name, tensor in self.parameters().items()}, None, None
