"""ROUGE-L and CIDEr, as the program coco-caption computes them. `items` says what their arguments are.

The E2E challenge (github.com/tuetschek/e2e-metrics) scores with this program, and so does the LoRA paper. Its METEOR
is not here: it needs WordNet and a table of paraphrases.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from npgpt.evaluation.items import items_of, mean_score, ngrams_up_to

# Words


def words_ptb(text):
    """Split a text as coco-caption does: lower case, the words of the Penn Treebank, no punctuation.

    The published program is Stanford's Java tokenizer of 2014, a grammar of a thousand lines. Our rules give the same
    words for all texts of E2E (the version that comes with LoRA's code) and for 97 of 100 passages of novels (LAMBADA).
    As in the original, "(" becomes "-lrb-" and counts as a word, and every currency sign except the pound becomes "$".
    """
    found = _PTB.findall(text.lower().replace("\u2019", "'"))
    return [word for word in (_PTB_NAMES.get(word, word) for word in found) if word not in _PTB_LEFT_OUT]


_PTB_NAMES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$"}
_PTB_LEFT_OUT = {*"'`.?!,:-;", '"', "--", "...", "\u201c", "\u201d", "\u2018", "\u2013", "\u2014", "\u2026"}
_PTB = re.compile(r"""
    https?://\S+ | [\w.+-]+@\w[\w.-]*\w                                     # addresses
  | (?<!\w)[a-z]\.(?:[a-z]\.)*(?!\w)                                        # u.k., p.m.
  | (?:mr|mrs|ms|dr|st|jr|sr|prof|rev|gen|vs|etc|inc|ltd|co|corp|approx|no(?=\.\s\d))\.
  | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b) | 't(?=is\b|was\b)
  | n't\b | '(?:s|m|d|ll|re|ve)\b | (?<!\w)'(?:em|\d\ds?)\b                 # the ends of don't and it's; 'em, '90s
  | [+-]?(?:\d[\d.,:/]*\d|\.?\d+)(?:-\w+)*(?:[a-z]\w*)?                     # 3.50, 20-25, 5-star
  | (?:(?!n't\b)\w)+(?:(?<=\b[do])'\w+|[./&-](?=\w)(?:(?!n't\b)\w)+)*       # kid-friendly, and/or, o'clock
  | \.\.\.+ | --+ | [^\s\w]
""", re.VERBOSE)


# ROUGE-L


def rouge_l(outputs, references, words=words_ptb, beta=1.2):
    """Return ROUGE-L in percent: how long a sequence of words the output shares with a reference; a mean over items.

    lcs is the length of the longest common subsequence, which may have gaps in both texts.
        P = max over the references of lcs / words of the output,   R = max of lcs / words of the reference
        F = (1 + beta^2) P R / (R + beta^2 P)
    The two maxima may come from different references, as in coco-caption. beta = 1 gives the F1 of the package
    rouge-score.
    Source    Lin 2004; beta = 1.2 as in coco-caption.
    """
    return float(mean_score(rouge_l_rows(outputs, references, words, beta).sum(axis=0)))


def rouge_l_rows(outputs, references, words=words_ptb, beta=1.2):
    """Return (items, 2): 100 F of the item, and 1."""
    rows = []
    for item in items_of(outputs, references, words):
        lcs = [longest_common_subsequence(item.output, reference) for reference in item.references]
        P = max(lcs) / max(len(item.output), 1)
        R = max(length / max(len(reference), 1) for length, reference in zip(lcs, item.references, strict=True))
        rows.append([100 * (1 + beta**2) * P * R / (R + beta**2 * P) if P else 0.0, 1])
    return np.array(rows, np.float64)


def longest_common_subsequence(a, b):
    """Return the length of the longest sequence that stands in both lists, with gaps allowed.

    In the usual table a column grows by 0 or 1 from row to row. So one integer holds the column, a bit for each row,
    and an addition makes the next column.
    Source    Crochemore et al. 2001, "A fast and practical bit-vector algorithm for the LCS".
    """
    places = {}
    for i, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(b)) - 1
    flat = full  # bit i is set: the column does not grow at row i
    for word in a:
        here = flat & places.get(word, 0)
        flat = (flat + here | flat - here) & full
    return len(b) - flat.bit_count()


# CIDEr


def cider(outputs, references, words=words_ptb):
    """Return CIDEr-D, 0 to 10: the cosine similarity of weighted counts of n-grams. Rare n-grams weigh more.

    For n = 1..4 a text becomes the vector g_n, with one entry for each n-gram:
        its count x (ln of the number of items - ln max(1, number of items with a reference that has the n-gram))
    For an output x and a reference y,
        sim_n = sum min(g_n(x), g_n(y)) g_n(y) / (|g_n(x)| |g_n(y)|) x exp(-(l_x - l_y)^2 / (2 x 6^2))
        CIDEr = 10 x mean over items of the mean over references and n of sim_n
    l is the number of pairs of neighbouring words, one less than the words (as in coco-caption). With a single item
    every weight is ln 1 = 0, and so is the score.
    Source    Vedantam et al. 2015, variant D; coco-caption and E2E call it CIDEr.
    """
    return float(mean_score(cider_rows(outputs, references, words).sum(axis=0)))


def cider_rows(outputs, references, words=words_ptb):
    """Return (items, 2): CIDEr-D of the item, and 1. An item's score depends on the references of all items."""
    items = items_of(outputs, references, words)
    frequency = Counter(gram for item in items
                        for gram in {gram for reference in item.references for gram in ngrams_up_to(reference, 4)})
    rows = []
    for item in items:
        output = _vectors(item.output, frequency, len(items))
        total = sum(_similarity(output, _vectors(reference, frequency, len(items))) for reference in item.references)
        rows.append([10 * total / (4 * len(item.references)), 1])
    return np.array(rows, np.float64)


class _Vectors(NamedTuple):
    weighted: list  # of 4 dicts n-gram -> weighted count: g_1 .. g_4
    norms: list     # |g_1| .. |g_4|
    length: int     # l


def _vectors(text, frequency, items):
    weighted = [{}, {}, {}, {}]
    for gram, count in ngrams_up_to(text, 4).items():
        weighted[len(gram) - 1][gram] = count * (math.log(items) - math.log(max(1, frequency[gram])))
    return _Vectors(weighted, [math.sqrt(sum(w * w for w in g.values())) for g in weighted], max(len(text) - 1, 0))


def _similarity(x, y):
    """Return the sum of sim_n over n = 1..4."""
    penalty, total = math.exp(-((x.length - y.length) ** 2) / (2 * 6.0**2)), 0.0
    for gx, gy, norms in zip(x.weighted, y.weighted, np.multiply(x.norms, y.norms), strict=True):
        product = sum(min(w, gy[gram]) * gy[gram] for gram, w in gx.items() if gram in gy)
        total += penalty * product / norms if norms else 0.0
    return total
