"""What the tests of the command lines share: a small model, and running a command as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

import npgpt
from npgpt.commands import start
from npgpt.commands.console import COMMANDS
from npgpt.files.tokenizer import END_OF_TEXT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WAYS = ["script", "module", "console"]  # to start a command
CONFIG = npgpt.GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2,
                          bos_token_id=0, eos_token_id=0)
TEXTS = """\
a stitch in time saves nine
many hands make light work
too many cooks spoil the broth
the early bird catches the worm
still waters run deep
a rolling stone gathers no moss
practice makes perfect
look before you leap
haste makes waste
a watched pot never boils
"""


def byte_tokenizer():
    """A tokenizer of single bytes: id 0 is the end of text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([END_OF_TEXT, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return npgpt.Tokenizer(tokenizer)


def save_model(folder, config=CONFIG, seed=1):
    """Write a random model with a tokenizer of single bytes."""
    npgpt.GPT2(config, seed=seed).save_pretrained(folder)
    byte_tokenizer().save(folder)


def environment_with(hf_home, **changes):
    """The environment of a user without a hub: an empty cache, and no way to fill it unless `changes` say so."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1",
                   "NO_PROXY": "*", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | changes


def contents_of(folder):
    """Every file below `folder` with its bytes, and every folder with None."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))}


@pytest.fixture
def environment(tmp_path):
    return environment_with(tmp_path / ".hf")


@pytest.fixture(scope="session")
def root():
    """The folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def contents():
    """contents(folder) -> dict path -> bytes."""
    return contents_of


@pytest.fixture(scope="session")
def console(tmp_path_factory):
    """The program npgpt, as pip writes it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["npgpt"].split(":")
    path = tmp_path_factory.mktemp("bin") / "npgpt"
    path.write_text(f"import sys\nfrom {module} import {function}\nif __name__ == '__main__':\n"
                    f"    sys.exit({function}())\n")
    return path


@pytest.fixture(scope="session")
def command_line(console):
    """command_line(way, "inspect_text.py") -> how a command is started: list of words."""
    def words(way, name):
        names = {start.file_name(command): command for command in COMMANDS}
        command = names.get(Path(name).stem, Path(name).stem).split()
        return {"script": [sys.executable, ROOT / "scripts" / name],
                "module": [sys.executable, "-m", "npgpt", *command],
                "console": [sys.executable, console, *command]}[way]

    return words


@pytest.fixture(scope="session")
def run_script():
    """run_script(cwd, "name.py", *arguments, typed=text for stdin, **environment) -> CompletedProcess with stdout and
    stderr as text."""
    def run(cwd, name, *arguments, typed="", **changes):
        result = subprocess.run([sys.executable, ROOT / "scripts" / name, *map(str, arguments)], cwd=cwd, timeout=60,
                                capture_output=True, env=environment_with(cwd / ".hf", **changes), input=typed.encode())
        result.stdout, result.stderr = result.stdout.decode(), result.stderr.decode()  # "\r" is left as it is
        return result

    return run


@pytest.fixture
def script(run_script, tmp_path):
    """script("name.py", *arguments) -> stdout; it must end well and say nothing on stderr but a progress bar."""
    def run(name, *arguments):
        result = run_script(tmp_path, name, *arguments)
        assert result.returncode == 0, result.stderr
        assert all("step/s" in line for line in result.stderr.split("\n") if line), result.stderr
        return result.stdout

    return run


@pytest.fixture
def refused(run_script, tmp_path):
    """refused("name.py", *arguments) -> the one line on stderr; checks that nothing was left behind or changed."""
    def run(name, *arguments):
        before = contents_of(tmp_path)
        result = run_script(tmp_path, name, *arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.endswith("\n")
        if name == "generate.py":
            assert result.stdout == ""
        assert contents_of(tmp_path) == before
        return result.stderr

    return run


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A model and two files of texts, never written to."""
    folder = tmp_path_factory.mktemp("scripts")
    save_model(folder / "model")
    (folder / "texts.txt").write_text(TEXTS)
    (folder / "held-out.txt").write_text("better late than never\nmany hands make light work\n")
    return folder


@pytest.fixture(scope="session")
def model(session_folder):
    return session_folder / "model"


@pytest.fixture(scope="session")
def texts(session_folder):
    return session_folder / "texts.txt"


@pytest.fixture(scope="session")
def held_out(session_folder):
    return session_folder / "held-out.txt"


@pytest.fixture(scope="session")
def adapter(session_folder, tmp_path_factory, run_script, model, texts):
    """An adapter that finetune.py trained far enough to change what the model says."""
    cwd = tmp_path_factory.mktemp("adapter")
    result = run_script(cwd, "finetune.py", "--model", model, "--data", texts, "--out", "run", "--lr", "0.02",
                        "--epochs", "10", "--targets", "all-linear", "--quiet", "--samples", "0")
    assert result.returncode == 0, result.stderr
    return cwd / "run" / "adapter"
