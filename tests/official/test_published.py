"""What is published of the released gpt2 on LAMBADA and WikiText-2, by the protocols of `npgpt.evaluation.evaluate`.

    pytest -m official tests/official/test_published.py

Needs the released gpt2 and, in ../shared/data beside the repository, lambada_test.jsonl (OpenAI's version, 5,153
passages) and wiki.test.raw (WikiText-2, raw); a test without its file is skipped. That protocols and tasks compute what
they say is tried in every run, by tests/evaluation/test_tasks.py and its neighbours, and against transformers and
lm-evaluation-harness in tests/parity.
"""

from pathlib import Path

import pytest

import npgpt
from npgpt.data import read_records
from npgpt.evaluation import questions, tasks
from npgpt.evaluation.records import Records, complete
from npgpt.files import hub
from npgpt.files.atomic import read_text

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [pytest.mark.official, pytest.mark.filterwarnings("default")]


def measured(make):
    """make(tokenizer, file) -> task; return what the released gpt2 has of each of its measures."""
    if not hub.cached("gpt2") and not hub.reachable():
        pytest.skip("gpt2 is not in the cache and the hub cannot be reached")
    model, task = npgpt.GPT2.from_pretrained("gpt2"), make(npgpt.Tokenizer.from_pretrained("gpt2"))
    records = complete(Records(), "", task, model)
    return {name: float(score(rows(records).sum(axis=0))) for name, (rows, score) in task.measures.items()}


def file(name):
    if not (DATA / name).exists():
        pytest.skip(f"there is no {name} in {DATA}")
    return DATA / name


def test_lambada():
    """EleutherAI/lm-evaluation-harness#2159: accuracy 0.3256, perplexity 40.06."""
    passages = questions.read_passages(read_records(file("lambada_test.jsonl")))
    found = measured(lambda tokenizer: questions.LastWord(tokenizer, passages))
    assert found["accuracy"] == pytest.approx(32.56, abs=0.05)
    assert found["perplexity"] == pytest.approx(40.06, abs=0.05)


def test_wikitext():
    """huggingface/transformers#13761: 29.94 by disjoint windows of 1,024, 37.37 a word by lm-evaluation-harness."""
    text = read_text(file("wiki.test.raw"))
    found = measured(lambda tokenizer: tasks.Perplexity(
        tasks.Corpus.of_wikitext(tokenizer, text), ("disjoint", "document"), 1024, 512))
    assert found["disjoint: perplexity per token"] == pytest.approx(29.94, abs=0.02)
    assert found["document: perplexity per word"] == pytest.approx(37.37, abs=0.02)
