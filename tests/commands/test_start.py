"""Ctrl-C during imports, closed streams, full disks: however a command is started, it ends as it does later."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from npgpt.commands import start, sweep, watch
from npgpt.training.run import Run

from .conftest import WAYS

SCRIPTS = sorted(path.name for path in (Path(__file__).parents[2] / "scripts").glob("*.py")
                 if '__name__ == "__main__"' in path.read_text())
SIGNALS = [signal.SIGINT, signal.SIGTERM]
# What stands in the place of a module: it says that it is being imported, and then takes its time.
HELD_UP = """
import os, time
os.write(1, b"here\\n")
for _ in range(6000):
    time.sleep(0.01)  # a signal just before a sleep does not cut it short
"""


@pytest.fixture
def begun(command_line, tmp_path, environment):
    """begun("name.py", *arguments, way="script", **options of Popen) -> the process, which Ctrl-C reaches."""
    def start(name, *arguments, way="script", **options):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # even if this process ignores it
        try:
            return subprocess.Popen([*command_line(way, name), *map(str, arguments)], cwd=tmp_path,
                                    encoding="utf-8", **{"env": environment, "stdout": subprocess.PIPE,
                                                         "stderr": subprocess.PIPE} | options)
        finally:
            signal.signal(signal.SIGINT, before)

    return start


def stopped(process, number=signal.SIGINT):
    """Press Ctrl-C or send another signal, and assert that the process says so, and no more."""
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (128 + number, "stopped\n")


def held_up(tmp_path, environment, module):
    """The environment in which importing `module` says "here" and does not end."""
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / f"{module}.py").write_text(HELD_UP)
    return environment | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "stubs"), environment["PYTHONPATH"]])}


def test_there_are_scripts():
    assert len(SCRIPTS) >= 15


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_during_the_longest_import(begun, tmp_path, environment, name, number):
    slow = "lm_eval" if name == "harness.py" else "numpy"
    process = begun(name, env=held_up(tmp_path, environment, slow))
    assert process.stdout.readline() == "here\n"
    stopped(process, number)


@pytest.mark.parametrize("way, module", [
    *itertools.product(WAYS, ["argparse", "threadpoolctl", "tokenizers"]),
    ("script", "importlib"), ("console", "importlib"),  # `python -m` imports it itself
])
def test_ctrl_c_at_any_import(begun, tmp_path, environment, model, module, way):
    """importlib is the first that is imported, tokenizers comes when a tokenizer is loaded."""
    process = begun("generate.py", "--model", model, "--prompt", "A", way=way,
                    env=held_up(tmp_path, environment, module))
    assert process.stdout.readline() == "here\n"
    stopped(process)


@pytest.mark.parametrize("way", ["module", "console"])
def test_ctrl_c_while_npgpt_finds_no_command(begun, tmp_path, environment, way):
    process = begun("frob.py", way=way, env=held_up(tmp_path, environment, "difflib"))
    assert process.stdout.readline() == "here\n"
    stopped(process)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_after_the_imports(begun, tmp_path, model, way, number):
    """The prompt is read when all is loaded: from a pipe, whose other end waits for that."""
    os.mkfifo(tmp_path / "prompt")
    process = begun("generate.py", "--model", model, "--prompt-file", "prompt", way=way)
    with open(tmp_path / "prompt", "w"):
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (128 + number, "stopped\n")


def test_sigterm_ends_a_conversation(begun, model):
    """Ctrl-C only stops a reply."""
    process = begun("generate.py", "--model", model, "--interactive", stdin=subprocess.PIPE)
    assert process.stdout.readline().startswith("Type the beginning")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    stopped(process, signal.SIGTERM)


@pytest.mark.parametrize("number, to_all", [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)])
def test_ctrl_c_in_the_child_of_a_sweep(begun, tmp_path, environment, model, texts, held_out, number, to_all):
    """Ctrl-C reaches every process of the terminal's foreground group, and the child may not have begun to import.

    SIGTERM may reach all processes too, or the sweep alone, which passes it on.
    """
    environment = held_up(tmp_path, environment, "tqdm")
    (tmp_path / "stubs" / "tqdm.py").write_text("import sys\nif sys.argv[1] == 'finetune':" + HELD_UP.replace(
        "\n", "\n    ").replace("write(1", "write(2") + "\ndef tqdm(): pass\n")
    process = begun("sweep.py", "--out", "sweep", "--rank", 2, "--", "--model", model, "--data", texts, "--val-data",
                    held_out, env=environment, start_new_session=True)
    assert process.stderr.readline() == "here\n"
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert set(stderr.splitlines()) == {"stopped"}


def test_a_sweep_that_sigterm_stops_saves_its_run_and_goes_on(begun, script, tmp_path, model, texts, held_out):
    """Slurm sends SIGTERM to all processes, and the sweep passes it on: the run gets it twice, and still saves."""
    command = ["sweep.py", "--out", "sweep", "--rank", 2, 3, "--", "--model", model, "--data", texts, "--val-data",
               held_out, "--samples", 0, "--epochs", 40, "--save-every", 0, "--quiet"]
    process = begun(*command, start_new_session=True)
    metrics = tmp_path / "sweep" / "rank=2" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stderr.split("\n")[-2:] == ["stopped", ""]
    (checkpoint,) = (metrics.parent / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) == metrics.read_text().count("\n")
    assert "rank=3" not in os.listdir(tmp_path / "sweep")


@pytest.mark.parametrize("status", [130, 143, -signal.SIGINT, -signal.SIGTERM])
def test_a_child_that_was_stopped_stops_the_sweep(monkeypatch, tmp_path, status):
    kill = f"import os; os.kill(os.getpid(), {-status})" if status < 0 else f"raise SystemExit({status})"
    monkeypatch.setattr(start, "_terminated", -start.MOMENT)
    child = [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); {kill}"]
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(child, **options))
    with pytest.raises(KeyboardInterrupt):
        sweep.fine_tune(Run(tmp_path / "run"), {"rank": 2}, [])


def test_a_program_that_imports_a_command_keeps_its_ctrl_c():
    for number in SIGNALS:
        assert signal.getsignal(number) not in (start._stop, start.interrupt)


def test_a_sigterm_that_is_passed_on_counts_once(monkeypatch, capfd):
    now = [100.0]
    monkeypatch.setattr(start.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(start, "_terminated", -start.MOMENT)
    stop = watch.Stop()
    with watch.handled(stop.press):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        assert capfd.readouterr().err == "\nstopping after this step; SIGTERM once more stops at once\n"
        now[0] += 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert start.status() == 143


# Streams


def closing(*descriptors):
    """What a child does first, as a shell's `>&-` makes it."""
    def close():
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name, arguments, status", [
    ("generate.py", ["--prompt", "A", "--seed", 0, "--max-new-tokens", 2], 0),
    ("generate.py", ["--prompt", "-"], 2),
    ("finetune.py", ["--preview", 1], 0),
    ("evaluate.py", ["--data", "none.txt"], 2),
])
def test_closed_streams(begun, model, texts, closed, name, arguments, status, way):
    more = ["--data", texts] if name == "finetune.py" else []
    process = begun(name, "--model", model, *more, *arguments, way=way, preexec_fn=closing(*closed),
                    stdin=subprocess.DEVNULL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in stderr
    assert stderr.count("\n") == (status == 2 and 2 not in closed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("name, arguments", [
    ("generate.py", ["--prompt", "A", "--max-new-tokens", 2]), ("generate.py", ["--prompt", "A", "--json"]),
    ("finetune.py", ["--preview", 1]), ("finetune.py", ["--max-steps", 1, "--quiet"]),
    ("evaluate.py", []),
])
def test_a_full_disk_behind_standard_output(begun, model, texts, name, arguments):
    more = [] if name == "generate.py" else ["--data", texts]
    with open("/dev/full", "w") as full:
        process = begun(name, "--model", model, *more, *arguments, stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch("error: cannot write to standard output: No space left on device\n", stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_behind_standard_error(begun, tmp_path, model, texts, way):
    """Progress, warnings and errors cannot be written. The run comes to its end, and a mistake has its exit status."""
    with open("/dev/full", "w") as full:
        process = begun("finetune.py", "--model", model, "--data", texts, "--max-steps", 2, "--out", "run", "--warmup",
                        5, stderr=full, way=way)
        stdout, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "\nsaved      run/adapter" in stdout
        process = begun("finetune.py", "--frob", stderr=full, way=way)
        process.communicate(timeout=60)
    assert process.returncode == 2
    assert (tmp_path / "run" / "report.html").exists()


FULL = """
import resource, sys
from npgpt.commands import cli, finetune
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
sys.exit(cli.run(lambda: finetune.main(finetune.parse_arguments(None))))
"""


@pytest.mark.skipif(os.name != "posix", reason="the system limits files")
@pytest.mark.parametrize("texts", [100, 100_000], ids=["when it is closed", "as it is written"])
def test_a_full_temporary_folder(tmp_path, environment, model, texts):
    (tmp_path / "texts.txt").write_text("so few words\n" * texts)
    (tmp_path / "full.py").write_text(FULL)
    result = subprocess.run([sys.executable, "full.py", "--model", model, "--data", "texts.txt"], cwd=tmp_path,
                            env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == ("error: cannot write the tokens into a temporary file: File too large; set TMPDIR "
                             "to another folder\n")
    assert not (tmp_path / "runs").exists()
