"""Perplexity: the protocols against a computation of one token at a time, and how batches are formed."""

import math

import numpy as np
import pytest

import npgpt
from npgpt.evaluation import evaluate
from npgpt.evaluation.evaluate import Perplexity, mean_nll
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator

CONFIG = npgpt.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
                          attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5)


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=1, dtype=np.float64)


def text(length, seed=0):
    return generator(seed, "test").integers(0, 31, length)


def nll(model, ids):
    """Return the loss of the last token, given all tokens before it."""
    logits = model.logits(ids[:-1])[-1]
    return np.log(np.exp(logits).sum()) - logits[ids[-1]]


def one_at_a_time(model, ids, context, stride):
    """The first window that contains a token predicts it, unless it is the first token of the window."""
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
    (16, 15, 15 + 2 * 15 + 4),  # windows overlap by one: all tokens except the first of the text
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
    ([5], {}, r"ids of shape \(1,\) and dtype int64: expected integers \(T,\), T >= 2"),
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
    masks[3][:] = 0  # this sequence has no target
    for given in (None, masks):
        losses = [nll(model, sequence[:t + 1]) for i, sequence in enumerate(sequences)
                  for t in range(1, len(sequence)) if given is None or given[i][t]]
        for batch_tokens in (1, 7, 20, 10**6):
            result = mean_nll(model, sequences, given, batch_tokens)
            assert result.tokens == len(losses)
            assert result.nll == pytest.approx(np.mean(losses), rel=1e-12)


def test_batches_hold_about_the_tokens_asked_for(monkeypatch, model):
    """No sequence is left out, no batch is much too large, and long sequences go together."""
    hidden_states, batches = model.hidden_states, []

    def spy(ids, lengths):
        batches.append(lengths.tolist())
        result = hidden_states(ids, lengths)
        assert result.record is None
        return result

    monkeypatch.setattr(model, "hidden_states", spy)
    mean_nll(model, [text(length) for length in (2, 9, 3, 16, 2, 8)], batch_tokens=12)
    assert batches == [[16], [9, 8], [3, 2, 2]]
    batches.clear()
    parts = []
    mean_nll(model, [text(length) for length in (2, 9, 3, 16, 2, 8)], None, 16, parts.append)  # one fills a batch
    assert batches == [[16], [9, 8], [3, 2, 2]]
    assert parts == [16 / 40, 33 / 40, 1]
    batches.clear()
    npgpt.perplexity(model, text(50), context=16, stride=1)  # the last token of a window is a target, not an input
    assert [length for batch in batches for length in batch] == [15] * 35  # no window starts after the end is reached


def test_nothing_to_predict(model):
    for sequences, masks in (([], None), ([[4], [5]], None), ([[4, 5]], [[1, 0]])):
        with pytest.raises(ConfigError, match="nothing to predict: every sequence is masked or has a single token"):
            mean_nll(model, sequences, masks)


def test_a_hopeless_model_has_an_infinite_perplexity():
    assert Perplexity(0.0, 1).ppl == 1
    assert Perplexity(math.log(50), 1).ppl == pytest.approx(50)
    assert Perplexity(800.0, 1).ppl == math.inf


def test_the_standard_error_is_that_of_windows(model):
    """With equal windows it is the standard error of their means. A single window has none."""
    ids = text(48)
    windows = np.array([npgpt.perplexity(model, ids[start:start + 16]).nll for start in (0, 16, 32)])
    assert npgpt.perplexity(model, ids).stderr == pytest.approx(windows.std(ddof=1) / math.sqrt(3), rel=1e-12)
    assert npgpt.perplexity(model, ids[:16]).stderr is None


@pytest.mark.parametrize("n, context, spans", [
    (5, 16, [(0, 5, 1)]),  # end of text, then four tokens
    (17, 16, [(0, 17, 1)]),  # 16 tokens, all predicted
    (18, 16, [(0, 17, 1), (1, 18, 17)]),  # the last window is moved back to be full
    (40, 16, [(0, 17, 1), (16, 33, 17), (23, 40, 33)]),
    (1, 16, []),
])
def test_the_windows_of_a_document(n, context, spans):
    assert evaluate.document_spans(n, context) == spans


@pytest.mark.parametrize("context", [["a"], ["a", "b", "c"]], ids=len)
def test_a_continuation_is_asked_for_after_its_context(context):
    ids = np.arange(len(context)), np.array([10, 11])
    window = evaluate.continuation(*ids, 100)
    assert window.ids.tolist() == [*ids[0], 10]
    assert window.targets.tolist() == [-100] * (len(context) - 1) + [10, 11]
    window = evaluate.continuation(*ids, 2)  # ids that do not fit are cut off on the left
    assert window.ids.tolist() == [ids[0][-1], 10]
    assert window.targets.tolist() == [10, 11]
    window = evaluate.continuation(np.array([0]), np.array([10, 11, 12]), 2)
    assert (window.ids.tolist(), window.targets.tolist()) == ([10, 11], [11, 12])


def test_the_loss_of_each_token(model, monkeypatch):
    """The block size changes nothing. A target is greedy if no token is likelier."""
    monkeypatch.setattr(evaluate, "ROWS", 5)
    sequences = [text(9), text(16, seed=1), text(2, seed=2)]
    sequences[0][-1] = model.logits(sequences[0][:-1])[-1].argmax()
    batch = npgpt.Batch.from_sequences(sequences)
    losses, greedy = evaluate.token_losses(model, batch)
    prefixes = [ids[:t] for ids in sequences for t in range(2, len(ids) + 1)]
    np.testing.assert_allclose(losses, [nll(model, ids) for ids in prefixes], rtol=1e-12)
    assert greedy.tolist() == [model.logits(ids[:-1])[-1].argmax() == ids[-1] for ids in prefixes]
    assert greedy.any() and not greedy.all()


@pytest.mark.parametrize("batch_tokens", [1, 7, 10**6])
def test_windows_come_with_their_own_losses(model, batch_tokens):
    windows = [evaluate.continuation(text(a, seed=a), text(b, seed=b), 16)
               for a, b in ((1, 1), (9, 3), (3, 6), (20, 2), (2, 20))]
    found = {i: (losses, greedy) for i, losses, greedy in evaluate.window_losses(model, windows, batch_tokens)}
    assert sorted(found) == list(range(5))
    for i, (ids, targets) in enumerate(windows):
        expected = [nll(model, np.append(ids[:t + 1], targets[t])) for t in range(len(ids)) if targets[t] != -100]
        np.testing.assert_allclose(found[i][0], expected, rtol=1e-12)
        assert len(found[i][1]) == len(expected)
