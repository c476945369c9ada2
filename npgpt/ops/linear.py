"""y = x W + b, and the same with a low-rank update (LoRA)."""

from npgpt.autograd import needs_grad, record
from npgpt.ops.dropout import keep_mask
from npgpt.runtime.shares import product


def linear(x, weight, bias=None):
    """Multiply each row by a matrix and add a vector.

    Shapes    x (N, I), weight (I, O), bias (O,) or None -> y (N, O)       GPT-2's orientation ("Conv1D"): no transpose
    Forward   y_no = sum_i x_ni W_io + b_o
    Backward  given dy.  x_ni reaches y_no with slope W_io, for every o:  dx_ni = sum_o dy_no W_io,  dx = dy Wᵀ
              W_io reaches y_no with slope x_ni, for every n:  dW_io = sum_n x_ni dy_no,             dW = xᵀ dy
              b_o reaches y_no with slope 1, for every n:                                            db = sum_rows dy
    Saves     x, only if the weight is trainable. A frozen layer saves nothing (the model keeps its weight anyway).
    In code   `product(a, b, then)` is a b: each worker computes a part of it, and calls then(part) on that part.
    """
    need_x, need_weight, need_bias = needs_grad(x, weight, bias)
    W, saved_x = weight.data, x.data if need_weight else None

    def add_bias(y, _rows, columns):
        y += bias.data[columns]

    y = product(x.data, W, None if bias is None else add_bias)              # (N, I) -> (N, O)

    def rule(dy):
        dx = product(dy, W.T) if need_x else None
        dW = product(saved_x.T, dy) if need_weight else None
        db = dy.sum(axis=0) if need_bias else None
        return dx, dW, db

    return record("linear", y, (x, weight, bias), rule)


def lora_linear(x, weight, bias, lora_A, lora_B, scale, p=0.0, rng=None):
    """A linear layer with a low-rank update: its weight acts as W + s (B A)ᵀ, which is never formed.

    Shapes    x (N, I), weight (I, O), bias (O,), lora_A (R, I), lora_B (O, R) -> y (N, O)
    Forward   x~ = dropout(x) = m * x / (1 - p), m ~ Bernoulli(1 - p) per element; x~ = x without a generator
              u  = x~ Aᵀ                    (N, R)
              y  = x W + b + s u Bᵀ         s = alpha / R
    Backward  given dy, walk the low-rank path from its end, as three linear maps:
              y = ... + s u Bᵀ:   dB_or = s sum_n dy_no u_nr,          dB = s dyᵀ u
                                  du_nr = s sum_o dy_no B_or,          du = s dy B
              u = x~ Aᵀ:          dA_ri = sum_n du_nr x~_ni,           dA = duᵀ x~
                                  dx~ = du A
              x~ = m x / (1 - p): its share of dx is m * dx~ / (1 - p)
              and x also takes the direct path:                        dx = dy Wᵀ + m * (du A) / (1 - p)
              W and b as in `linear`, if they are trainable.
    Saves     x~, u, and m if x needs a gradient. Two thin products of cost N R (I + O) replace a product with BA of
              cost N I O: at rank 8 and GPT-2's widths, they cost 1 to 2 % of the layer's own product.
    In code   `product` as above. x~ is m * x, and the thin arrays carry the factor s / (1 - p): u is s u / (1 - p).
    Source    Hu et al. 2021 (LoRA), eq. 3 and section 4.1; dropout on this path as in PEFT.
    Tests     tests/ops/test_linear.py (from primitives), checking/gradcases.py (finite differences).
    """
    need_x, need_weight, need_bias, need_A, need_B = needs_grad(x, weight, bias, lora_A, lora_B)
    W, A, B = weight.data, lora_A.data, lora_B.data
    keep, dropped = None, x.data
    if rng is not None and p > 0:
        keep, keep_probability = keep_mask(x.shape, p, rng)
        dropped = x.data * keep
        scale = scale / keep_probability
    u = product(dropped, A.T) * scale                                       # (N, I) -> (N, R)

    def add_update(y, rows, columns):
        y += u[rows] @ B[columns].T                                         # (N, R) -> (N, O)
        if bias is not None:
            y += bias.data[columns]

    y = product(x.data, W, add_update)                                      # (N, I) -> (N, O)
    saved_x = x.data if need_weight else None
    saved_dropped, saved_u = dropped if need_A else None, u if need_B else None
    keep = keep if need_x else None

    def rule(dy):
        du = product(dy, B) * scale if need_A or need_x else None           # (N, O) -> (N, R)
        dA = product(du.T, saved_dropped) if need_A else None
        dB = product(dy.T, saved_u) if need_B else None

        def add_low_rank(dx, rows, columns):
            low_rank = du[rows] @ A[:, columns]                             # (N, R) -> (N, I)
            if keep is not None:
                low_rank *= keep[rows, columns]
            dx += low_rank

        dx = product(dy, W.T, add_low_rank) if need_x else None             # (N, O) -> (N, I)
        dW = product(saved_x.T, dy) if need_weight else None
        db = dy.sum(axis=0) if need_bias else None
        return dx, dW, db, dA, dB

    return record("lora_linear", y, (x, weight, bias, lora_A, lora_B), rule)
