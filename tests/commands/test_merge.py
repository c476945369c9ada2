"""merge.py writes a model that needs no adapter."""

import json
import re
import shutil

import numpy as np

import npgpt
from npgpt.adapters.stack import set_adapter

CERTIFICATE = re.compile(
    r"certificate, of the folder as it was written, on ([\d,]+) tokens of (\S+) in windows of \d+\n"
    r"  largest \|difference of logits\|  (\S+), of logits up to (\S+)\n"
    r"  KL divergence                   (\S+) nats a token\n"
    r"  perplexity                      (\S+) unmerged, (\S+) merged\n"
)


def test_the_merged_model_is_base_and_adapter(script, tmp_path, model, adapter, contents):
    before = contents(model), contents(adapter)
    stdout = script("merge.py", "--model", model, "--adapter", adapter, "--out", "deep/merged")
    first, _, rest = stdout.partition("\n")
    assert re.fullmatch(rf"merged {adapter} into {model}: deep/merged \(float32, \d\.\d MB\)", first)
    tokens, text, difference, largest, divergence, unmerged, merged = CERTIFICATE.fullmatch(rest).groups()
    assert int(tokens.replace(",", "")) > 1000
    assert text == "npgpt/texts/validation.txt"
    assert float(difference) < 1e-4 < float(largest)
    assert float(divergence) < 1e-8
    assert abs(float(unmerged) - float(merged)) < 1e-3
    assert (contents(model), contents(adapter)) == before
    merged = tmp_path / "deep" / "merged"
    assert contents(merged).keys() == {"config.json", "model.safetensors", "npgpt_data.json", "tokenizer.json"}

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


def test_several_adapters_in_float16_and_shards(script, tmp_path, model, adapter, texts):
    """Files of the tokenizer and of generation come along, and the sum is that of the library."""
    base = tmp_path / "base"
    shutil.copytree(model, base)
    for name in ("generation_config.json", "tokenizer_config.json"):
        (base / name).write_text('{"max_length": 7}')
    script("finetune.py", "--model", base, "--data", texts, "--out", "run", "--max-steps", 3, "--lr", 0.01)
    other = tmp_path / "run" / "adapter"
    stdout = script("merge.py", "--model", base, "--adapter", other, "--adapter", other, "--dtype", "float16", "--out",
                    "merged", "--max-shard-size", "10kB", "--text", texts)
    files = sorted(path.name for path in (tmp_path / "merged").iterdir())
    shards = [name for name in files if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)]
    assert set(files).difference(shards) == {"config.json", "model.safetensors.index.json", "tokenizer.json",
                                             "generation_config.json", "tokenizer_config.json"}
    assert (tmp_path / "merged" / "generation_config.json").read_text() == '{"max_length": 7}'
    assert f"merged {other} + {other} into {base}: merged (float16, 0.0 MB in {len(shards)} files)" in stdout
    assert f"tokens of {texts} in windows of 256\n" in stdout
    expected = npgpt.GPT2.from_pretrained(base)
    for name in ("one", "two"):
        npgpt.load_adapter(expected, other, name)
    set_adapter(expected, ["one", "two"])
    ids = np.arange(60) * 7 % 257
    found = npgpt.GPT2.from_pretrained(tmp_path / "merged").logits(ids)
    assert 1e-6 < np.abs(found - expected.logits(ids)).max() < 2e-2


def test_a_changed_token_table_is_untied(script, tmp_path, model):
    adapted = npgpt.add_lora(npgpt.GPT2.from_pretrained(model), npgpt.LoraConfig(2, target_modules=["wte"]))
    for tensor in adapted.trainable_parameters().values():
        tensor.data = tensor.data + np.float32(0.05)
    npgpt.save_adapter(adapted, tmp_path / "adapter")
    stdout = script("merge.py", "--model", model, "--adapter", "adapter", "--out", "merged")
    assert "these are two matrices now, no longer tied\n" in stdout
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    ids = np.arange(60) * 7 % 257
    found = npgpt.GPT2.from_pretrained(tmp_path / "merged").logits(ids)
    assert np.abs(found - adapted.logits(ids)).max() < 1e-4


def test_what_does_not_agree_is_said(run_script, tmp_path, model, adapter):
    """A base so ill-conditioned that float16 makes another model of it."""
    base = npgpt.GPT2.from_pretrained(model)
    for name, tensor in base.parameters().items():
        tensor.data = tensor.data * (40 if name.endswith("weight") and tensor.data.ndim == 2 else 1)
    base.save_pretrained(tmp_path / "base")
    npgpt.Tokenizer.from_pretrained(model).save(tmp_path / "base")
    arguments = ["merge.py", "--model", "base", "--adapter", adapter, "--dtype", "float16", "--out"]
    result = run_script(tmp_path, *arguments, "merged")
    assert result.returncode == 1
    assert "they DIFFER by" in result.stdout
    result = run_script(tmp_path, *arguments, "again", "--no-certificate")
    assert result.returncode == 0
    assert result.stdout.count("\n") == 1


def test_an_adapter_of_another_base_is_warned_of(run_script, tmp_path, model, adapter):
    """Its shapes fit, so it may be meant; but it is said."""
    npgpt.GPT2.from_pretrained(model).save_pretrained(tmp_path / "other")
    npgpt.Tokenizer.from_pretrained(model).save(tmp_path / "other")
    result = run_script(tmp_path, "merge.py", "--model", "other", "--adapter", adapter, "--out", "merged")
    assert result.returncode == 0
    assert re.fullmatch(f"warning: the adapter in {adapter} was made for .*{model}.*, but this model is .*other.*\n",
                        result.stderr)
