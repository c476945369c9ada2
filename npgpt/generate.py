"""Text from a model: sampling one token after another, with a key/value cache."""

import numpy as np

from npgpt import ops
from npgpt.autograd import Tensor, no_grad
from npgpt.errors import ConfigError, NpgptError
from npgpt.seeding import generator
from npgpt.threads import blas_threads, for_products


class Cache:
    """The keys and values of the tokens a model has seen, so that each new token costs one row of work.

    Attention of the token at position t needs the keys and values of positions 0..t and nothing else of the past. They
    do not change once computed (attention is causal), so they are kept: k and v are (layers, H, capacity, D), filled up
    to `length`. `attend` is what the model calls in place of attention over whole sequences.
    """

    def __init__(self, config, capacity, dtype):
        H = config.n_head
        shape = (config.n_layer, H, capacity, config.n_embd // H)
        self.k, self.v = np.empty(shape, dtype), np.empty(shape, dtype)
        self.length = 0

    def attend(self, layer, qkv, scale):
        """Store this layer's keys and values of the new tokens, and let them attend: qkv (T, 3C) -> (T, C).

        The first call of a sequence takes any T, the prompt; the later ones take one token each.
        """
        _, H, _, D = self.k.shape
        T = len(qkv.data)
        q, k, v = qkv.data.reshape(T, 3, H, D).transpose(1, 2, 0, 3)        # (T, 3C) -> 3 x (H, T, D)
        seen = slice(0, self.length + T)
        self.k[layer, :, self.length:seen.stop], self.v[layer, :, self.length:seen.stop] = k, v
        if self.length == 0:
            return ops.causal_attention(qkv, np.array([T]), H, scale)
        S = (q * scale) @ self.k[layer, :, seen].swapaxes(-1, -2)           # (H, 1, D) -> (H, 1, seen)
        S -= S.max(axis=-1, keepdims=True)
        P = np.exp(S, out=S)
        P /= P.sum(axis=-1, keepdims=True)
        return Tensor((P @ self.v[layer, :, seen]).reshape(1, H * D))       # (H, 1, D) -> (1, C)


def generate(model, ids, max_new_tokens=50, temperature=1.0, top_k=None, top_p=None, seed=None, eos_id=None):
    """Continue a prompt. Returns the prompt and the new ids, int64 (T + new,).

    ids              the prompt, integers (T,), T >= 1
    max_new_tokens   how many tokens to add at most
    temperature      logits are divided by it; 0 takes the likeliest token each time ("greedy")
    top_k            keep only the k likeliest tokens
    top_p            keep only the likeliest tokens whose probabilities reach p together; applied after top_k
    seed             int: the same seed gives the same text; None: another text each time
    eos_id           stop after this token; None: no early stop

    Raises ConfigError for unusable arguments, and where prompt and new tokens do not fit into n_positions.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ConfigError(f"the prompt has shape {ids.shape}, {ids.dtype}: generate takes integers (T,), T >= 1")
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens = {max_new_tokens}: it must be at least 0")
    check_sampling(temperature, top_k, top_p, seed)
    limit, total = model.config.n_positions, len(ids) + max_new_tokens
    if total > limit:
        raise ConfigError(f"a prompt of {len(ids)} tokens and {max_new_tokens} new ones make {total}, more than this "
                          f"model's context of {limit}; shorten the prompt or ask for fewer tokens")
    model.check_ids(ids, len(ids))
    rng = np.random.default_rng() if seed is None else generator(seed, "sample")
    cache = Cache(model.config, total, model.wte.weight.dtype)
    out, new = ids.astype(np.int64).tolist(), ids
    with blas_threads(for_products(model)):
        for _ in range(max_new_tokens):
            token = sample(_next_logits(model, new, cache), rng, temperature, top_k, top_p)
            out.append(token)
            if token == eos_id:
                break
            new = np.array([token])
    return np.array(out, np.int64)


def _next_logits(model, new, cache):
    """Run the new tokens through the model; return the logits (V,) of what follows the last of them."""
    with no_grad():
        positions = np.arange(cache.length, cache.length + len(new))
        hidden = model.hidden(new, positions, cache.attend).data
    cache.length += len(new)
    return model.head().data @ hidden[-1]                                   # (V, C) @ (C,) -> (V,)


def check_sampling(temperature, top_k, top_p, seed):
    """Raise ConfigError, naming the argument, unless these can be sampled with."""
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature = {temperature}: it must be at least 0 (0 is greedy)")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k = {top_k}: it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p = {top_p}: it must be above 0 and at most 1")
    if seed is not None and seed < 0:
        raise ConfigError(f"seed = {seed}: it must be at least 0")


def sample(logits, rng, temperature=1.0, top_k=None, top_p=None):
    """Choose the next token from logits (V,): int. Raises NpgptError where they are not numbers."""
    if np.isnan(logits).any():
        raise NpgptError("the model's logits are not numbers: its weights, or those of its adapter, hold NaN, as after "
                         "a training that diverged; train again with a smaller learning rate")
    if temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits, temperature, top_k, top_p)
    sums = np.cumsum(p)
    return int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))


def probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """Return the distribution (V,), float64, that is sampled from.

    softmax(logits / temperature); then all but the k likeliest are set to 0 (ties with the k-th stay); then, taken from
    the likeliest down, all that come after a sum of p has been reached. The rest is scaled to sum to 1 each time.
    Source    Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p, "nucleus").
    """
    z = logits.astype(np.float64)
    p = np.exp((z - z.max()) / temperature)
    if top_k is not None and top_k < len(p):
        p[p < np.partition(p, -top_k)[-top_k]] = 0
    p /= p.sum()
    if top_p is not None:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # the sum of all likelier tokens
        p[order[before >= top_p]] = 0
        p /= p.sum()
    return p
