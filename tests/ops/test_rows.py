import numpy as np
import pytest

from npgpt.ops.rows import row_blocks


@pytest.mark.parametrize("rows, columns, count", [(1, 1, 1), (10, 4, 3), (8, 4, 2), (3, 1000, 3), (0, 4, 0)])
def test_blocks_cover_every_row_once_in_order(rows, columns, count):
    array = np.zeros((rows, columns))
    blocks = list(row_blocks(array, block_bytes=4 * 4 * 8))
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert len(blocks) == count
