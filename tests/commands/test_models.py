"""Which model a command takes: the one that is named, the adapter's own base, or the default."""

import json
import shutil

import pytest


@pytest.fixture
def trained(script, model, tmp_path):
    """The folder of an adapter whose base is the folder `base`."""
    shutil.copytree(model, tmp_path / "base")
    (tmp_path / "t.txt").write_text("many hands\nmake light work\n")
    script("finetune.py", "--model", "base", "--data", "t.txt", "--max-steps", 1, "--samples", 0, "--out", "run")
    return "run/adapter"


COMMANDS = [
    ("generate.py", ["--prompt", "many", "--max-new-tokens", 2, "--seed", 0]),
    ("evaluate.py", ["--data", "t.txt", "--samples", 2]),
    ("merge.py", ["--out", "merged"]),
    ("inspect_text.py", ["--prompt", "many hands"]),
]


@pytest.mark.parametrize("name, flags", COMMANDS)
def test_without_a_model_an_adapter_takes_its_own_base(script, trained, tmp_path, name, flags):
    named = script(name, "--adapter", trained, "--model", "base", *flags)
    shutil.rmtree(tmp_path / "merged", ignore_errors=True)
    assert script(name, "--adapter", trained, *flags) == named


@pytest.mark.parametrize("name, flags", COMMANDS)
def test_a_base_that_cannot_be_had_is_not_replaced(refused, trained, tmp_path, name, flags):
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    error = refused(name, "--adapter", trained, *flags)
    assert error.startswith("error: run/adapter was trained on 'base': ")
    assert error.endswith("--model can name that model elsewhere\n")


def test_the_tokenizer_may_be_elsewhere(script, refused, model, tmp_path):
    """As beside a checkpoint that a Trainer wrote without its tokenizer."""
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, tmp_path / "bare")
    (tmp_path / "t.txt").write_text("many hands\nmake light work\n")
    prompt = ["--prompt", "many", "--max-new-tokens", 3, "--seed", 0]
    assert "no tokenizer in bare" in refused("generate.py", "--model", "bare", *prompt)
    named = script("generate.py", "--model", "bare", "--tokenizer", model, *prompt)
    assert named == script("generate.py", "--model", model, *prompt)
    flags = ["--data", "t.txt", "--max-steps", 1, "--samples", 0]
    script("finetune.py", "--model", "bare", "--tokenizer", model, *flags, "--preview", 1)
    script("finetune.py", "--model", "bare", "--tokenizer", model, *flags, "--out", "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["tokenizer"] == str(model)
    script("merge.py", "--adapter", "run/adapter", "--tokenizer", model, "--out", "merged")
    assert script("generate.py", "--model", "merged", *prompt) != ""
