"""What may come next: rules that change the scores of the next token before it is drawn.

Each is a pure function of scores z (V,), a float array in which -inf marks a token that cannot come, and returns new
ones; `ids` are the tokens so far, prompt included. p stands for softmax(z). Names and meanings are those of Hugging
Face's logits processors, which the tests hold them to.
"""

import math

import numpy as np


def softmax(z):
    """exp(z) / sum exp(z): scores (V,) -> probabilities (V,)."""
    p = np.exp(z - z.max())
    p /= p.sum()
    return p


def _only(z, kept):
    return np.where(kept, z, -np.inf)


def temperature(z, t):
    """z / t: below 1 the likely become likelier, above 1 all become more alike. t > 0."""
    with np.errstate(over="ignore"):
        return (z - z.max()) / t  # the highest is taken off first, so that a tiny t leaves it at 0


def top_k(z, k):
    """Keep the k highest scores, and what ties with the k-th. Fan et al. 2018."""
    return z if k >= len(z) else _only(z, z >= np.partition(z, -k)[-k])


def top_p(z, p):
    """Keep the fewest of the likeliest tokens that reach probability p together ("nucleus"). Holtzman et al. 2020."""
    return _only_first(z, -z, softmax(z), p)


def min_p(z, p):
    """Keep tokens at least p times as likely as the likeliest. Nguyen et al. 2024."""
    return _only(z, z >= z.max() + math.log(p))


def typical_p(z, p):
    """Keep the fewest tokens that reach p together, by how near their surprise -log p_i is to the mean surprise, the
    entropy H = -sum_i p_i log p_i: first those with the smallest | -log p_i - H |. Meister et al. 2022."""
    probabilities = softmax(z)
    possible = probabilities > 0
    log_p = np.log(probabilities, where=possible, out=np.full(len(z), -np.inf))
    entropy = -np.sum(probabilities[possible] * log_p[possible])
    return _only_first(z, np.abs(-log_p - entropy), probabilities, p)


def _only_first(z, key, probabilities, p):
    """Keep tokens in ascending order of `key` until their probabilities reach p; of equals, the lowest ids."""
    possible = np.flatnonzero(probabilities)
    order = possible[np.argsort(key[possible], kind="stable")]
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros(len(z), bool)
    kept[order[before < p]] = True
    return _only(z, kept)


def repetition_penalty(z, ids, penalty):
    """Divide the positive scores of tokens that have occurred by the penalty, multiply their negative ones by it.
    Keskar et al. 2019 (CTRL), section 4.1, where scores are taken to be positive."""
    z = z.copy()
    seen = np.unique(ids)
    z[seen] = np.where(z[seen] > 0, z[seen] / penalty, z[seen] * penalty)
    return z


def frequency_penalty(z, new, per_occurrence, once):
    """z_i - per_occurrence * n_i - once * [n_i > 0], n_i how often i is among the new tokens, the prompt left out.
    OpenAI's API: frequency_penalty and presence_penalty."""
    counts = np.bincount(np.asarray(new, np.int64), minlength=len(z))
    return z - per_occurrence * counts - once * (counts > 0)


def no_repeat_ngram(z, ids, n):
    """Forbid every token that would complete n tokens that have occurred in that order. Paulus et al. 2018."""
    ids = list(ids)
    last = ids[len(ids) - n + 1:]
    return forbid(z, [ids[i + n - 1] for i in range(len(ids) - n + 1) if ids[i:i + n - 1] == last])


def bad_words(z, ids, words):
    """Forbid the last token of each word, a sequence of ids, where its others have just occurred."""
    ids = list(ids)
    return forbid(z, [word[-1] for word in map(list, words) if ids[len(ids) - len(word) + 1:] == word[:-1]])


def logit_bias(z, bias):
    """z_i + bias[i] for the ids in `bias`, a dict."""
    z = z.copy()
    z[list(bias)] += list(bias.values())
    return z


def forbid(z, tokens):
    """These cannot come: the end of text, say, before a least length."""
    z = z.copy()
    z[list(tokens)] = -np.inf
    return z
