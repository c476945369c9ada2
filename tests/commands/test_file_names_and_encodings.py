"""Pipes, encodings, and files whose names are not UTF-8, as command lines meet them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.commands.conftest import TEXTS, environment_with, save_model

NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model")
    (tmp_path / "texts.txt").write_text(TEXTS)
    return tmp_path


def piped(folder, content, *arguments):
    """Run a command with `content` on standard input, through a pipe. Returns its lines."""
    result = subprocess.run([sys.executable, "-m", "npgpt", *map(str, arguments)], cwd=folder, input=content,
                            capture_output=True, env=environment_with(folder / ".hf"), timeout=60)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().splitlines()


def test_data_come_through_a_pipe(folder, script):
    stdin = ["--data", "/dev/stdin", "--model", "model"]
    many = TEXTS * 20
    for content in (many.encode(), many.encode("utf-16"), many.replace("\n", "\r").encode(),
                    "".join(json.dumps({"text": text}) + "\n" for text in many.splitlines()).encode()):
        lines = piped(folder, content, "finetune", *stdin, "--preview", 0)
        assert any(line.startswith("data       /dev/stdin: 200 texts") for line in lines)
    found = piped(folder, TEXTS.encode(), "evaluate", *stdin, "--protocol", "document", "--json")
    assert found == [script("evaluate.py", "--model", "model", "--data", "texts.txt", "--protocol", "document",
                            "--json").replace('"data": "texts.txt"', '"data": "/dev/stdin"').strip()]


def test_settings_come_through_a_pipe(folder, script):
    script("finetune.py", "--model", "model", "--data", "texts.txt", "--max-steps", 1, "--samples", 0, "--out", "run")
    content = (folder / "run" / "config.json").read_bytes()
    piped(folder, content, "finetune", "--config", "/dev/stdin", "--out", "again")
    files = [folder / run / "adapter" / "adapter_model.safetensors" for run in ("run", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_text_of_a_certificate_comes_through_a_pipe(folder, script):
    script("finetune.py", "--model", "model", "--data", "texts.txt", "--max-steps", 1, "--samples", 0, "--out", "run")
    lines = piped(folder, TEXTS.encode(), "merge", "--model", "model", "--adapter", "run/adapter", "--out", "merged",
                  "--text", "/dev/stdin")
    assert any("tokens of /dev/stdin" in line for line in lines)


def test_a_sweep_refuses_a_pipe(refused, folder):
    os.mkfifo(folder / "pipe")
    assert "--data pipe: each run reads the data, and a pipe can be read only once" in refused(
        "sweep.py", "--out", "sweep", "--rank", 2, 4, "--", "--data", "pipe")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_and_configurations_may_have_a_mark(folder, script, encoding):
    (folder / "settings.toml").write_text('model = "model"\ndata = "texts.txt"\nsamples = 0\nmax-steps = 1\n',
                                          encoding=encoding)
    for name in ("config.json", "tokenizer.json"):
        path = folder / "model" / name
        path.write_text(path.read_text(), encoding=encoding)
    script("finetune.py", "--config", "settings.toml", "--out", "run")
    (folder / "run" / "config.json").write_text((folder / "run" / "config.json").read_text(), encoding=encoding)
    script("finetune.py", "--config", "run/config.json", "--out", "again")
    files = [folder / run / "adapter" / "adapter_model.safetensors" for run in ("run", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_names_need_not_be_utf8(folder, script):
    shutil.move(folder / "model", folder / NAME)
    shutil.move(folder / "texts.txt", folder / f"{NAME}.txt")
    model, adapter = ["--model", NAME], ["--adapter", f"{NAME}-run/adapter"]
    script("finetune.py", *model, "--data", f"{NAME}.txt", "--val-data", f"{NAME}.txt", "--max-steps", 2, "--samples",
           1, "--out", f"{NAME}-run")
    assert "caf\\udce9.txt" in (folder / f"{NAME}-run" / "report.html").read_text(encoding="utf-8")
    script("finetune.py", "--resume", f"{NAME}-run")
    script("generate.py", *model, *adapter, "--prompt", "a", "--json")
    script("evaluate.py", *model, *adapter, "--data", f"{NAME}.txt", "--out", f"{NAME}.jsonl")
    script("merge.py", *model, *adapter, "--out", f"{NAME}-merged", "--text", f"{NAME}.txt")
    script("inspect_adapter.py", f"{NAME}-run/adapter")
    script("inspect_text.py", *model, *adapter, "--prompt", "a b", "--out", f"{NAME}.html")
    assert "caf\\udce9" in (folder / f"{NAME}.html").read_text(encoding="utf-8")
    script("sweep.py", "--out", f"{NAME}-sweep", "--rank", 2, "--", *model, "--data", f"{NAME}.txt", "--max-steps", 1,
           "--val-data", f"{NAME}.txt", "--samples", 0)


def test_pictures_and_gguf_files_of_such_names(folder, script):
    pytest.importorskip("matplotlib")
    pytest.importorskip("gguf")
    shutil.move(folder / "model", folder / NAME)
    script("finetune.py", "--model", NAME, "--data", "texts.txt", "--max-steps", 1, "--samples", 0, "--out",
           f"{NAME}-run")
    script("plot.py", f"{NAME}-run", "--out", f"{NAME}.svg")
    script("export_gguf.py", "--model", NAME, "--out", f"{NAME}.gguf")
