"""How well a model predicts text it was not shown: the loss of each token, and perplexity by named protocols.

A perplexity says nothing without its protocol: how much text stood before each token, which tokens were counted, and
by what the loss was divided. Three protocols are in use, here windows of at most L tokens over tokens t_1 .. t_n:

disjoint   all texts laid end to end; windows side by side; the first token of each window is not predicted
strided    the same with windows that start `stride` tokens apart: the tokens that no earlier window predicted are
           counted, so each but the first has L - stride tokens before it or more (Hugging Face's documentation)
document   each text alone, an end-of-text token before it: every token is predicted, once, the first of a window from
           the one before; the last window of a long text is moved back to be full (EleutherAI's lm-evaluation-harness)

What the released gpt2 has on WikiText-2's raw test set, read as `npgpt.evaluation.wikitext` does:

                         perplexity               found as
disjoint, L = 1024       29.94 per token          huggingface/transformers#13761, karpathy/llm.c#276
document, detokenised    37.37 per word           lm-evaluation-harness, task wikitext (huggingface/transformers#13761);
                                                  the GPT-2 paper has 29.41 here and 37.50 for WikiText-103, though the
                                                  two have the same test set
disjoint and strided     19.44, 16.44 per token   Hugging Face's documentation, for gpt2-large and a stride of 512
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from npgpt.adapters.mixed_batch import check_not_mixed
from npgpt.autograd import no_grad
from npgpt.batch import NO_TARGET, Batch
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.threads import spread, that_pay, workers

ROWS = 128  # of logits at a time, for each worker
BATCH_TOKENS = 2048

# The loss of each token


def token_losses(model, batch):
    """What each target of a batch costs, without dropout: (nll, greedy).

    nll     (M,) float64, -log p of the M rows' targets in nats, in the batch's order
    greedy  (M,) bool, whether no token is likelier than the target

    Logits exist for a block of rows at a time.
    """
    W = model.head().data
    rows = np.flatnonzero(batch.targets != NO_TARGET)
    model.check_ids(batch.targets[rows], longest=0)
    nll, greedy = np.empty(len(rows)), np.empty(len(rows), bool)

    def measure(hidden, block):
        Z = hidden[rows[block]] @ W.T                                       # (rows, C) -> (rows, V)
        Z -= Z.max(axis=1, keepdims=True)
        at_target = Z[np.arange(len(Z)), batch.targets[rows[block]]]
        greedy[block] = at_target == 0
        nll[block] = np.log(np.exp(Z, out=Z).sum(axis=1)) - at_target

    with no_grad(), workers(that_pay(model, len(batch.ids))):
        hidden = model.hidden_states(batch.ids, batch.lengths).data
        spread(functools.partial(measure, hidden), [slice(start, start + ROWS) for start in range(0, len(rows), ROWS)])
    return nll, greedy


class Window(NamedTuple):
    """Tokens that a model sees at once, and what follows each: ids (T,), targets (T,), -100 where nothing is asked."""

    ids: np.ndarray
    targets: np.ndarray


def continuation(context, ids, longest):
    """The Window that asks for `ids` (one or more) after `context` (one or more): the last `longest` tokens before the
    last of them are seen, as in lm-evaluation-harness."""
    whole = np.concatenate([context, ids]).astype(np.int64)
    targets = np.where(np.arange(1, len(whole)) < len(context), NO_TARGET, whole[1:])
    return Window(whole[:-1][-longest:], targets[-longest:])


def window_losses(model, windows, batch_tokens=BATCH_TOKENS):
    """Yield (i, nll, greedy), `token_losses` of windows[i], batch after batch, the longest windows first.

    Windows are laid end to end, about `batch_tokens` tokens at a time; there is no padding, and how they are grouped
    changes nothing beyond rounding.
    """
    check_not_mixed(model)
    for group in grouped([len(window.ids) for window in windows], batch_tokens):
        ids, targets = (np.concatenate(arrays) for arrays in zip(*(windows[i] for i in group), strict=True))
        nll, greedy = token_losses(model, Batch(ids, targets, np.array([len(windows[i].ids) for i in group])))
        ends = np.cumsum([np.count_nonzero(windows[i].targets != NO_TARGET) for i in group])[:-1]
        yield from zip(group, np.split(nll, ends), np.split(greedy, ends), strict=True)


def grouped(lengths, batch_tokens):
    """Yield groups of indices, longest first so that a group's lengths are nearly equal, each closed once its lengths
    add up to `batch_tokens`."""
    group, tokens = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        group.append(i)
        tokens += lengths[i]
        if tokens >= batch_tokens:
            yield group
            group, tokens = [], 0
    if group:
        yield group


# Perplexity


class Perplexity(NamedTuple):
    """nll: mean negative log-likelihood, nats a predicted token; tokens: how many were predicted; stderr: of nll, where
    it was measured."""

    nll: float
    tokens: int
    stderr: float | None = None

    @property
    def ppl(self):
        """Perplexity, e^nll: as uncertain as a fair choice among this many tokens."""
        return exponential(self.nll)


def exponential(nll):
    """e^nll, infinite where a float does not reach it."""
    return math.exp(nll) if nll < 709 else math.inf


def perplexity(model, ids, context=1024, stride=None):
    """Perplexity of one long text: a Perplexity.

    ids      integers (T,), T >= 2
    context  window length in tokens; at most n_positions is used
    stride   None: protocol `disjoint`. An int: protocol `strided`, each window `stride` tokens after the one before;
             smaller is slower and closer to the truth.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) < 2 or ids.dtype.kind not in "iu":
        raise ConfigError(f"ids of shape {ids.shape}: perplexity takes at least two integers in one row")
    spans = stream_spans(len(ids), min(context, model.config.n_positions), stride)
    rows = np.zeros((len(spans), 2))
    for i, nll, _ in window_losses(model, [window(ids, start, end) for start, end, _ in spans]):
        rows[i] = counted(nll, spans[i])
    return mean_of_rows(rows)


def mean_nll(model, sequences, loss_masks=None, batch_tokens=BATCH_TOKENS):
    """Mean loss over all targets of all sequences, each by itself: a Perplexity. See `Batch.from_sequences`."""
    check_not_mixed(model)
    masks = loss_masks or [np.ones(len(sequence)) for sequence in sequences]
    rows = []
    for group in grouped([len(sequence) for sequence in sequences], batch_tokens):
        batch = Batch.from_sequences([sequences[i] for i in group], [masks[i] for i in group])
        if batch.n_targets:
            nll, _ = token_losses(model, batch)
            rows.append((nll.sum(), len(nll)))
    if not rows:
        raise ConfigError("nothing to predict: every sequence is a single token or masked; give longer texts")
    return mean_of_rows(np.array(rows))


def stream_spans(n, context, stride=None):
    """Cut a text of n tokens into windows: [(start, end, first), ...], of which the targets first .. end - 1 count.

    stride None: side by side ("disjoint"), else that many tokens apart ("strided"). Raises ConfigError.
    """
    stride = context if stride is None else stride
    if context < 2 or not 1 <= stride <= context:
        raise ConfigError(f"context = {context}, stride = {stride}: the context must be at least 2 and the stride from "
                          "1 to the context")
    spans, end = [], 0
    for start in range(0, n, stride):
        first, end = max(end, start + 1), min(start + context, n)
        if first < end:  # otherwise there is nothing in it to predict
            spans.append((start, end, first))
    return spans


def document_spans(n, context):
    """The same for protocol "document": n counts the end-of-text token in front, and each later token is a target once.

    A window sees `context` tokens and so holds one more, the last target; the last window is moved back to be full.
    """
    ends = [(first, min(first + context, n)) for first in range(1, n, context)]
    return [(max(0, end - context - 1), end, first) for first, end in ends]


def window(ids, start, end):
    """The Window in which each of ids[start:end] but the last is followed by the next."""
    return Window(ids[start:end - 1], ids[start + 1:end])


def counted(nll, span):
    """Sum and number of the losses that count, of all losses of a window's targets."""
    start, _, first = span
    nll = nll[first - start - 1:]
    return nll.sum(), len(nll)


def mean_of_rows(rows):
    """(sum of nll, targets) of each of n windows -> Perplexity.

    Losses within a window depend on each other, so windows are what the standard error counts: that of a ratio of sums,
    se^2 = n / (n - 1) sum_i (s_i - m_i nll)^2 / (sum_i m_i)^2. Of one window there is none.
    Source    Cochran 1977, Sampling Techniques, section 2.11.
    """
    total, targets = rows.sum(axis=0)
    nll, n = total / targets, len(rows)
    residuals = ((rows[:, 0] - rows[:, 1] * nll) ** 2).sum()
    return Perplexity(float(nll), int(targets), math.sqrt(n / (n - 1) * residuals) / targets if n > 1 else None)
