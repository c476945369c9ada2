"""The MLP's nonlinearities, by their names in GPT-2 configurations.

Each is y_i = f(x_i), so dx_i = f'(x_i) dy_i. The forward pass has f's inner values at hand, and f' costs little more.
So it computes the slope f'(x) as well, in the same visit to a block of rows, and saves the slope alone. The backward
pass is then one product, in place.
"""

import math

import numpy as np

from npgpt.autograd import needs_grad, record
from npgpt.runtime.erf import erf
from npgpt.runtime.shares import row_blocks
from npgpt.runtime.threads import spread


def _elementwise(name, x, formula):
    """Apply formula(x, y, slope). It writes f(x) into y and, unless slope is None, f'(x) into slope."""
    (saving,) = needs_grad(x)
    y = np.empty_like(x.data, order="C")
    slope = np.empty_like(y) if saving else None

    def forward(rows):
        formula(x.data[rows], y[rows], slope[rows] if saving else None)

    def rule(dy):
        spread(lambda rows: np.multiply(dy[rows], slope[rows], out=slope[rows]), row_blocks(slope))
        return (slope,)  # dx takes the place of the slope, which nothing needs again

    spread(forward, row_blocks(y))
    return record(name, y, (x,), rule)


def gelu_new(x):
    """The Gaussian error linear unit in its tanh form, the one GPT-2 was trained with.

    Shapes    x (N, C) -> y (N, C)
    Forward   t = tanh(a (x + b x^3)),  a = sqrt(2 / pi), b = 0.044715;   y = x (1 + t) / 2
    Backward  dt/dx = (1 - t^2) a (1 + 3 b x^2), so
              dx = dy [ (1 + t) / 2 + x (1 - t^2) a (1 + 3 b x^2) / 2 ]
    Saves     the bracket.
    Source    Hendrycks & Gimpel 2016, section 2.
    """
    a, b = math.sqrt(2 / math.pi), 0.044715  # from math: a NumPy scalar would turn float32 into float64

    def formula(x, y, slope):
        square = x * x
        t = square * (a * b)
        t += a
        t *= x
        np.tanh(t, out=t)
        np.add(t, 1, out=y)
        y *= 0.5                                                            # (1 + t) / 2
        if slope is not None:
            np.multiply(t, t, out=slope)
            np.subtract(1, slope, out=slope)
            square *= 1.5 * a * b
            square += 0.5 * a
            square *= x
            slope *= square
            slope += y
        y *= x

    return _elementwise("gelu_new", x, formula)


def gelu(x):
    """The Gaussian error linear unit itself: x times the standard normal distribution function.

    Shapes    x (N, C) -> y (N, C)
    Forward   Phi(x) = (1 + erf(x / sqrt 2)) / 2,   y = x Phi(x)
    Backward  Phi' is the normal density phi(x) = exp(-x^2 / 2) / sqrt(2 pi):  dx = dy (Phi(x) + x phi(x))
    Saves     the slope Phi(x) + x phi(x).
    Source    Hendrycks & Gimpel 2016, section 2.
    """
    def formula(x, y, slope):
        Phi = erf(x * math.sqrt(0.5))
        Phi += 1
        Phi *= 0.5
        np.multiply(x, Phi, out=y)
        if slope is not None:
            np.multiply(x, x, out=slope)
            slope *= -0.5
            np.exp(slope, out=slope)
            slope *= 1 / math.sqrt(2 * math.pi)
            slope *= x
            slope += Phi

    return _elementwise("gelu", x, formula)


def relu(x):
    """y = max(x, 0).  dx = dy where x > 0, else 0 (at the kink, 0, as everywhere in the field)."""
    def formula(x, y, slope):
        np.maximum(x, 0, out=y)
        if slope is not None:
            np.greater(x, 0, out=slope)

    return _elementwise("relu", x, formula)


def silu(x):
    """y = x sigma(x), sigma(x) = 1 / (1 + e^-x).  sigma' = sigma (1 - sigma), so dx = dy (sigma + y (1 - sigma))."""
    def formula(x, y, slope):
        sigma = 0.5 * np.tanh(0.5 * x) + 0.5  # the same function, without overflow for large negative x
        np.multiply(x, sigma, out=y)
        if slope is not None:
            np.subtract(1, sigma, out=slope)
            slope *= y
            slope += sigma

    return _elementwise("silu", x, formula)


ACTIVATIONS = {  # the names in GPT-2 configurations; three of them mean the tanh form
    "gelu_new": gelu_new, "gelu_fast": gelu_new, "gelu_pytorch_tanh": gelu_new,
    "gelu": gelu, "relu": relu, "silu": silu, "swish": silu,
}
