"""Perplexity: both protocols against a computation that takes one token at a time, and how batches are formed."""

import math

import numpy as np
import pytest

import npgpt
from npgpt.errors import ConfigError
from npgpt.evaluate import Perplexity, mean_nll
from npgpt.seeding import generator

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
                          attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5)


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=1, dtype=np.float64)


def text(length, seed=0):
    return generator(seed, "test").integers(0, 31, length)


def nll(model, ids):
    """Of the last token, given those before it."""
    logits = model.logits(ids[:-1])[-1]
    return np.log(np.exp(logits).sum()) - logits[ids[-1]]


def one_at_a_time(model, ids, context, stride):
    """Each token is predicted in the first window that reaches it, unless it is that window's first."""
    losses = []
    for t in range(len(ids)):
        start = next(start for start in range(0, len(ids), stride) if t < start + context)
        if start < t:
            losses.append(nll(model, ids[start:t + 1]))
    return np.mean(losses), len(losses)


@pytest.mark.parametrize("length", [2, 5, 16, 17, 33, 50])
@pytest.mark.parametrize("context, stride", [
    (16, None), (8, None), (2, None), (16, 16), (16, 8), (16, 5), (16, 1), (7, 3)])
def test_perplexity(model, length, context, stride):
    ids = text(length)
    expected, tokens = one_at_a_time(model, ids, context, stride or context)
    result = npgpt.perplexity(model, ids, context, stride)
    assert result.tokens == tokens
    assert result.nll == pytest.approx(expected, rel=1e-12)
    assert result.ppl == pytest.approx(math.exp(expected), rel=1e-12)


@pytest.mark.parametrize("context, stride, tokens", [
    (16, None, 3 * 15 + 1),  # 50 = 3 windows of 16 and one of 2: the first token of each is not predicted
    (10, None, 5 * 9),
    (16, 15, 15 + 2 * 15 + 4),  # windows overlap by one: all but the text's first
    (16, 1, 49),
])
def test_how_many_tokens_are_predicted(model, context, stride, tokens):
    assert npgpt.perplexity(model, text(50), context, stride).tokens == tokens


def test_a_lone_last_token_has_nothing_to_be_predicted_from(model):
    assert npgpt.perplexity(model, text(33)) == npgpt.perplexity(model, text(32))


def test_the_context_is_at_most_the_models(model):
    assert npgpt.perplexity(model, text(50)) == npgpt.perplexity(model, text(50), 16)
    assert npgpt.perplexity(model, text(50).tolist(), 10**6, 4) == npgpt.perplexity(model, text(50), 16, 4)


@pytest.mark.parametrize("ids, options, message", [
    ([5], {}, r"ids of shape \(1,\): perplexity takes at least two integers in one row"),
    ([], {}, r"ids of shape \(0,\)"),
    ([[1, 2]], {}, r"ids of shape \(1, 2\)"),
    (5, {}, r"ids of shape \(\)"),
    ([1.0, 2.0], {}, "integers"),
    ([1, 31], {}, "token id 31 is outside this model's vocabulary of 31"),
    ([1, 2], {"context": 1}, "context = 1, stride = 1: the context must be at least 2"),
    ([1, 2], {"context": 0}, "context = 0"),
    ([1, 2], {"stride": 0}, "context = 16, stride = 0: .* the stride from 1 to the context"),
    ([1, 2], {"stride": -1}, "stride = -1"),
    ([1, 2], {"context": 8, "stride": 9}, "context = 8, stride = 9"),
])
def test_what_is_refused(model, ids, options, message):
    with pytest.raises(ConfigError, match=message):
        npgpt.perplexity(model, ids, **options)


def test_mean_nll_is_the_mean_over_all_targets(model):
    sequences = [text(length, seed=length) for length in (3, 16, 1, 9, 2, 9)]
    masks = [generator(length, "mask").integers(0, 2, len(sequence)) for length, sequence in enumerate(sequences)]
    masks[3][:] = 0  # nothing of this one counts
    for given in (None, masks):
        losses = [nll(model, sequence[:t + 1]) for i, sequence in enumerate(sequences)
                  for t in range(1, len(sequence)) if given is None or given[i][t]]
        for batch_tokens in (1, 7, 20, 10**6):
            result = mean_nll(model, sequences, given, batch_tokens)
            assert result.tokens == len(losses)
            assert result.nll == pytest.approx(np.mean(losses), rel=1e-12)


def test_batches_hold_about_the_tokens_asked_for(monkeypatch, model):
    """No batch is left out, none is much larger than asked for, and a long sequence goes with long ones."""
    loss, batches = model.loss, []

    def spy(batch):
        batches.append(batch.lengths.tolist())
        result = loss(batch)
        assert result.record is None
        return result

    monkeypatch.setattr(model, "loss", spy)
    mean_nll(model, [text(length) for length in (2, 9, 3, 16, 2, 8)], batch_tokens=12)
    assert batches == [[16], [9, 8], [3, 2, 2]]
    batches.clear()
    mean_nll(model, [text(length) for length in (2, 9, 3, 16, 2, 8)], batch_tokens=16)  # one sequence is just enough
    assert batches == [[16], [9, 8], [3, 2, 2]]
    batches.clear()
    npgpt.perplexity(model, text(50), context=16, stride=1)
    assert [length for batch in batches for length in batch] == [16] * 35  # the window that reaches the end is the last


def test_nothing_to_predict(model):
    for sequences, masks in (([], None), ([[4], [5]], None), ([[4, 5]], [[1, 0]])):
        with pytest.raises(ConfigError, match="nothing to predict: every sequence is a single token or masked"):
            mean_nll(model, sequences, masks)


def test_a_hopeless_model_has_an_infinite_perplexity():
    assert Perplexity(0.0, 1).ppl == 1
    assert Perplexity(math.log(50), 1).ppl == pytest.approx(50)
    assert Perplexity(800.0, 1).ppl == math.inf
