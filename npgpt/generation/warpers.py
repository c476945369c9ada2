"""The rules that change the scores of the next token before it is drawn.

Each rule is a pure function. It takes scores z (V,), a float array in which -inf marks a forbidden token, and returns
new scores. `ids` are the tokens so far, with the prompt; p is softmax(z). Names and meanings are the same as for
Hugging Face's logits processors, and a test compares the two. Those work on PyTorch tensors, so we have our own.
"""

import math

import numpy as np


def softmax(z):
    """Return exp(z) / sum exp(z): scores (V,) -> probabilities (V,)."""
    p = np.exp(z - z.max())
    p /= p.sum()
    return p


def _keep(z, kept):
    return np.where(kept, z, -np.inf)


def temperature(z, t):
    """Return z / t, t > 0. A t below 1 favours the likely tokens; a t above 1 makes all tokens more alike."""
    with np.errstate(over="ignore"):
        return (z - z.max()) / t  # subtract the highest score first: it stays 0 even for a tiny t


def top_k(z, k):
    """Keep the k highest scores, and scores equal to the k-th. Fan et al. 2018."""
    return z if k >= len(z) else _keep(z, z >= np.partition(z, -k)[-k])


def top_p(z, p):
    """Keep the fewest likeliest tokens whose probabilities sum to p or more ("nucleus"). Holtzman et al. 2020."""
    return _keep_first(z, -z, softmax(z), p)


def min_p(z, p):
    """Keep tokens that are at least p times as likely as the likeliest. Nguyen et al. 2024."""
    return _keep(z, z >= z.max() + math.log(p))


def typical_p(z, p):
    """Keep the most typical tokens until their probabilities sum to p or more. Meister et al. 2022.

    The surprise of token i is -log p_i. Its mean is the entropy H = -sum_i p_i log p_i. A token is the more typical,
    the smaller | -log p_i - H | is.
    """
    probabilities = softmax(z)
    possible = probabilities > 0
    log_p = np.log(probabilities, where=possible, out=np.full(len(z), -np.inf))
    entropy = -np.sum(probabilities[possible] * log_p[possible])
    return _keep_first(z, np.abs(-log_p - entropy), probabilities, p)


def _keep_first(z, key, probabilities, p):
    """Keep tokens in ascending order of `key` until their probabilities sum to p. Equal keys: the lower id first."""
    possible = np.flatnonzero(probabilities)
    order = possible[np.argsort(key[possible], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros(len(z), bool)
    kept[order[before < p]] = True
    return _keep(z, kept)


def repetition_penalty(z, ids, penalty):
    """Make the tokens in `ids` less likely: divide positive scores by the penalty, multiply negative scores by it.

    Source    Keskar et al. 2019 (CTRL), section 4.1, which assumes positive scores.
    """
    z = z.copy()
    seen = np.unique(ids)
    z[seen] = np.where(z[seen] > 0, z[seen] / penalty, z[seen] * penalty)
    return z


def frequency_penalty(z, new, per_occurrence, once):
    """Return z_i - per_occurrence * n_i - once * [n_i > 0]; n_i counts token i in `new`, the tokens after the prompt.

    Source    frequency_penalty and presence_penalty of OpenAI's API.
    """
    counts = np.bincount(np.asarray(new, np.int64), minlength=len(z))
    return z - per_occurrence * counts - once * (counts > 0)


def no_repeat_ngram(z, ids, n):
    """Forbid every token that would repeat a run of n tokens. Paulus et al. 2018."""
    ids = list(ids)
    last = ids[len(ids) - n + 1:]
    return forbid(z, [ids[i + n - 1] for i in range(len(ids) - n + 1) if ids[i:i + n - 1] == last])


def bad_words(z, ids, words):
    """Forbid the last token of a word if its other tokens have just occurred. A word is a sequence of ids."""
    ids = list(ids)
    return forbid(z, [word[-1] for word in map(list, words) if ids[len(ids) - len(word) + 1:] == word[:-1]])


def logit_bias(z, bias):
    """Return z_i + bias[i] for the ids in `bias`, a dict."""
    z = z.copy()
    z[list(bias)] += list(bias.values())
    return z


def forbid(z, tokens):
    """Forbid these tokens, for example the end of text before a minimum length."""
    z = z.copy()
    z[list(tokens)] = -np.inf
    return z
