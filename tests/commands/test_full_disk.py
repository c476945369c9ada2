"""A disk that is full at any moment: fine-tuning goes on, or ends with one line and with all that it has."""

import json
import subprocess
import sys

import pytest

import npgpt

# Runs again and again. In run N, the N-th file operation that needs room finds none; `lasting`: so do all later ones.
# It ends with the first run that meets no such operation.
RUNS = """
import errno, gc, itertools, json, os, sys
from pathlib import Path
from npgpt.commands import cli, finetune

left = [0]
ROOM = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def hook(event, arguments):
    if left[0] is None or event not in ("open", "os.mkdir", "os.rename") or event == "open" and not (
            isinstance(arguments[0], str) and arguments[2] & ROOM) or "output" in str(arguments[0]):
        return
    left[0] -= 1
    if left[0] == 0 or {lasting} and left[0] < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

def run(*arguments):
    with open("output", "w+") as output:
        os.dup2(output.fileno(), 2)
        status = cli.run(lambda: finetune.main(finetune.parse_arguments(["--quiet", *arguments])))
        sys.stderr.flush()
        output.seek(0)
        gc.collect()  # what the error refers to holds the lock of the run
        return status, output.read()

left[0] = None
sys.addaudithook(hook)
for number in itertools.count(1):
    folder = Path(f"run-{{number}}")
    left[0] = number
    status, said = run("--out", str(folder), *sys.argv[1:])
    met, left[0] = left[0] <= 0, None
    steps = (folder / "metrics.jsonl").read_text().count("\\n") if (folder / "metrics.jsonl").exists() else 0
    adapter = (folder / "adapter" / "adapter_config.json").exists()
    again = run("--resume", str(folder)) if (folder / "config.json").exists() else None
    print(json.dumps([str(folder), status, said, steps, adapter, again]), flush=True)
    if not met:
        break
"""


@pytest.mark.parametrize("lasting, more", [(False, []), (True, ["--keep-best"])], ids=["once", "from then on"])
def test_a_disk_that_is_full_at_any_moment(tmp_path, environment, model, texts, held_out, lasting, more):
    (tmp_path / "runs.py").write_text(RUNS.format(lasting=lasting))
    result = subprocess.run([sys.executable, "runs.py", "--model", model, "--data", texts, "--val-data", held_out,
                             "--samples", "1", "--max-steps", "4", "--eval-every", "2", "--save-every", "3", *more],
                            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    runs = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert len(runs) > 30
    for folder, status, said, steps, adapter, again in runs:
        lines = said.splitlines()
        assert status in (0, 2), said
        assert sum(line.startswith("error: ") for line in lines) == (status == 2), said
        assert all(line.startswith(("error: ", "warning: ")) for line in lines), said
        if status == 0:
            assert adapter and steps == 4, said
        elif steps == 4 and not lasting:  # what has failed is the result itself, so it is made again
            assert "the checkpoint of step 4 is whole" in said or adapter
        if "is saved in" in said:
            assert adapter
        if again:
            assert again[0] == 0, again
            npgpt.load_adapter(npgpt.GPT2.from_pretrained(model), tmp_path / folder / "adapter")
    assert runs[-1][1:3] == [0, ""]
    warned = [said for _, status, said, *_ in runs if status == 0 and said]
    assert any("report of run-" in said for said in warned)
    assert lasting or any("the result is that of step 4" in said for said in warned)
    assert any(status == 2 and f"is saved in {folder}/adapter" in said for folder, status, said, *_ in runs) or lasting
