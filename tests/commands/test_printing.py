"""What comes from a file reaches the terminal without orders to it."""

import json
import sys
import warnings

import numpy as np
import pytest

from npgpt.commands import cli
from npgpt.commands.printing import exact
from npgpt.files import safetensors
from npgpt.runtime.errors import FormatError

BAD = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"


def escapes(text):
    return [character for character in text if character not in "\n\t" and not character.isprintable()]


@pytest.mark.filterwarnings("always")
def test_both_streams_are_harmless_and_given_back(capsys):
    def command():
        print(f"two\nlines\tand {BAD}\r", end="")
        warnings.warn(f"look\n{BAD}", stacklevel=1)
        print(f"bar\r{BAD}", file=sys.stderr, end="")
        print(file=sys.stderr)
        raise FormatError(f"wrong{BAD}")

    before = sys.stdout, sys.stderr
    assert cli.run(command) == 2
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert out == r"two" + "\nlines\tand " + r"\x1b[2J\x1b]0;title\x07\x9b31m\u202e\r"
    assert escapes(err) == ["\r"]
    assert err.count("\n") == 3 and r"warning: look\n\x1b[2J" in err


@pytest.fixture
def harmful(adapter, model, tmp_path):
    """An adapter and a base with escape sequences in each place where a file can hold a text."""
    weights = safetensors.read(adapter / "adapter_model.safetensors")
    fields = json.loads((adapter / "adapter_config.json").read_text())
    for place in ("names", "fields", "base"):
        folder = tmp_path / place
        folder.mkdir()
        names = {f"base_model.model.h.0.{BAD}\nfake.weight": np.ones((2, 2), np.float32)} if place == "names" else {}
        safetensors.write(folder / "adapter_model.safetensors", dict(weights) | names)
        changed = {f"new{BAD}": 1, "base_model_name_or_path": BAD, "bias": BAD} if place == "fields" else {}
        (folder / "adapter_config.json").write_text(json.dumps(fields | changed))
    base = tmp_path / "model"
    base.mkdir()
    safetensors.write(base / "model.safetensors", dict(safetensors.read(model / "model.safetensors"))
                      | {f"wte{BAD}\nx": np.ones(2, np.float32)})
    (base / "config.json").write_text((model / "config.json").read_text())
    (base / "tokenizer.json").write_text((model / "tokenizer.json").read_text())
    return tmp_path


@pytest.mark.parametrize("place", ["names", "fields"])
@pytest.mark.parametrize("command", [
    ("inspect_adapter.py", "{}"), ("generate.py", "--adapter", "{}", "--prompt", "a", "--max-new-tokens", "2"),
    ("inspect_adapter.py", "{}", "--model", "{model}"), ("merge.py", "--adapter", "{}", "--out", "merged"),
])
def test_names_and_values_of_an_adapter(harmful, model, run_script, command, place):
    arguments = [argument.format(harmful / place, model=model) for argument in command]
    result = run_script(harmful, *arguments, *(() if "inspect" in arguments[0] else ("--model", model)))
    assert "x1b[2J" in result.stdout + result.stderr
    assert not escapes(result.stdout + result.stderr)
    assert not any(line.startswith("fake") for line in result.stdout.splitlines())


def test_names_of_a_base_and_of_files(harmful, run_script):
    result = run_script(harmful, "generate.py", "--model", harmful / "model", "--prompt", "a")
    assert result.returncode == 2 and "x1b[2J" in result.stderr
    assert not escapes(result.stderr) and len(result.stderr.splitlines()) == 1
    (harmful / f"data{BAD}.txt").write_text("a text\nanother text\n")
    result = run_script(harmful, "finetune.py", "--model", "tiny", "--data", f"data{BAD}.txt", "--preview", "1")
    assert result.returncode == 0 and "x1b[2J" in result.stdout
    assert not escapes(result.stdout + result.stderr)


def test_a_models_text_is_exact_for_a_program_and_harmless_on_a_terminal(capsys, monkeypatch):
    def command():
        print("\x1b[2J", end="", file=exact())

    cli.run(command)
    assert capsys.readouterr().out == "\x1b[2J"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    cli.run(command)
    assert capsys.readouterr().out == r"\x1b[2J"
