"""generate.py prints what the library generates."""

import json
import subprocess
import sys

import numpy as np
import pytest

import npgpt

PROMPT = "many hands"


@pytest.fixture
def expected(model, adapter):
    """expected(adapted, **options) -> the text that the library makes."""
    def make(adapted, max_new_tokens=50, **options):
        gpt2, tokenizer = npgpt.GPT2.from_pretrained(model), npgpt.Tokenizer.from_pretrained(model)
        if adapted:
            npgpt.load_adapter(gpt2, adapter)
        ids = npgpt.generate(gpt2, tokenizer.encode(PROMPT), max_new_tokens, eos_id=tokenizer.eos_id, **options)
        return tokenizer.decode(ids[ids != tokenizer.eos_id]) + "\n"

    return make


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("flags, options", [
    (["--seed", 3], {"seed": 3, "temperature": 0.8, "top_k": 40}),
    (["--temperature", 0], {"temperature": 0}),
    (["--seed", 3, "--temperature", 1.5, "--top-k", 0, "--top-p", 0.7, "--max-new-tokens", 20],
     {"seed": 3, "temperature": 1.5, "top_p": 0.7, "max_new_tokens": 20}),
])
def test_the_text_is_the_librarys(script, model, adapter, expected, adapted, flags, options):
    with_adapter = ["--adapter", adapter] if adapted else []
    stdout = script("generate.py", "--model", model, *with_adapter, "--prompt", PROMPT, *flags)
    assert stdout == expected(adapted, **options)
    assert stdout.startswith(PROMPT)
    assert stdout != expected(not adapted, **options)


def test_samples_are_different_and_reproducible(script, model):
    def samples(*flags):
        return script("generate.py", "--model", model, "--prompt", PROMPT, *flags).split("\n--------------------\n")

    three = samples("--seed", 5, "--num-samples", 3)
    assert len(set(three)) == 3
    assert samples("--seed", 6) == [three[1] + "\n"]
    assert samples() != samples()


def test_the_end_of_text_ends_it_and_is_not_printed(script, model, adapter):
    gpt2, tokenizer = npgpt.GPT2.from_pretrained(model), npgpt.Tokenizer.from_pretrained(model)
    npgpt.load_adapter(gpt2, adapter)
    prompt = tokenizer.encode(PROMPT)
    for seed in range(100):
        ids = npgpt.generate(gpt2, prompt, 50, 0.8, 40, seed=seed)
        if tokenizer.eos_id in ids[15:-10]:
            break
    end = ids.tolist().index(tokenizer.eos_id)
    stdout = script("generate.py", "--model", model, "--adapter", adapter, "--prompt", PROMPT, "--seed", seed)
    assert stdout == tokenizer.decode(ids[:end]) + "\n"


def test_no_new_tokens(script, model):
    assert script("generate.py", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 0) == PROMPT + "\n"


def test_any_encoding_will_do(run_script, tmp_path, model):
    """A character that the terminal does not have becomes a question mark."""
    result = run_script(tmp_path, "generate.py", "--model", model, "--prompt", "caf\u00e9", "--max-new-tokens", 0,
                        PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout, result.stderr) == (0, "caf?\n", "")


@pytest.mark.parametrize("samples, lines", [(1, 0), (200, 1)])
def test_a_reader_that_leaves_is_no_error(tmp_path, environment, root, model, samples, lines):
    command = [sys.executable, root / "scripts" / "generate.py", "--model", model, "--prompt", PROMPT, "--num-samples",
               str(samples)]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_prompt_may_come_from_a_file_or_from_standard_input(script, run_script, tmp_path, model):
    """A file's last line end is not a part of it."""
    flags = "--model", model, "--seed", 3
    expected = script("generate.py", *flags, "--prompt", PROMPT)
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    assert script("generate.py", *flags, "--prompt-file", tmp_path / "prompt.txt") == expected
    for more in ((), ("--prompt", "-")):
        assert run_script(tmp_path, "generate.py", *flags, *more, typed=PROMPT + "\n").stdout == expected


def test_base_and_adapters_one_below_the_other(script, model, adapter, expected):
    stdout = script("generate.py", "--model", model, "--adapter", adapter, "--adapter", adapter, "--prompt", PROMPT,
                    "--temperature", 0)
    base, adapted = expected(False, temperature=0), expected(True, temperature=0)
    assert stdout == f"== base\n{base}== {adapter}\n{adapted}== {adapter}\n{adapted}"


def test_json(script, model, expected):
    lines = script("generate.py", "--model", model, "--prompt", PROMPT, "--seed", 5, "--num-samples", 2, "--json",
                   "--show-probs", "--max-new-tokens", 8).splitlines()
    gpt2, tokenizer = npgpt.GPT2.from_pretrained(model), npgpt.Tokenizer.from_pretrained(model)
    for seed, line in zip((5, 6), lines, strict=True):
        sample = json.loads(line)
        ids = npgpt.generate(gpt2, tokenizer.encode(PROMPT), 8, 0.8, 40, seed=seed, eos_id=tokenizer.eos_id)
        assert sample["ids"] == ids[10:].tolist()
        assert sample["seed"] == seed
        assert (sample["adapter"], sample["prompt"]) == ("base", PROMPT)
        assert sample["ended"] == ("eos" if sample["ids"][-1] == tokenizer.eos_id else "length")
        logits = gpt2.logits(ids)[9:-1].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for step, token, row in zip(sample["probs"], sample["ids"], p, strict=True):
            assert step[0] == [tokenizer.decode([token]), pytest.approx(row[token], rel=1e-4)]
            others = np.sort(np.delete(row, token))[::-1][:3]
            assert [q for _, q in step[1:]] == pytest.approx(others.tolist(), rel=1e-4)


def test_probabilities_below_the_text(script, model):
    text, *lines = script("generate.py", "--model", model, "--prompt", PROMPT, "--temperature", 0, "--show-probs",
                          "--max-new-tokens", 3, "--stop", "never").splitlines()
    assert text.startswith(PROMPT)
    assert len(lines) == 3
    for line in lines:
        chosen, *others = [float(word[:-1]) for word in line.split() if word.endswith("%")]
        assert [chosen, *others] == sorted([chosen, *others], reverse=True)  # greedy: the likeliest comes first


def test_it_ends_before_a_stop_string(script, model):
    flags = "--model", model, "--prompt", PROMPT, "--seed", 3
    whole = script("generate.py", *flags)
    stop = whole[14:16]
    at = whole.index(stop, len(PROMPT))
    assert script("generate.py", *flags, "--stop", stop) == whole[:at] + "\n"


def test_lines_are_continued(run_script, tmp_path, model, expected):
    result = run_script(tmp_path, "generate.py", "--model", model, "--interactive", "--temperature", 0,
                        typed=f"{PROMPT}\n\n{'too long ' * 20}\n{PROMPT}\n")
    assert result.returncode == 0
    assert result.stdout.count(expected(False, temperature=0)) == 2
    assert result.stderr.startswith("error: a prompt of 180 tokens")
    assert result.stderr.count("\n") == 1
