"""Dropout, if and only if a random generator is passed."""

import numpy as np

from npgpt.autograd import record


def keep_mask(shape, p, rng):
    """Draw which elements to keep: return (bool array of `shape`, the exact probability of keeping).

    One 64-bit integer serves four elements, with sixteen random bits for each: half the bits of a float32 draw, and
    faster than drawing 16-bit integers. The probability of dropping is p rounded to a multiple of 2^-16. The returned
    probability is the rounded one, so that the mean stays exactly the same.
    """
    threshold = min(round(p * 65536), 65535)
    count = int(np.prod(shape))
    draws = rng.integers(1 << 64, size=-(-count // 4), dtype=np.uint64).view(np.uint16)[:count]
    return (draws >= threshold).reshape(shape), 1 - threshold / 65536


def dropout(x, p, rng):
    """Zero each element with probability p and divide the others by 1 - p, so that the mean stays.

    Shapes    x any -> y the same; rng None returns x itself
    Forward   y = m * x / (1 - p),  m ~ Bernoulli(1 - p) per element
    Backward  elementwise and linear in x with slope m / (1 - p):  dx = m * dy / (1 - p)
    Saves     m, a byte an element.
    Source    Srivastava et al. 2014, in the inverted form, which leaves inference as it is.
    """
    if rng is None or p == 0:
        return x
    keep, keep_probability = keep_mask(x.shape, p, rng)

    def masked(values):
        values = values * keep
        values *= 1 / keep_probability
        return values

    return record("dropout", masked(x.data), (x,), lambda dy: (masked(dy),))
