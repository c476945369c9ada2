"""Layers: parameters, their names, and the operation that uses them."""

import numpy as np

from npgpt import ops
from npgpt.autograd import Tensor


class Module:
    """Something with parameters. They are found in the attributes: Tensors, Modules and lists of Modules, in the order
    of their assignment. The attributes' names, joined by dots, are the checkpoint's names."""

    def children(self):
        """Yield (name, Module) for each module in an attribute. The members of a list have numbers: h.0, h.1, ..."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", member) for i, member in enumerate(value))

    def named_modules(self, prefix=""):
        """Yield (dotted name, Module) for every module below this one, parents first."""
        for name, child in self.children():
            yield prefix + name, child
            yield from child.named_modules(f"{prefix}{name}.")

    def module(self, name):
        """Return the module with this dotted name; "" is this module itself."""
        found = self
        for part in filter(None, name.split(".")):
            found = found[int(part)] if part.isdigit() else getattr(found, part)  # "h.0": member 0 of the list h
        return found

    def parameters(self):
        """Return dict name -> Tensor of every parameter in this module and below."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for prefix, child in self.children():
            found.update((f"{prefix}.{name}", tensor) for name, tensor in child.parameters().items())
        return found

    def trainable_parameters(self):
        """Return the subset of `parameters()` that is trainable."""
        return {name: tensor for name, tensor in self.parameters().items() if tensor.trainable}

    def freeze(self):
        """Make every parameter a constant: no gradient is computed for it."""
        for tensor in self.parameters().values():
            tensor.trainable = False

    def unfreeze(self):
        """Make every parameter trainable."""
        for tensor in self.parameters().values():
            tensor.trainable = True


def parameter(shape, dtype):
    """A trainable Tensor of zeros, which take no memory until they are written."""
    return Tensor(np.zeros(shape, dtype), trainable=True)


class Linear(Module):
    """y = x W + b with weight (in, out), the orientation of GPT-2's checkpoints ("Conv1D"), and bias (out,)."""

    def __init__(self, n_in, n_out, dtype):
        self.weight = parameter((n_in, n_out), dtype)
        self.bias = parameter((n_out,), dtype)

    def __call__(self, x, rng=None):
        """x (N, in) -> (N, out). `rng` is for layers with dropout that take this layer's place; here it has no use."""
        return ops.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Rows of mean 0 and variance 1, scaled by weight (width,) and shifted by bias (width,)."""

    def __init__(self, width, eps, dtype):
        self.weight = parameter((width,), dtype)
        self.bias = parameter((width,), dtype)
        self.eps = eps

    def __call__(self, x):
        """x (N, width) -> (N, width)."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(Module):
    """A table of `count` rows, weight (count, width)."""

    def __init__(self, count, width, dtype):
        self.weight = parameter((count, width), dtype)

    def __call__(self, ids):
        """ids (N,) -> (N, width)."""
        return ops.embedding(self.weight, ids)
