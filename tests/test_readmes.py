"""The READMEs are true: their commands run and print what they are said to print, and their links lead somewhere.

tests/readmes/blocks.py says what is done with each fenced block. All blocks of a README run in one folder, in order,
offline, as `npgpt` without gpt2 runs them. In that folder are small files in the place of the reader's (`FILES`), and
what `npgpt finetune --model tiny --out runs/mine` leaves, unless the README itself makes `runs/mine`. A `finetune`
whose output is not shown takes only two steps, to save time.
"""

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import npgpt
from tests.readmes.blocks import KINDS, blocks, commands, difference, same_line

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted((ROOT / "npgpt").rglob("README.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in READMES]
LONGEST = 180  # lines of README.md

TEXTS = (ROOT / "npgpt" / "texts" / "train.txt").read_text(encoding="utf-8").splitlines()
PAIRS = [("name : Alimentum | area : city centre | family friendly : no",
          "There is a place in the city centre , Alimentum , that is not family - friendly ."),
         ("name : Aromi | eat type : coffee shop | area : riverside", "Aromi is a coffee shop by the river ."),
         ("name : Zizzi | eat type : pub | near : Burger King", "Near Burger King there is a pub named Zizzi .")]
QUESTIONS = [("What is a tensor?", "An array with a gradient."), ("What is LoRA?", "Two thin matrices."),
             ("What is a token?", "A piece of a text.")]
FILES = {
    "my.txt": "\n".join(TEXTS[:40]),
    "held-out.txt": "\n".join(TEXTS[40:50]),
    "shakespeare.txt": "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 60,
    "e2e.txt": "\n".join(f"{meaning}||{words}" for meaning, words in PAIRS),
    "my.csv": "\n".join(["question,answer", *(f"{one},{other}" for one, other in QUESTIONS)]),
    "instructions.json": json.dumps([{"instruction": one, "input": "", "output": other} for one, other in QUESTIONS]),
    "chats.jsonl": "\n".join(json.dumps({"messages": [
        {"role": "user", "content": one}, {"role": "assistant", "content": other}]}) for one, other in QUESTIONS),
    "settings.toml": 'model = "tiny"\ndata = "my.txt"\nrank = 4\nlr = 1e-3\n',
}


def runnable(words):
    """Return the command line that runs `words` here, or None for what only prepares a machine."""
    program, *arguments = words
    if program == "npgpt":
        return [sys.executable, "-m", "npgpt", *arguments]
    if program == "python":
        return [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    assert program in ("pip", "apt"), f"a README runs {program}: neither npgpt nor python"
    return None


def command_and_arguments(words):
    """Split what stands behind `npgpt`. Returns the name of the command's module, and the command's arguments."""
    count = 2 if words[0] == "convert" else 1  # convert adapter, convert checkpoint
    return "_".join(words[:count]).replace("-", "_"), words[count:]


def environment(home):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "COLUMNS"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1",
                   "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(folder, command):
    """Run a Command in `folder`. Returns what it prints on both streams, as a terminal shows it in the end: lines."""
    argv = runnable(command.words)
    if argv is None:
        return command.printed
    result = subprocess.run(argv, cwd=folder, env=environment(folder / ".hf"), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    text = result.stdout.decode()
    assert result.returncode == 0, f"line {command.line}: exit status {result.returncode}: {text}"
    return [line.rstrip().rpartition("\r")[2] for line in text.rstrip().split("\n")]


def shortened(command):
    """Return the command, of two steps if it is a `finetune` whose output nobody sees."""
    if command.words[:2] != ["npgpt", "finetune"] or command.printed or "--resume" in command.words:
        return command
    return command._replace(words=[*command.words, "--max-steps=2", "--samples=0"])


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The folder of a run of tiny that has ended."""
    folder = tmp_path_factory.mktemp("mine")
    (command,) = commands(blocks("```console\n$ npgpt finetune --model tiny --out runs/mine\n```")[0])
    run(folder, command)
    return folder / "runs" / "mine"


@pytest.fixture
def folder(tmp_path):
    """What a reader of a README has: the shipped texts, and files of their own."""
    shutil.copytree(ROOT / "npgpt" / "texts", tmp_path / "npgpt" / "texts")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    for name in ("ckpt.pt", "meta.pkl"):
        shutil.copy(ROOT / "tests" / "goldens" / "nanogpt" / name, tmp_path)
    return tmp_path


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def compare(place, promised, printed, varies):
    wrong = difference(promised, printed, varies)
    assert wrong is None, f"{place}: it does not print what it says, first: {wrong}\nIt prints:\n" + "\n".join(printed)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_readme_runs_prints_what_it_says(name, folder, request, monkeypatch):
    text, names, printed = read(name), {}, ""
    if "runs/mine" in text and "--out runs/mine" not in text:
        shutil.copytree(request.getfixturevalue("mine"), folder / "runs" / "mine")
    monkeypatch.chdir(folder)
    for block in blocks(text):
        if block.kind == "console":
            for command in commands(block):
                lines = run(folder, shortened(command))
                if command.printed:
                    compare(f"{name}:{command.line}", command.printed, lines, command.varies)
        elif block.kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as stream:
                exec(compile("\n" * block.line + block.text, ROOT / name, "exec"), names)
            printed = stream.getvalue()
        elif block.kind == "output":
            compare(f"{name}:{block.line}", block.text.splitlines(), printed.splitlines(), block.varies)


class Found(Exception):
    """Carries the parser of a command."""


def check_arguments(monkeypatch, module, argv):
    """Parse `argv` by the parser that the module of a command makes, and do nothing else."""
    def parse_known_args(parser, *_):
        raise Found(parser)

    with monkeypatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr("argparse.ArgumentParser.parse_known_args", parse_known_args)
        module.parse_arguments(argv)
    found.value.args[0].parse_args(argv)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_readme_does_not_run_is_right_as_well(name, monkeypatch, capsys):
    """Flags are there, choices are possible, files of the repository exist, Python compiles and npgpt has its names."""
    for block in blocks(read(name)):
        if block.kind in ("console", "console no-run"):
            for command in commands(block):
                try:
                    check(monkeypatch, *command.words)
                except (SystemExit, ModuleNotFoundError) as error:
                    pytest.fail(f"{name}:{command.line}: {capsys.readouterr().err or error}")
        elif block.kind.startswith("python"):
            compile(block.text, name, "exec")
            for attribute in re.findall(r"\bnpgpt\.(\w+)", block.text):
                assert hasattr(npgpt, attribute), f"{name}:{block.line}: npgpt.{attribute}"


def check(monkeypatch, program, *words):
    """Parse a command that is npgpt's own; of any other, find the files of the repository that it names."""
    words = list(words)
    if program == "npgpt":
        name, arguments = command_and_arguments(words)
        check_arguments(monkeypatch, importlib.import_module(f"npgpt.commands.{name}"), arguments)
        return
    for word in (program, *words):
        assert not re.match(r"(tests|scripts|\.ci)/", word) or (ROOT / word).exists(), word
    if program == "python" and words[0].startswith("scripts/"):
        module = importlib.import_module(Path(words[0]).stem)
        if hasattr(module, "parse_arguments"):  # else it is harness.py, or an entry point of a few lines
            check_arguments(monkeypatch, module, words[1:])


@pytest.mark.parametrize("name", NAMES)
def test_every_block_says_what_it_is(name):
    for block in blocks(read(name)):
        assert block.kind in KINDS, f"{name}:{block.line}: ```{block.kind}"
        if not block.kind.startswith("console"):
            found = re.search(r"^(\$|npgpt|python) ", block.text, re.M)
            assert not found, f"{name}:{block.line}: a command outside of ```console"


def anchors(path):
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = re.sub(r"^```.*?^```$", "", read(name), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith("https://"):
            target, _, anchor = link.partition("#")
            path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
            assert path.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(path), f"{name}: {link}"


def test_the_readme_is_short_and_leads_to_every_other():
    text = read("README.md")
    assert text.count("\n") <= LONGEST
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "npgpt").rglob("__init__.py")} - {"npgpt"}
    assert {f"{room}/README.md" for room in rooms} <= {*NAMES}, "a room without a README"
    assert all(f"({name})" in text for name in NAMES if name not in ("README.md", "npgpt/tiny/README.md"))


def test_the_picture_is_small():
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", read("README.md"))
    assert (ROOT / picture).stat().st_size <= 200_000


@pytest.mark.parametrize("promised, printed, same", [
    ("loss 5.620 -> 4.894", "loss 5.620  ->  4.901", True),
    ("loss 5.620 -> 4.894", "loss 5.620 -> 5.894", False),
    ("125 steps of 4 texts", "124 steps of 4 texts", False),
    ("125 steps of 4 texts", "125 steps of 4 lines", False),
    ("saved runs/2026-11-28_02-00-55/adapter (399 kB) after 5.4 s",
     "saved runs/2027-01-01_12-13-14-2/adapter (402 kB) after 71.0 s", True),
    ("3.1step/s, about 8 s in all", "1.02s/step, about 2 min in all", True),
    ("saved runs/mine/adapter (399 kB)", "saved runs/mine/adapter (799 kB)", False),
    ("[00:04<00:00, 27.49step/s, 4,977 tokens/s]", "[01:00<00:00, 3.1step/s, 77 tokens/s]", True),
    ("  after   a model of a place", "  after  the few", True),
    ("  after   a model of a place", "  before  the few", False),
    ("add   7   1.1e-11", "add   7   9.0e-12", True),
    ("add   7   1.1e-11", "add   7   9.0e-08", False),
    ("add   7   1.1e-11", "add   8   1.1e-11", False),
    ("19,238 ± 5,361", "19,240 ± 5,362", True),
    ("19,238 words", "19,240 words", False),
    ("p = 0.004", "p = 0.005", True),
    ("p = 0.004", "p = 0.010", False),
    ("h.0  3.19 #######", "h.0  3.20 ########", True),
    ("layer h.0.attn", "layer h.1.attn", False),
])
def test_a_line_is_compared_by_its_words_and_numbers(promised, printed, same):
    assert same_line(promised, printed, ("after", "before")) == same


@pytest.mark.parametrize("promised, printed, wrong", [
    (["a", "b"], ["a", "b"], None),
    (["a", "b"], ["a", "c"], "b"),
    (["a"], ["a", "c"], "c"),
    (["a", "b"], ["a"], "b"),
    (["a", "...", "d"], ["a", "b", "c", "d"], None),
    (["a", "...", "d"], ["a", "b"], "d"),
    (["a", "..."], ["a", "b", "c"], None),
    (["..."], [], None),
])
def test_lines_left_out_are_any_lines(promised, printed, wrong):
    assert difference(promised, printed) == wrong
