"""Tokens that finetune.py adds: trained, kept with the adapter, and there wherever the adapter is used."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import npgpt
from npgpt.adapters.peft import WEIGHTS_FILE
from npgpt.files import safetensors

from .conftest import CONFIG, save_model

USER, REPLY = "<|user|>", "<|assistant|>"
TEMPLATE = f"{USER}{{prompt}}{REPLY}{{completion}}"
RECORDS = [{"prompt": "up", "completion": "down"}, {"prompt": "in", "completion": "out"}]
ADDED = ("--add-tokens", USER, REPLY)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_script, model, data):
    """A run with two added tokens that has learnt its data by heart: (folder, stdout)."""
    cwd = tmp_path_factory.mktemp("run")
    result = run_script(cwd, "finetune.py", "--model", model, "--data", data, "--template", TEMPLATE, *ADDED, "--lr",
                        0.02, "--epochs", 150, "--targets", "all-linear", "--out", "run", "--samples", 0)
    assert result.returncode == 0, result.stderr
    return cwd / "run", result.stdout


def test_what_is_said_and_written(run):
    folder, said = run
    assert f"added      '{USER}' (257), '{REPLY}' (258); rows of the token table: 257 -> 259\n" in said
    assert "wte          2 rows for added tokens:        32" in said
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == [
        "adapter_config.json", WEIGHTS_FILE, "npgpt_data.json", "tokenizer.json"]
    fields = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert fields["trainable_token_indices"] == {"transformer.wte": [257, 258]}
    tensors = safetensors.read(folder / "adapter" / WEIGHTS_FILE)
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert (checkpoint / "adapter" / "tokenizer.json").exists()
    (rows,) = (array for key, array in tensors.items() if "lora" not in key)
    assert rows.shape == (2, CONFIG.n_embd)  # the rows, and no whole table beside them
    assert not np.array_equal(*rows)


def test_the_adapter_answers_in_its_own_tokens(run, model, script):
    prompt = f"{USER}in{REPLY}"
    said = script("generate.py", "--model", model, "--adapter", run[0] / "adapter", "--prompt", prompt,
                  "--temperature", 0, "--max-new-tokens", 8)
    assert said == f"{prompt}out\n"


def test_merged_and_exported(run, model, script, tmp_path):
    script("merge.py", "--model", model, "--adapter", run[0] / "adapter", "--out", tmp_path / "merged")
    prompt = f"{USER}up{REPLY}"
    said = script("generate.py", "--model", tmp_path / "merged", "--prompt", prompt, "--temperature", 0,
                  "--max-new-tokens", 8)
    assert said == f"{prompt}down\n"
    merged = npgpt.GPT2.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == 259
    assert merged.config.tie_word_embeddings


def test_evaluated_inspected_and_checked(run, model, script, data):
    adapter = run[0] / "adapter"
    found = json.loads(script("evaluate.py", "--model", model, "--adapter", adapter, "--data", data, "--task",
                              "exact-match", "--template", TEMPLATE, "--max-new-tokens", 8, "--json"))
    assert found["results"][1]["measures"]["exact match"]["value"] == 100
    assert "refused    none" in script("inspect_adapter.py", adapter, "--model", model)
    script("inspect_text.py", "--model", model, "--adapter", adapter, "--prompt", f"{USER}up")
    assert script("gradcheck.py", "--model", model, "--adapter", adapter).endswith(" passed, 0 failed\n")


def test_preview_and_settings_of_a_file(model, data, script, tmp_path):
    said = script("finetune.py", "--model", model, "--data", data, "--template", TEMPLATE, *ADDED, "--preview", 1)
    assert f"{USER}│u│p│{REPLY}[d][o][w][n][<|endoftext|>]" in said
    (tmp_path / "c.toml").write_text(f'add-tokens = ["{USER}", "{REPLY}"]\ntemplate = "{TEMPLATE}"\nmax-steps = 1\n'
                                     "samples = 0\n")
    said = script("finetune.py", "--model", model, "--data", data, "--config", tmp_path / "c.toml", "--out", "run")
    assert f"added      '{USER}' (257), '{REPLY}' (258)" in said
    again = script("finetune.py", "--config", tmp_path / "run" / "config.json", "--out", "again")
    assert f"added      '{USER}' (257), '{REPLY}' (258)" in again
    assert (tmp_path / "run" / "adapter" / WEIGHTS_FILE).read_bytes() == (
        tmp_path / "again" / "adapter" / WEIGHTS_FILE).read_bytes()


def test_a_resumed_run_has_them_too(model, data, run_script, tmp_path):
    arguments = ("--model", model, "--data", data, "--template", TEMPLATE, *ADDED, "--samples", 0, "--save-every", 1,
                 "--keep", 9, "--batch-size", 1, "--epochs", 2)
    assert run_script(tmp_path, "finetune.py", *arguments, "--out", "whole").returncode == 0
    assert run_script(tmp_path, "finetune.py", *arguments, "--out", "cut").returncode == 0
    for step in (3, 4):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step}")
    assert run_script(tmp_path, "finetune.py", "--resume", "cut").returncode == 0
    whole, cut = ((tmp_path / name / "adapter" / WEIGHTS_FILE).read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_an_untied_head_gets_rows_too(data, script, tmp_path):
    save_model(tmp_path / "untied", dataclasses.replace(CONFIG, tie_word_embeddings=False))
    script("finetune.py", "--model", "untied", "--data", data, "--template", TEMPLATE, *ADDED, "--out", "run",
           "--max-steps", 1, "--samples", 0)
    fields = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert fields["trainable_token_indices"] == {"transformer.wte": [257, 258], "lm_head": [257, 258]}


def test_a_low_rank_update_of_the_table_trains_all_its_rows(model, data, script, tmp_path):
    script("finetune.py", "--model", model, "--data", data, "--template", TEMPLATE, *ADDED, "--targets", "wte,c_attn",
           "--out", "run", "--max-steps", 1, "--samples", 0)
    fields = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert fields["trainable_token_indices"] is None
    script("generate.py", "--model", model, "--adapter", "run/adapter", "--prompt", USER, "--max-new-tokens", 1)


def test_all_weights(model, data, script, tmp_path):
    script("finetune.py", "--model", model, "--data", data, "--template", TEMPLATE, *ADDED, "--full", "--out", "run",
           "--max-steps", 1, "--samples", 0)
    assert npgpt.GPT2.from_pretrained(tmp_path / "run" / "model").config.vocab_size == 259
    assert npgpt.Tokenizer.from_pretrained(tmp_path / "run" / "model").vocab_size == 259


def test_tokens_that_are_there_already(model, data, script, refused):
    said = script("finetune.py", "--model", model, "--data", data, "--template", "{prompt}<new>{completion}",
                  "--add-tokens", "<new>", "<|endoftext|>", "--add-tokens", "<new>", "--max-steps", 1, "--samples", 0,
                  "--out", "run")
    assert ("added      '<new>' (257); rows of the token table: 257 -> 258; in the vocabulary already: "
            "'<|endoftext|>'\n") in said
    assert "--add-tokens <|endoftext|>: the vocabulary has all of them already; leave the flag out" in refused(
        "finetune.py", "--model", model, "--data", data, "--add-tokens", "<|endoftext|>", "--samples", 0)


def test_added_tokens_that_the_data_never_have(model, data, run_script, tmp_path):
    result = run_script(tmp_path, "finetune.py", "--model", model, "--data", data, "--template",
                        "{prompt}<a>{completion}", "--add-tokens", "<a>", "<b>", "--max-steps", 1, "--samples", 0,
                        "--quiet")
    assert result.stderr == ("warning: --add-tokens: the data hold no token '<b>'; in --template it is always "
                             "read as a token, in the data only with --special-tokens\n")


def test_an_adapter_without_its_tokenizer(run, model, run_script, tmp_path):
    shutil.copytree(run[0] / "adapter", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    result = run_script(tmp_path, "generate.py", "--model", model, "--adapter", "bare", "--prompt", "a")
    assert result.returncode == 0
    assert result.stderr == ("warning: bare: tokens were added for this adapter, but it has no tokenizer.json that "
                             "knows them; copy the tokenizer.json of its training there\n")


def test_an_adapter_without_its_rows(run, model, run_script, tmp_path):
    """As PEFT saves one with save_embedding_layers=False after the vocabulary was resized."""
    base = npgpt.GPT2.from_pretrained(model)
    npgpt.save_adapter(npgpt.add_lora(base, npgpt.LoraConfig()), tmp_path / "bare")
    shutil.copy(run[0] / "adapter" / "tokenizer.json", tmp_path / "bare")
    result = run_script(tmp_path, "generate.py", "--model", model, "--adapter", "bare", "--prompt", "a")
    assert result.returncode == 0
    assert "bare: its tokenizer has 259 tokens, but the model has rows for 257; if texts use the other" in result.stderr


def test_wrong_tokens(refused, model, data):
    for token, shown in ((" ", "' '"), ("a\nb", r"'a\nb'")):
        assert f"cannot add the token {shown}: it must be a string of printable characters" in refused(
            "finetune.py", "--model", model, "--data", data, "--add-tokens", token)
    assert "the head is tied to the token table" in refused(
        "finetune.py", "--model", model, "--data", data, *ADDED, "--template", TEMPLATE, "--targets", "lm_head")


def test_two_tokenizers(run, model, data, script, refused, tmp_path):
    script("finetune.py", "--model", model, "--data", data, "--template", "{prompt}<|other|>{completion}",
           "--add-tokens", "<|other|>", "--out", "run", "--max-steps", 1, "--samples", 0)
    assert "have different tokenizers: use only one of these adapters" in refused(
        "generate.py", "--model", model, "--adapter", run[0] / "adapter", "--adapter", tmp_path / "run" / "adapter",
        "--prompt", "a")
