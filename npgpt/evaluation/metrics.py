"""How near generated text comes to reference texts: BLEU, NIST, ROUGE-L, CIDEr and exact match, as they are published.

A metric is two steps. `*_rows` turns each item (an output and its references) into one row of numbers; `*_score` turns
the sum of the rows into the score. A corpus score is not a mean of item scores (BLEU's brevity is of the whole corpus),
but it is a function of sums, so an interval by resampling items costs a matrix product and no second look at a text.

outputs      list of n str
references   list of n lists of str, at least one each
words        how a text becomes words, str -> list of str; each metric's default is that of its published program

These are the metrics of the E2E challenge, with whose program (github.com/tuetschek/e2e-metrics) LoRA's table of
results was made too: BLEU and NIST of mteval-v13a, ROUGE-L and CIDEr of coco-caption. Its fifth, METEOR, needs WordNet
and a table of paraphrases, and is not here.
"""

import math
import re
import string
from collections import Counter
from typing import NamedTuple

import numpy as np

from npgpt.runtime.errors import ConfigError

# Words


def words_13a(text):
    """Split as mteval-v13a does, the tokenisation of published BLEU scores; case is left.

    Punctuation is a word of its own, but not the apostrophe, not a hyphen unless a digit stands before it, and not a
    period or comma between digits.
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
    """Split as mteval-v13a does unless told to preserve case; so do the E2E challenge and LoRA's table."""
    return words_13a(text.lower())


def words_ptb(text):
    """Split as coco-caption does: lower case, Penn Treebank's words, punctuation left out.

    The published program is Stanford's Java tokenizer of 2014, a grammar of a thousand lines. These rules give the same
    words for all texts of E2E as it is spread with LoRA's code, and for 97 of 100 passages of novels (LAMBADA). As
    there, "(" becomes "-lrb-" and is not taken for punctuation, and all currencies but the pound become "$".
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


# BLEU


def bleu(outputs, references, words=words_13a_lower):
    """BLEU-4 in percent: how many of the outputs' words, pairs, triples and quadruples the references have.

    For each n = 1..4, over all items,
        p_n = sum of min(count in the output, highest count in any one of its references) / sum of counts in the outputs
        BLEU = 100 BP (p_1 p_2 p_3 p_4)^(1/4),   BP = min(1, exp(1 - r / c))
    with c the words of the outputs and r those of the references that are nearest in length (of two, the shorter).
    Where nothing matches for the k-th of the n's, p_n = 1 / (2^k times its denominator); where nothing matches for any
    n, or no output is four words long, BLEU is 0.
    Source    Papineni et al. 2002; smoothing and words of NIST's mteval-v13a. Equals sacrebleu, lowercase=True.
    """
    return float(bleu_score(bleu_rows(outputs, references, words).sum(axis=0)))


def bleu_rows(outputs, references, words=words_13a_lower):
    """(n, 10): matches for n = 1..4, counts for n = 1..4, the output's words, the nearest reference's words."""
    rows = []
    for item in _items(outputs, references, words):
        matches, counts = [], []
        for n in range(1, 5):
            ours = ngrams(item.output, n)
            matches.append((ours & _union(item.references, n)).total())
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
    """NIST-5, unbounded: as BLEU, but a match counts as many bits as it is rare in the references.

    info(w_1..w_n) = log2(count of w_1..w_{n-1} / count of w_1..w_n) over all references of all items (for n = 1 the
    numerator is all their words). Over all items, with matches counted as in BLEU,
        NIST = sum_{n=1..5} [sum of matches x info / sum of counts in the outputs] x exp(-beta ln^2 min(1, c / r))
    with c the words of the outputs, r those of as many references of average length, and beta such that the last factor
    is 1/2 for c / r = 2/3.
    Source    Doddington 2002; the average length as in the mteval-v13a of e2e-metrics: all words / all references.
    """
    return float(nist_score(nist_rows(outputs, references, words).sum(axis=0)))


def nist_rows(outputs, references, words=words_13a_lower):
    """(n, 13): information matched for n = 1..5, counts for n = 1..5, words of the references, references, 1."""
    items = _items(outputs, references, words)
    seen = Counter()
    for item in items:
        for reference in item.references:
            seen[()] += len(reference)
            for n in range(1, 6):
                seen.update(ngrams(reference, n))
    rows = []
    for item in items:
        information, counts = [], []
        for n in range(1, 6):
            ours = ngrams(item.output, n)
            matched = ours & _union(item.references, n)
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


# ROUGE-L


def rouge_l(outputs, references, words=words_ptb, beta=1.2):
    """ROUGE-L in percent: how long a subsequence of words the output and a reference share, averaged over the items.

    lcs is the length of the longest common subsequence, which may have gaps in both.
        P = max over the references of lcs / words of the output,   R = max of lcs / words of the reference
        F = (1 + beta^2) P R / (R + beta^2 P)
    The two maxima may be of different references, as in coco-caption. beta = 1 is the F1 of the rouge-score package.
    Source    Lin 2004; beta = 1.2 as in coco-caption.
    """
    return float(mean_score(rouge_l_rows(outputs, references, words, beta).sum(axis=0)))


def rouge_l_rows(outputs, references, words=words_ptb, beta=1.2):
    """(n, 2): 100 F of each item, 1."""
    rows = []
    for item in _items(outputs, references, words):
        lcs = [longest_common_subsequence(item.output, reference) for reference in item.references]
        P = max(lcs) / max(len(item.output), 1)
        R = max(length / max(len(reference), 1) for length, reference in zip(lcs, item.references, strict=True))
        rows.append([100 * (1 + beta**2) * P * R / (R + beta**2 * P) if P else 0.0, 1])
    return np.array(rows, np.float64)


def longest_common_subsequence(a, b):
    """The length of the longest sequence that is in both lists, gaps allowed.

    A column of the usual table grows by 0 or 1 from row to row, so it is kept as the bits of one integer, and a new
    column is an addition. Source: Crochemore et al. 2001, "A fast and practical bit-vector algorithm for the LCS".
    """
    places = {}
    for i, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(b)) - 1
    flat = full  # bit i: the table does not grow at row i
    for word in a:
        here = flat & places.get(word, 0)
        flat = (flat + here | flat - here) & full
    return len(b) - flat.bit_count()


# CIDEr


def cider(outputs, references, words=words_ptb):
    """CIDEr-D, 0 to 10: cosine similarity of n-grams weighted by how few items' references have them.

    For n = 1..4 a text is the vector g_n of, for each n-gram, its count x (ln items - ln max(1, items with a reference
    that has it)). With output x and reference y,
        sim_n = sum min(g_n(x), g_n(y)) g_n(y) / (|g_n(x)| |g_n(y)|) x exp(-(l_x - l_y)^2 / (2 x 6^2))
        CIDEr = 10 x mean over items of the mean over references and n of sim_n
    l is the number of pairs of words (as in coco-caption; one less than the words). Of a single item all weights are
    ln 1 = 0, and so is its score.
    Source    Vedantam et al. 2015, whose variant D coco-caption computes and E2E calls CIDEr.
    """
    return float(mean_score(cider_rows(outputs, references, words).sum(axis=0)))


def cider_rows(outputs, references, words=words_ptb):
    """(n, 2): CIDEr-D of each item, 1; an item's score depends on the references of all."""
    items = _items(outputs, references, words)
    frequency = Counter(gram for item in items
                        for gram in {gram for reference in item.references for gram in _up_to_4(reference)})

    def vectors(text):
        weighted = [{}, {}, {}, {}]
        for gram, count in _up_to_4(text).items():
            weighted[len(gram) - 1][gram] = count * (math.log(len(items)) - math.log(max(1, frequency[gram])))
        return weighted, [math.sqrt(sum(w * w for w in g.values())) for g in weighted], max(len(text) - 1, 0)

    rows = []
    for item in items:
        x, x_norms, x_length = vectors(item.output)
        total = 0.0
        for reference in item.references:
            y, y_norms, y_length = vectors(reference)
            penalty = math.exp(-((x_length - y_length) ** 2) / (2 * 6.0**2))
            for gx, gy, norms in zip(x, y, np.multiply(x_norms, y_norms), strict=True):
                product = sum(min(w, gy[gram]) * gy[gram] for gram, w in gx.items() if gram in gy)
                total += penalty * product / norms if norms else 0.0
        rows.append([10 * total / (4 * len(item.references)), 1])
    return np.array(rows, np.float64)


# Exact match


def exact_match(outputs, references):
    """Percent of outputs that equal one of their references, both in lower case and without punctuation, articles and
    superfluous white space. Source: Rajpurkar et al. 2016, SQuAD's evaluation script."""
    return float(mean_score(exact_match_rows(outputs, references).sum(axis=0)))


def exact_match_rows(outputs, references):
    """(n, 2): 100 where the output equals a reference, else 0; and 1."""
    return np.array([[100.0 * (item.output in item.references), 1]
                     for item in _items(outputs, references, words_squad)])


def words_squad(text):
    """The words that SQuAD compares: no punctuation, no articles, lower case."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


# What they share


def mean_score(sums):
    """Sums of rows (..., 2) of a value and a weight -> the weighted mean (...)."""
    return sums[..., 0] / sums[..., 1]


METRICS = {
    "BLEU": (bleu_rows, bleu_score),
    "NIST": (nist_rows, nist_score),
    "ROUGE-L": (rouge_l_rows, mean_score),
    "CIDEr": (cider_rows, mean_score),
}


class _Item(NamedTuple):
    output: list  # of words
    references: list  # of lists of words


def _items(outputs, references, words):
    """Pair each output with its references, in words. Raises ConfigError, naming the item."""
    if len(outputs) != len(references) or not outputs:
        raise ConfigError(f"{len(outputs)} outputs and {len(references)} lists of references: expected as many "
                          "of each, at least one")
    for i, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ConfigError(f"the references of output {i} are {texts!r:.60}: expected a list of at least one text")
    return [_Item(words(output), [words(text) for text in texts])
            for output, texts in zip(outputs, references, strict=True)]


def ngrams(text, n):
    """Count the runs of n words in a list of words: Counter of tuples."""
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def _union(texts, n):
    """For each run of n words its highest count in any one text."""
    union = Counter()
    for text in texts:
        union |= ngrams(text, n)
    return union


def _up_to_4(text):
    counts = Counter()
    for n in range(1, 5):
        counts.update(ngrams(text, n))
    return counts
