"""Counts of n-grams, and items that no metric accepts."""

import pytest

from npgpt.evaluation import coco, metrics, mteval
from npgpt.evaluation.items import highest_counts, ngrams, ngrams_up_to
from npgpt.runtime.errors import ConfigError


def test_counts_of_ngrams():
    assert ngrams(list("abab"), 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert ngrams(["a"], 2) == {}
    assert ngrams_up_to(list("aab"), 2) == {("a",): 2, ("b",): 1, ("a", "a"): 1, ("a", "b"): 1}
    assert highest_counts([list("aab"), list("abb")], 1) == {("a",): 2, ("b",): 2}


@pytest.mark.parametrize("score", [mteval.bleu, mteval.nist, coco.rouge_l, coco.cider, metrics.exact_match])
@pytest.mark.parametrize("outputs, references, message", [
    (["a"], [["a"], ["b"]], "1 outputs and 2 lists of references: expected the same number of each, and at least one"),
    ([], [], "0 outputs and 0 lists of references"),
    (["a", "b"], [["a"], "b"], "the references of output 1 are 'b': expected a list of at least one text"),
    (["a"], [[]], r"the references of output 0 are \[\]"),
])
def test_what_is_refused(score, outputs, references, message):
    with pytest.raises(ConfigError, match=message):
        score(outputs, references)
