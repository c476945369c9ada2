"""Exact match, and the table of the E2E challenge's metrics. `items` says what their arguments are."""

import re
import string

import numpy as np

from npgpt.evaluation.coco import cider_rows, rouge_l_rows
from npgpt.evaluation.items import items_of, mean_score
from npgpt.evaluation.mteval import bleu_rows, bleu_score, nist_rows, nist_score

METRICS = {
    "BLEU": (bleu_rows, bleu_score),
    "NIST": (nist_rows, nist_score),
    "ROUGE-L": (rouge_l_rows, mean_score),
    "CIDEr": (cider_rows, mean_score),
}


def exact_match(outputs, references):
    """Return the percentage of outputs that equal one of their references.

    Both are compared in lower case and without punctuation, articles and extra white space.
    Source    Rajpurkar et al. 2016, SQuAD's evaluation script.
    """
    return float(mean_score(exact_match_rows(outputs, references).sum(axis=0)))


def exact_match_rows(outputs, references):
    """Return (items, 2): 100 if the output equals a reference, else 0; and 1."""
    return np.array([[100.0 * (item.output in item.references), 1]
                     for item in items_of(outputs, references, words_squad)])


def words_squad(text):
    """Split a text into the words that SQuAD compares: lower case, no punctuation, no articles."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()
