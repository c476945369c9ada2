"""Layer normalisation."""

import numpy as np

from npgpt.autograd import needs_grad, record
from npgpt.runtime.shares import row_blocks
from npgpt.runtime.threads import spread


def layer_norm(x, weight, bias, eps):
    """Bring each row to mean 0 and variance 1, then scale and shift.

    Shapes    x (N, C), weight (C,), bias (C,) -> y (N, C)
    Forward   mu = mean(x), var = mean((x - mu)^2), rstd = 1 / sqrt(var + eps)      biased variance, over the last axis
              xhat = (x - mu) rstd,  y = xhat * weight + bias
    Backward  given dy, put h = dy * weight, the gradient at xhat.
              dbias = sum_rows dy,  dweight = sum_rows dy * xhat
              x reaches xhat directly, through mu and through rstd:
                  directly       h rstd
                  through mu     d mu / dx_j = 1/C, and every xhat_i falls by rstd d mu:  - rstd mean(h)
                  through rstd   d rstd / d var = - rstd^3 / 2 and d var / dx_j = 2 (x_j - mu) / C; with
                                 d xhat_i = (x_i - mu) d rstd, the sum over i is       - rstd xhat_j mean(h * xhat)
              so dx = rstd (h - mean(h) - xhat mean(h * xhat)):
              h without its components along 1 and along xhat.
    Saves     xhat and rstd; mu is not needed again.
    In code   one block of rows after another (`row_blocks`), in place, so that a block stays in the cache. A mean is a
              dot product with (1/C, 1/C, ...): BLAS adds up a row several times as fast as NumPy's sum.
    Source    Ba, Kiros & Hinton 2016, eq. 4.
    """
    need_x, need_weight, need_bias = needs_grad(x, weight, bias)
    saving = need_x or need_weight
    w, b, C = weight.data, bias.data, x.shape[1]
    y = np.empty_like(x.data, order="C")
    xhat = np.empty_like(y) if saving else y
    rstd = np.empty((len(y), 1), y.dtype)
    averaging = np.full(C, 1 / C, y.dtype)

    def forward(rows):
        centred = np.subtract(x.data[rows], np.vecdot(x.data[rows], averaging)[:, None], out=xhat[rows])
        variance = np.vecdot(centred, centred)[:, None] / C
        rstd[rows] = 1 / np.sqrt(variance + eps)
        centred *= rstd[rows]
        np.multiply(centred, w, out=y[rows])
        y[rows] += b

    spread(forward, row_blocks(y))

    def rule(dy):
        dbias = dy.sum(axis=0) if need_bias else None
        dweight = np.einsum("nc,nc->c", dy, xhat) if need_weight else None
        dx = np.empty_like(xhat) if need_x else None

        def backward(rows):
            h, normal = np.multiply(dy[rows], w, out=dx[rows]), xhat[rows]
            along_normal = np.vecdot(h, normal)[:, None] / C
            h -= np.vecdot(h, averaging)[:, None]
            h -= normal * along_normal
            h *= rstd[rows]

        if need_x:
            spread(backward, row_blocks(dx))
        return dx, dweight, dbias

    return record("layer_norm", y, (x, weight, bias), rule)
