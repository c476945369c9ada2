"""The decomposition from the thin factors, against the decomposition of the product."""

import numpy as np
import pytest

from npgpt.inspection.spectrum import Spectrum, amplification, overlap, spectrum

DRAW = np.random.default_rng(0)


def random_update(n_out, n_in, rank, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((rank, n_in)).astype(np.float32), draw.standard_normal((n_out, rank)).astype(np.float32)


@pytest.mark.parametrize("shape", [(12, 9, 3), (9, 12, 1), (5, 20, 5), (4, 20, 7), (20, 3, 6), (1, 8, 2)])
def test_it_is_that_of_the_product(assert_close, shape):
    """This also holds if the rank is larger than a side of the matrix."""
    A, B = random_update(*shape)
    found = spectrum(A, B, 0.7)
    whole = 0.7 * B.astype(np.float64) @ A.astype(np.float64)
    k = min(*shape)
    assert found.values.shape == (k,)
    assert_close(found.values, np.linalg.svd(whole, compute_uv=False)[:k])
    assert_close((found.left * found.values) @ found.right.T, whole)
    for U in (found.left, found.right):
        assert_close(U.T @ U, np.eye(k))
    assert found.norm == pytest.approx(np.linalg.norm(whole))
    assert found.support == k


def test_the_product_is_not_formed(memory):
    A, B = random_update(5000, 4000, 2)
    _, _, most = memory(lambda: spectrum(A, B, 1.0))
    assert most < 5000 * 4000 * 8 / 50


def test_effective_rank():
    """It counts equal values, and is smaller for unequal ones."""
    def of(*values):
        return Spectrum(np.array(values, float), None, None).effective_rank

    assert of(3, 3, 3, 3) == pytest.approx(4)
    assert of(5, 0, 0) == of(7) == pytest.approx(1)
    assert of(0, 0) == 0
    assert of(2, 1, 1) == pytest.approx(2 ** 1.5)  # the entropy of (1/2, 1/4, 1/4) is 1.5 bits
    assert 1 < of(9, 1) < of(3, 1) < 2


def test_support_leaves_out_rounding():
    A, B = random_update(30, 20, 4)
    A[3], B[:, 2] = A[1], 0  # two equal rows leave rank 3, and a column of zeros leaves 2
    found = spectrum(A, B, 1.0)
    assert found.support == 2
    assert spectrum(A, np.zeros_like(B), 1.0).support == 0


def test_overlap():
    Q = np.linalg.qr(DRAW.standard_normal((10, 10)))[0]
    assert overlap(Q[:, :3].T @ Q[:, :5]) == pytest.approx(1)
    assert overlap(Q[:, :3].T @ Q[:, 3:5]) == pytest.approx(0, abs=1e-12)
    assert overlap(Q[:, :4].T @ Q[:, 2:6]) == pytest.approx(0.5)
    # The overlap depends on the subspaces, not on their bases.
    rotated = Q[:, :3] @ np.linalg.qr(DRAW.standard_normal((3, 3)))[0]
    assert overlap(rotated.T @ Q[:, :5]) == pytest.approx(1)


def test_overlap_by_chance_is_the_larger_rank_by_the_dimension():
    def random(k):
        return np.linalg.qr(DRAW.standard_normal((40, k)))[0]

    found = np.mean([overlap(random(3).T @ random(8)) for _ in range(300)])
    assert found == pytest.approx(8 / 40, rel=0.05)


def test_amplification():
    """It is 2 if the update is twice W's part in its direction, and infinite in a direction that W ignores."""
    W = np.zeros((6, 5))
    W[1, 2], W[0, 0] = 3, 100
    A, B = np.zeros((1, 6)), np.zeros((5, 1))
    A[0, 1], B[2, 0] = 1, 6
    assert amplification(spectrum(A, B, 1.0), W) == pytest.approx(2)
    W[1, 2] = 0
    assert amplification(spectrum(A, B, 1.0), W) == np.inf
