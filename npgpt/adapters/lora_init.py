"""Where A and B start, other than in plain LoRA, and what that leaves of the base.

The names are PEFT's values of init_lora_weights. W is a layer's weight in the orientation of `linear`, (in, out).
"""

import numpy as np

from npgpt.runtime.errors import ConfigError
from npgpt.runtime.threads import blas_threads


def initial(method, weight, r, scale, rng):
    """Return (A, B, changed): A (r, in) and B (out, r) to start from, and whether the base loses s B A.

    "gaussian"    A normal of standard deviation 1 / r; B zero
    "orthogonal"  A and B random on two halves of an orthogonal basis of the r dimensions between them: B A = 0, and
                  both have gradients at once. r must be even
    "pissa"       the r largest singular triples of W, s B A = U S Vᵀ with the root of S / s on either side; the base
                  keeps the rest (Meng et al. 2024)
    "olora"       of Wᵀ = Q R, the first r columns of Q and rows of R; the base keeps Wᵀ - s Q R (Büyükakyüz 2024)

    The last two change the base. Here nothing writes to the base: the update subtracts s B A of the start instead,
    which is the same function, and the adapter is saved as plain LoRA of rank 2r (see `updates.LowRankLinear`).
    """
    n_in, n_out = weight.shape
    if method in ("pissa", "olora") and r > min(n_in, n_out):
        raise ConfigError(f"init_lora_weights = {method!r} with rank {r} on a weight of {n_in} x {n_out}: the rank "
                          f"must be at most {min(n_in, n_out)}")
    if method == "pissa":
        with blas_threads(1):  # its products are small, and threads make them many times slower
            U, S, Vt = np.linalg.svd(weight.T, full_matrices=False)         # (out, in): B comes from U, A from Vᵀ
        root = np.sqrt(S[:r] / scale)
        return root[:, None] * Vt[:r], U[:, :r] * root, True
    if method == "olora":
        with blas_threads(1):
            Q, R = np.linalg.qr(weight.T)
        return R[:r], Q[:, :r], True
    if method == "orthogonal":
        if r % 2:
            raise ConfigError(f"init_lora_weights = 'orthogonal' with rank {r}: the rank must be even")
        basis, _ = np.linalg.qr(rng.standard_normal((r, r)))
        A = basis[0::2].T @ rng.standard_normal((r // 2, n_in)) / 10        # (r, r/2) @ (r/2, in)
        return A, rng.standard_normal((n_out, r // 2)) @ basis[1::2] / 10, False
    return rng.normal(0, 1 / r, (r, n_in)), np.zeros((n_out, r)), False
