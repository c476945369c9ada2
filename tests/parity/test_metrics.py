"""The metrics against the packages that others score with: sacrebleu, nltk, rouge-score."""

import random

import numpy as np
import pytest

pytest.importorskip("sacrebleu")
pytest.importorskip("nltk")
pytest.importorskip("rouge_score")

import sacrebleu
from nltk.translate.nist_score import corpus_nist
from rouge_score.rouge_scorer import RougeScorer

from npgpt.evaluation import coco, mteval

WORDS = ("the The Lark pub café is isn't a near river, centre. £20-25 5-star (cheap) and/or 3.50 1,000 \"good\" food "
         "they're no. o'clock & ; family-friendly - 10 p.m.").split()


def corpus(seed, items, most_references):
    """Outputs that share much with their references, of unequal length and number."""
    draw = random.Random(seed)
    outputs, references = [], []
    for _ in range(items):
        text = draw.choices(WORDS, k=draw.randint(1, 25))
        variants = [[word for word in text if draw.random() < 0.8] + draw.choices(WORDS, k=draw.randint(0, 3)) or ["a"]
                    for _ in range(1 + draw.randint(1, most_references))]
        outputs.append(" ".join(variants[0]))
        references.append([" ".join(words) for words in variants[1:]])
    return outputs, references


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lowercase", [True, False])
def test_bleu_is_sacrebleus(seed, lowercase):
    outputs, references = corpus(seed, 30, 4)
    most = max(map(len, references))
    columns = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    words = mteval.words_13a_lower if lowercase else mteval.words_13a
    expected = sacrebleu.corpus_bleu(outputs, columns, lowercase=lowercase).score
    assert mteval.bleu(outputs, references, words) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("output", ["the Lark is near a river", "the food", "zzz", "the zzz Lark yyy is xxx"])
def test_bleu_of_one_sentence_is_sacrebleus(output):
    """Smoothing, and what is too short or without a match."""
    expected = sacrebleu.corpus_bleu([output], [["the Lark is near the river"]], lowercase=True).score
    assert mteval.bleu([output], [["the Lark is near the river"]]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", [
    " ".join(WORDS), "a-b 3-4 .5 5. ,x <y> {z} [w] `v` x_y ~ ^ $3.5% A.B.C.", "naïve—text…"])
def test_words_are_sacrebleus(text):
    assert mteval.words_13a(text) == sacrebleu.tokenizers.tokenizer_13a.Tokenizer13a()(text).split()


@pytest.mark.parametrize("seed", range(5))
def test_nist_is_nltks(seed):
    """With one reference each: of several, nltk takes the best single one where mteval takes them together."""
    outputs, references = corpus(seed, 30, 1)
    expected = corpus_nist([[mteval.words_13a(r) for r in texts] for texts in references],
                           [mteval.words_13a(output) for output in outputs])
    assert mteval.nist(outputs, references, mteval.words_13a) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rouge_l_is_that_of_rouge_score(seed):
    """Its words, and F1. With one reference: of several it takes the best F, coco-caption the best P and the best R."""
    outputs, references = corpus(seed, 30, 1)
    scorer = RougeScorer(["rougeL"])

    def words(text):
        return "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()

    expected = [100 * scorer.score(texts[0], output)["rougeL"].fmeasure
                for output, texts in zip(outputs, references, strict=True)]
    np.testing.assert_allclose(coco.rouge_l_rows(outputs, references, words, beta=1)[:, 0], expected, rtol=1e-12)
