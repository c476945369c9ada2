"""Perplexity by each protocol against transformers, the way its documentation and lm-evaluation-harness compute it."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
import transformers

import npgpt
from npgpt.evaluation import tasks
from npgpt.evaluation.records import Records, complete
from npgpt.files.atomic import read_json

PACKAGE = Path(npgpt.__file__).parent
SHARED = Path(__file__).parents[3] / "shared"
MOLECULES = SHARED / "models" / "chemts-zinc-gpt2-0.2m"
SMILES_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|.")


def hugging_faces(model, ids, context, stride):
    """As in Hugging Face's page "Perplexity of fixed-length models": labels are -100 where an earlier window has been,
    and the mean loss that transformers returns is weighted by their number."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        inputs = torch.tensor(ids[begin:end])[None]
        labels = inputs.clone()
        labels[:, :-(end - previous)] = -100
        valid = int((labels[:, 1:] != -100).sum())
        if valid:
            with torch.no_grad():
                total += float(model(inputs, labels=labels).loss) * valid
        count, previous = count + valid, end
        if end == len(ids):
            break
    return total / count


def rolling(model, prefix, ids, context):
    """As lm-evaluation-harness's loglikelihood_rolling: -log p of all ids after `prefix`, each predicted once."""
    total, whole = 0.0, np.append(prefix, ids)
    for begin in range(0, len(ids), context):
        end = min(begin + context, len(ids))
        start = max(0, end - context)
        with torch.no_grad():
            logits = model(torch.tensor(whole[start:end])[None]).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(whole[start + 1:end + 1]), reduction="none")
        total += float(losses[begin - start:].sum())
    return total


def check(folder, corpus, stride):
    """All protocols at the model's context, per token to 1e-4 and each other figure as it follows."""
    model = npgpt.GPT2.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    context = model.config.n_positions
    task = tasks.Perplexity(corpus, ("disjoint", "strided", "document"), context, stride)
    records = complete(Records(), "", task, model)
    found = {name: float(score(rows(records).sum(axis=0))) for name, (rows, score) in task.measures.items()}
    documents = sum(rolling(theirs, ids[0], ids[1:], context) for ids in corpus.documents)
    tokens = sum(len(ids) - 1 for ids in corpus.documents)
    for protocol, nll, text_tokens in (
        ("disjoint", hugging_faces(theirs, corpus.stream, context, context), len(corpus.stream)),
        ("strided", hugging_faces(theirs, corpus.stream, context, stride), len(corpus.stream)),
        ("document", documents / tokens, tokens),
    ):
        assert found[f"{protocol}: nats per token"] == pytest.approx(nll, abs=1e-5)
        assert found[f"{protocol}: perplexity per token"] == pytest.approx(math.exp(nll), rel=1e-4)
        for unit, units in (("word", corpus.words), ("byte", corpus.bytes)):
            expected = math.exp(nll * text_tokens / units)
            assert found[f"{protocol}: perplexity per {unit}"] == pytest.approx(expected, rel=1e-4)
        assert found[f"{protocol}: bits per byte"] == pytest.approx(
            nll * text_tokens / corpus.bytes / math.log(2), rel=1e-4)
    return found


def test_perplexity_of_the_embedded_model():
    texts = (PACKAGE / "texts" / "validation.txt").read_text().splitlines()
    corpus = tasks.Corpus.of_texts(npgpt.Tokenizer.from_pretrained("tiny"), [*texts, " ".join(texts)])
    check(PACKAGE / "tiny", corpus, stride=100)


if MOLECULES.is_dir():

    def test_perplexity_of_molecules():
        """A model trained elsewhere: its perplexities by all three protocols are those of transformers to 1e-4."""
        vocabulary = read_json(MOLECULES / "tokenizer.json")["model"]["vocab"]
        bos, eos = 13, 14

        class Smiles:
            eos_id = eos

            def encode_batch(self, lines, split_special_tokens=False):
                return [np.array([vocabulary[token] for token in SMILES_TOKEN.findall(line)]) for line in lines]

        lines = (SHARED / "data" / "zinc-smiles-test.txt").read_text().split()[:60]
        corpus = tasks.Corpus.of_texts(Smiles(), lines)
        corpus = corpus._replace(documents=[np.append(bos, ids[1:]) for ids in corpus.documents])
        found = check(MOLECULES, corpus, stride=37)
        assert found["document: perplexity per token"] < 2.1 < found["disjoint: perplexity per token"]
