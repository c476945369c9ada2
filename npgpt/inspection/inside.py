"""What a model does with one text, layer by layer: losses, ranks, attention, hidden states and the logit lens."""

from typing import NamedTuple

import numpy as np

from npgpt import ops
from npgpt.autograd import Tensor, no_grad
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.shares import product
from npgpt.runtime.threads import that_pay, workers


class Inside(NamedTuple):
    """The model's numbers for a text of T tokens, collected by `look`.

    ids        (T,)
    hidden     (layers + 1, T, C): the input of the first block, then the output of each block
    attention  (layers, H, T, T): P of each head; row t says how much token t takes from itself and each earlier token
    logits     (T, V): row t predicts token t + 1
    """

    ids: np.ndarray
    hidden: np.ndarray
    attention: np.ndarray
    logits: np.ndarray


def look(model, ids):
    """Run ids (T,) through `model` without dropout and collect the numbers on the way. Returns an Inside.

    This runs the blocks one by one, with its own `attend`: it computes P from the queries and keys, and then calls the
    usual operation for the result. P of all heads is large: 0.6 GB for 1,024 tokens of gpt2.
    Raises ConfigError if the ids do not suit the model.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ConfigError(f"ids of shape {ids.shape} and dtype {ids.dtype}: expected integers (T,), T >= 1")
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
    """Return P of causal attention over one sequence: qkv (T, 3C) -> (H, T, T). See `ops.causal_attention`."""
    T = len(qkv)
    q, k, _ = qkv.reshape(T, 3, n_head, -1).transpose(1, 2, 0, 3)           # (T, 3C) -> 3 x (H, T, D)
    S = scale * q @ k.swapaxes(-1, -2) + np.triu(np.full((T, T), -np.inf, qkv.dtype), k=1)
    return softmax(S)


def _logits(model, hidden):
    """Apply the final norm and the head: hidden (T, C) -> (T, V)."""
    return product(model.ln_f(Tensor(hidden)).data, model.head().data.T)


def softmax(logits):
    """Return the probabilities over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(logits):
    """Return the logarithms of the probabilities over the last axis."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def losses(inside):
    """Return the loss of each token after the first, given all tokens before it: (T - 1,) nats."""
    return -np.take_along_axis(log_softmax(inside.logits[:-1]), inside.ids[1:, None], 1)[:, 0]


def ranks(inside):
    """Return the rank of each token after the first: 1 if the model expected it most. (T - 1,)"""
    before = inside.logits[:-1]
    return 1 + np.sum(before > np.take_along_axis(before, inside.ids[1:, None], 1), axis=1)


def likeliest(logits, k):
    """Return the k likeliest tokens of each row, the likeliest first: logits (T, V) -> ids and probabilities (T, k)."""
    ids = _largest(logits, k)
    return ids, np.take_along_axis(softmax(logits), ids, 1)


def _largest(values, k):
    """Return the places of the k largest values of each row, the largest first: values (T, V) -> (T, k).

    For a small k, sorting the whole row would take longer.
    """
    values, rows, found = values.copy(), np.arange(len(values)), []
    for _ in range(min(k, values.shape[1])):
        found.append(values.argmax(axis=1))
        values[rows, found[-1]] = -np.inf
    return np.stack(found, axis=1)


def logit_lens(model, inside):
    """Yield logits (T, V) for the input of the first block and for the output of each block.

    The final norm and the head make them: this is what the model would predict if it ended there. The last are the
    model's own logits.
    Source    nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    for hidden in inside.hidden:
        with no_grad(), workers(that_pay(model, len(inside.ids))):
            logits = _logits(model, hidden)
        yield logits


def norms(inside):
    """Return the norm of each hidden state: (layers + 1, T)."""
    return np.linalg.norm(inside.hidden, axis=-1)


def moved(base, adapted):
    """Return how far an adapter moved each hidden state, relative to its norm in the base: (layers + 1, T)."""
    return np.linalg.norm(adapted.hidden - base.hidden, axis=-1) / norms(base)


def divergence(base, adapted):
    """Return how much an adapter changed the prediction after each token: KL(adapted || base) in nats, (T,)."""
    log_p, log_q = (log_softmax(inside.logits.astype(np.float64)) for inside in (adapted, base))
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=1)


def biggest_changes(base, adapted, k):
    """Return, after each token, the k tokens whose probability an adapter changed most, the largest change first: their
    ids (T, k), probabilities in the base (T, k) and probabilities with the adapter (T, k)."""
    before, after = softmax(base.logits), softmax(adapted.logits)
    ids = _largest(np.abs(after - before), k)
    return ids, np.take_along_axis(before, ids, 1), np.take_along_axis(after, ids, 1)
