"""The program npgpt: its table of commands, its help, and the three ways to start a command."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import npgpt
from npgpt.commands import console, start
from npgpt.commands.console import COMMANDS

from .conftest import WAYS

FOLDER = Path(console.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
SAID = {"script": "python scripts/generate.py", "module": "python -m npgpt generate", "console": "npgpt generate"}
PROG = {"script": "finetune.py", "module": "python -m npgpt finetune", "console": "npgpt finetune"}


@pytest.fixture
def npgpt_program(root, console, tmp_path, environment):
    """npgpt_program("convert adapter", *words, way="console") -> (status, stdout, stderr)."""
    def run(command="", *words, way="console"):
        start_of = {"script": [root / "scripts" / f"{start.file_name(command)}.py"],
                    "module": ["-m", "npgpt", *command.split()], "console": [console, *command.split()]}
        done = subprocess.run([sys.executable, *start_of[way], *map(str, words)], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


# The shape of the code


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_is_short(path):
    """No file over 300 lines, no function over 40."""
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 40, node.name


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_module_a_line_of_help_and_a_script(root, name):
    module = importlib.import_module(f"npgpt.commands.{start.file_name(name)}")
    assert module.__doc__ and module.FLAGS
    assert list(inspect.signature(module.parse_arguments).parameters) == ["argv"]
    assert len(inspect.signature(module.main).parameters) == 1
    assert 10 < len(COMMANDS[name]) < 90
    script = (root / "scripts" / f"{start.file_name(name)}.py").read_text()
    assert len(script.splitlines()) <= 8
    assert ast.get_docstring(ast.parse(script)).startswith(f"npgpt {name}, as a script")
    assert f'console.script("{name}")' in script


def test_every_command_is_in_the_table():
    commands = {path.stem for path in FILES if "\ndef parse_arguments(argv)" in path.read_text()}
    assert commands == set(map(start.file_name, COMMANDS))


# npgpt alone


def test_help_lists_every_command(npgpt_program):
    status, stdout, stderr = npgpt_program("--help")
    assert (status, stderr) == (0, "")
    assert stdout.startswith("usage: npgpt COMMAND [FLAG ...]\n")
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", stdout, re.M)
    assert max(map(len, stdout.splitlines())) <= 100
    assert npgpt_program("-h") == npgpt_program() == (0, stdout, "")
    assert npgpt_program("--help", way="module")[1].startswith("usage: python -m npgpt COMMAND [FLAG ...]\n")


def test_help_of_a_command_in_two_ways(npgpt_program):
    assert npgpt_program("help") == npgpt_program("--help")
    assert npgpt_program("help", "merge") == npgpt_program("merge", "--help")


def test_help_imports_neither_numpy_nor_a_command(environment):
    code = ("import sys; sys.argv[1:] = ['--help']; from npgpt.commands import console; console.main(); "
            "print(*[name for name in sys.modules if name.startswith(('npgpt', 'numpy', 'argparse'))])")
    stdout = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True,
                            check=True).stdout
    assert stdout.splitlines()[-1].split() == ["npgpt", "npgpt.commands", "npgpt.commands.start",
                                               "npgpt.commands.console", "npgpt.runtime", "npgpt.runtime.errors",
                                               "npgpt.commands.printing", "npgpt.commands.cli"]


def test_help_answers_at_once(npgpt_program):
    """The fastest of five: the others may have had to wait for the machine."""
    def seconds():
        started = time.perf_counter()
        npgpt_program("--help")
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.3


def test_the_version(npgpt_program):
    assert npgpt_program("--version") == (0, f"npgpt {npgpt.__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+", npgpt.__version__)


@pytest.mark.parametrize("words, message", [
    (["finetunes"], "finetunes is not a command; did you mean finetune? (see npgpt --help)"),
    (["inspect_text"], "inspect_text is not a command; did you mean inspect-text? (see npgpt --help)"),
    (["convert-adapter"], "convert-adapter is not a command; did you mean convert adapter? (see npgpt --help)"),
    (["--frob"], "--frob is not a command (see npgpt --help)"),
    (["convert"], "npgpt convert needs one more word: npgpt convert adapter or npgpt convert checkpoint"),
    (["convert", "model.pt"], "convert model.pt is not a command: npgpt convert adapter or npgpt convert checkpoint"),
    (["xyzzy"], "xyzzy is not a command (see npgpt --help)"),
    (["inspect", "adapter"], "inspect is not a command; did you mean inspect-adapter? (see npgpt --help)"),
])
def test_what_is_no_command(npgpt_program, words, message):
    status, stdout, stderr = npgpt_program(*words)
    assert (status, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


def test_the_two_commands_of_convert(npgpt_program, tmp_path):
    status, stdout, _ = npgpt_program("convert", "--help")
    assert status == 0
    assert re.findall(r"^  convert (\w+) ", stdout, re.M) == ["adapter", "checkpoint"]
    assert npgpt_program("convert adapter", "--help")[1].startswith("usage: npgpt convert adapter FILE --out DIR [FLAG")
    (tmp_path / "ckpt.pt").write_text("no")
    status, _, stderr = npgpt_program("convert", "checkpoint", "ckpt.pt", "--out", "new")
    assert (status, stderr.startswith("error: ckpt.pt is not a file that torch.save")) == (2, True)


# A command


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_the_command_was_started(npgpt_program, way, name):
    status, stdout, stderr = npgpt_program(name, "--help", way=way)
    assert (status, stderr) == (0, "")
    prog = {"script": f"{start.file_name(name)}.py", "module": f"python -m npgpt {name}", "console": f"npgpt {name}"}
    assert re.match(rf"usage: {prog[way]} .*\[FLAG \.\.\.\]", stdout)


@pytest.mark.parametrize("way", WAYS)
def test_errors_and_hints_say_it_too(npgpt_program, way, model, texts):
    status, _, stderr = npgpt_program("finetune", "--frob", way=way)
    assert (status, stderr) == (2, f"error: unrecognized arguments: --frob (see {PROG[way]} --help)\n")
    status, stdout, stderr = npgpt_program("finetune", "--model", model, "--data", texts, "--max-steps", 1, "--samples",
                                           0, "--out", "run", way=way)
    assert status == 0, stderr
    assert re.search(rf"^use it     {SAID[way]} --model \S+model --adapter run/adapter --prompt \"Overfitting is\"$",
                     stdout, re.M)


def test_every_way_writes_the_same_run(npgpt_program, tmp_path, contents, model, texts):
    runs = []
    for way in WAYS:
        options = ["--model", model, "--data", texts, "--max-steps", 2, "--samples", 1, "--out", way, "--quiet"]
        assert npgpt_program("finetune", *options, way=way)[0] == 0
        runs.append({name: text for name, text in contents(tmp_path / way).items()
                     if name not in ("metrics.jsonl", "report.html")})
    assert runs[0] == runs[1] == runs[2]


def test_a_program_that_uses_a_command_names_it_as_the_console_does():
    assert start.typed("generate") == "npgpt generate"
