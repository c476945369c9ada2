"""DoRA: a linear layer whose weight is split into direction and magnitude, with a low-rank update of the direction."""

import numpy as np

from npgpt.autograd import needs_grad, record
from npgpt.ops.dropout import keep_mask
from npgpt.runtime.shares import product


def column_norms(weight, lora_A, lora_B, scale):
    """The length of each column of V = W + s (B A)ᵀ, which is never formed: arrays (I, O), (R, I), (O, R) -> (O,).

    With W_o column o of W and B_o row o of B, column o of V is W_o + s Aᵀ B_o, and
        |V_o|^2 = |W_o|^2 + 2 s B_o . (A W_o) + s^2 B_o . (A Aᵀ B_o).
    This takes one reading of W and thin products. V itself, an array of W's size, is not made.
    """
    squares = np.einsum("io,io->o", weight, weight)
    inner = product(lora_A, weight).T * 2                                   # (R, I) @ (I, O) -> (O, R)
    inner += (lora_B @ (lora_A @ lora_A.T)) * scale                         # (O, R)
    squares += np.einsum("or,or->o", inner, lora_B) * scale
    return np.sqrt(np.maximum(squares, 0))


def dora_linear(x, weight, bias, lora_A, lora_B, magnitude, norm, scale, p=0.0, rng=None):
    """A linear layer whose weight acts as m V / |V|, column by column, with V = W + s (B A)ᵀ.

    Shapes    x (N, I), weight (I, O), bias (O,), lora_A (R, I), lora_B (O, R), magnitude (O,) -> y (N, O)
              norm (O,), an array and not a Tensor: |V|, the length of each column of V, see `column_norms`
    Forward   g  = m / |V|
              x~ = dropout(x) = k * x / (1 - p), k ~ Bernoulli(1 - p) per element; x~ = x without a generator
              u  = x~ Aᵀ,  z = x~ W + s u Bᵀ = x~ V       (N, R), (N, O)
              y  = x W + b + (g * z - x~ W)               without dropout g * z + b: DoRA's part depends on x~ alone
    Backward  |V| depends on A and B, but counts as a constant ("detached"): no gradient flows through it. With v a
              column of V and e = v / |v|, the derivative of m e is m (1 - e eᵀ) / |v|, and the detached one m / |v|.
              The difference is the projection along v. That part changes only the length of v, and m e does not depend
              on the length; to leave it out saves an array of W's size (DoRA, section 4.3). g then depends on m alone,
              and given dy,
              y = ... + g * z:    dm_o = sum_n dy_no z_no / |V_o|,        dz = dy * g
              z = ... + s u Bᵀ:   dB = s dzᵀ u,                           du = s dz B
              u = x~ Aᵀ:          dA = duᵀ x~
              x~ takes three paths, through u, through x~ W in z, and through the - x~ W taken off again:
                                  dx~ = du A + (dz - dy) Wᵀ
              and x the direct one beside dropout's:    dx = dy Wᵀ + k * dx~ / (1 - p);    without dropout the two
              terms in dy Wᵀ cancel:                    dx = dz Wᵀ + du A
              W as in `linear`, on both paths: dW = xᵀ dy + x~ᵀ (dz - dy);  db = sum_rows dy
    Saves     x~, u, z for dm; k, and x if W is trainable.
    Source    Liu et al. 2024 (DoRA), eq. 5, 6 and 11; where dropout falls as in PEFT.
    """
    need_x, need_weight, need_bias, need_A, need_B, need_m = needs_grad(x, weight, bias, lora_A, lora_B, magnitude)
    W, A, B = weight.data, lora_A.data, lora_B.data
    g = magnitude.data / norm
    keep, dropped = None, x.data
    if rng is not None and p > 0:
        keep, keep_probability = keep_mask(x.shape, p, rng)
        keep = keep * x.dtype.type(1 / keep_probability)
        dropped = x.data * keep
    u = product(dropped, A.T)                                               # (N, I) -> (N, R)
    base = product(dropped, W)                                              # (N, I) -> (N, O)
    z = product(u * scale, B.T)
    z += base
    y = z * g
    if keep is not None:
        y -= base
        y += product(x.data, W)
    if bias is not None:
        y += bias.data
    saved_x = x.data if need_weight else None
    saved_dropped = dropped if need_A or need_weight else None
    saved_u, saved_z = u if need_B else None, z if need_m else None

    def rule(dy):
        dz = dy * g
        through = dz if keep is None else dz - dy                           # what reaches x~ W
        du = product(dz, B) * scale if need_A or need_x else None           # (N, O) -> (N, R)
        dA = product(du.T, saved_dropped) if need_A else None
        dB = product(dz.T, saved_u * scale) if need_B else None
        dm = np.einsum("no,no->o", dy, saved_z) / norm if need_m else None
        dx = dW = None
        if need_x:
            dx = product(du, A)
            dx += product(through, W.T)                                     # (N, O) -> (N, I)
            if keep is not None:
                dx *= keep
                dx += product(dy, W.T)
        if need_weight:
            dW = product(saved_dropped.T, through)
            if keep is not None:
                dW += product(saved_x.T, dy)
        db = dy.sum(axis=0) if need_bias else None
        return dx, dW, db, dA, dB, dm

    return record("dora_linear", y, (x, weight, bias, lora_A, lora_B, magnitude), rule)
