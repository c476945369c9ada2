"""The alphabet: ten small operations. Everything can be built from them; the tests rebuild every fused operation.

Gradients follow from d(output) written as a sum over the inputs. If NumPy broadcast an input, its gradient is summed
over the positions that it was repeated to. """

import numpy as np

from npgpt.autograd import record
from npgpt.runtime.shares import product


def _unbroadcast(gradient, shape):
    """Sum `gradient` over the axes along which NumPy repeated an array of `shape`."""
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    repeated = tuple(axis for axis, n in enumerate(shape) if n == 1 and gradient.shape[axis] != 1)
    return gradient.sum(axis=repeated, keepdims=True)


def add(x, y):
    """x + y with broadcasting.  dx = dz, dy = dz."""
    shapes = x.shape, y.shape
    return record("add", x.data + y.data, (x, y), lambda dz: [_unbroadcast(dz, shape) for shape in shapes])


def mul(x, y):
    """x * y with broadcasting.  dx = dz * y, dy = dz * x."""
    a, b = x.data, y.data
    return record("mul", a * b, (x, y), lambda dz: (_unbroadcast(dz * b, a.shape), _unbroadcast(dz * a, b.shape)))


def matmul(x, y):
    """x @ y over the last two axes, leading axes broadcast.  dx = dz yT, dy = xT dz."""
    a, b = x.data, y.data
    times = product if a.ndim == b.ndim == 2 else np.matmul

    def rule(dz):
        dx, dy = times(dz, b.swapaxes(-1, -2)), times(a.swapaxes(-1, -2), dz)
        return _unbroadcast(dx, a.shape), _unbroadcast(dy, b.shape)

    return record("matmul", times(a, b), (x, y), rule)


def sum(x, axis=None, keepdims=False):
    """Sum over `axis` (all axes by default).  Every summed element receives the gradient of its sum."""
    shape = x.shape

    def rule(dz):
        if axis is not None and not keepdims:
            dz = np.expand_dims(dz, axis)
        return (np.broadcast_to(dz, shape),)

    return record("sum", np.asarray(x.data.sum(axis=axis, keepdims=keepdims)), (x,), rule)


def exp(x):
    """e^x.  dx = dy * y."""
    y = np.exp(x.data)
    return record("exp", y, (x,), lambda dy: (dy * y,))


def log(x):
    """Natural logarithm.  dx = dy / x."""
    a = x.data
    return record("log", np.log(a), (x,), lambda dy: (dy / a,))


def tanh(x):
    """Hyperbolic tangent.  dx = dy (1 - y^2)."""
    y = np.tanh(x.data)
    return record("tanh", y, (x,), lambda dy: (dy * (1 - y * y),))


def reshape(x, shape):
    """The same elements in another shape.  dx = dy in the shape of x."""
    before = x.shape
    return record("reshape", x.data.reshape(shape), (x,), lambda dy: (dy.reshape(before),))


def transpose(x, axes):
    """Axes in the order `axes`.  dx = dy with the inverse order."""
    inverse = tuple(np.argsort(np.mod(axes, x.data.ndim)))
    return record("transpose", x.data.transpose(axes), (x,), lambda dy: (dy.transpose(inverse),))


def take(x, index):
    """x[index], any NumPy index.  dx is zero but for dx[index] += dy, where a repeated index adds up."""
    shape, dtype = x.shape, x.dtype

    def rule(dy):
        dx = np.zeros(shape, dtype)
        np.add.at(dx, index, dy)  # `dx[index] += dy` would keep only one of several equal indices
        return (dx,)

    return record("take", x.data[index], (x,), rule)
