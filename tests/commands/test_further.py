"""finetune --adapter: an adapter is trained further, and keeps its own settings."""

import json
import shutil

import numpy as np
import pytest

import npgpt
from npgpt.files import safetensors

COMMON = ("--samples", 0, "--max-steps", 3, "--lr", 0.01)
KINDS = {
    "plain": {"r": 3, "lora_alpha": 7.5, "lora_dropout": 0.25, "target_modules": ["attn.c_proj", "c_fc"]},
    "patterns": {"rank_pattern": {"h.0.attn.c_attn": 5}, "alpha_pattern": {"h.1.attn.c_attn": 3.0}, "use_rslora": True},
    "dora and biases": {"use_dora": True, "bias": "all", "exclude_modules": ["h.1.attn.c_attn"]},
    "tables": {"target_modules": ["wte"], "modules_to_save": ["ln_f"]},
    "rows": {"trainable_token_indices": [3, 5]},
}


def files(folder):
    """The fields and the tensors of an adapter."""
    return (json.loads((folder / "adapter_config.json").read_text()),
            {name: array.copy() for name, array in safetensors.read(folder / "adapter_model.safetensors").items()})


@pytest.fixture
def made(tmp_path, model):
    """made(**fields of LoraConfig) -> the folder of an adapter that changes something."""
    def make(**fields):
        base = npgpt.GPT2.from_pretrained(model)
        npgpt.add_lora(base, npgpt.LoraConfig(**fields), seed=4)
        draw = np.random.default_rng(0)
        for tensor in base.trainable_parameters().values():
            tensor.data += draw.normal(size=tensor.shape, scale=0.02).astype(np.float32)
        npgpt.save_adapter(base, tmp_path / "begun")
        return tmp_path / "begun"

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_trained_further_and_keeps_its_settings(script, made, tmp_path, model, texts, held_out, kind):
    begun = made(**KINDS[kind])
    stdout = script("finetune.py", "--model", model, "--adapter", "begun", "--data", texts, "--val-data", held_out,
                    "--out", "run", *COMMON)
    assert "adapter    begun is trained further\n" in stdout
    (before, old), (after, new) = files(begun), files(tmp_path / "run" / "adapter")
    assert after == before
    assert new.keys() == old.keys()
    assert all(new[name].shape == old[name].shape for name in old)
    assert sum(not np.array_equal(new[name], old[name]) for name in old) >= len(old) // 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    base = npgpt.load_adapter(npgpt.GPT2.from_pretrained(model), begun, trainable=False)
    tokenizer = npgpt.Tokenizer.from_pretrained(model)
    losses = []
    for line in held_out.read_text().splitlines():
        ids = [*tokenizer.encode(line), tokenizer.eos_id]
        losses += list(-np.take_along_axis(logs(base.logits(ids[:-1])), np.array(ids[1:])[:, None], 1)[:, 0])
    assert results["before"]["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)  # it starts as the adapter is
    assert "the adapter begun further" in (tmp_path / "run" / "report.html").read_text()


def logs(logits):
    """The logarithms of the probabilities."""
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_it_begins_as_the_first_run_ended(script, tmp_path, model, texts):
    """Without a step that moves anything, what comes out is what went in."""
    common = ("--model", model, "--data", texts, "--samples", 0, "--max-steps", 2)
    script("finetune.py", *common, "--out", "one", "--rank", 5, "--lr", 0.05)
    script("finetune.py", *common, "--adapter", "one/adapter", "--out", "two", "--lr", 0, "--weight-decay", 0)
    (before, old), (after, new) = (files(tmp_path / name / "adapter") for name in ("one", "two"))
    assert before == after
    assert all(np.array_equal(new[name], array) for name, array in old.items())
    settings = json.loads((tmp_path / "two" / "config.json").read_text())["settings"]
    assert settings["adapter"] == "one/adapter"
    assert settings["rank"] is settings["targets"] is settings["dropout"] is None
    script("finetune.py", "--config", "two/config.json", "--out", "again")
    assert files(tmp_path / "again" / "adapter")[0] == before


def test_a_run_that_goes_on_from_an_adapter_is_resumed(script, refused, made, tmp_path, model, texts, contents):
    made(r=4)
    common = ("--model", model, "--data", texts, "--adapter", "begun", "--samples", 0, "--lr", 0.02, "--save-every", 2)
    script("finetune.py", *common, "--out", "whole", "--max-steps", 3)
    script("finetune.py", *common, "--out", "run", "--max-steps", 3)
    shutil.rmtree(tmp_path / "run" / "adapter")
    script("finetune.py", "--resume", "run")
    name = "adapter/adapter_model.safetensors"
    assert contents(tmp_path / "run")[name] == contents(tmp_path / "whole")[name]
    shutil.rmtree(tmp_path / "begun")
    made(r=4, lora_alpha=8)
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(json.loads(config.read_text())["model"]["adapter"], "0" * 32))
    assert "run began with other model: model.adapter was 0000" in refused("finetune.py", "--resume", "run").replace(
        "model: adapter", "model: model.adapter")


@pytest.mark.parametrize("flags, said", [
    (["--rank", 4], "--rank would have no effect with --adapter: leave one or the other out"),
    (["--alpha", 4, "--targets", "c_fc", "--dora", "--init", "pissa", "--dropout", 0.5],
     "--alpha, --dropout, --targets, --dora, --init would have no effect with --adapter"),
    (["--add-tokens", "<x>"], "--add-tokens would have no effect with --adapter"),
    (["--full"], "--adapter would have no effect with --full"),
    (["--adapter", "none"], "cannot read none/adapter_config.json: No such file or directory"),
    (["--adapter", ""], "it must not be empty"),
])
def test_what_does_not_go_with_an_adapter_is_said(refused, made, model, texts, flags, said):
    made(r=4)
    assert said in refused("finetune.py", "--model", model, "--data", texts, "--adapter", "begun", *flags)


def test_added_tokens_stay_with_the_adapter(script, tmp_path, model, texts, contents):
    (tmp_path / "marked.txt").write_text("<x> one\n<x> two\n")
    common = ("--model", model, "--data", "marked.txt", "--special-tokens", *COMMON)
    script("finetune.py", *common, "--add-tokens", "<x>", "--out", "one")
    assert "<x>" in script("finetune.py", *common, "--adapter", "one/adapter", "--preview", 1)
    stdout = script("finetune.py", *common, "--adapter", "one/adapter", "--out", "two")
    assert "1 row of the table" in stdout
    one, two = (contents(tmp_path / name / "adapter") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert one["tokenizer.json"] == two["tokenizer.json"]
    assert one["adapter_config.json"] == two["adapter_config.json"]
    script("generate.py", "--model", model, "--adapter", "two/adapter", "--prompt", "<x>", "--max-new-tokens", 2)


def test_an_adapter_of_the_hub_with_the_base_that_it_names(script, made, tmp_path, model, texts):
    """Both are in the cache."""
    begun = made(r=3)
    config = json.loads((begun / "adapter_config.json").read_text())
    (begun / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "o/base"}))
    for name, folder in (("base", model), ("adapter", begun)):
        place = tmp_path / ".hf" / "hub" / f"models--o--{name}"
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0" * 40)
    asked = place / ".no_exist" / ("0" * 40)
    asked.mkdir(parents=True)
    (asked / "tokenizer.json").touch()  # the hub was asked for that of the adapter, and had none
    shutil.rmtree(begun)
    script("finetune.py", "--adapter", "o/adapter", "--data", texts, "--out", "run", *COMMON)
    after = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (after["r"], after["base_model_name_or_path"]) == (3, "o/base")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["model"], settings["adapter"]) == ("o/base", "o/adapter")
