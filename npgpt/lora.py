"""LoRA: a frozen layer learns through two thin matrices (Hu et al. 2021).

    y = x W + b + s dropout(x) Aᵀ Bᵀ        A (r, in), B (out, r), s = alpha / r

W and b are frozen; A and B train. A starts random and B starts at zero: the product B A is then zero, so training
starts from the base model exactly, and the gradient of B is not zero, so training moves on. The gradients of A and B
are derived in `ops.linear.lora_linear`.

Three steps make an adapted model: `LowRank` makes the matrices for one layer, `wrap` puts them on that layer, and,
after training, `merge` adds s (B A)ᵀ to W. `npgpt.add_lora` and `npgpt.merge_lora` build on these: they give every
layer that a LoraConfig names a LowRank with PEFT's options (`adapters.updates`), and keep several of them apart by name
(`adapters.stack`).
"""

import copy
import math

from npgpt import ops
from npgpt.autograd import Tensor
from npgpt.nn import Module, parameter


class LowRank(Module):
    """The update of a linear layer: A and B. The layer is passed in; the update never writes to it.

    n_in, n_out   the layer's widths
    r             rank, the width of the path through A and B
    lora_alpha    the update is scaled by s = lora_alpha / r
    lora_dropout  probability of dropping an element of the update's input; a random generator switches dropout on
    """

    def __init__(self, n_in, n_out, r, lora_alpha, lora_dropout, dtype):
        self.lora_A = parameter((r, n_in), dtype)
        self.lora_B = parameter((n_out, r), dtype)
        self.scale, self.dropout = lora_alpha / r, lora_dropout

    def initialise(self, layer, rng):
        """Draw A uniformly within 1 / sqrt(in) (Kaiming's bound sqrt(6 / ((1 + a^2) in)) for a = sqrt 5). B is zero."""
        bound = 1 / math.sqrt(self.lora_A.shape[1])
        self.lora_A.data[...] = rng.uniform(-bound, bound, self.lora_A.shape)

    def __call__(self, layer, x, rng=None):
        """What the layer computes with this update: x (N, in) -> y (N, out)."""
        return ops.lora_linear(x, layer.weight, layer.bias, self.lora_A, self.lora_B, self.scale, self.dropout, rng)

    def delta(self, layer):
        """What the update adds to the layer's parameters: dict name -> array. (out, r) @ (r, in) -> (in, out)."""
        product = (self.lora_B.data @ self.lora_A.data).T
        product *= self.scale
        return {"weight": product}


class LoraLayer(Module):
    """A layer and its update. It takes the layer's place in the model.

    base_layer  the layer, frozen
    update      what changes the layer's output, with the methods of LowRank

    The parameters keep the names they have without the update (h.0.attn.c_attn.weight); those of the update stand
    beside them (h.0.attn.c_attn.lora_A).
    """

    def __init__(self, base_layer, update):
        self.base_layer, self.update = base_layer, update

    def children(self):
        """A LoraLayer shows no modules inside it, so that names in the model stay as they were."""
        return ()

    def parameters(self):
        return {**self.base_layer.parameters(), **self.update.parameters()}

    @property
    def weight(self):
        """The layer's own weight: a head that is tied to a token table reads the table here."""
        return self.base_layer.weight

    def __call__(self, *inputs):
        return self.update(self.base_layer, *inputs)

    def merged(self):
        """Return a plain layer that computes the same. This layer and its base layer stay as they are."""
        merged, delta = copy.copy(self.base_layer), self.update.delta(self.base_layer)
        for name, tensor in self.base_layer.parameters().items():
            data = tensor.data.copy()
            if name in delta:
                data += delta[name]
            setattr(merged, name, Tensor(data, tensor.trainable))
        return merged


def wrap(model, name, update):
    """Put `update` on the layer called `name` ("h.0.attn.c_attn"). In place."""
    put(model, name, LoraLayer(model.module(name), update))


def adapted_layers(model):
    """Return dict module name -> LoraLayer."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merge(model):
    """Replace every LoraLayer by a plain layer with weight W + s (B A)ᵀ. In place; returns the model."""
    for name, layer in adapted_layers(model).items():
        put(model, name, layer.merged())
    return model


def put(model, name, module):
    """Put `module` in the place of the module called `name`."""
    path, _, attribute = name.rpartition(".")
    setattr(model.module(path), attribute, module)
