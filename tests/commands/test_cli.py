"""What the command lines share: statuses, one-line messages, help, and which model is meant."""

import argparse
import importlib
import itertools
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import npgpt
from npgpt.commands import cli, flags, models
from npgpt.files import hub
from npgpt.runtime.errors import ConfigError
from tests.hub.server import Hub

COMMANDS = Path(cli.__file__).parent
SAMPLING = ["--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed", "--num-samples"]
FLAGS = {
    "finetune.py": """--model --revision --data --val-data --out --rank --alpha --dropout --targets --epochs --max-steps
        --batch-size --accumulate --max-length --lr --weight-decay --warmup --schedule --grad-clip --seed --threads
        --resume --full --samples --quiet""".split(),
    "generate.py": ["--model", "--adapter", "--prompt", *SAMPLING],
    "evaluate.py": ["--model", "--adapter", "--data", "--context", "--stride", "--json"],
    "inspect_adapter.py": ["--model", "--revision", "--compare", "--json", "--plot"],
    "convert_adapter.py": ["--alpha", "--enable", "--model", "--revision", "--out"],
    "convert_checkpoint.py": ["--n-head", "--activation", "--tokenizer", "--out"],
    "inspect_text.py": ["--model", "--adapter", "--prompt", "--max-tokens", "--out"],
    "merge.py": ["--model", "--adapter", "--out", "--dtype", "--max-shard-size", "--text", "--no-certificate"],
    "export_gguf.py": ["--model", "--adapter", "--out", "--dtype"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_help(script, name):
    stdout = script(name, "--help")
    for flag in FLAGS[name]:
        assert re.search(rf"^  {flag}\b", stdout, re.M), flag


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize("command, status, stderr", [
    (lambda: None, 0, ""),
    (lambda: 130, 130, ""),
    (raising(npgpt.NpgptError("what, where")), 2, "error: what, where\n"),
    (raising(ConfigError("what")), 2, "error: what\n"),
    (raising(MemoryError("Unable to allocate 11.6 TiB")), 2, "error: out of memory: Unable to allocate 11.6 TiB\n"),
    (raising(KeyboardInterrupt()), 130, "stopped\n"),
    (lambda: warnings.warn("look here", stacklevel=1), 0, "warning: look here\n"),
])
@pytest.mark.filterwarnings("default")
def test_what_a_command_ends_with(monkeypatch, capsys, command, status, stderr):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which `run` replaces
    assert cli.run(command) == status
    assert capsys.readouterr().err == stderr


def test_a_bug_is_not_made_to_look_like_a_mistake():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


@pytest.mark.parametrize("arguments, message", [
    (["--frob"], "unrecognized arguments: --frob"),
    (["extra"], "unrecognized arguments: extra"),
    (["--revision"], "argument --revision: expected one argument"),
])
def test_wrong_arguments_are_one_line(capsys, arguments, message):
    parser = flags.Parser("", models.MODEL)
    parser.prog = "some.py"
    with pytest.raises(SystemExit) as end:
        parser.parse(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message} (see some.py --help)\n"
    assert captured.out == ""


PATHS = {
    "convert_adapter": "checkpoint --out", "convert_checkpoint": "checkpoint --tokenizer --out",
    "e2e": "--train --test --out", "evaluate": "--adapter --data --out",
    "export_gguf": "--adapter --out",
    "finetune": "--data --val-data --adapter --sample-prompts --out --resume --config",
    "generate": "--adapter --prompt-file --records", "gradcheck": "--adapter",
    "inspect_adapter": "adapter --compare --plot",
    "inspect_text": "--adapter --out", "merge": "--adapter --out --text", "plot": "runs --out", "pretrain": "--out",
    "sweep": "--out", "benchmark": "",
}


def module_of(name):
    """A command of npgpt, or a program for development in scripts/."""
    return importlib.import_module(f"npgpt.commands.{name}" if (COMMANDS / f"{name}.py").exists() else name)


def test_every_command_is_looked_at(root):
    assert {path.stem for folder in (COMMANDS, root / "scripts") for path in folder.glob("*.py")
            if "def parse_arguments(" in path.read_text()} == {*PATHS}


@pytest.mark.parametrize("name", PATHS)
def test_an_empty_path_is_refused(capsys, name):
    """As that of an unset variable of the shell; it would mean the working directory."""
    module, paths = module_of(name), PATHS[name].split()
    for flag in module.FLAGS:
        named = flag.metavar in ("DIR", "FILE", "RUN", "PATH") or flag.key == "out" or flag.type is flags.path
        assert not named or flag.name in paths, f"is {flag.name} a path?"
    for flag in paths:
        with pytest.raises(SystemExit) as end:
            module.parse_arguments([flag, ""] if flag.startswith("-") else [""])
        assert end.value.code == 2
        captured = capsys.readouterr()
        assert re.fullmatch(r"error: argument \S+: it must not be empty \(see .*\)\n", captured.err)


@pytest.mark.parametrize("cached, reachable, chosen", [
    (True, False, "gpt2"), (False, True, "gpt2"), (True, True, "gpt2"), (False, False, "tiny")])
def test_which_model_is_meant_where_none_is_named(monkeypatch, capsys, cached, reachable, chosen):
    monkeypatch.setattr(hub, "cached", lambda *_: cached)
    monkeypatch.setattr(hub, "reachable", lambda: reachable)
    monkeypatch.setattr(hub, "file", lambda *_: "config.json")
    assert models.choose_model(None) == chosen
    captured = capsys.readouterr()
    assert captured.out == ""
    if chosen == "tiny":
        assert re.fullmatch(r"gpt2 is not in the cache and the hub cannot be reached: .*--model tiny\n", captured.err)
    else:
        assert captured.err == ""


@pytest.mark.parametrize("status", [403, 404, 407, 451])
def test_a_hub_that_answers_and_gives_nothing_is_out_of_reach(run_script, tmp_path, status):
    """Such as a company's proxy. Where the model was named, its refusal is the end."""
    with Hub() as hub:
        hub.add("gpt2", {"config.json": b"{}"}).statuses = itertools.repeat(status)
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        result = run_script(tmp_path, "generate.py", "--prompt", "The", **online)
        refusal = rf"{hub.url} answered {status} for config\.json of 'gpt2'.*"
        assert re.fullmatch(rf"gpt2 is not in the cache and the hub does not give it \({refusal}\): going on with the "
                            "embedded model, --model tiny\n", result.stderr)
        assert result.returncode == 0
        assert result.stdout.startswith("The")
        result = run_script(tmp_path, "generate.py", "--prompt", "The", "--model", "gpt2", **online)
        assert re.fullmatch(rf"error: {hub.url} answered {status} for tokenizer.json of 'gpt2'.*\n", result.stderr)
        assert result.returncode == 2


def test_a_model_that_is_named_is_meant(monkeypatch, capsys):
    monkeypatch.setattr(hub, "cached", lambda *_: pytest.fail("looked"))
    monkeypatch.setattr(hub, "reachable", lambda *_: pytest.fail("asked"))
    for name in ("gpt2", "tiny", "folder", ""):
        assert models.choose_model(name) == name
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name, more", [("generate.py", ["--prompt", "The"]), ("evaluate.py", ["--data", "text.txt"])])
def test_the_other_scripts_fall_back_too(run_script, tmp_path, name, more):
    (tmp_path / "text.txt").write_text("The end.\n")
    result = run_script(tmp_path, name, *more)
    assert result.returncode == 0
    assert re.fullmatch(r"gpt2 is not in the cache .*--model tiny\n", result.stderr)
    assert result.stdout


@pytest.mark.parametrize(("text", "expected"), [
    ("500", 500), ("2kB", 2000), ("3 MiB", 3 * 2**20), ("1gb", 10**9), ("1.5GB", 15 * 10**8), ("2.5e9", 25 * 10**8)])
def test_sizes(text, expected):
    assert flags.size(text) == expected
    for wrong in ("", "0", "-1MB", "1PB", "1.2.3GB", "MB"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a size, such as"):
            flags.size(wrong)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_help_that_cannot_be_written_is_an_error(root, environment):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "npgpt", "merge", "--help"], env=environment, cwd=root,
                              stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"
