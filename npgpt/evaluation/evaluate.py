"""How well a model predicts held-out text: the loss of each token, and perplexity by named protocols.

A perplexity means nothing without its protocol: how many tokens the model sees before each token, which tokens count,
and what divides the loss. There are three usual protocols, and the one that finetune reports. Each cuts the text into
windows of at most L tokens:

disjoint   All texts are laid end to end. The windows stand side by side. The first token of each is not predicted.
strided    All texts are laid end to end. Windows start `stride` tokens apart, and a token counts in the first window
           that predicts it. After the first window, each counted token has L - stride or more tokens before it
           (Hugging Face's documentation).
document   Each text stands alone, with an end-of-text token before it. Every token is predicted once; the first of a
           window is predicted from the token before the window. The last window of a long text is moved back until it
           is full (EleutherAI's lm-evaluation-harness).

completion What a training learns, as `npgpt.data.encode` makes it: each record stands alone, in its template, with an
           end-of-text token behind it. Only the answers and their ends of text count; of a plain text, every token but
           the first does.

Published results of gpt2 on the raw test set of WikiText-2, read as `npgpt.evaluation.wikitext` reads it:

                         perplexity               source
disjoint, L = 1024       29.94 per token          huggingface/transformers#13761, karpathy/llm.c#276
document, detokenised    37.37 per word           lm-evaluation-harness, task wikitext (huggingface/transformers#13761);
                                                  the GPT-2 paper has 29.41 here, and 37.50 for WikiText-103, although
                                                  both have the same test set
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

ROWS = 128  # rows of logits that a worker computes at a time
BATCH_TOKENS = 2048

# The loss of each token


def token_losses(model, batch):
    """Return the loss of each target of a batch, without dropout: (nll, greedy).

    nll     (M,) float64, -log p of the M targets in nats, in the batch's order
    greedy  (M,) bool, whether the target is a likeliest token

    The logits are computed for a block of rows at a time.
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
    """Tokens that a model sees together, and the next token for each: ids (T,), targets (T,), -100 for no target."""

    ids: np.ndarray
    targets: np.ndarray


def continuation(context, ids, longest):
    """Return the Window whose targets are `ids` (one or more) after `context` (one or more).

    The model sees context and ids without the last id, and of these only the last `longest` tokens, as in
    lm-evaluation-harness.
    """
    whole = np.concatenate([context, ids]).astype(np.int64)
    targets = np.where(np.arange(1, len(whole)) < len(context), NO_TARGET, whole[1:])
    return Window(whole[:-1][-longest:], targets[-longest:])


def window_losses(model, windows, batch_tokens=BATCH_TOKENS):
    """Yield (i, nll, greedy) for each window: the `token_losses` of windows[i]. The longest windows come first.

    A batch lays windows end to end, about `batch_tokens` tokens together. There is no padding. The grouping changes
    only the rounding.
    """
    check_not_mixed(model)
    for group in group_by_tokens([len(window.ids) for window in windows], batch_tokens):
        ids, targets = (np.concatenate(arrays) for arrays in zip(*(windows[i] for i in group), strict=True))
        nll, greedy = token_losses(model, Batch(ids, targets, np.array([len(windows[i].ids) for i in group])))
        ends = np.cumsum([np.count_nonzero(windows[i].targets != NO_TARGET) for i in group])[:-1]
        yield from zip(group, np.split(nll, ends), np.split(greedy, ends), strict=True)


def group_by_tokens(lengths, batch_tokens):
    """Yield groups of indices. A group is complete when its lengths add up to `batch_tokens` or more.

    The longest come first, so that the lengths in a group are nearly equal.
    """
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
    """nll: mean negative log-likelihood in nats per predicted token; tokens: number of predicted tokens; stderr: the
    standard error of nll, or None."""

    nll: float
    tokens: int
    stderr: float | None = None

    @property
    def ppl(self):
        """Perplexity, e^nll: the model is as uncertain as a fair choice among this many tokens."""
        return exponential(self.nll)


def exponential(nll):
    """Return e^nll, or infinity if it is too large for a float."""
    return math.exp(nll) if nll < 709 else math.inf


def perplexity(model, ids, context=1024, stride=None):
    """Measure the perplexity of one long text. Returns a Perplexity.

    ids      integers (T,), T >= 2
    context  window length in tokens, at most n_positions
    stride   None: protocol `disjoint`. int: protocol `strided`, each window starts `stride` tokens after the window
             before it; a smaller stride is slower and gives each token more context
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) < 2 or ids.dtype.kind not in "iu":
        raise ConfigError(f"ids of shape {ids.shape} and dtype {ids.dtype}: expected integers (T,), T >= 2")
    spans = stream_spans(len(ids), min(context, model.config.n_positions), stride)
    rows = np.zeros((len(spans), 2))
    for i, nll, _ in window_losses(model, [window(ids, start, end) for start, end, _ in spans]):
        rows[i] = sum_of_counted(nll, spans[i])
    return mean_of_rows(rows)


def mean_nll(model, sequences, loss_masks=None, batch_tokens=BATCH_TOKENS, progress=None):
    """Measure the mean loss over all targets; each sequence stands alone. Returns a Perplexity.

    The arguments are the same as for `Batch.from_sequences`, and progress(part) is called from time to time with the
    part of the tokens that is measured. Raises ConfigError if there is no target.
    """
    check_not_mixed(model)
    lengths, measured = [len(sequence) for sequence in sequences], 0
    masks = loss_masks or [np.ones(len(sequence)) for sequence in sequences]
    rows = []
    for group in group_by_tokens(lengths, batch_tokens):
        batch = Batch.from_sequences([sequences[i] for i in group], [masks[i] for i in group])
        if batch.n_targets:
            nll, _ = token_losses(model, batch)
            rows.append((nll.sum(), len(nll)))
        measured += sum(lengths[i] for i in group)
        if progress:
            progress(measured / sum(lengths))
    if not rows:
        raise ConfigError("nothing to predict: every sequence is masked or has a single token; give longer texts")
    return mean_of_rows(np.array(rows))


def stream_spans(n, context, stride=None):
    """Cut a text of n tokens into windows: [(start, end, first), ...]. The targets first .. end - 1 count.

    stride  None: the windows stand side by side ("disjoint"); int: they start this many tokens apart ("strided")

    Raises ConfigError for an unusable context or stride.
    """
    stride = context if stride is None else stride
    if context < 2 or not 1 <= stride <= context:
        raise ConfigError(f"context = {context}, stride = {stride}: the context must be at least 2, and the stride "
                          "from 1 to the context")
    spans, end = [], 0
    for start in range(0, n, stride):
        first, end = max(end, start + 1), min(start + context, n)
        if first < end:  # otherwise the window has nothing to predict
            spans.append((start, end, first))
    return spans


def document_spans(n, context):
    """Do the same for protocol "document"; n also counts the end-of-text token at the front.

    Each token after the first is a target once. The model sees `context` tokens of a window, so a window holds one
    token more: its last target. The last window is moved back until it is full.
    """
    ends = [(first, min(first + context, n)) for first in range(1, n, context)]
    return [(max(0, end - context - 1), end, first) for first, end in ends]


def window(ids, start, end):
    """Return the Window of ids[start:end]: each token predicts the next one."""
    return Window(ids[start:end - 1], ids[start + 1:end])


def sum_of_counted(nll, span):
    """Return the sum and the number of the losses that count; nll has the losses of all targets of a window."""
    start, _, first = span
    nll = nll[first - start - 1:]
    return nll.sum(), len(nll)


def mean_of_rows(rows):
    """Rows (n, 2), the sum of nll s_i and the number of targets m_i of each window -> Perplexity.

    The losses within a window depend on each other, so a window is one observation. nll is a ratio of sums, with
    standard error se^2 = n / (n - 1) sum_i (s_i - m_i nll)^2 / (sum_i m_i)^2. One window has no standard error.
    Source    Cochran 1977, Sampling Techniques, section 2.11.
    """
    total, targets = rows.sum(axis=0)
    nll, n = total / targets, len(rows)
    residuals = ((rows[:, 0] - rows[:, 1] * nll) ** 2).sum()
    return Perplexity(float(nll), int(targets), math.sqrt(n / (n - 1) * residuals) / targets if n > 1 else None)
