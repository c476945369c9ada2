"""generate.py prints what the library generates."""

import subprocess
import sys

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
