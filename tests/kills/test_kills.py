"""A sample of the killing (kills.py does more, and says how), and that it sees what is lost."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
LOSING = """
import sys
sys.path.insert(0, {folder!r})
import kills
from npgpt.training import run
{loss}
sys.argv[1:] = ["--kills", "12", "--most", "12"]
sys.exit(kills.main())
"""
LOSSES = {
    "the moments": "run._state = lambda opt, state=run._state: {name: array for name, array in state(opt).items() "
                   "if name.startswith('parameter')}",
    "lines of metrics": "run.os.truncate = lambda *_: None",
}


def test_killed_runs_end_with_the_same_bytes():
    result = subprocess.run([sys.executable, FOLDER / "kills.py", "--kills", "15", "--most", "5"], capture_output=True,
                            text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"^15 kills of (\d+) runs, (\d+) of them inside a save: every run ended with the same bytes$",
                      result.stdout, re.M)
    assert int(found[1]) >= 3
    assert int(found[2]) >= 1


@pytest.mark.parametrize("what", LOSSES)
def test_what_is_lost_is_seen(what):
    code = LOSING.format(folder=str(FOLDER), loss=LOSSES[what])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search("differs in|does not belong to this run|metrics.jsonl lacks", result.stdout + result.stderr)
