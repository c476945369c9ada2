"""finetune.py: what it prints and writes, resuming, Ctrl-C, and a hub that is out of reach."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import npgpt
from npgpt import data
from npgpt.commands import watch
from npgpt.data import encode_texts, read_texts
from npgpt.evaluation import evaluate
from npgpt.files import safetensors
from npgpt.training.run import Run

FLAGS = ("--model --revision --data --val-data --val-fraction --split --separator --template --train-on-prompt "
         "--special-tokens --out --rank --alpha --rslora --dora --init --lr-ratio --dropout --targets --add-tokens "
         "--epochs --max-steps --batch-size --batch-tokens --accumulate --max-length --lr --weight-decay --warmup "
         "--schedule --grad-clip --seed --threads --checkpoint --save-every --keep --eval-every --keep-best --patience "
         "--resume --config --max-memory --preview --full --tokenizer --adapter --decay-all --samples --sample-prompts --quiet").split()


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_script, session_folder, model, texts, held_out, contents):
    """A run to its end: (folder, stdout, stderr)."""
    cwd = tmp_path_factory.mktemp("finished")
    before = contents(session_folder)
    result = run_script(cwd, "finetune.py", "--model", model, "--data", texts, "--val-data", held_out, "--out", "run",
                        "--rank", 4, "--alpha", 12, "--targets", "c_attn,mlp.c_fc", "--epochs", 5, "--lr", 0.02,
                        "--samples", 2, "--seed", 3)
    assert result.returncode == 0, result.stderr
    assert contents(session_folder) == before
    return cwd / "run", result.stdout, result.stderr


def test_a_run_writes_what_is_promised_and_nothing_else(finished, contents):
    run, _, _ = finished
    assert [path for path, data in contents(run).items() if data is not None] == [
        ".lock", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/npgpt_data.json",
        "checkpoints/step-15/adapter/adapter_config.json", "checkpoints/step-15/adapter/adapter_model.safetensors",
        "checkpoints/step-15/adapter/npgpt_data.json", "checkpoints/step-15/config.json",
        "checkpoints/step-15/state.safetensors", "config.json", "metrics.jsonl", "report.html", "results.json"]
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_the_adapter_is_the_one_asked_for(finished, model):
    run, _, _ = finished
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 12, 0.1)
    assert config["target_modules"] == ["c_attn", "mlp.c_fc"]
    assert config["base_model_name_or_path"] == str(model)
    tensors = safetensors.read(run / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 8
    assert all(np.any(tensor) for tensor in tensors.values())


def test_metrics_hold_a_line_a_step(finished, texts):
    run, _, _ = finished
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 16))  # 10 texts in batches of 4, 5 times
    assert [line["epoch"] for line in lines] == [1 + i // 3 for i in range(15)]
    keys = {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "seconds"}
    for i, line in enumerate(lines):
        assert line.keys() == (keys | {"val_loss"} if i % 3 == 2 else keys)
        assert line["lr"] == pytest.approx(0.02 * (1 - i / 15))
        assert 0 < line["seconds"] < 60
    ids = sum(len(text.encode()) + 1 for text in texts.read_text().splitlines())
    assert sum(line["tokens"] for line in lines[:3]) == ids


def test_the_loss_falls_and_is_that_of_the_saved_adapter(finished, model, held_out):
    run, stdout, _ = finished
    lines = metrics(run)
    assert np.mean([line["loss"] for line in lines[-3:]]) < 0.9 * np.mean([line["loss"] for line in lines[:3]])
    numbers = re.search(r"^held out   loss (.+) -> (.+), perplexity (.+) -> (.+)$", stdout, re.M).groups()
    before, after, before_ppl, after_ppl = map(float, numbers)
    assert after < 0.9 * before
    base = npgpt.GPT2.from_pretrained(model)
    sequences = encode_texts(npgpt.Tokenizer.from_pretrained(model), read_texts(held_out), 64).sequences
    assert before == pytest.approx(evaluate.mean_nll(base, sequences).nll, abs=6e-4)
    adapted = evaluate.mean_nll(npgpt.load_adapter(base, run / "adapter"), sequences)
    assert after == pytest.approx(adapted.nll, abs=6e-4)
    assert lines[-1]["val_loss"] == pytest.approx(adapted.nll, rel=1e-6)
    assert before_ppl == pytest.approx(np.exp(before), rel=1e-2)
    assert after_ppl == pytest.approx(np.exp(after), rel=1e-2)


def test_the_settings_are_all_written_down(finished):
    run, _, _ = finished
    settings = json.loads((run / "config.json").read_text())["settings"]
    of_the_call = {"out", "resume", "config", "max_memory", "quiet", "preview"}
    assert settings.keys() == {flag[2:].replace("-", "_") for flag in FLAGS} - of_the_call
    assert (settings["rank"], settings["seed"], settings["batch_size"], settings["epochs"]) == (4, 3, 4, 5)


def test_what_is_printed(finished):
    _, stdout, stderr = finished
    # the base: 257 x 16 + 64 x 16, two blocks of 3,280, and the last norm; rank 4 adds 4 (in + out) a layer
    for line in (r"LoRA +rank 4, alpha 12, scale 3, dropout 0.1", r" +attn.c_attn +16 -> 48 +in 2 layers: +512",
                 r" +mlp.c_fc +16 -> 64 +in 2 layers: +640", r" +1,152 of 12,880 parameters train \(8.94 %\)",
                 r"template +\[{text}<end of text>\]  \(in brackets: learned\)",
                 r"data +\S+texts.txt: 10 texts, 260 tokens, 250 learned, end of text learned in 10 of 10",
                 r"held out +\S+held-out.txt: 2 texts, 50 tokens, 48 learned, end of text learned in 2 of 2",
                 r"training +15 steps of 4 texts, 5 epochs.*",
                 r"estimate +\d+.\d MB of memory at the most, .* backward pass of \d+ tokens; about \d+ s in all",
                 r"saved +run.adapter \(\d+ kB\) after \d+.\d s"):
        assert len(re.findall(f"^{line}$", stdout, re.M)) == 1, line
    samples = re.findall(r"^(.+)\n  before   (.+)\n  after    (.+)$", stdout, re.M)
    assert [prompt for prompt, _, _ in samples] == ["better", "many"]
    for _, old, new in samples:
        assert old != new
    assert re.search(r"15/15 .*step/s, loss \d\.\d+, mean \d\.\d+, held out \d\.\d+, [\d,]+ tokens/s", stderr)


def test_the_printed_command_works(finished, run_script):
    run, stdout, _ = finished
    command = re.search(r'python scripts/generate.py (.+) --prompt "(.+)"$', stdout, re.M)
    result = run_script(run.parent, "generate.py", *command[1].split(), "--prompt", command[2])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("better")


def test_the_seed_decides_the_adapter_the_order_and_the_samples(script, tmp_path, model, texts, contents):
    """Without learning, the adapter is as it was drawn, and the losses are the base model's."""
    def run(name, seed):
        stdout = script("finetune.py", "--model", model, "--data", texts, "--out", name, "--max-steps", 2, "--lr", 0,
                        "--seed", seed, "--samples", 1)
        old, new = re.search(r"  before   (.+)\n  after    (.+)\n", stdout).groups()
        assert old == new
        adapter = contents(tmp_path / name / "adapter")["adapter_model.safetensors"]
        return adapter, [line["loss"] for line in metrics(tmp_path / name)], old

    first = run("a", 0)
    assert run("b", 0) == first
    for one, other in zip(first, run("c", 1), strict=True):
        assert one != other


def test_checkpointing_changes_no_bit_of_the_adapter(script, tmp_path, model, texts, contents):
    for name, flags in (("a", []), ("b", ["--checkpoint"])):
        script("finetune.py", "--model", model, "--data", texts, "--out", name, "--samples", 0, *flags)
    assert contents(tmp_path / "a" / "adapter") == contents(tmp_path / "b" / "adapter")


def test_quiet_prints_only_the_result(run_script, tmp_path, model, texts):
    result = run_script(tmp_path, "finetune.py", "--model", model, "--data", texts, "--out", "run", "--quiet")
    assert result.returncode == 0
    assert result.stderr == ""
    training, saved = result.stdout.splitlines()
    assert training.startswith("training   loss ")  # there is nothing held out to measure on
    assert saved.startswith("saved      run")
    assert all("val_loss" not in line for line in metrics(tmp_path / "run"))


def test_texts_may_be_jsonl(script, model, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "one\\ntwo", "id": 3}\n{"text": "three"}\n')
    assert "texts.jsonl: 2 texts, 14 tokens" in script(
        "finetune.py", "--model", model, "--data", "texts.jsonl", "--out", "run", "--samples", "0")


def test_splitting_long_texts_is_said(script, model, tmp_path):
    (tmp_path / "texts.txt").write_text("abcdefgh\n" + "x" * 30 + "\n" + "y" * 15 + "\n")
    stdout = script("finetune.py", "--model", model, "--data", "texts.txt", "--out", "run", "--max-length", 16,
                    "--samples", 0, "--epochs", 1)
    # 31 tokens make two blocks of 16 that share one; 16 tokens are one block
    assert re.search("texts.txt: 3 texts, 56 tokens, 53 learned, .*; 1 longer than 16 tokens .*split.* 4 sequences",
                     stdout)
    assert metrics(tmp_path / "run")[0]["tokens"] == 9 + 16 + 16 + 16


def test_full_training(script, tmp_path, model, texts):
    before = npgpt.GPT2.from_pretrained(model)
    stdout = script("finetune.py", "--model", model, "--data", texts, "--out", "run", "--full", "--lr", 0.01)
    assert "11,728 of 11,728 parameters train (100.00 %)" in stdout
    assert "LoRA" not in stdout
    assert not (tmp_path / "run" / "adapter").exists()
    trained = npgpt.GPT2.from_pretrained(tmp_path / "run" / "model")
    for name, tensor in trained.parameters().items():
        assert not np.array_equal(tensor.data, before.parameters()[name].data), name
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    command = re.search(r'python scripts/generate.py (.+) --prompt "(.+)"$', stdout, re.M)
    assert script("generate.py", *command[1].split(), "--prompt", command[2]).startswith("a")


def test_a_context_shorter_than_the_prompts(script, tmp_path, model, texts):
    shutil.copytree(model, tmp_path / "short")
    config = npgpt.GPT2Config(vocab_size=257, n_positions=12, n_embd=8, n_layer=1, n_head=1)
    npgpt.GPT2(config).save_pretrained(tmp_path / "short")
    stdout = script("finetune.py", "--model", "short", "--data", texts, "--max-steps", 1, "--out", "run")
    assert re.search("10 longer than 12 tokens .*split", stdout)
    assert stdout.count("\n  after    ") == 3


# Going on


LONG = ("--lr", "0.01", "--epochs", "100", "--schedule", "cosine", "--samples", "0", "--dropout", "0.2")  # 300 steps


def popen(command, cwd, environment):
    """Start a process that Ctrl-C reaches, even where this one was started in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                encoding="utf-8")
    finally:
        signal.signal(signal.SIGINT, before)


def figures(run):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in metrics(run)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_resume(script, tmp_path, model, texts, held_out, contents, environment, root, number):
    options = ("--model", model, "--data", texts, "--val-data", held_out, *LONG)
    script("finetune.py", *options, "--out", "whole")
    process = popen([sys.executable, root / "scripts" / "finetune.py", *map(str, options), "--out", "run"], tmp_path,
                    environment)
    written = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (written.exists() and written.read_text().count("\n") >= 10):
        time.sleep(0.005)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert "stopping after this step" in stderr
    line = stdout.splitlines()[-1]
    stopped = re.fullmatch(r"stopped    after step (\d+) of 300: saved in (\S+); go on with --resume run", line)
    assert 10 <= int(stopped[1]) < 300
    npgpt.load_adapter(npgpt.GPT2.from_pretrained(model), tmp_path / stopped[2])
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped[1]}").is_dir()
    assert len(metrics(tmp_path / "run")) == int(stopped[1])

    assert f"after step {stopped[1]} of 300" in script("finetune.py", "--resume", "run")
    resumed, whole = contents(tmp_path / "run"), contents(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    for path in resumed.keys() - {"metrics.jsonl", "report.html"}:
        assert resumed[path] == whole[path], path
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_run_that_is_going_is_not_resumed(script, refused, tmp_path, model, texts):
    options = ("--model", model, "--data", texts, "--max-steps", 2, "--samples", 0)
    script("finetune.py", *options, "--out", "run")
    run = Run.open(tmp_path / "run")
    run.lock()
    assert refused("finetune.py", "--resume", "run").startswith("error: run is in use: another process writes into it")
    script("finetune.py", "--resume", "run", "--preview", 1)  # this only reads
    run = Run.create(tmp_path / "new")
    assert refused("finetune.py", *options, "--out", "new").startswith("error: new is in use")


PRESS = """
import signal, sys
from npgpt.commands import cli, finetune, running
measure, calls = running.evaluate.mean_nll, []
def pressing(*args, **more):
    calls.append(args)
    if len(calls) == {n}:
        for _ in range({times}):
            signal.raise_signal(signal.SIGINT)
    return measure(*args, **more)
running.evaluate.mean_nll = pressing
save = finetune.Run.save_checkpoint
def saving(*args, **kwargs):
    signal.raise_signal(signal.SIGINT)
    return save(*args, **kwargs)
finetune.Run.save_checkpoint = saving
sys.exit(cli.run(lambda: finetune.main(finetune.parse_arguments(None))))
"""


@pytest.mark.parametrize("n, times, said", [
    (1, 1, "after step 0 of 9: saved in run"),
    (2, 1, "after step 3 of 9: saved in run"),
    (2, 2, "within a step; there was no checkpoint yet: --resume run begins again"),
], ids=["before the first step", "after an epoch", "twice after an epoch"])
def test_ctrl_c_while_measuring(script, tmp_path, model, texts, held_out, environment, root, n, times, said):
    """The n-th time that the held-out loss is measured; and once more while the run is saved."""
    (tmp_path / "press.py").write_text(PRESS.format(n=n, times=times))
    options = ["--model", model, "--data", texts, "--val-data", held_out, "--out", "run", "--samples", "0"]
    process = popen([sys.executable, "press.py", *map(str, options)], tmp_path, environment)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"stopped    {said}" in stdout
    script("finetune.py", "--resume", "run")
    script("finetune.py", *options[:-4], "--out", "whole", "--samples", "0")
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


# Watching

COUNT = """
import sys
from npgpt.commands import cli, finetune, running
measure, calls = running.evaluate.mean_nll, []
running.evaluate.mean_nll = lambda *args, **more: calls.append(args) or measure(*args, **more)
status = cli.run(lambda: finetune.main(finetune.parse_arguments(None)))
print("measured", len(calls), "times")
sys.exit(status)
"""


@pytest.mark.parametrize("flags", [[], ["--keep-best"]], ids=str)
def test_nothing_is_measured_twice(tmp_path, model, texts, held_out, environment, root, flags):
    """Before training and at 2, 4 and 5: what was measured last is what is shown, or the lowest with --keep-best."""
    (tmp_path / "count.py").write_text(COUNT)
    command = [sys.executable, "count.py", "--model", model, "--data", texts, "--val-data", held_out, "--out", "run",
               "--samples", "0", "--max-steps", "5", "--eval-every", "2", "--lr", "0.02", *flags]
    process = popen([str(each) for each in command], tmp_path, environment)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "\nmeasured 4 times\n" in stdout
    losses = [line["val_loss"] for line in metrics(tmp_path / "run") if "val_loss" in line]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["after"]["val_loss"] == (min(losses) if flags else losses[-1])
    assert stderr.count("0/5 [00:00<?, ?step/s, measuring the held-out loss]") == 1
    assert stderr.count("measuring the held-out loss]") == 4
    assert re.search(r"5/5 [^\r]*step/s, loss [^\r]*\n$", stderr)  # the bar as it is left


def test_a_long_measurement_shows_how_much_is_done(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    with watch.Bar(0, 5, False) as bar, bar.busy("measuring the held-out loss") as progress:
        progress(0.1)  # at once: not shown
        now[0] += 1.5
        progress(0.254)
        progress(0.3)
    shown = re.findall("measuring the held-out loss(, [^]]*)?]", capsys.readouterr().err)
    assert [words for words in shown if words] == [", 25%"]


@pytest.mark.parametrize("flags, said", [
    (["--max-steps", 2], "2 steps of 4 texts, 0.667 epochs; "), (["--max-steps", 3], "3 steps of 4 texts, 1 epoch; "),
    (["--max-steps", 1, "--batch-size", 1], "1 step of 1 text, 0.1 epochs; "),
    (["--max-steps", 4, "--batch-tokens", 60], "4 steps of about 60 tokens, 0.8 epochs; "),
])
def test_the_part_of_an_epoch_is_said(script, model, texts, flags, said):
    stdout = script("finetune.py", "--model", model, "--data", texts, "--samples", 0, "--out", "run", *flags)
    assert f"\ntraining   {said}" in stdout


def test_the_held_out_loss_is_measured_every_few_steps(script, tmp_path, model, texts, held_out):
    script("finetune.py", "--model", model, "--data", texts, "--val-data", held_out, "--out", "run", "--samples", 0,
           "--max-steps", 8, "--epochs", 9, "--eval-every", 3)
    assert [line["step"] for line in metrics(tmp_path / "run") if "val_loss" in line] == [3, 6, 8]


def test_the_best_is_kept_and_patience_ends_the_run(script, tmp_path, model, texts, contents):
    """At this rate the loss soon rises on texts unlike those that are learned."""
    (tmp_path / "other.txt").write_text("0123456789\n9876543210\n")
    options = ("--model", model, "--data", texts, "--val-data", "other.txt", "--samples", 0, "--epochs", 40, "--lr",
               0.01, "--eval-every", 2, "--threads", 1, "--schedule", "constant")
    stdout = script("finetune.py", *options, "--out", "run", "--keep-best", "--patience", 4)
    losses = {line["step"]: line["val_loss"] for line in metrics(tmp_path / "run") if "val_loss" in line}
    best = min(losses, key=losses.get)
    assert 2 <= best < 40
    assert max(losses) == len(metrics(tmp_path / "run")) == best + 4 * 2
    assert re.search(rf"held out   loss \S+ -> {losses[best]:.3f} at step {best}, the lowest", stdout)
    files = contents(tmp_path / "run")
    assert {path.split("/")[1] for path in files if path.startswith("checkpoints/")} == {
        f"step-{best}", f"step-{best + 8}"}
    name = "adapter/adapter_model.safetensors"
    assert files[name] == files[f"checkpoints/step-{best}/{name}"] != files[f"checkpoints/step-{best + 8}/{name}"]
    script("finetune.py", *options, "--out", "short", "--max-steps", best)
    assert contents(tmp_path / "short")[name] == files[name]
    script("finetune.py", "--resume", "run")  # it has ended
    assert contents(tmp_path / "run").keys() == files.keys()
    assert all(contents(tmp_path / "run")[path] == files[path] for path in files if path != "report.html")


def test_the_batch_that_diverges_is_named(run_script, tmp_path, model, texts):
    """One letter's embedding is so large that its sum is infinite, and the letter stands in the seventh text; the
    checkpoint before it stays."""
    shutil.copytree(model, tmp_path / "model")
    spoilt = npgpt.GPT2(npgpt.GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2,
                                         tie_word_embeddings=False, bos_token_id=0, eos_token_id=0))
    spoilt.wte.weight.data[npgpt.Tokenizer.from_pretrained(model).encode("#")] = np.finfo(np.float32).max
    spoilt.save_pretrained(tmp_path / "model")
    lines = texts.read_text().splitlines()
    lines[6] = "#"
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    result = run_script(tmp_path, "finetune.py", "--model", "model", "--data", "texts.txt", "--out", "run", "--samples",
                        0, "--batch-size", 2, "--save-every", 1, "--quiet", "--seed", 1)
    assert result.returncode == 2
    step = len(metrics(tmp_path / "run"))
    assert 1 <= step < 5
    assert re.search(rf"^error: step {step + 1} has loss nan .*; its batch is sequences (7, \d+|\d+, 7) of the data; "
                     r"the loss is not finite for sequence 7; the last checkpoint before it is "
                     rf"run/checkpoints/step-{step}$", result.stderr, re.M)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{step}"


# Going wrong


FULL = """
import resource, sys
from npgpt.commands import cli, finetune, running
import npgpt.training.fit
save, calls = npgpt.training.fit.save, []
def saving(*args):
    calls.append(args)
    if len(calls) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    return save(*args)
npgpt.training.fit.save = saving
sys.exit(cli.run(lambda: finetune.main(finetune.parse_arguments(None))))
"""


def test_a_file_that_cannot_be_written_leaves_a_run_that_can_go_on(script, tmp_path, model, texts, environment, root,
                                                                  contents):
    (tmp_path / "full.py").write_text(FULL)
    options = ["--model", model, "--data", texts, "--save-every", "3", "--samples", "0", "--quiet"]
    process = popen([sys.executable, "full.py", *map(str, options), "--out", "run"], tmp_path, environment)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stdout == ""
    assert re.fullmatch(r"error: cannot write run/checkpoints/step-9/.*: File too large; the checkpoint of step 6 is "
                        r"whole, and --resume run goes on from it\n", stderr)
    script("finetune.py", "--resume", "run", "--quiet")
    script("finetune.py", *options, "--out", "whole")
    resumed, whole = contents(tmp_path / "run"), contents(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    assert all(resumed[path] == whole[path] for path in whole if path not in ("metrics.jsonl", "report.html"))


def test_a_finished_run_has_nothing_to_go_on_with(finished, script, tmp_path, contents):
    run, _, _ = finished
    shutil.copytree(run, tmp_path / "run")
    assert "after step 15 of 15" in script("finetune.py", "--resume", "run")
    now, before = contents(tmp_path / "run"), contents(run)
    assert now.keys() == before.keys()
    assert all(now[path] == before[path] for path in now if path != "report.html")


def test_a_resumed_run_goes_on_as_it_began(finished, refused, script, tmp_path):
    run, _, _ = finished
    shutil.copytree(run, tmp_path / "run")
    script("finetune.py", "--resume", "run", "--rank", 4, "--quiet")  # the same value is no contradiction
    for name, value in (("--rank", 8), ("--lr", 0.5), ("--epochs", 7), ("--data", "other.txt"), ("--full", None)):
        given = [name] if value is None else [name, value]
        assert re.match(f"error: {name} .* differs from .* in run: .*leave the flag out", refused(
            "finetune.py", "--resume", "run", *given))
    assert "stays in its folder" in refused("finetune.py", "--resume", "run", "--out", "other")
    (tmp_path / "copy").mkdir()
    assert "stays in its folder" in refused("finetune.py", "--resume", "run", "--out", "copy")


def test_the_folder_and_the_data_of_a_resumed_run_may_be_spelled_anyhow(finished, script, tmp_path, texts):
    run, _, _ = finished
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "texts").symlink_to(texts)
    for out in ("run", "run/", "./run", "../" + tmp_path.name + "/run", tmp_path / "run", "link"):
        script("finetune.py", "--resume", "run", "--out", out, "--quiet")
    script("finetune.py", "--resume", "link", "--out", "run", "--data", "texts", "--quiet")
    assert not (tmp_path / "link" / "run").exists()


# The hub out of reach


def test_no_model_and_no_hub_falls_back_to_tiny(tmp_path, environment, root):
    """Where no hub answers, nobody waits: one line says so about as soon as where none is asked, and the embedded model
    goes on."""
    flags = ["--max-steps", "2", "--samples", "0", "--quiet"]

    def started(**changes):
        begin = time.monotonic()
        process = popen([sys.executable, root / "scripts" / "finetune.py", *flags], tmp_path, environment | changes)
        return process, process.stderr.readline(), time.monotonic() - begin

    process, _, unasked = started()
    process.communicate(timeout=60)
    shutil.rmtree(tmp_path / "runs")
    process, line, seconds = started(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert seconds < 2 * unasked + 3
    assert "gpt2" in line
    assert "--model tiny" in line
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stderr == ""
    assert "held out   loss " in stdout
    (run,) = (tmp_path / "runs").iterdir()
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["model"], settings["data"], settings["val_data"]) == ("tiny", None, None)
    assert [line["step"] for line in metrics(run)] == [1, 2]


def test_gpt2_by_name_and_no_hub_is_an_error(run_script, tmp_path):
    result = run_script(tmp_path, "finetune.py", "--model", "gpt2", "--max-steps", 2, "--samples", 0,
                        HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*'gpt2' is not in the cache .* and http://127.0.0.1:9 cannot be reached .*\n",
                        result.stderr)
    assert result.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_the_defaults_for_tiny_are_said(script, tmp_path):
    stdout = script("finetune.py", "--model", "tiny", "--max-steps", 1, "--samples", 0, "--lr", 0.001)
    said = re.search(r"^ +for this model (.+) by default: ", stdout, re.M)[1]
    assert "epochs" in said
    assert "lr" not in said  # that one was given
    (run,) = (tmp_path / "runs").iterdir()
    settings = json.loads((run / "config.json").read_text())["settings"]
    for name, value in (pair.split() for pair in said.split(", ")):
        assert str(settings[name]) == value
    assert settings["lr"] == 0.001


def test_targets_may_be_spaced(script, model, texts):
    stdout = script("finetune.py", "--model", model, "--data", texts, "--targets", "c_attn, mlp.c_fc", "--max-steps", 1,
                    "--samples", 0, "--out", "run")
    assert re.findall(r"^ +(\S+) +\d+ -> \d+ +in 2 layers", stdout, re.M) == ["attn.c_attn", "mlp.c_fc"]


def test_data_is_read_before_the_model_is_fetched(refused):
    assert "cannot read missing.txt" in refused("finetune.py", "--model", "no-such/model", "--data", "missing.txt")


NOW = """
import sys
from npgpt.commands import cli, finetune, running
finetune.time.strftime = lambda *_: "now"
sys.exit(cli.run(lambda: finetune.main(finetune.parse_arguments(None))))
"""


def test_two_runs_of_one_moment(model, texts, tmp_path, environment, root):
    (tmp_path / "now.py").write_text(NOW)
    command = [sys.executable, "now.py", "--model", str(model), "--data", str(texts), "--max-steps", "1", "--samples",
               "0", "--quiet"]
    for process in [popen(command, tmp_path, environment) for _ in range(2)]:
        _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["now", "now-2"]
    assert all((tmp_path / "runs" / name / "adapter").exists() for name in ("now", "now-2"))


# Records with prompts


def test_a_run_on_prompts_learns_completions_alone(script, tmp_path, model):
    (tmp_path / "pairs.txt").write_text("".join(f"{n} is ||number {n}\n" for n in range(40)))
    options = ("--model", model, "--data", "pairs.txt", "--separator", "||", "--val-fraction", 0.2, "--lr", 0.02,
               "--targets", "all-linear", "--epochs", 12, "--samples", 0)
    stdout = script("finetune.py", *options, "--out", "run")
    assert "\ntemplate   {prompt}||[{completion}<end of text>]  (in brackets: learned)\n" in stdout
    train, held_out = (
        tuple(map(int, re.search(rf"^{name} +pairs.txt: (\d+) texts, .* (\d+) learned", stdout, re.M).groups()))
        for name in ("data", "held out"))
    assert train[0] + held_out[0] == 40 and held_out[0] > 0
    assert train[1] + held_out[1] == sum(len(f"number {n}") + 1 for n in range(40))
    before, after = map(float, re.search(r"^held out   loss (.+) -> (.+),", stdout, re.M).groups())
    assert after < 0.6 * before
    # the same counted by hand: completions and their ends, and nothing else
    documents = data.Documents(tmp_path / "pairs.txt", separator="||")
    held = data.encode(npgpt.Tokenizer.from_pretrained(model), documents, 64, 0.2)[1].sequences
    adapted = npgpt.load_adapter(npgpt.GPT2.from_pretrained(model), tmp_path / "run" / "adapter")
    assert after == pytest.approx(evaluate.mean_nll(adapted, held, held.loss_masks).nll, abs=6e-4)


@pytest.mark.parametrize("name, content, options, line", [
    ("d.jsonl", '{"prompt": "a:", "completion": "b"}\n{"prompt": "c: ", "completion": "d"}\n', [],
     "2 texts, 9 tokens, 5 learned, end of text learned in 2 of 2"),
    ("d.jsonl", '{"prompt": "a:", "completion": "b"}\n{"prompt": "c: ", "completion": ""}\n', ["--train-on-prompt"],
     "1 text, 4 tokens, 3 learned, end of text learned in 1 of 1; 1 blank left out"),
    ("d.json", '[{"q": "a", "a": "b"}]', ["--template", "{q}\\n{a}"], "1 text, 4 tokens, 2 learned,"),
    ("d.csv", "text,n\nabcd,1\n", [], "1 text, 5 tokens, 4 learned,"),
    ("d.txt", "ab\ncd\n\nef\n", ["--split", "blank"], "2 texts, 9 tokens, 7 learned,"),
    ("d.txt", "ab\ncd\n\nef\n", ["--split", "none", "--max-length", 6],
     "1 text, 10 tokens, 9 learned, end of text learned in 1 of 1; 1 longer than 6 tokens was split: 2 sequences"),
    ("d.txt", "abcdefgh||ij\n", ["--separator", "||", "--max-length", 6],
     "1 text, 13 tokens, 3 learned, end of text learned in 1 of 1; 1 longer than 6 tokens was split: 1 sequence, "
     "7 tokens in none"),
    ("d.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', [],
     "1 text, 30 tokens, 2 learned,"),
    ("d.ndjson", '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}', [],
     "1 text, 30 tokens, 2 learned,"),
])
def test_each_kind_of_data_can_be_trained_on(script, tmp_path, model, name, content, options, line):
    (tmp_path / name).write_text(content)
    stdout = script("finetune.py", "--model", model, "--data", name, *options, "--max-steps", 1, "--samples", 0)
    assert f"data       {name}: {line}" in stdout


def test_special_tokens_are_text_in_the_data_and_tokens_in_the_template(script, tmp_path, model):
    """A preview shows what becomes what."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a<|endoftext|>", "completion": "b"}\n')
    template = "{prompt}<|endoftext|>{completion}"
    plain = "│".join("a<|endoftext|>")
    for options, shown, line in (
        ([], f"{plain}[b][<|endoftext|>]", "1 text, 16 tokens, 2 learned, end of text learned in 1 of 1; 1 special "
                                           "token spelled out, taken as plain text (see --special-tokens)"),
        (["--special-tokens"], "a│<|endoftext|>[b][<|endoftext|>]", "1 text, 4 tokens, 2 learned,"),
        (["--template", template], f"{plain}│<|endoftext|>[b][<|endoftext|>]", "1 text, 17 tokens, 2 learned,"),
    ):
        stdout = script("finetune.py", "--model", model, "--data", "pairs.jsonl", "--preview", 1, *options)
        assert "".join(stdout.split("in brackets\n")[1].split("\n")) == shown
        assert f"data       pairs.jsonl: {line}" in stdout
        assert ("special tokens in it: <|endoftext|>" in stdout) == ("--template" in options)


def test_a_folder_of_splits(script, tmp_path, model, texts, held_out):
    """Trained on train, measured on validation, unless a flag says otherwise; test is not touched."""
    (tmp_path / "d" / "data").mkdir(parents=True)
    for name, source in (("train", texts), ("valid", held_out), ("test", texts)):
        shutil.copy(source, tmp_path / "d" / "data" / f"{name}.txt")
    command = ("finetune.py", "--model", model, "--epochs", 1, "--data")
    whole = script(*command, texts, "--val-data", held_out, "--out", "a")
    stdout = script(*command, "d", "--out", "b")
    assert "files      d: data/train.txt trained on; data/valid.txt measured on; data/test.txt not touched\n" in stdout
    assert f"data       d/data/train.txt: {whole.split('texts.txt: ')[1].splitlines()[0]}" in stdout
    assert re.search(r"^held out   loss .*$", stdout, re.M)[0] == re.search(r"^held out   loss .*$", whole, re.M)[0]
    assert [line["loss"] for line in metrics(tmp_path / "a")] == [line["loss"] for line in metrics(tmp_path / "b")]

    preview = ("finetune.py", "--model", model, "--data", "d", "--preview", 0)
    for flags, use in ((["--val-fraction", 0.2], "not used, as --val-fraction is given"),
                       (["--val-data", held_out], "not used, as --val-data is given"),
                       (["--val-data", "d"], "measured on")):
        stdout = script(*preview, *flags)
        assert f"; data/valid.txt {use}; data/test.txt not touched" in stdout
        assert ("held out   d/data/valid.txt: " in stdout) == (use == "measured on")


def test_shards_are_named_by_the_first_and_the_last(script, tmp_path, model):
    (tmp_path / "d").mkdir()
    for i in range(3):
        (tmp_path / "d" / f"train-0000{i}-of-00003.jsonl").write_text('{"text": "one"}\n')
    stdout = script("finetune.py", "--model", model, "--data", "d", "--preview", 0)
    shards = "train-00000-of-00003.jsonl .. train-00002-of-00003.jsonl (3 files)"
    assert f"files      d: {shards} trained on\n" in stdout
    assert f"data       d/{shards}: 3 texts, 12 tokens," in stdout


def test_texts_between_marks(script, tmp_path, model):
    """Each ends with one end of text, whatever the file ends with."""
    for end in ("", "<|endoftext|>", "<|endoftext|>\n"):
        (tmp_path / "d.txt").write_text(f"ab\nc<|endoftext|>de{end}")
        stdout = script("finetune.py", "--model", model, "--data", "d.txt", "--split", "<|endoftext|>", "--preview", 2)
        assert "data       d.txt: 2 texts, 8 tokens, 6 learned, end of text learned in 2 of 2\n" in stdout
        assert stdout.endswith("in brackets\na[b][\\n]\n[c][<|endoftext|>]\n\nsequence 2 of 2: 3 tokens, 2 learned, in "
                               "brackets\nd[e][<|endoftext|>]\n")
    (tmp_path / "d.txt").write_text("a\n--\nb\n")
    stdout = script("finetune.py", "--model", model, "--data", "d.txt", "--split", "\\n--\\n", "--preview", 0)
    assert "data       d.txt: 2 texts, 4 tokens" in stdout
@pytest.mark.parametrize("fraction, train, held_out", [
    (0.3, "1 text, 130 tokens, 130 learned, end of text learned in 1 of 1", "7 blocks, 71 tokens, 70 learned"),
    (0.7, "1 text, 40 tokens, 40 learned, end of text learned in 0 of 1",
     "16 blocks, 161 tokens, 160 learned, among them the end of 1 text"),
])
def test_the_end_of_a_stream_is_where_its_last_block_is(script, tmp_path, model, fraction, train, held_out):
    """A hash says on which side that is."""
    (tmp_path / "d.txt").write_text("".join(chr(97 + i * i % 26) for i in range(200)))
    stdout = script("finetune.py", "--model", model, "--data", "d.txt", "--split", "none", "--max-length", 11,
                    "--val-fraction", fraction, "--preview", 0)
    assert f"data       d.txt: {train}; 1 longer than 11 tokens" in stdout
    assert f"held out   d.txt: {held_out}\n" in stdout


def test_steps_may_be_given_by_tokens(script, tmp_path, model, texts):
    stdout = script("finetune.py", "--model", model, "--data", texts, "--batch-tokens", 60, "--accumulate", 2,
                    "--epochs", 2, "--samples", 0, "--out", "run")
    assert re.search("^training   6 steps of about 120 tokens, 2 epochs", stdout, re.M)  # 260 tokens an epoch
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [1, 1, 1, 2, 2, 2]
    assert all(60 <= line["tokens"] <= 120 for line in metrics(tmp_path / "run"))


def test_a_preview_shows_what_is_learned_and_does_nothing_else(script, tmp_path, model, contents):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()  # it is not needed
    (tmp_path / "pairs.txt").write_text("a:||yes\nb: ||no\nc:||perhaps\n")
    before = contents(tmp_path)
    stdout = script("finetune.py", "--model", "model", "--data", "pairs.txt", "--separator", "||", "--preview", 2)
    assert contents(tmp_path) == before
    assert stdout.splitlines()[1:] == [
        "data       pairs.txt: 3 texts, 28 tokens, 15 learned, end of text learned in 3 of 3", "",
        "sequence 1 of 3: 8 tokens, 4 learned, in brackets", "a│:│|│|[y][e][s][<|endoftext|>]", "",
        "sequence 2 of 3: 8 tokens, 3 learned, in brackets", "b│:│ │|│|[n][o][<|endoftext|>]"]
    assert script("finetune.py", "--model", "model", "--data", "pairs.txt", "--preview", 99).count("\nsequence ") == 3
