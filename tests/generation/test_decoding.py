"""The rows of the cache move correctly, and the head's blocks give one product. Whole texts: test_generate.py."""

import numpy as np
import pytest

import npgpt
from npgpt.generation.decoding import Decoder, head_logits
from npgpt.runtime.threads import workers

CONFIG = npgpt.GPT2Config(vocab_size=61, n_positions=24, n_embd=16, n_layer=3, n_head=4, initializer_range=0.3)


def test_rows_may_be_repeated_and_reordered():
    """As in beam search: the second beam goes on twice, the first one ends."""
    model = npgpt.GPT2(CONFIG, seed=5, dtype=np.float64)
    decoder = Decoder(model, 3, 10)
    decoder.read([[1, 2], [3, 4, 5], [6, 7]])
    decoder.keep([1, 2, 1])
    logits = decoder.step([8, 9, 10])
    for row, ids in enumerate(([3, 4, 5, 8], [6, 7, 9], [3, 4, 5, 10])):
        np.testing.assert_allclose(logits[row], model.logits(ids)[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("rows, width, vocabulary", [(2, 48, 70), (5, 48, 9000), (9, 64, 3000), (1, 16, 50),
                                                     (40, 2000, 100)])
def test_the_heads_logits_in_blocks(rows, width, vocabulary, n_threads, assert_close):
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((rows, width)), rng.standard_normal((vocabulary, width))
    with workers(n_threads):
        assert_close(head_logits(hidden, weight), hidden @ weight.T)
