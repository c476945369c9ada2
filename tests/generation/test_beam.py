"""Beam search on small models: with enough beams it tries everything, and with one beam it is greedy. tests/parity
compares it with Hugging Face's."""

import itertools

import numpy as np
import pytest

import npgpt
from npgpt.runtime.errors import ConfigError

CONFIG = npgpt.GPT2Config(vocab_size=5, n_positions=12, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
PROMPT = [1, 3]


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=4, dtype=np.float64)


def log_probability(model, ids):
    logits = model.logits(ids)[1:-1]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_p[np.arange(len(ids) - 2), ids[2:]].sum()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
def test_a_wide_beam_finds_the_best_of_all_texts(model, length_penalty):
    """A text has at most 3 new tokens, or ends earlier at token 0; the search tries all of them."""
    ended = [[*PROMPT, *middle, 0] for n in range(3) for middle in itertools.product(range(1, 5), repeat=n)]
    whole = [[*PROMPT, *three] for three in itertools.product(range(1, 5), repeat=3)]
    scores = {tuple(ids): log_probability(model, ids) / (len(ids) - 2) ** length_penalty for ids in ended + whole}
    best = sorted(scores, key=scores.get, reverse=True)
    found = npgpt.beam_search(model, PROMPT, 100, 3, length_penalty, eos_id=0)
    assert [tuple(ids) for _, ids in found[:20]] == best[:20]
    np.testing.assert_allclose([score for score, _ in found[:20]], [scores[ids] for ids in best[:20]])


def test_one_beam_is_greedy(model):
    (_, ids), = npgpt.beam_search(model, PROMPT, 1, 10)
    assert ids.tolist() == npgpt.generate(model, PROMPT, 10, temperature=0).tolist()


def test_the_rules_hold_in_beams(model):
    for _, ids in npgpt.beam_search(model, PROMPT, 3, 9, no_repeat_ngram_size=2):
        pairs = list(itertools.pairwise(ids.tolist()))
        assert len(set(pairs)) == len(pairs)


def test_what_is_refused(model):
    with pytest.raises(ConfigError, match="num_beams = 0: it must be at least 1"):
        npgpt.beam_search(model, PROMPT, 0)
    with pytest.raises(ConfigError, match="more than this model's context of 12"):
        npgpt.beam_search(model, PROMPT, 2, 11)
    assert npgpt.beam_search(model, PROMPT, 2, 0)[0][1].tolist() == PROMPT
