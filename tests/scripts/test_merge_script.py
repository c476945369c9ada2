"""merge.py writes a model that needs no adapter."""

import json
import re

import numpy as np

import npgpt


def test_the_merged_model_is_base_and_adapter(script, tmp_path, model, adapter, contents):
    before = contents(model), contents(adapter)
    stdout = script("merge.py", "--model", model, "--adapter", adapter, "--out", "deep/merged")
    assert stdout == f"merged {adapter} into {model}: deep/merged\n"
    assert (contents(model), contents(adapter)) == before
    merged = tmp_path / "deep" / "merged"
    assert contents(merged).keys() == {"config.json", "model.safetensors", "tokenizer.json"}

    ids = np.arange(120).reshape(2, 60) * 7 % 257
    base = npgpt.GPT2.from_pretrained(model).logits(ids)
    adapted = npgpt.load_adapter(npgpt.GPT2.from_pretrained(model), adapter).logits(ids)
    logits = npgpt.GPT2.from_pretrained(merged).logits(ids)
    assert np.abs(logits - adapted).max() < 1e-5
    assert np.abs(logits - base).max() > 0.1

    for name in ("model_type", "n_embd", "eos_token_id"):
        configs = [json.loads((folder / "config.json").read_text()) for folder in (merged, model)]
        assert configs[0][name] == configs[1][name]
    text = "many hands make light work"
    assert npgpt.Tokenizer.from_pretrained(merged).encode(text).tolist() == (
        npgpt.Tokenizer.from_pretrained(model).encode(text).tolist())


def test_the_merged_model_is_one_like_any_other(script, model, adapter, texts):
    script("merge.py", "--model", model, "--adapter", adapter, "--out", "merged")
    prompt = ["--prompt", "many hands", "--temperature", 0]
    assert script("generate.py", "--model", "merged", *prompt) == script(
        "generate.py", "--model", model, "--adapter", adapter, *prompt)
    script("finetune.py", "--model", "merged", "--data", texts, "--out", "run", "--max-steps", 1)


def test_an_adapter_of_another_base_is_warned_of(run_script, tmp_path, model, adapter):
    """Its shapes fit, so it may be meant; but it is said."""
    npgpt.GPT2.from_pretrained(model).save_pretrained(tmp_path / "other")
    npgpt.Tokenizer.from_pretrained(model).save(tmp_path / "other")
    result = run_script(tmp_path, "merge.py", "--model", "other", "--adapter", adapter, "--out", "merged")
    assert result.returncode == 0
    assert re.fullmatch(f"warning: the adapter in {adapter} was made for .*{model}.*, and this model is .*other.*\n",
                        result.stderr)
