from unittest import mock

import numpy as np
import pytest

from npgpt.runtime import tiles
from npgpt.runtime.threads import workers


@pytest.mark.parametrize("T", [1, 5, 64, 65, 200, 1024, 1025])
def test_blocks_of_queries_cover_all_queries_and_the_keys_up_to_their_last(T):
    blocks = tiles.query_blocks(T)
    assert np.concatenate([np.arange(T)[queries] for queries, _ in blocks]).tolist() == list(range(T))
    assert all(keys == slice(0, queries.stop) for queries, keys in blocks)


@pytest.mark.parametrize("scores", [1, 20, 1 << 17])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_each_row_and_head_is_visited_once_with_its_own_arrays(scores, n_threads):
    """Sequences of equal length that are neighbours, and others that are not; three heads of width two."""
    lengths, H, D = np.array([3, 1, 3, 2, 2]), 3, 2
    x = np.arange(lengths.sum() * 2 * H * D, dtype=float).reshape(-1, 2 * H * D)
    y, z, places = np.zeros((len(x), H * D)), np.zeros((len(x), H)), {}

    def work(place, a, b, Y, Z):
        places[place] = places.get(place, 0) + Z.size
        Y[...], Z[...] = a - b, 1

    with mock.patch.object(tiles, "TILE", scores), workers(n_threads):
        tiles.spread_tiles(work, lengths, H, [(x, 2)], [(y, 1), (z, 1)])
    np.testing.assert_array_equal(y, x[:, :H * D] - x[:, H * D:])
    np.testing.assert_array_equal(z, np.ones_like(z))
    assert sum(places.values()) == z.size
