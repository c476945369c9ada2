"""BLEU and NIST, as the program mteval-v13a computes them. `items` says what their arguments are.

The E2E challenge (github.com/tuetschek/e2e-metrics) scores with this program, and so does the LoRA paper.
"""

import math
import re
import string
from collections import Counter

import numpy as np

from npgpt.evaluation.items import highest_counts, items_of, ngrams, ngrams_up_to

# Words


def words_13a(text):
    """Split a text as mteval-v13a does, the tokenisation of published BLEU scores. Upper case stays.

    A punctuation mark is a word of its own, with three exceptions: an apostrophe, a hyphen that does not follow a
    digit, and a period or comma between digits.
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = _PUNCTUATION.sub(r" \1 ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


_PUNCTUATION = re.compile("([" + re.escape("".join(set(string.punctuation) - set("'-.,"))) + "])")


def words_13a_lower(text):
    """Split a text in lower case, as mteval-v13a does by default, and the E2E challenge and the LoRA paper with it."""
    return words_13a(text.lower())


# BLEU


def bleu(outputs, references, words=words_13a_lower):
    """Return BLEU-4 in percent: how many of the outputs' n-grams, n = 1..4, also stand in the references.

    For each n, over all items,
        p_n = sum of min(count in the output, highest count in any one of its references) / sum of counts in the outputs
        BLEU = 100 BP (p_1 p_2 p_3 p_4)^(1/4),   BP = min(1, exp(1 - r / c))
    c counts the words of all outputs. r counts the words of one reference for each output: the one nearest in length,
    the shorter of two equally near ones. If no n-gram matches for some n, then p_n = 1 / (2^k times its denominator),
    where this n is the k-th such n. If nothing matches for any n, or if no output has four words, BLEU is 0.
    Source    Papineni et al. 2002; smoothing and words from NIST's mteval-v13a. Equals sacrebleu, lowercase=True.
    """
    return float(bleu_score(bleu_rows(outputs, references, words).sum(axis=0)))


def bleu_rows(outputs, references, words=words_13a_lower):
    """Return (items, 10): matches for n = 1..4, counts for n = 1..4, words of the output and the nearest reference."""
    rows = []
    for item in items_of(outputs, references, words):
        matches, counts = [], []
        for n in range(1, 5):
            ours = ngrams(item.output, n)
            matches.append((ours & highest_counts(item.references, n)).total())
            counts.append(ours.total())
        c = len(item.output)
        rows.append([*matches, *counts, c, min((abs(len(r) - c), len(r)) for r in item.references)[1]])
    return np.array(rows, np.float64)


def bleu_score(sums):
    """Sums of rows (..., 10) -> BLEU (...)."""
    matches, counts, c, r = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    none = matches == 0
    smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), matches)
    defined = (counts > 0).all(axis=-1) & ~none.all(axis=-1)
    precision = np.exp(np.log(smoothed / np.maximum(counts, 1)).mean(axis=-1))
    return 100 * np.where(defined, precision * np.exp(np.minimum(0, 1 - r / np.maximum(c, 1))), 0.0)


# NIST


def nist(outputs, references, words=words_13a_lower):
    """Return NIST-5, which has no upper bound: like BLEU, but a match of a rare n-gram counts more.

    The weight of an n-gram is its information in bits,
        info(w_1..w_n) = log2(count of w_1..w_{n-1} / count of w_1..w_n)
    with counts over all references of all items; for n = 1 the numerator counts all their words. Over all items, with
    matches counted as in BLEU,
        NIST = sum_{n=1..5} [sum of matches x info / sum of counts in the outputs] x exp(-beta ln^2 min(1, c / r))
    c counts the words of all outputs. r is the number of items times the mean length of all references. beta makes the
    last factor 1/2 at c / r = 2/3.
    Source    Doddington 2002; the mean length as in the mteval-v13a of e2e-metrics: all words / all references.
    """
    return float(nist_score(nist_rows(outputs, references, words).sum(axis=0)))


def nist_rows(outputs, references, words=words_13a_lower):
    """Return (items, 13): matched information for n = 1..5, counts for n = 1..5, words of the references, their
    number, and 1."""
    items = items_of(outputs, references, words)
    seen = Counter()  # () counts all words
    for reference in (reference for item in items for reference in item.references):
        seen[()] += len(reference)
        seen.update(ngrams_up_to(reference, 5))
    rows = []
    for item in items:
        information, counts = [], []
        for n in range(1, 6):
            ours = ngrams(item.output, n)
            matched = ours & highest_counts(item.references, n)
            information.append(sum(k * math.log2(seen[gram[:-1]] / seen[gram]) for gram, k in matched.items()))
            counts.append(ours.total())
        rows.append([*information, *counts, sum(map(len, item.references)), len(item.references), 1])
    return np.array(rows, np.float64)


def nist_score(sums):
    """Sums of rows (..., 13) -> NIST (...)."""
    information, counts = sums[..., :5], sums[..., 5:10]
    expected = sums[..., 10] * sums[..., 12] / sums[..., 11]
    ratio = np.clip(counts[..., 0] / np.maximum(expected, 1), 1e-300, 1)
    beta = math.log(2) / math.log(1.5) ** 2
    return (information / np.maximum(counts, 1)).sum(axis=-1) * np.exp(-beta * np.log(ratio) ** 2)
