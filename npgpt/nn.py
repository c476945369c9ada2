"""Layers: parameters with their names, and the operation that uses them."""

import numpy as np

from npgpt import ops
from npgpt.autograd import Tensor, backward, needs_grad, no_grad, record


class Module:
    """Something with parameters. Attributes that are Tensors, Modules or lists of Modules are found in the order they
    were assigned, and their names joined by dots are the checkpoint's names."""

    def children(self):
        """Yield (name, Module) for each module held directly; a list's members are numbered: h.0, h.1, ..."""
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
        """x (N, in) -> (N, out). `rng` is for layers put in this one's place that drop out; here it has no use."""
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


def recompute(module, x, attend, rng):
    """module(x, attend, rng), keeping nothing but x: gradient checkpointing.

    Shapes    x (N, C) -> y (N, C)
    Forward   y = module(x), with nothing recorded.
    Backward  given dy. Run the module once more, recorded this time, and send dy through: what arrives at x and at the
              module's parameters are their gradients. The generator is put back to where it stood, so that the same
              elements drop out.
    Saves     x. The price is a second forward pass, about a third of a step.
    Source    Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    parameters = list(module.trainable_parameters().values())
    (need_x,) = needs_grad(x)
    data, before = x.data, rng and rng.bit_generator.state
    with no_grad():
        y = module(x, attend, rng).data

    def rule(dy):
        again = Tensor(data, trainable=need_x)
        if rng is not None:
            after, rng.bit_generator.state = rng.bit_generator.state, before
        gradients = backward(module(again, attend, rng), dy)
        if rng is not None:
            rng.bit_generator.state = after
        return [gradients.get(tensor) for tensor in (again, *parameters)]

    return record("recompute", y, (x, *parameters), rule)
