"""evaluate.py prints what `npgpt.evaluation.tasks` measures, base and adapters side by side, and goes on where it
stopped."""

import json
import math
import re

import numpy as np
import pytest

import npgpt
from npgpt.commands import evaluate
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
    [difference] = re.findall(r"disjoint: nats per token +([+-]\S+) ± \S+ \[-\S+, -\S+\]  p <?= \S+\n", stdout)
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
    assert len(lines) == 8 + 1 + 10 + 10  # windows of strided, the last of disjoint, documents, completions
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
    (["--task", "lambada", "--separator", "||"], "--separator is for --task perplexity or exact-match or"),
    (["--wikitext", "--template", "{text}"], "--template has no effect with --wikitext: leave it out"),
    (["--wikitext", "--protocol", "completion"], "--protocol completion is of what finetune learns"),
    (["--task", "multiple-choice", "--split", "blank"], "--split has no effect with --task multiple-choice"),
    (["--val-fraction", 1], "--val-fraction 1.0: it must be at least 0 and less than 1"),
    (["--val-fraction", 0.5, "--split", "none"], "texts.txt:1 is one text, of which finetune holds out blocks"),
    (["--labels", "yes"], "--labels is for --task classification, and has no effect on perplexity"),
    (["--task", "lambada", "--template", "{text}"], "--template is for --task classification or perplexity or exact"),
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


@pytest.mark.parametrize("found, sign, expected", [
    ({"value": 5.25, "stderr": 0.5, "low": 4.5, "high": 6.0}, "", "5.2500 ± 0.5000 [4.5000, 6.0000]"),
    ({"value": -0.5, "stderr": 0.1, "low": -0.7, "high": -0.3, "p": 1 / 1001}, "+",
     "-0.5000 ± 0.1000 [-0.7000, -0.3000]  p <= 0.001"),
    ({"value": -0.5, "stderr": 0.1, "low": -0.7, "high": -0.3, "p": 2 / 1001}, "+",
     "-0.5000 ± 0.1000 [-0.7000, -0.3000]  p = 0.002"),
    ({"value": 2e12, "stderr": 1e11, "low": 1.8e12, "high": 2.2e12}, "", "2e+12 ± 1e+11 [1.8e+12, 2.2e+12]"),
    ({"value": 8.8e86, "stderr": None, "low": None, "high": None, "p": None}, "+", "+8.8e+86 (not measurable)"),
    ({"value": math.inf, "stderr": None, "low": None, "high": None}, "", "inf (not measurable)"),
    ({"value": 3e90}, "", "3e+90"),
])
def test_cells_hold_no_number_that_means_nothing(found, sign, expected):
    assert evaluate.cell(found, sign, 1000) == expected


def test_a_hopeless_score_is_said_to_be_one(script, model, adapter, tmp_path):
    """The loss of a text without words is spread over one word: e^(loss of all) of it."""
    texts = ["stitch", "a b c d", "x" * 50, "z" * 60]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ["evaluate.py", "--model", model, "--adapter", adapter, "--data", "t.jsonl", "--protocol", "document"]
    stdout = script(*command)
    assert stdout.count("(not measurable)") >= 2
    assert "not measurable: the score is not finite" in stdout
    assert max(map(len, stdout.splitlines())) < 250
    report = json.loads(script(*command, "--json"), parse_constant=pytest.fail)
    found = report["results"][1]["measures"]["document: perplexity per word"]
    assert found["low"] is None and found["difference"]["p"] is None
    assert None not in report["results"][1]["measures"]["document: nats per token"]["difference"].values()


CHAT = [{"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
KINDS = {
    "texts.txt": ("a stitch in time\nsaves nine\n\nmany hands\nmake light work\n", []),
    "blocks.txt": ("a stitch in time saves nine, many hands make light work. " * 5, ["--split", "none"]),
    "pairs.txt": ("a=>b\n\nc d=>e f\n\ng=>h\n", ["--separator", "=>", "--split", "blank"]),
    "lines.txt": ("a\tb c\nd\te\n", ["--separator", "\\t", "--max-length", "4"]),
    "prompts.jsonl": ('{"prompt": "a b", "completion": " c"}\n{"prompt": "d", "completion": "e f"}\n', []),
    "learned.jsonl": ('{"prompt": "a b", "completion": " c"}\n', ["--train-on-prompt"]),
    "asked.csv": ("q,a\none,two\nthree,four\n", ["--template", "Q: {q}\\nA: {a}"]),
    "chat.jsonl": ("\n".join(map(json.dumps, CHAT)), ["--template", "<{role}>{content}\\n"]),
    "special.txt": ("one<|endoftext|>two\nthree\n", ["--special-tokens"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_held_out_loss_of_finetune_can_be_had_again(script, model, tmp_path, name):
    """For every kind of record, and without naming template, separator, split or length again."""
    content, flags = KINDS[name]
    (tmp_path / name).write_text(content)
    script("finetune.py", "--model", model, "--data", name, "--val-data", name, "--samples", 0, "--max-steps", 3,
           "--lr", "0.01", "--out", "run", *flags)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = json.loads(script("evaluate.py", "--model", model, "--adapter", "run/adapter", "--data", name, "--protocol",
                              "completion", "--json", "--samples", 20))
    before, after = (each["measures"]["completion: nats per token"]["value"] for each in found["results"])
    assert before == pytest.approx(results["before"]["val_loss"], rel=1e-5)
    assert after == pytest.approx(results["after"]["val_loss"], rel=1e-5)
    assert found["predicted"]["completion"] == json.loads((tmp_path / "run" / "config.json").read_text())[
        "data"]["held_out"]["learned"]
    script("evaluate.py", "--model", model, "--adapter", "run/adapter", "--data", name, "--context", 32)  # by all


def test_what_finetune_held_out_can_be_measured_again(script, model, tmp_path):
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, CHAT)))
    script("finetune.py", "--model", model, "--data", "chat.jsonl", "--val-fraction", 0.4, "--samples", 0,
           "--max-steps", 1, "--out", "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = json.loads(script("evaluate.py", "--model", model, "--adapter", "run/adapter", "--data", "chat.jsonl",
                              "--val-fraction", 0.4, "--protocol", "completion", "--json", "--samples", 20))
    assert found["nll"] == pytest.approx(results["after"]["val_loss"], rel=1e-5)
    assert 0 < found["texts"] < len(CHAT)


def test_each_protocol_is_named_beside_the_figures(script, model, texts):
    stdout = script("evaluate.py", "--model", model, "--data", texts, "--template", "<{text}>", "--samples", 20)
    assert "template    <[{text}><end of text>]" in stdout
    for protocol in ("disjoint", "strided", "document", "completion"):
        assert re.search(rf"^{protocol} +[\d,]+ of [\d,]+ tokens predicted; windows: ", stdout, re.M)
    assert "what finetune learns, and prints as held out" in stdout
