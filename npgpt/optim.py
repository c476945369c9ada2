"""AdamW, clipping by global norm, and learning-rate schedules."""

import functools
import math

import numpy as np

from npgpt.runtime.errors import ConfigError
from npgpt.runtime.shares import row_blocks
from npgpt.runtime.threads import spread


class AdamW:
    """Adam with decoupled weight decay.

    For step t = 1, 2, ... and gradient g of a parameter p, element by element:
        m <- beta1 m + (1 - beta1) g            a running mean of g
        v <- beta2 v + (1 - beta2) g^2          a running mean of g^2
        mhat = m / (1 - beta1^t), vhat = v / (1 - beta2^t)      m and v start at 0; this removes the bias to it
        p <- p - lr weight_decay p - lr mhat / (sqrt(vhat) + eps)
    The decay acts on p directly, not through g, so it is not divided by sqrt(vhat).

    params     dict name -> Tensor; read-only data (mapped weights) is copied once, so that it can be updated
    lr         schedules assign a new one between steps
    ratios     dict name -> factor of lr for this parameter, if it is not 1; the decay has the factor too (`loraplus`)
    undecayed  names of parameters without weight decay
    Source  Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2. Defaults and arithmetic as in PyTorch.
    """

    def __init__(self, params, lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, ratios=None,
                 undecayed=()):
        beta1, beta2 = betas
        if not params:
            raise ConfigError("AdamW got no parameter: nothing is trainable; call add_lora or unfreeze first")
        if not (lr >= 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and eps > 0 and weight_decay >= 0):
            raise ConfigError(f"AdamW(lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}): lr and "
                              "weight_decay must be at least 0, betas in [0, 1), eps positive")
        self.params, self.lr, self.betas, self.eps, self.weight_decay = params, lr, betas, eps, weight_decay
        self.ratios, self.undecayed = ratios or {}, frozenset(undecayed)
        if not self.undecayed <= params.keys():
            raise ConfigError(f"undecayed names {', '.join(sorted(self.undecayed - params.keys()))}, not in params")
        if not (self.ratios.keys() <= params.keys() and all(ratio > 0 for ratio in self.ratios.values())):
            raise ConfigError(f"ratios = {self.ratios}: each must be positive, and for a name in params")
        self.steps = 0
        for tensor in params.values():
            if not tensor.data.flags.writeable:
                tensor.data = tensor.data.copy()
        self.m = {name: np.zeros_like(tensor.data, order="C") for name, tensor in params.items()}
        self.v = {name: np.zeros_like(tensor.data, order="C") for name, tensor in params.items()}

    def step(self, grads):
        """Update every parameter that has a gradient in `grads`, dict Tensor -> array, in place."""
        self.steps += 1
        for name, tensor in self.params.items():
            if tensor in grads:
                arrays = grads[tensor], tensor.data, self.m[name], self.v[name]
                blocks = row_blocks(tensor.data) if tensor.data.ndim == 2 else [...]
                lr, decay = self.lr * self.ratios.get(name, 1), 0.0 if name in self.undecayed else self.weight_decay
                spread(functools.partial(self._update, arrays, lr, decay), blocks)

    def _update(self, arrays, lr, decay, rows):
        """Update some rows of one parameter: few enough to stay in the cache from the first pass to the last."""
        g, p, m, v = (array[rows] for array in arrays)
        beta1, beta2 = self.betas
        debiased = 1 - beta1**self.steps
        root_bias = math.sqrt(1 - beta2**self.steps)
        work = g * (1 - beta1)
        m *= beta1
        m += work
        np.multiply(g, g, out=work)
        work *= 1 - beta2
        v *= beta2
        v += work
        np.sqrt(v, out=work)                    # sqrt(vhat) = sqrt(v) / sqrt(1 - beta2^t)
        work /= root_bias
        work += self.eps
        np.divide(m, work, out=work)
        work *= lr / debiased
        p *= 1 - lr * decay
        p -= work


def clip_grad_norm(grads, max_norm):
    """Scale all gradients by one factor so that their common norm is at most max_norm.

    grads   dict Tensor -> array, changed in place
    Returns the norm before: sqrt of the sum of squares over every element of every gradient.
    The factor is max_norm / (norm + 1e-6) if that is below 1, as in PyTorch.
    """
    if not max_norm > 0:
        raise ConfigError(f"max_norm = {max_norm}: it must be positive")
    norm = math.sqrt(math.fsum(float(np.vdot(g, g)) for g in grads.values()))
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for tensor in grads:
            grads[tensor] = grads[tensor] * factor  # a new array: two leaves may have been given the same one
    return norm


def schedule(name, step, total_steps, warmup_steps=0):
    """Return the factor of the learning rate at `step` (from 0) of `total_steps`.

    All rise linearly from 0 over warmup_steps. Then, with x the part of the remaining steps that is done,
        constant  1
        linear    1 - x
        cosine    (1 + cos(pi x)) / 2
    Source    the definitions in Hugging Face's transformers (get_scheduler).
    """
    if name not in ("constant", "linear", "cosine"):
        raise ConfigError(f"schedule {name!r} is not known; it must be constant, linear or cosine")
    if step < warmup_steps:
        return step / warmup_steps
    x = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if name == "constant":
        return 1.0
    return 1 - x if name == "linear" else (1 + math.cos(math.pi * x)) / 2
