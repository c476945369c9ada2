"""The singular values of a low-rank update, computed from its two thin factors.

    s B A = U diag(sigma) Vᵀ        A (R, in), B (out, R), U (out, k), V (in, k), k = min(R, in, out)

We never form the product (out, in). With the QR decompositions B = Q_b R_b and Aᵀ = Q_a R_a,

    s B A = Q_b (s R_b R_aᵀ) Q_aᵀ

The matrix in the middle is R x R at most. Its singular value decomposition P diag(sigma) Wᵀ gives U = Q_b P and
V = Q_a W.
"""

from typing import NamedTuple

import numpy as np


class Spectrum(NamedTuple):
    """The singular value decomposition of an update, in float64.

    values  (k,) sigma, the largest first
    left    (out, k) U: the directions that the update writes to
    right   (in, k) V: the directions that it reads from
    """

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @property
    def norm(self):
        """Frobenius norm of the update, sqrt(sum sigma^2)."""
        return float(np.sqrt(np.square(self.values).sum()))

    @property
    def effective_rank(self):
        """exp(H(p)), where H is the entropy of p = sigma / sum(sigma).

        It is k if all values are equal, 1 if only one is not 0, and 0 if all are 0.
        Source    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.
        """
        total = self.values.sum()
        if total == 0:
            return 0.0
        p = self.values[self.values > 0] / total
        return float(np.exp(-(p * np.log(p)).sum()))

    @property
    def support(self):
        """Number of values above float32's rounding of the largest. The vectors of the other values are arbitrary."""
        return int((self.values > self.values.max(initial=0) * np.finfo(np.float32).eps).sum())


def spectrum(A, B, scale):
    """Return the Spectrum of scale * B A: A (R, in), B (out, R)."""
    Q_b, R_b = np.linalg.qr(B.astype(np.float64))                           # (out, k_b), (k_b, R)
    Q_a, R_a = np.linalg.qr(A.T.astype(np.float64))                         # (in, k_a), (k_a, R)
    left, values, right = np.linalg.svd(scale * R_b @ R_a.T, full_matrices=False)
    return Spectrum(values, Q_b @ left, Q_a @ right.T)


def overlap(products):
    """Return how much of one subspace lies in another: Uᵀ V (i, j), for orthonormal U (n, i), V (n, j) -> 0 to 1.

    The overlap is |Uᵀ V|_F^2 / min(i, j): 1 if the smaller subspace lies in the larger, 0 if they are orthogonal. Two
    random subspaces of n dimensions have max(i, j) / n on average.
    Source    Hu et al. 2021, "LoRA", section 7.2, eq. 4: phi of the right singular vectors of two adapters' matrices.
    """
    return float(np.square(products).sum() / min(products.shape))


def amplification(update, W):
    """Return how strong an update is, compared with what W (in, out) already does in the update's directions.

    The factor is |s B A|_F / |Uᵀ Wᵀ V|_F. It is large if the update amplifies directions that are weak in W.
    Source    Hu et al. 2021, section 7.3, table 7.
    """
    k = update.support
    within = np.linalg.norm(update.right[:, :k].T @ W @ update.left[:, :k])
    return update.norm / float(within) if within else np.inf
