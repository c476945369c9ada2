"""The bootstrap interval against sacrebleu's, on BLEU."""

import random

import pytest

pytest.importorskip("sacrebleu")

from sacrebleu.metrics import BLEU

from npgpt.evaluation import bootstrap, mteval


def test_the_interval_is_sacrebleus():
    """Each draws its own samples, so they agree up to what that leaves to chance."""
    draw = random.Random(0)
    references = [draw.choices([f"w{i}" for i in range(30)], k=12) for _ in range(150)]
    outputs = [" ".join(word if draw.random() < 0.8 else "x" for word in words) for words in references]
    references = [" ".join(words) for words in references]
    theirs = BLEU(lowercase=True).corpus_score(outputs, [references], n_bootstrap=4000)
    rows = mteval.bleu_rows(outputs, [[text] for text in references])
    scores = bootstrap.sample_scores(mteval.bleu_score, rows, samples=4000)
    found = bootstrap.interval(mteval.bleu_score(rows.sum(axis=0)), scores)
    assert found.value == pytest.approx(theirs.score, rel=1e-12)
    assert scores.mean() == pytest.approx(theirs._mean, abs=0.15)
    assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.06)
