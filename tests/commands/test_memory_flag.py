"""--max-memory: the same steps in smaller pieces, or a clear refusal."""

import json
import re
import subprocess
import sys

import pytest

import npgpt


@pytest.fixture
def wide(tmp_path, model):
    """A model in which what is saved counts beside what a process takes anyway."""
    folder = tmp_path / "wide"
    config = npgpt.GPT2Config(vocab_size=257, n_positions=64, n_embd=256, n_layer=6, n_head=2, bos_token_id=0,
                              eos_token_id=0)
    npgpt.GPT2(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    return folder


def test_the_step_is_cut_until_it_fits(script, refused, tmp_path, wide, texts):
    options = ["--model", wide, "--data", texts, "--max-steps", 1, "--samples", 0, "--batch-size", 10]
    whole = script("finetune.py", *options, "--out", "whole")
    takes = float(re.search(r"^estimate   ([\d.]+) (MB|GB)", whole, re.M)[1])
    takes = takes * 1000 if takes < 1 else takes
    stdout = script("finetune.py", *options, "--out", "cut", "--max-memory", f"{takes - 8}MB")
    settings = json.loads((tmp_path / "cut" / "config.json").read_text())["settings"]
    assert settings["batch_size"] * settings["accumulate"] == 10
    assert settings["batch_size"] < 10
    assert f"micro-batches of {settings['batch_size']} texts, {settings['accumulate']} a step" in stdout
    losses = [json.loads((tmp_path / run / "metrics.jsonl").read_text())["loss"] for run in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # dropout is drawn for other pieces
    message = refused("finetune.py", *options, "--max-memory", "10MB")
    assert re.search(r"error: --max-memory 10.0 MB: the least that this training takes is [\d.]+ MB; ", message)


@pytest.mark.parametrize("size", ["lots", "3PB", "1.2.3GB"])
def test_what_is_no_size(refused, size):
    assert f"{size!r} is not a size, such as 3GB or 800MB" in refused("finetune.py", "--max-memory", size)


def test_steps_by_tokens_are_cut_even_where_one_text_is_longer(script, tmp_path, wide, texts):
    script("finetune.py", "--model", wide, "--data", texts, "--max-steps", 1, "--samples", 0, "--batch-tokens", 8,
           "--accumulate", 8, "--max-memory", "2GB", "--out", "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["batch_tokens"] == 8


UNKNOWN = """
import sys
from npgpt.commands import cli, finetune
finetune.resident = lambda: 0
sys.exit(cli.run(lambda: finetune.main(finetune.parse_arguments(None))))
"""


def test_a_system_that_does_not_tell_the_memory(tmp_path, environment, model, texts):
    (tmp_path / "unknown.py").write_text(UNKNOWN)
    command = [sys.executable, "unknown.py", "--model", model, "--data", texts, "--max-steps", "1", "--samples", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert " of memory at the most beside what the process holds, which this system does not tell, " in done.stdout
    done = subprocess.run([*command, "--max-memory", "1GB"], cwd=tmp_path, env=environment, capture_output=True,
                          text=True)
    assert (done.returncode, done.stderr) == (2, (
        "error: --max-memory: this system does not tell how much memory the process holds; install psutil, or leave "
        "the flag out and choose a smaller --batch-size\n"))
