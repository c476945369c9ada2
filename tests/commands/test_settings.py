"""Settings from files: a run again to the byte, TOML, and names and values that are none."""

import json
import re
import shutil

import pytest


@pytest.fixture
def folder(tmp_path, model, texts, held_out):
    shutil.copytree(model, tmp_path / "model")
    shutil.copy(texts, tmp_path / "texts.txt")
    shutil.copy(held_out, tmp_path / "held-out.txt")
    return tmp_path


TOML = """
model = "model"
data = "texts.txt"
val-data = "held-out.txt"
rank = 3
targets = ["c_attn", "mlp.c_fc"]
lr = 1e-2
max_steps = 5        # flags spell this --max-steps
samples = 0
keep-best = true
full = false
"""
FLAGS = ("--model model --data texts.txt --val-data held-out.txt --rank 3 --targets c_attn,mlp.c_fc --lr 0.01 "
         "--max-steps 5 --samples 0 --keep-best").split()


def test_three_ways_to_the_same_bytes(script, folder, contents):
    (folder / "settings.toml").write_text(TOML)
    script("finetune.py", *FLAGS, "--out", "flags")
    script("finetune.py", "--config", "settings.toml", "--out", "toml")
    script("finetune.py", "--config", "flags/config.json", "--out", "again")
    runs = [contents(folder / name) for name in ("flags", "toml", "again")]
    for files in runs[1:]:
        assert files.keys() == runs[0].keys()
        for path in files.keys() - {"metrics.jsonl", "report.html"}:
            assert files[path] == runs[0][path], path


def test_flags_go_before_the_file(script, folder):
    (folder / "settings.toml").write_text(TOML)
    script("finetune.py", "--config", "settings.toml", "--rank", 5, "--out", "run")
    settings = json.loads((folder / "run" / "config.json").read_text())["settings"]
    assert (settings["rank"], settings["lr"], settings["max_steps"], settings["keep_best"]) == (5, 0.01, 5, True)


def test_the_threads_are_those_of_the_run(script, folder, contents, run_script):
    script("finetune.py", *FLAGS, "--out", "run")
    result = run_script(folder, "finetune.py", "--config", "run/config.json", "--out", "again", "--quiet",
                        OPENBLAS_NUM_THREADS="2", OMP_NUM_THREADS="2")
    assert (result.returncode, result.stderr) == (0, "")
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("run", "again")]
    assert configs[0]["machine"]["threads"] == configs[1]["machine"]["threads"] == 1


def test_other_data_under_the_same_settings_are_said(script, run_script, folder):
    script("finetune.py", *FLAGS, "--out", "run")
    with (folder / "texts.txt").open("a") as file:
        file.write("one text more\n")
    result = run_script(folder, "finetune.py", "--config", "run/config.json", "--out", "again", "--quiet")
    assert result.returncode == 0
    assert result.stderr == ("warning: this is not quite the run of run/config.json: data.training.texts was 10 and is "
                             "11\n")


@pytest.mark.parametrize("name, text, message", [
    ("s.toml", "ranks = 3", "s.toml: ranks is not a setting; did you mean rank?"),
    ("s.toml", "learning-rate = 0.1", "s.toml: learning-rate is not a setting"),
    ("s.json", '{"settings": {"max_step": 3}}', "s.json: max_step is not a setting; did you mean max_steps?"),
    ("s.toml", 'resume = "run"', "s.toml: resume belongs to one call: give it on the command line"),
    ("s.toml", 'rank = "two"', "s.toml: argument --rank: 'two' is not a whole number"),
    ("s.toml", "rank = 2.5", "s.toml: argument --rank: '2.5' is not a whole number"),
    ("s.yaml", "rank: 8", "s.yaml: settings are read from a TOML file or from the config.json of a run, not from YAML; "
     "write them into a .toml file, one a line: rank = 8"),
    ("s.toml", "lr-ratio = 0", "s.toml: argument --lr-ratio: it must be a positive number"),
    ("s.toml", "rank = true", "s.toml: rank = True: it must be a number or a string"),
    ("s.toml", "full = 1", "s.toml: full = 1: it must be true or false"),
    ("s.toml", '[lora]\nrank = 1', "s.toml: lora is a section; settings are not in sections"),
    ("s.toml", 'schedule = "slow"', "s.toml: argument --schedule: invalid choice: 'slow'"),
    ("s.toml", "full = true\nlr-ratio = 16\nrank = 4",
     "--rank, --lr-ratio would have no effect with --full: leave one or the other out"),
    ("s.json", '{"full": true, "dora": true}', "--dora would have no effect with --full"),
    ("s.toml", "batch_tokens = 64\nbatch_size = 4", "--batch-size would have no effect with --batch-tokens"),
    ("s.toml", "rank = ", "s.toml is not valid TOML: Invalid value (at "),
    ("s.toml", 'rank = 0\nmodel = "model"', "--rank 0: it must be a whole number"),
    ("s.json", "[1]", "s.json holds a JSON list, not an object"),
    ("s.toml", None, "cannot read s.toml: No such file or directory"),
])
def test_what_is_no_setting_is_named(refused, folder, name, text, message):
    if text is not None:
        (folder / name).write_text(text)
    assert f"error: {message}" in refused("finetune.py", "--config", name)


def test_a_flag_that_needs_another_is_refused_without_it(refused, folder):
    message = "error: --decay-all has no effect without --full: leave it out"
    assert message in refused("finetune.py", "--model", "model", "--data", "texts.txt", "--decay-all")
    (folder / "s.toml").write_text("decay-all = true")
    assert message in refused("finetune.py", "--model", "model", "--data", "texts.txt", "--config", "s.toml")


@pytest.mark.parametrize("flags, message", [
    (["--full", "--rank", 4], "--rank would have no effect with --full"),
    (["--alpha", 8, "--rslora", "--full", "--dora", "--init", "pissa", "--targets", "c_attn"],
     "--alpha, --targets, --rslora, --dora, --init would have no effect with --full"),
    (["--batch-size", 4, "--batch-tokens", 64], "--batch-size would have no effect with --batch-tokens"),
])
def test_flags_without_effect_are_refused(refused, folder, flags, message):
    assert f"error: {message}" in refused("finetune.py", "--model", "model", "--data", "texts.txt", *flags)
    (folder / "lr.toml").write_text("full = true\nbatch-tokens = 64")
    (flag, *_) = flags[:2] if flags[0] not in ("--full", "--batch-tokens") else flags[1:]
    assert f"error: {flag} would have no effect with " in refused(
        "finetune.py", "--model", "model", "--data", "texts.txt", "--config", "lr.toml", flag, 4)


def test_the_settings_of_a_run_hold_those_without_effect_too(script, refused, folder, contents):
    common = ["--model", "model", "--data", "texts.txt", "--max-steps", 2, "--samples", 0]
    script("finetune.py", *common, "--full", "--batch-tokens", 64, "--out", "full")
    script("finetune.py", "--config", "full/config.json", "--out", "again")
    weights = [contents(folder / run / "model") for run in ("full", "again")]
    assert weights[0] == weights[1]
    script("finetune.py", "--resume", "again", "--full", "--rank", 8)
    script("finetune.py", *common, "--out", "lora")
    script("finetune.py", "--config", "lora/config.json", "--full", "--out", "other")
    assert (folder / "other" / "model").exists()
    assert "error: --rank would have no effect with --full" in refused(
        "finetune.py", "--config", "full/config.json", "--rank", 8)


@pytest.mark.parametrize("warmup, warned", [(1, False), (2, True), (9, True)])
def test_a_warmup_longer_than_the_run_is_said(run_script, folder, warmup, warned):
    result = run_script(folder, "finetune.py", "--model", "model", "--data", "texts.txt", "--max-steps", 2, "--samples",
                        0, "--quiet", "--warmup", warmup, "--lr", 0.001)
    assert result.returncode == 0
    warning = f"warning: --warmup {warmup}: this run has 2 steps, so the learning rate never reaches 0.001\n"
    assert result.stderr == warning * warned


@pytest.mark.parametrize("flags, warning", [
    ("--epochs 2", ""), ("--max-steps 6 --epochs 2", ""),  # three steps are an epoch
    ("--max-steps 7 --epochs 2", "--max-steps 7: the run ends earlier, after --epochs 2, which are 6 steps"),
    ("--epochs 3 --patience 1", ""),
    ("--epochs 2 --patience 1", "--patience 1: this run measures 2 times, so it cannot stop before its end"),
    ("--epochs 2 --patience 4 --eval-every 1", ""),
    ("--epochs 2 --patience 5 --eval-every 1", "--patience 5: this run measures 6 times, so it cannot stop before"),
    ("--max-steps 2 --patience 1", "--patience 1: this run measures 1 time, so"),
    ("--max-steps 1 --rank 16", ""),
    ("--max-steps 1 --rank 17", "--rank 17: an update of c_attn has rank 16 at the most, so a larger --rank takes"),
    ("--max-steps 1 --full", ""),
])
def test_settings_that_cannot_take_effect_are_said(run_script, folder, flags, warning):
    result = run_script(folder, "finetune.py", "--model", "model", "--data", "texts.txt", "--val-data", "texts.txt",
                        "--samples", 0, "--quiet", *flags.split())
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith(f"warning: {warning}" if warning else "")
    assert result.stderr.count("\n") == bool(warning)


def test_changed_data_and_models_are_refused_on_resume(script, refused, folder):
    script("finetune.py", *FLAGS, "--out", "run")
    texts = (folder / "texts.txt").read_text()
    (folder / "texts.txt").write_text(texts.replace("stitch", "stich"))
    assert re.search("run began with other data: data.training.tokens was 260 and is 259; a resumed run goes on as it "
                     "began", refused("finetune.py", "--resume", "run"))
    (folder / "texts.txt").write_text(texts.replace("stitch", "stitsh"))
    assert "other data: data.training.fingerprint was " in refused("finetune.py", "--resume", "run")
    (folder / "texts.txt").write_text(texts)
    weights = bytearray((folder / "model" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model" / "model.safetensors").write_bytes(weights)
    assert "other model: model.fingerprint was " in refused("finetune.py", "--resume", "run")
    assert "--config s.toml: run has its settings" in refused("finetune.py", "--resume", "run", "--config", "s.toml")


def test_what_needs_held_out_texts_says_so(refused, folder):
    for option in (["--keep-best"], ["--patience", "2"], ["--eval-every", "5"]):
        assert f"error: {option[0]} needs texts to measure on: give --val-data or --val-fraction" in refused(
            "finetune.py", "--model", "model", "--data", "texts.txt", *option)


@pytest.mark.parametrize("machine", [{}, {"threads": "x"}, {"threads": 0}, None])
def test_a_run_without_its_threads_is_not_made_again(refused, script, folder, machine):
    script("finetune.py", *FLAGS, "--out", "first")
    path = folder / "first" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": machine}))
    assert "machine.threads = " in refused("finetune.py", "--config", path, "--out", "second")
