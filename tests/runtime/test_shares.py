import numpy as np
import pytest

from npgpt.runtime import shares
from npgpt.runtime.shares import LEAST_BYTES, LEAST_PRODUCT, MANY_ROWS, even_parts, product, product_shares, row_blocks
from npgpt.runtime.threads import workers


@pytest.mark.parametrize("rows, columns, count", [(1, 1, 1), (10, 4, 3), (8, 4, 2), (3, 1000, 3), (0, 4, 0)])
def test_blocks_cover_every_row_once_in_order(rows, columns, count):
    array = np.zeros((rows, columns))
    blocks = list(row_blocks(array, block_bytes=4 * 4 * 8))
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert len(blocks) == count


@pytest.mark.parametrize("columns, stops", [
    (LEAST_BYTES // 8, [3, 6, 10]), (LEAST_BYTES // 24, [3, 6, 10]), (LEAST_BYTES // 39, [5, 10]), (4, [10]),
    (6 * LEAST_BYTES // 8, [1, 3, 5, 6, 8, 10])])  # more than a megabyte for each
def test_there_are_blocks_for_every_worker_where_they_are_large_enough(columns, stops):
    with workers(3):
        assert [block.stop for block in row_blocks(np.zeros((10, columns)))] == stops


@pytest.mark.parametrize("length, count", [(10, 3), (2, 3), (7, 1), (0, 2), (1, 5)])
def test_parts_are_even_and_cover_everything_once(length, count):
    parts = even_parts(length, count)
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) == min(length, count)
    assert not sizes or max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shape, by_rows", [
    ((64, 96), False), ((97, 96), True), ((2 * MANY_ROWS, 5000), True), ((2 * MANY_ROWS - 1, 5000), False)])
def test_a_product_is_shared_along_its_longer_side_or_where_it_has_many_rows_by_rows(shape, by_rows):
    rows, columns = shape
    with workers(2):
        cut = product_shares(rows, 2000, columns)
    whole, half = slice(None), (rows if by_rows else columns) // 2
    first = slice(0, half)
    assert cut[0] == ((first, whole) if by_rows else (whole, first))
    assert len(cut) == 2


@pytest.mark.parametrize("inner, count", [
    (1, 1), (LEAST_PRODUCT // 50 + 1, 2), (LEAST_PRODUCT // 50 - 1, 1), (10**9, 3)])
def test_a_worker_gets_no_share_of_a_small_product(inner, count):
    with workers(3):
        assert len(product_shares(10, inner, 10)) == count


def test_a_product_has_the_wider_type():
    assert product(np.ones((2, 3), np.float32), np.ones((3, 2))).dtype == np.float64


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 7, 11), (11, 7, 5), (1, 3, 8), (0, 3, 8), (4, 0, 4)])
def test_a_product_is_that_of_numpy_whoever_makes_it(shape, n_threads, monkeypatch):
    monkeypatch.setattr(shares, "LEAST_PRODUCT", 1)
    N, inner, outer = shape
    draw = np.random.default_rng(0)
    a, b, scale = (draw.standard_normal(size) for size in ((N, inner), (inner, outer), (N, outer)))

    def then(part, rows, columns):
        part *= scale[rows, columns]

    with workers(n_threads):
        np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(product(a, b, then), (a @ b) * scale, rtol=1e-12, atol=1e-14)
