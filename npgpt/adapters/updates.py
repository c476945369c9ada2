"""What an adapter can do to one layer, beyond the low-rank update of a linear layer in `lora`.

An update holds its own tensors and no layer; the frozen layer is passed in. Every kind of update can be used as

    a function       update(layer, *inputs): what the layer computes under this update alone
    a difference     update.added(layer, *inputs): what that adds to the layer's own output; `stack` adds several
    a set of arrays  update.delta(layer): what it adds to the layer's parameters, dict name -> array; merging adds them
    a file's tensors update.plain(): (dict parameter name -> array, rank, alpha), as PEFT saves them

Attributes that are Tensors have the names that the model's parameters have.
"""

import copy

import numpy as np

from npgpt import ops
from npgpt.adapters.dora import column_norms, dora_linear
from npgpt.adapters.lora_init import initial
from npgpt.adapters.matching import rank_and_alpha
from npgpt.autograd import Tensor
from npgpt.lora import LowRank
from npgpt.nn import Module, parameter
from npgpt.runtime.errors import ConfigError


def scaled(x, factor):
    """x times a constant."""
    return ops.mul(x, Tensor(np.array(factor, x.dtype)))


def transposed(x):
    return ops.transpose(x, (1, 0))


def output(layer, *inputs):
    """What `layer` computes. The head has no inputs, and its output is its table."""
    return layer(*inputs) if inputs else layer.weight


def with_parameters(layer, tensors):
    """Return a copy of `layer` with some of its parameters replaced: dict name -> Tensor."""
    changed = copy.copy(layer)
    for name, tensor in tensors.items():
        setattr(changed, name, tensor)
    return changed


class Update(Module):
    """What all kinds of updates share."""

    def added(self, layer, *inputs):
        """What the update adds to the layer's output: the difference of the two outputs."""
        return ops.add(self(layer, *inputs), scaled(output(layer, *inputs), -1))


class LowRankLinear(LowRank):
    """The update of a linear layer with everything that a LoraConfig can ask for.

    config, module  the LoraConfig, and the layer's whole name, on which rank and alpha may depend
    start           A and B as they were first drawn, if they were taken from the base ("pissa", "olora"). These methods
                    change W to W - s (B0 A0)ᵀ. Here W stays, and the update subtracts the low-rank path of the start
                    instead, which is the same function. What is learnt is then plain LoRA of rank 2r: [A; A0] with
                    [B, -B0]
    """

    def __init__(self, config, module, layer):
        weight = self.oriented(layer.weight.data)
        (n_in, n_out), dtype = weight.shape, weight.dtype
        self.config, self.start = config, None
        self.rank, self.alpha = rank_and_alpha(config, module)
        super().__init__(n_in, n_out, self.rank, self.alpha, config.lora_dropout, dtype)
        if config.use_rslora:
            self.scale = config.scale_of(self.rank, self.alpha)
        self.lora_B_bias = parameter(n_out, dtype) if config.lora_bias else None
        self.lora_magnitude_vector = parameter(n_out, dtype) if config.use_dora else None
        has_bias = getattr(layer, "bias", None) is not None
        self.trained_bias = parameter(n_out, dtype) if config.bias != "none" and has_bias else None
        if config.lora_bias and not has_bias:
            raise ConfigError(f"lora_bias cannot be used on {module}, which has no bias")

    @staticmethod
    def oriented(weight):
        """The layer's weight as (in, out), or back. A linear layer's weight has this shape already."""
        return weight

    def initialise(self, layer, rng):
        """Draw A and B. Everything else starts with the layer's own values."""
        method, weight = self.config.init_lora_weights, self.oriented(layer.weight.data)
        if isinstance(method, bool):
            super().initialise(layer, rng)
            if not method:  # for tests: they cannot see A if B is zero
                bound = self.rank**-0.5
                self.lora_B.data[...] = rng.uniform(-bound, bound, self.lora_B.shape)
        else:
            A, B, changed = initial(method, weight, self.rank, self.scale, rng)
            self.lora_A.data[...], self.lora_B.data[...] = A, B
            if changed:
                self.start = Tensor(self.lora_A.data.copy()), Tensor(self.lora_B.data.copy())
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.data[...] = self.norms(layer)
        if self.trained_bias is not None:
            self.trained_bias.data[...] = layer.bias.data

    def norms(self, layer):
        """The lengths (out,) of the columns of W + s (B A)ᵀ, for DoRA."""
        return column_norms(self.oriented(layer.weight.data), self.lora_A.data, self.lora_B.data, self.scale)

    def __call__(self, layer, x, rng=None):
        """x (N, in) -> (N, out)."""
        if self.trained_bias is not None:
            layer = with_parameters(layer, {"bias": self.trained_bias})
        if self.lora_magnitude_vector is not None:
            return dora_linear(x, layer.weight, layer.bias, self.lora_A, self.lora_B, self.lora_magnitude_vector,
                               self.norms(layer), self.scale, self.dropout, rng)
        y = super().__call__(layer, x, rng)
        if self.lora_B_bias is not None:
            y = ops.add(y, scaled(self.lora_B_bias, self.scale))
        return y if self.start is None else ops.add(y, self.path(x, *self.start, -self.scale))

    def is_plain(self):
        """Tell whether A and B are all there is."""
        return self.lora_B_bias is self.lora_magnitude_vector is self.trained_bias is None

    def path(self, x, A, B, scale):
        """s x Aᵀ Bᵀ: (N, in) -> (N, r) -> (N, out)."""
        return scaled(ops.matmul(ops.matmul(x, transposed(A)), transposed(B)), scale)

    def added(self, layer, x, rng=None):
        """The low-rank path alone, if nothing else is there: the layer's own product is then not computed again."""
        if self.start is not None or not self.is_plain():
            return Update.added(self, layer, x, rng)
        return self.path(ops.dropout(x, self.dropout, rng), self.lora_A, self.lora_B, self.scale)

    def delta(self, layer):
        product = super().delta(layer)["weight"]
        if self.start is not None:
            A, B = self.start
            product -= self.scale * (B.data @ A.data).T
        if self.lora_magnitude_vector is not None:
            weight = self.oriented(layer.weight.data)
            product += weight
            product *= self.lora_magnitude_vector.data / self.norms(layer)
            product -= weight
        delta = {"weight": self.oriented(product)}
        if self.lora_B_bias is not None:
            delta["bias"] = self.scale * self.lora_B_bias.data
        if self.trained_bias is not None:
            delta["bias"] = delta.get("bias", 0) + self.trained_bias.data - layer.bias.data
        return delta

    def plain(self):
        """The arrays, rank and alpha to save: plain LoRA, whatever the start was."""
        arrays = {name: tensor.data for name, tensor in self.parameters().items()}
        if self.start is None:
            return arrays, self.rank, self.alpha
        A, B = self.start
        arrays["lora_A"] = np.concatenate([self.lora_A.data, A.data])
        arrays["lora_B"] = np.concatenate([self.lora_B.data, -B.data], axis=1)
        return arrays, 2 * self.rank, self.alpha * (2**0.5 if self.config.use_rslora else 2)


class LowRankEmbedding(LowRankLinear):
    """The update of a table of rows: y = W[ids] + s A[:, ids]ᵀ Bᵀ, with A (r, V) and B (C, r). No dropout, as in PEFT.

    A starts at zero and B is drawn from a normal distribution, for every init_lora_weights: the rows of A are looked up
    by token, so the gradient of a token reaches A. The parameters are called lora_embedding_A and lora_embedding_B.
    """

    def __init__(self, config, module, layer):
        if config.lora_bias:
            raise ConfigError(f"lora_bias cannot be used on {module}, which has no bias")
        super().__init__(config, module, layer)

    def parameters(self):
        names = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
        return {names.get(name, name): tensor for name, tensor in super().parameters().items()}

    def initialise(self, layer, rng):
        self.lora_B.data[...] = rng.standard_normal(self.lora_B.shape)
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.data[...] = self.norms(layer)

    def __call__(self, layer, ids):
        """ids (N,) -> (N, C)."""
        u = ops.embedding(transposed(self.lora_A), ids)                # (r, V) -> (N, r)
        y = ops.add(layer(ids), scaled(ops.matmul(u, transposed(self.lora_B)), self.scale))
        return self.magnified(y, layer)

    def magnified(self, y, layer):
        """With DoRA: y times m / |V|, column by column."""
        if self.lora_magnitude_vector is None:
            return y
        return ops.mul(y, ops.mul(self.lora_magnitude_vector, Tensor(1 / self.norms(layer))))

    def added(self, layer, ids):
        return Update.added(self, layer, ids)


class LowRankHead(LowRankLinear):
    """The update of the head, the table (V, C) that turns hidden states into logits: W + s B A, with A (r, C) and
    B (V, r). The head is used as a table, so dropout does not fall on this path."""

    @staticmethod
    def oriented(weight):
        """As a linear layer, the head has the shape (C, V)."""
        return weight.T

    def __call__(self, layer):
        """-> (V, C)."""
        table = ops.add(layer.weight, scaled(ops.matmul(self.lora_B, self.lora_A), self.scale))
        if self.start is not None:
            A, B = self.start
            table = ops.add(table, scaled(ops.matmul(B, A), -self.scale))
        if self.lora_magnitude_vector is None:
            return table
        factor = ops.mul(self.lora_magnitude_vector, Tensor(1 / self.norms(layer)))
        return ops.mul(table, ops.reshape(factor, (-1, 1)))                 # one factor for each row, that is, token

    def added(self, layer):
        return Update.added(self, layer)


class Replacement(Update):
    """A trained copy of a layer's parameters, or of its bias alone: modules_to_save, and bias = "all"."""

    def __init__(self, config, layer, names):
        self.config = config
        for name in names:
            tensor = getattr(layer, name)
            setattr(self, f"trained_{name}", parameter(tensor.shape, tensor.dtype))

    def trained(self):
        """Return dict name of the layer's parameter -> trained Tensor."""
        return {name.removeprefix("trained_"): tensor for name, tensor in self.parameters().items()}

    def initialise(self, layer, rng):
        for name, tensor in self.trained().items():
            tensor.data[...] = getattr(layer, name).data

    def __call__(self, layer, *inputs):
        return output(with_parameters(layer, self.trained()), *inputs)

    def delta(self, layer):
        return {name: tensor.data - getattr(layer, name).data for name, tensor in self.trained().items()}

    def plain(self):
        return {name: tensor.data for name, tensor in self.parameters().items()}, None, None
