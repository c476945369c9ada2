"""How well a model predicts text it was not shown."""

import math
from typing import NamedTuple

import numpy as np

from npgpt.autograd import no_grad
from npgpt.batch import Batch
from npgpt.errors import ConfigError
from npgpt.threads import blas_threads, for_products


class Perplexity(NamedTuple):
    """nll: mean negative log-likelihood, nats a predicted token; tokens: how many were predicted."""

    nll: float
    tokens: int

    @property
    def ppl(self):
        """Perplexity, e^nll: as uncertain as a fair choice among this many tokens."""
        return math.exp(self.nll) if self.nll < 709 else math.inf


def perplexity(model, ids, context=1024, stride=None):
    """Perplexity of one long text.

    ids      integers (T,), T >= 2
    context  window length in tokens; at most n_positions is used
    stride   None: windows stand side by side, and the first token of each is not predicted.
             An int: each window starts `stride` tokens after the one before; the tokens that no earlier window
             predicted are counted (Hugging Face's protocol). Smaller is slower and closer to the truth.
    """
    ids = np.asarray(ids)
    context = min(context, model.config.n_positions)
    stride = context if stride is None else stride
    if ids.ndim != 1 or len(ids) < 2:
        raise ConfigError(f"ids of shape {ids.shape}: perplexity takes at least two integers in one row")
    if context < 2 or not 1 <= stride <= context:
        raise ConfigError(f"context = {context}, stride = {stride}: the context must be at least 2 and the stride from "
                          "1 to the context")
    windows, masks, counted = [], [], 0
    for start in range(0, len(ids), stride):
        end = min(start + context, len(ids))
        windows.append(ids[start:end])
        masks.append(np.arange(start, end) >= counted)
        counted = end
        if end == len(ids):
            break
    return mean_nll(model, windows, masks)


def mean_nll(model, sequences, loss_masks=None, batch_tokens=2048):
    """Mean loss over all targets of all sequences, each by itself, without dropout: a Perplexity.

    Sequences are worked through in batches of about `batch_tokens` tokens, longest first so that a batch's lengths are
    nearly equal; how they are grouped does not change the result beyond rounding.
    """
    masks = loss_masks or [np.ones(len(sequence)) for sequence in sequences]
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    total, targets, group = 0.0, 0, []
    with no_grad(), blas_threads(for_products(model)):
        for place, i in enumerate(order):
            group.append(i)
            if sum(len(sequences[j]) for j in group) < batch_tokens and place + 1 < len(order):
                continue
            batch = Batch.from_sequences([sequences[j] for j in group], [masks[j] for j in group])
            if batch.n_targets:
                total += float(model.loss(batch).data) * batch.n_targets
                targets += batch.n_targets
            group = []
    if targets == 0:
        raise ConfigError("nothing to predict: every sequence is a single token or masked; give longer texts")
    return Perplexity(total / targets, targets)
