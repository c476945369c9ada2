"""What the samples of a run begin with, and the command that finetune proposes."""

import json
import re
import shlex

import pytest

from npgpt.commands import lines


@pytest.fixture
def samples(script, model, tmp_path):
    """samples(*flags) -> the prompts of a run's samples, as results.json has them; and what finetune printed."""
    def made(*flags):
        stdout = script("finetune.py", "--model", model, "--max-steps", 1, "--out", "run", *flags)
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        before, after = ([prompt for prompt, _ in results[moment]["samples"]] for moment in ("before", "after"))
        assert before == after
        return before, stdout

    return made


RECORDS = [{"question": word, "answer": word} for word in ("one", "two", "two", "three", "four")]


def test_they_begin_like_the_held_out_texts(samples, texts, held_out):
    prompts, stdout = samples("--data", texts, "--val-data", held_out)
    assert prompts == ["better", "many"]
    assert stdout.endswith(' --prompt "better"\n')


def test_they_are_held_out_prompts_in_the_runs_template(samples, tmp_path, run_script, model):
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    prompts, stdout = samples("--data", "qa.jsonl", "--template", "Q: {question}\\nA: {answer}", "--samples", 7)
    assert prompts == [f"Q: {word}\nA:" for word in ("one", "two", "three", "four")], "each once"
    assert "\nQ: one\\nA:\n  before   " in stdout
    command = re.search(r"use it +python scripts/(.*)$", stdout, re.M)[1]
    assert command.endswith(' --prompt "Q: one\\nA:"')
    name, *arguments = shlex.split(command)
    assert run_script(tmp_path, name, *arguments).stdout.startswith("Q: one\nA:")


@pytest.mark.parametrize("name, content, expected", [
    ("mine.txt", "Once upon\n\na\\nb\n", ["Once upon", "a\nb"]),
    ("mine.jsonl", '{"question": "who"}\n{"question": "why", "answer": "x"}\n', ["Q: who\nA:", "Q: why\nA:"]),
])
def test_they_begin_like_the_users_own(samples, tmp_path, name, content, expected):
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    (tmp_path / name).write_text(content)
    prompts, _ = samples("--data", "qa.jsonl", "--template", "Q: {question}\\nA: {answer}", "--sample-prompts", name)
    assert prompts == expected


def test_without_data_they_are_the_packages(samples):
    assert samples("--samples", 2)[0] == ["Overfitting is", "A good model"]


def test_a_resumed_run_has_the_same(script, samples, texts, tmp_path):
    (tmp_path / "mine.txt").write_text("Once upon\n")
    prompts, _ = samples("--data", texts, "--sample-prompts", "mine.txt")
    assert "Once upon\n  before" in script("finetune.py", "--resume", "run")
    assert prompts == ["Once upon"]


@pytest.mark.parametrize("text", ["plain words", "a\\nb", 'say "x"', "$HOME `x` !", "a\\x", "50 %", "it's"])
def test_a_prompt_is_one_word_of_the_shell(text):
    assert shlex.split(lines.in_quotes(text)) == [text]
    assert (lines.in_quotes(text)[0] == '"') == (text in ("plain words", "a\\nb", "it's"))


def test_a_long_prompt_is_shown_by_its_end():
    class Finished:
        def results(self):
            sample = [["long " * 50 + "a\nb", "new\nline"]]
            return {"before": {"samples": sample}, "after": {"samples": sample}}

    shown = next(lines.samples(Finished())).split("\n")[1]
    assert len(shown) == 100 and shown.startswith("..") and shown.endswith("long a\\nb")
