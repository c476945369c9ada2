"""sweep.py: every combination once, going on, the table; plot.py where matplotlib is missing."""

import re
import subprocess
import sys

import pytest

from npgpt.commands import plot, sweep
from npgpt.runtime.errors import NpgptError
from npgpt.training.run import Run


@pytest.fixture
def flags(model, texts, held_out):
    return ["--model", model, "--data", texts, "--val-data", held_out, "--samples", 0, "--max-steps", 4,
            "--eval-every", 2, "--quiet"]


def test_a_sweep(script, refused, tmp_path, contents, flags):
    command = ["sweep.py", "--out", "sweep", "--rank", 2, 3, "--lr", 0.01, 0.05]
    stdout = script(*command, "--", *flags)
    runs = {path.parent.name: Run(path.parent) for path in tmp_path.glob("sweep/*/config.json")}
    assert set(runs) == {"rank=2,lr=0.01", "rank=2,lr=0.05", "rank=3,lr=0.01", "rank=3,lr=0.05"}
    for name, run in runs.items():
        settings = run.read_config()["settings"]
        assert name == f"rank={settings['rank']},lr={settings['lr']}"
    table = [line.split() for line in stdout.split("\n\n")[1].splitlines()]
    assert table[0] == ["rank", "lr", "lowest", "at", "step", "at", "the", "end"]
    lowest = []
    for rank, lr, loss, step, last in table[1:]:
        evaluations = dict(runs[f"rank={rank},lr={lr}"].evaluations())
        assert float(loss) == pytest.approx(min(evaluations.values()), abs=1e-3)
        assert evaluations[int(step)] == min(evaluations.values())
        assert float(last) == pytest.approx(evaluations[4], abs=1e-3)
        lowest.append(min(evaluations.values()))
    assert lowest == sorted(lowest)
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert page.count('class="line ') == 4 * 3  # in a wide and a narrow picture, and in the legend
    assert "rank 3, lr 0.05" in page

    before = contents(tmp_path / "sweep")
    assert script(*command, "--", *flags) == stdout  # nothing is left to do
    assert contents(tmp_path / "sweep") == before
    assert "sweep holds a sweep with -- --model " in refused(*command, "--", "--model", "tiny")


def test_a_sweep_goes_on(script, tmp_path, contents, flags):
    script("sweep.py", "--out", "whole", "--rank", 2, 3, "--", *flags)
    script("finetune.py", "--out", "sweep/rank=2", "--rank", 2, *flags)
    (tmp_path / "sweep" / "rank=2" / "results.json").unlink()  # as of a run that was killed
    (tmp_path / "random.py").write_text("raise ImportError('not the one of Python')")
    script("sweep.py", "--out", "sweep", "--rank", 2, 3, "--", *flags)
    name = "adapter/adapter_model.safetensors"
    for run in ("rank=2", "rank=3"):
        assert contents(tmp_path / "sweep" / run)[name] == contents(tmp_path / "whole" / run)[name]


def test_sweeps_that_cannot_go_well(run_script, refused, tmp_path, model, texts, flags):
    assert "nothing to compare: give values to at least one of --rank, --alpha, --lr, --targets" in refused(
        "sweep.py", "--out", "sweep", "--", *flags)
    result = run_script(tmp_path, "sweep.py", "--out", "sweep", "--targets", "nope", "--", *flags)
    assert result.returncode == 2
    assert re.search(r"error: target 'nope' matches no module.*\nerror: the run in sweep/targets=nope ended with exit "
                     "status 2", result.stderr)


@pytest.mark.parametrize("arguments, message", [
    (["--rank", 2], "error: a sweep compares held-out losses, and nothing is held out: give --val-data or --val-fr"),
    (["--rank", 4, 0, "--", "--val-fraction", 0.5], "error: --rank 0: it must be"),
    (["--lr", 0.1, -1, "--", "--val-fraction", 0.5], "error: --lr -1.0: it must be a number of at least 0"),
    (["--rank", 4, "--", "--val-fraction", 0.5, "--full"], "error: --rank would have no effect with --full: leave"),
    (["--rank", 4, "--model", "tiny", "--"], "unrecognized arguments: --model: flags of finetune come last, after --"),
    (["--rank", 4, "--val-fraction=0.5", "--"], "nts: --val-fraction=0.5: flags of finetune come last, after -- (see"),
    (["--rank", 4, "--frob", "--"], "error: unrecognized arguments: --frob (see"),
])
def test_what_cannot_go_well_is_known_before_the_first_run(refused, model, texts, arguments, message):
    if "--" not in arguments:
        arguments = [*arguments, "--"]
    assert message in refused("sweep.py", "--out", "sweep", *arguments, "--model", model, "--data", texts)


def test_two_sweeps_in_one_folder(refused, tmp_path, flags):
    (tmp_path / "sweep").mkdir()
    args = sweep.parse_arguments(["--out", str(tmp_path / "sweep"), "--rank", "2"])
    sweep.claim(args)
    assert "error: sweep is in use: another process writes into it" in refused(
        "sweep.py", "--out", "sweep", "--rank", 2, "--", *flags)


def test_any_file_system_takes_the_names_of_folders():
    assert sweep.folder_name({"rank": 2, "lr": 1e-05}) == "rank=2,lr=1e-05"
    assert sweep.folder_name({"targets": "c_attn,mlp.c_fc"}) == "targets=c_attn,mlp.c_fc"
    names = [sweep.folder_name({"targets": targets}) for targets in (".*c_attn", ".?c_attn", "a/" * 200, "a/" * 201)]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"targets=[\w.-]{1,110}", name) for name in names)


def test_plotting_needs_matplotlib_and_says_so(root, environment, tmp_path, model):
    code = ("import sys; sys.modules['matplotlib'] = None; from npgpt.commands import cli, plot; "
            "sys.exit(cli.run(lambda: plot.main(plot.parse_arguments(['run']))))")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "error: plot needs matplotlib: pip install '.[plot]'\n")


def test_runs_are_named_by_what_differs(tmp_path):
    runs = []
    for name, rank in (("one", 4), ("two", 8)):
        runs.append(Run.create(tmp_path / name))
        runs[-1].write_config({"settings": {"rank": rank, "lr": 0.1, "data": None}})
    assert plot.names(runs) == ["one, rank 4", "two, rank 8"]
    assert plot.names(runs[:1]) == ["one"]


@pytest.mark.parametrize("flag", ["--lr", "--out", "--resume", "--preview"])
def test_a_flag_that_the_sweep_sets_itself_is_refused(refused, flag):
    assert f"error: {flag} after --: " in refused("sweep.py", "--out", "sweep", "--lr", 1e-3, "--", flag, "1")


def test_flags_that_no_run_began_with_can_be_corrected(run_script, script, tmp_path, flags):
    wrong = [*flags[2:], "--model", "nowhere"]
    assert run_script(tmp_path, "sweep.py", "--out", "sweep", "--rank", 2, "--", *wrong).returncode == 2
    assert not list(tmp_path.glob("sweep/*/config.json"))
    script("sweep.py", "--out", "sweep", "--rank", 2, "--", *flags)


def test_a_sweep_without_more_flags_goes_on(tmp_path):
    flags = sweep.parse_arguments(["--out", "sweep", "--rank", "2"]).finetune
    sweep.note_down(tmp_path / "sweep.json", flags)
    Run.create(tmp_path / "rank=2").write_config({})
    sweep.note_down(tmp_path / "sweep.json", flags)


def test_runs_without_settings_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NpgptError, match="does not hold the settings of a run"):
        plot.names([Run(tmp_path)])
