"""What all metrics of generated text share: the texts as words, counts of n-grams, and a score as a function of sums.

A metric has two steps. `*_rows` turns each item (an output and its references) into one row of numbers. `*_score` turns
the sum of the rows into the score. A corpus score is not a mean of item scores (BLEU's brevity penalty looks at the
whole corpus), but it is a function of these sums. So the bootstrap can score a resampled corpus by a matrix product,
without reading a text again.

outputs      list of n str
references   list of n lists of str, at least one in each
words        splits a text into words, str -> list of str; each metric's default is its published program's

Why not a package: sacrebleu, nltk and rouge-score return scores but not these rows, and coco-caption needs Java. The
tests compare ours with all four.
"""

from collections import Counter
from typing import NamedTuple

from npgpt.runtime.errors import ConfigError


class Item(NamedTuple):
    """output: list of words; references: list of lists of words."""

    output: list
    references: list


def items_of(outputs, references, words):
    """Return a list of Items: each output and its references, in words. Raises ConfigError, naming the item."""
    if len(outputs) != len(references) or not outputs:
        raise ConfigError(f"{len(outputs)} outputs and {len(references)} lists of references: expected the same number "
                          "of each, and at least one")
    for i, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ConfigError(f"the references of output {i} are {texts!r:.60}: expected a list of at least one text")
    return [Item(words(output), [words(text) for text in texts])
            for output, texts in zip(outputs, references, strict=True)]


def ngrams(text, n):
    """Count the n-grams, the runs of n words, in a list of words: Counter of tuples."""
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def ngrams_up_to(text, most):
    """Count the n-grams of a list of words for all n = 1 .. most: one Counter."""
    counts = Counter()
    for n in range(1, most + 1):
        counts.update(ngrams(text, n))
    return counts


def highest_counts(texts, n):
    """Return a Counter: for each n-gram its highest count in any one of the texts."""
    highest = Counter()
    for text in texts:
        highest |= ngrams(text, n)
    return highest


def mean_score(sums):
    """Sums of rows (..., 2), a value and a weight -> the weighted mean (...)."""
    return sums[..., 0] / sums[..., 1]
