"""All metrics on examples that the E2E challenge's programs have scored; exact match.

tests/parity/test_metrics.py compares with sacrebleu, nltk and rouge-score.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from npgpt.evaluation import coco, metrics, mteval

EXAMPLES = json.loads((Path(__file__).parents[1] / "metrics" / "examples.json").read_text(encoding="utf-8"))
OUTPUTS, REFERENCES, SCORES = EXAMPLES["outputs"], EXAMPLES["references"], EXAMPLES["scores"]


def test_as_the_e2e_challenge_scores_them():
    """mteval prints four digits; coco-caption's Python returns all digits."""
    assert mteval.bleu(OUTPUTS, REFERENCES) == pytest.approx(100 * SCORES["BLEU"], abs=0.005)
    assert mteval.nist(OUTPUTS, REFERENCES) == pytest.approx(SCORES["NIST"], abs=0.00005)
    assert coco.rouge_l(OUTPUTS, REFERENCES) == pytest.approx(100 * SCORES["ROUGE-L"], rel=1e-12)
    assert coco.cider(OUTPUTS, REFERENCES) == pytest.approx(SCORES["CIDEr"], rel=1e-12)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_sums_of_many_samples_are_scored_at_once(name):
    rows_of, score = metrics.METRICS[name]
    rows = rows_of(OUTPUTS, REFERENCES)
    counts = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=20)
    np.testing.assert_allclose(score(counts @ rows), [score(np.repeat(rows, c, axis=0).sum(axis=0)) for c in counts])


@pytest.mark.parametrize("output, references, right", [
    ("The  Cat.", ["a dog", "cat"], 100), ("cats", ["cat"], 0), ("An answer: 42!", ["answer 42"], 100),
    ("", ["a"], 100),
])
def test_exact_match(output, references, right):
    assert metrics.exact_match([output], [references]) == right


def test_exact_match_is_a_mean():
    assert metrics.exact_match(["a b", "c", "d"], [["b"], ["d"], ["x", "d"]]) == pytest.approx(200 / 3)
