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


@pytest.mark.parametrize("prompt, content", [
    (PROMPT, PROMPT), (PROMPT, f"{PROMPT}\n"), (PROMPT, f"{PROMPT}\r\n"), (f"{PROMPT}\\n", f"{PROMPT}\n\n"),
    (f"{PROMPT}\\n\\n", f"{PROMPT}\r\n\r\n\r\n"), ("\\ta\\nb", "\ta\rb\n"), ("a\\\\n", "a\\n"),
])
def test_the_prompt_may_come_from_a_file_or_from_standard_input(script, run_script, tmp_path, model, prompt, content):
    """One line end at the end is an editor's, and no part of it."""
    flags = "--model", model, "--seed", 3, "--max-new-tokens", 5, "--json"
    expected = script("generate.py", *flags, "--prompt", prompt)
    assert json.loads(expected)["prompt"] == content.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "prompt.txt").write_bytes(content.encode(encoding))
        assert script("generate.py", *flags, "--prompt-file", tmp_path / "prompt.txt") == expected
    for more in ((), ("--prompt", "-"), ("--prompt-file", "/dev/stdin")):
        assert run_script(tmp_path, "generate.py", *flags, *more, typed=content).stdout == expected


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


def test_a_new_line_can_be_a_stop(script, model, run_script, tmp_path):
    flags = "--model", model, "--prompt", PROMPT, "--temperature", 3, "--top-k", 0, "--max-new-tokens", 50, "--json"
    seed = next(seed for seed in range(50) if "\n" in json.loads(script("generate.py", *flags, "--seed", seed))["text"])
    whole = json.loads(script("generate.py", *flags, "--seed", seed))["text"]
    stopped = json.loads(script("generate.py", *flags, "--seed", seed, "--stop", "\\n"))
    assert (stopped["text"], stopped["ended"]) == (whole.partition("\n")[0], "stop")


# Templates

GREEDY = ["--temperature", 0, "--max-new-tokens", 20]
PAIRS = [{"question": "one", "answer": "a"}, {"question": "two", "answer": "bb"},
         {"question": "three", "answer": "ccc"}]
TEMPLATE = "Q: {question}\\nA: {answer}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_script, model):
    """A folder with an adapter that learned PAIRS by its template, by heart."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    result = run_script(folder, "finetune.py", "--model", model, "--data", "pairs.jsonl", "--out", "run", "--lr",
                        "0.02", "--epochs", "60", "--targets", "all-linear", "--quiet", "--samples", "0", "--template",
                        TEMPLATE, "--dropout", "0")
    assert result.returncode == 0, result.stderr
    return folder


def test_the_adapters_own_template(script, model, trained):
    """What training wrote can be said at use: the prompt is that of training, to the token."""
    run = "--model", model, "--adapter", trained / "run" / "adapter", *GREEDY
    for pair in PAIRS:
        expected = f"Q: {pair['question']}\nA: {pair['answer']}\n"
        asked = f"question={pair['question']}"
        assert script("generate.py", *run, "--field", asked) == expected
        assert script("generate.py", *run, "--prompt", f"Q: {pair['question']}\\nA:") == expected
        assert script("generate.py", *run, "--template", "Q: {question}\\nA: {x}", "--field", asked) == expected
        assert script("generate.py", *run, "--template", "Q: {x}\\nA: {y}", "--prompt", pair["question"]) == expected


def test_records_in_and_answers_out(script, run_script, model, trained):
    run = "--model", model, "--adapter", trained / "run" / "adapter", *GREEDY
    lines = script("generate.py", *run, "--records", trained / "pairs.jsonl").splitlines()
    for line, pair in zip(lines, PAIRS, strict=True):
        found = json.loads(line)
        assert (found["record"], found["text"], found["ended"]) == (pair, f" {pair['answer']}", "eos")
        assert found["prompt"] == f"Q: {pair['question']}\nA:"
    piped = run_script(trained, "generate.py", *run, "--records", "/dev/stdin", typed="one\ntwo\nthree\n").stdout
    for line, plain in zip(piped.splitlines(), lines, strict=True):
        assert json.loads(line)["record"].keys() == {"text"}
        assert json.loads(line)["text"] == json.loads(plain)["text"]


def test_a_merged_model_keeps_the_template(script, model, trained, tmp_path):
    adapter = trained / "run" / "adapter"
    script("merge.py", "--model", model, "--adapter", adapter, "--out", "merged", "--no-certificate")
    assert script("generate.py", "--model", "merged", *GREEDY, "--field", "question=two") == "Q: two\nA: bb\n"


def test_adapters_with_different_templates(script, run_script, model, adapter, trained):
    both = "--model", model, "--adapter", adapter, "--adapter", trained / "run" / "adapter", *GREEDY
    result = run_script(trained, "generate.py", *both, "--field", "question=one")
    assert (result.returncode, result.stderr) == (
        2, "error: the adapters were trained with different templates: give --template, or one --adapter\n")
    assert "A: a" in script("generate.py", *both, "--field", "question=one", "--template", TEMPLATE)


def test_lines_are_continued(run_script, tmp_path, model, expected):
    result = run_script(tmp_path, "generate.py", "--model", model, "--interactive", "--temperature", 0,
                        typed=f"{PROMPT}\n\n{'too long ' * 20}\n{PROMPT}\n")
    assert result.returncode == 0
    assert result.stdout.count(expected(False, temperature=0)) == 2
    assert result.stderr.startswith("error: a prompt of 180 tokens")
    assert result.stderr.count("\n") == 1
