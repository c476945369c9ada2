"""What a model does with one text, layer by layer: losses, ranks, attention, hidden states, and the logit lens."""

from typing import NamedTuple

import numpy as np

from npgpt import ops
from npgpt.autograd import Tensor, no_grad
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.shares import product
from npgpt.runtime.threads import that_pay, workers


class Inside(NamedTuple):
    """What `look` saw of a text of T tokens.

    ids        (T,)
    hidden     (layers + 1, T, C): what enters the first block, and what each block puts out
    attention  (layers, H, T, T): P of each head, row by row what a token takes from itself and those before it
    logits     (T, V): of the token after each
    """

    ids: np.ndarray
    hidden: np.ndarray
    attention: np.ndarray
    logits: np.ndarray


def look(model, ids):
    """Run ids (T,) through `model` without dropout and keep what is seen on the way: Inside.

    The blocks are run here one by one, with an `attend` that makes P from the queries and keys it is handed; what it
    returns to the model comes from the same operation as always. P of all heads is large: 0.6 GB for 1,024 tokens of
    gpt2. Raises ConfigError where the model cannot take the ids.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ConfigError(f"ids of shape {ids.shape}, {ids.dtype}: look takes integers (T,), T >= 1")
    model.check_ids(ids, len(ids))
    attention = []

    def attend(_layer, qkv, scale):
        attention.append(probabilities(qkv.data, model.config.n_head, scale))
        return ops.causal_attention(qkv, np.array([len(ids)]), model.config.n_head, scale)

    with no_grad(), workers(that_pay(model, len(ids))):
        x = ops.add(model.wte(ids), model.wpe(np.arange(len(ids))))         # (T,) -> (T, C)
        hidden = [x.data]
        for block in model.h:
            x = block(x, attend, None)
            hidden.append(x.data)
        logits = _logits(model, x.data)
    return Inside(ids, np.stack(hidden), np.stack(attention), logits)


def probabilities(qkv, n_head, scale):
    """P of causal attention over one sequence: qkv (T, 3C) -> (H, T, T). See `ops.causal_attention`."""
    T = len(qkv)
    q, k, _ = qkv.reshape(T, 3, n_head, -1).transpose(1, 2, 0, 3)           # (T, 3C) -> 3 x (H, T, D)
    S = scale * q @ k.swapaxes(-1, -2) + np.triu(np.full((T, T), -np.inf, qkv.dtype), k=1)
    return softmax(S)


def _logits(model, hidden):
    """The final norm and the head: hidden (T, C) -> (T, V)."""
    return product(model.ln_f(Tensor(hidden)).data, model.head().data.T)


def softmax(logits):
    """Probabilities over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(logits):
    """Logarithms of probabilities over the last axis."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def losses(inside):
    """The loss of each token but the first, given those before it: (T - 1,) nats."""
    return -np.take_along_axis(log_softmax(inside.logits[:-1]), inside.ids[1:, None], 1)[:, 0]


def ranks(inside):
    """The place of each token but the first among all tokens by likelihood, counted from 1: (T - 1,)."""
    before = inside.logits[:-1]
    return 1 + np.sum(before > np.take_along_axis(before, inside.ids[1:, None], 1), axis=1)


def likeliest(logits, k):
    """The k likeliest tokens of each row, likeliest first: logits (T, V) -> ids (T, k), probabilities (T, k)."""
    ids = _largest(logits, k)
    return ids, np.take_along_axis(softmax(logits), ids, 1)


def _largest(values, k):
    """Where the k largest of each row are, largest first: values (T, V) -> (T, k). For a few, sorting takes longer."""
    values, rows, found = values.copy(), np.arange(len(values)), []
    for _ in range(min(k, values.shape[1])):
        found.append(values.argmax(axis=1))
        values[rows, found[-1]] = -np.inf
    return np.stack(found, axis=1)


def logit_lens(model, inside):
    """Yield, for what enters the first block and for what each block puts out, the logits (T, V) that the final norm
    and the head make of it: what the model would say if it ended there. The last are the model's own.

    Source    nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    for hidden in inside.hidden:
        with no_grad(), workers(that_pay(model, len(inside.ids))):
            logits = _logits(model, hidden)
        yield logits


def norms(inside):
    """The length of each hidden state: (layers + 1, T)."""
    return np.linalg.norm(inside.hidden, axis=-1)


def moved(base, adapted):
    """How far an adapter moved each hidden state, as a share of its length in the base: (layers + 1, T)."""
    return np.linalg.norm(adapted.hidden - base.hidden, axis=-1) / norms(base)


def divergence(base, adapted):
    """How much an adapter changed what is expected after each token: KL(adapted || base) in nats, (T,)."""
    log_p, log_q = (log_softmax(inside.logits.astype(np.float64)) for inside in (adapted, base))
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=1)


def biggest_changes(base, adapted, k):
    """The tokens whose probability an adapter changed most after each token, largest change first: ids (T, k),
    probabilities in the base (T, k) and with the adapter (T, k)."""
    before, after = softmax(base.logits), softmax(adapted.logits)
    ids = _largest(np.abs(after - before), k)
    return ids, np.take_along_axis(before, ids, 1), np.take_along_axis(after, ids, 1)
