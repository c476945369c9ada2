"""evaluate.py prints what `npgpt.evaluation.tasks` measures, base and adapters side by side, and goes on where it
stopped."""

import json
import re

import numpy as np
import pytest

import npgpt
from npgpt.data import read_texts


def measured(model, adapter, texts, *window):
    gpt2, tokenizer = npgpt.GPT2.from_pretrained(model), npgpt.Tokenizer.from_pretrained(model)
    if adapter is not None:
        npgpt.load_adapter(gpt2, adapter)
    ids = np.concatenate([np.append(tokenizer.encode(text), tokenizer.eos_id) for text in read_texts(texts)])
    return npgpt.perplexity(gpt2, ids, *window)


@pytest.mark.parametrize("flags, window", [
    ([], (64, 64)), (["--context", 32], (32, 32)), (["--context", 32, "--stride", 8], (32, 8)),
    (["--stride", 16], (64, 16)),
])
def test_json(script, model, adapter, texts, flags, window):
    """nll and ppl are in short those of the last adapter, by the protocol that the flags suggest."""
    stdout = script("evaluate.py", "--model", model, "--adapter", adapter, "--data", texts, "--json", "--samples", 20,
                    *flags)
    assert stdout.count("\n") == 1
    report = json.loads(stdout)
    base, adapted = (measured(model, each, texts, *window) for each in (None, adapter))
    assert report["model"] == str(model) and report["adapter"] == str(adapter) and report["data"] == str(texts)
    assert report["tokens"] == adapted.tokens
    assert report["nll"] == pytest.approx(adapted.nll, rel=1e-6)
    assert report["ppl"] == pytest.approx(adapted.ppl, rel=1e-6)
    protocol = "strided" if "--stride" in flags else "disjoint"
    ours, theirs = (result["measures"][f"{protocol}: nats per token"] for result in report["results"])
    assert ours["value"] == pytest.approx(base.nll, rel=1e-6)
    assert ours["low"] < base.nll < ours["high"]
    assert theirs["difference"]["value"] == pytest.approx(adapted.nll - base.nll, rel=1e-6)
    assert theirs["difference"]["p"] < 0.1


def test_the_same_in_words(script, model, adapter, texts):
    stdout = script("evaluate.py", "--model", model, "--adapter", adapter, "--data", texts, "--samples", 20)
    assert re.search(rf"\n +{model} +{adapter}\n", stdout)
    [row] = re.findall(r"disjoint: nats per token +(\S+) ± \S+ \[\S+, \S+\] +(\S+) ± \S+ \[\S+, \S+\]\n", stdout)
    base, adapted = (measured(model, each, texts) for each in (None, adapter))
    assert [float(figure) for figure in row] == pytest.approx([base.nll, adapted.nll], abs=6e-5)
    assert adapted.nll < 0.9 * base.nll
    [difference] = re.findall(r"disjoint: nats per token +([+-]\S+) ± \S+ \[-\S+, -\S+\]  p = \S+\n", stdout)
    assert float(difference) == pytest.approx(adapted.nll - base.nll, abs=6e-5)
    assert f"{base.tokens} of 260 tokens predicted; windows: 5, of 64 tokens side by side" in stdout


def test_each_text_predicts_its_end(script, model, tmp_path):
    """A text of one token is enough: its end is predicted. A single window has no interval."""
    (tmp_path / "one.txt").write_text("a\n")
    report = json.loads(script("evaluate.py", "--model", model, "--data", "one.txt", "--json"))
    assert report["tokens"] == 1
    assert report["results"][0]["measures"]["disjoint: nats per token"] == {"items": 1, "value": report["nll"]}
    (tmp_path / "two.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert json.loads(script("evaluate.py", "--model", model, "--data", "two.jsonl", "--json"))["tokens"] == 3


def test_wikitext(script, model, tmp_path):
    (tmp_path / "wiki.raw").write_text(" \n = A = \n \n x @-@ y \n = B = \n z \n")
    report = json.loads(script("evaluate.py", "--model", model, "--data", "wiki.raw", "--wikitext", "--json",
                               "--protocol", "document"))
    assert (report["texts"], report["words"]) == (2, 14)
    assert report["text_tokens"] == {"document": len(" = A =\n\nx-y ") + len(" = B =\nz\n")}


@pytest.mark.parametrize("task, lines, flags, about, measures", [
    ("lambada", [{"text": "time saves nine"}, {"text": "light work"}], [], {"items": 2}, ["accuracy", "perplexity"]),
    ("multiple-choice", [{"context": "haste makes", "choices": ["waste", "perfect"], "label": 0}], [], {"items": 1},
     ["accuracy", "accuracy, by characters", "accuracy, by tokens"]),
    ("classification", [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}], ["--template", "{text}\\n:"],
     {"items": 2, "labels": ["no", "yes"]}, ["accuracy", "macro-F1"]),
    ("exact-match", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}],
     ["--max-new-tokens", 4, "--stop", "e"], {"items": 1, "references": 2, "max_new_tokens": 4, "stop": "e"},
     ["exact match"]),
])
def test_the_other_tasks(script, model, tmp_path, task, lines, flags, about, measures):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["evaluate.py", "--model", model, "--task", task, "--data", "data.jsonl", "--json", *flags]
    report = json.loads(script(*command))
    assert report.items() >= {"task": task, **about}.items()
    assert list(report["results"][0]["measures"]) == measures


def test_special_tokens_in_the_data_are_text_unless_asked_for(script, model, tmp_path):
    (tmp_path / "texts.txt").write_text("one<|endoftext|>two\n")
    command = ["evaluate.py", "--model", model, "--data", "texts.txt", "--protocol", "document", "--json"]
    assert json.loads(script(*command))["text_tokens"] == {"document": 19}
    assert json.loads(script(*command, "--special-tokens"))["text_tokens"] == {"document": 7}
    assert json.loads(script(*command, "--split", "<|endoftext|>"))["texts"] == 2
    (tmp_path / "data.jsonl").write_text('{"text": "a<|endoftext|>b c"}\n{"text": "ab c"}\n')
    command = ["evaluate.py", "--model", model, "--task", "lambada", "--data", "data.jsonl", "--json"]
    assert script(*command) != script(*command, "--special-tokens")


def test_meaning_to_text(script, model, adapter, tmp_path):
    """As a user of the E2E data does: answers go into a file, and are scored with those of an adapter beside them."""
    (tmp_path / "e2e.txt").write_text("name : A||A is here .\nname : A||Here is A .\nname : B||B is there .\n")
    stdout = script("evaluate.py", "--model", model, "--adapter", adapter, "--task", "meaning-to-text", "--data",
                    "e2e.txt", "--separator", "||", "--max-new-tokens", 8, "--samples", 20, "--out", "answers.jsonl")
    assert "prompts: 2, references: 3" in stdout
    assert [line.split()[0] for line in stdout.splitlines() if re.match(r"(BLEU|NIST|ROUGE-L|CIDEr) ", line)] == [
        "BLEU", "NIST", "ROUGE-L", "CIDEr"] * 2
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["references"] for answer in answers] == 2 * [["A is here .", "Here is A ."], ["B is there ."]]
    assert len({answer["system"] for answer in answers}) == 2


def test_an_interrupted_evaluation_goes_on(script, model, texts, tmp_path):
    command = ["evaluate.py", "--model", model, "--data", texts, "--json", "--samples", 20, "--out", "answers.jsonl"]
    whole = script(*command)
    answers = (tmp_path / "answers.jsonl").read_bytes()
    lines = answers.splitlines(keepends=True)
    assert len(lines) == 8 + 1 + 10  # windows of strided, the short last one of disjoint, documents
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    assert script(*command) == whole
    assert (tmp_path / "answers.jsonl").read_bytes() == answers


@pytest.mark.parametrize("flags, message", [
    (["--limit", 0], "--limit 0: it must be at least 1"),
    (["--stride", 65], "--context 64, --stride 65: the context must be at least 2, and the stride from 1"),
    (["--protocol", "sliding"], "invalid choice: 'sliding'"),
    (["--data", "missing.txt"], "cannot read missing.txt"),
    (["--data", "missing.raw", "--wikitext"], "cannot read missing.raw"),
    (["--out", "texts.txt"], "texts.txt:1: this line is not a record of an evaluation"),
    (["--seed", -1], "--seed -1: it must be at least 0"),
    (["--task", "chess"], "invalid choice: 'chess'"),
    (["--separator", "||"], "--separator is for --task exact-match or meaning-to-text, and has no effect"),
    (["--labels", "yes"], "--labels is for --task classification, and has no effect on perplexity"),
    (["--template", "{text}"], "--template is for --task classification or exact-match or meaning-to-text, and has no"),
    (["--task", "perplexity", "--stop", "."], "--stop is for --task exact-match or"),
    (["--max-new-tokens", 64], "--max-new-tokens is for --task"),
    (["--task", "exact-match", "--protocol", "document"], "--protocol is for --task perplexity, and has no"),
    (["--task", "lambada", "--context", 1024], "--context is for --task perplexity"),
    (["--task", "multiple-choice", "--wikitext"], "--wikitext is for --task perplexity"),
    (["--task", "meaning-to-text", "--labels", "a"], "--labels is for --task classification"),
    (["--protocol", "disjoint", "document", "--stride", 8], "--stride is for --protocol strided"),
    (["--task", "exact-match"], "no prompt before an answer"),
    (["--task", "exact-match", "--max-new-tokens", 0], "--max-new-tokens 0: it must be at least 1"),
])
def test_what_is_refused(refused, model, texts, tmp_path, flags, message):
    (tmp_path / "texts.txt").write_bytes(texts.read_bytes())
    assert message in refused("evaluate.py", "--model", model, "--data", texts, *flags)
