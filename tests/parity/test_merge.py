"""A merged folder is as transformers writes it: it loads there without a word, and computes what was merged."""

import json
import warnings

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
import transformers

import npgpt
from npgpt.commands import merge as merge_command
from npgpt.exchange import merge

from .reference import assert_close, npgpt_model, texts, torch_ids, torch_model, with_peft


def load_quietly(folder, caplog):
    """The model transformers makes of the folder; it must have nothing to say about it."""
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level("WARNING"):
            warnings.simplefilter("error")
            model, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    finally:
        transformers.logging.disable_propagation()
        transformers.logging.set_verbosity_error()
    assert not any(info.values()), info
    assert not caplog.messages
    return model.eval()


@pytest.mark.parametrize("name", ["relu-by-layer", "untied"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 5e-3)])
@pytest.mark.parametrize("max_shard_size", [None, 20_000])
def test_transformers_computes_what_peft_does(tmp_path, caplog, name, dtype, bound, max_shard_size):
    theirs = with_peft(torch_model(name), "all-linear")
    theirs.save_pretrained(tmp_path / "adapter")
    ours = npgpt.load_adapter(npgpt_model(torch_model(name)), tmp_path / "adapter")
    merge.save_merged(ours, tmp_path / "merged", dtype, max_shard_size)
    merged = load_quietly(tmp_path / "merged", caplog)
    assert str(merged.dtype) == f"torch.{dtype}"
    (ids,) = texts(ours.config.vocab_size, [20])
    with torch.no_grad():
        expected, found = (model(torch_ids(ids)).logits[0].float().numpy() for model in (theirs, merged.float()))
    assert_close(found, expected, bound, "logits")


@pytest.mark.parametrize(
    "fields",
    [
        {"targets": ["wte", "c_attn"]},
        {"targets": ["lm_head", "c_attn"]},
        {"targets": ["c_attn"], "modules_to_save": ["wte"]},
        {"targets": ["c_attn"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of tied weights and of fan_in_fan_out on the head
def test_tied_embeddings_are_untied(tmp_path, caplog, fields):
    """Where PEFT's own merging is off by whole units (huggingface/peft#2018): it is held to PEFT's unmerged model."""
    theirs = with_peft(torch_model("gelu_new"), **fields)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = npgpt.load_adapter(npgpt_model(torch_model("gelu_new")), tmp_path / "adapter")
    merge.save_merged(ours, tmp_path / "merged")
    merged = load_quietly(tmp_path / "merged", caplog)
    assert not merged.config.tie_word_embeddings
    assert merged.lm_head.weight is not merged.transformer.wte.weight
    (ids,) = texts(ours.config.vocab_size, [20])
    with torch.no_grad():
        expected, found = (model(torch_ids(ids)).logits[0].numpy() for model in (theirs.eval(), merged))
    assert_close(found, expected, 1e-5, "logits")


def test_shards_are_those_of_transformers(tmp_path):
    """The same files with the same bytes, and the same index."""
    theirs = torch_model("deep")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    merge.save_merged(npgpt_model(theirs), tmp_path / "ours", max_shard_size=20_000)
    names = [sorted(path.name for path in (tmp_path / side).glob("model*")) for side in ("ours", "theirs")]
    assert names[0] == names[1] and len(names[0]) > 4
    for name in names[0]:
        ours, expected = ((tmp_path / side / name).read_bytes() for side in ("ours", "theirs"))
        if name.endswith(".json"):
            assert json.loads(ours) == json.loads(expected)
        else:
            assert ours == expected, name


def test_tokenizer_and_generation_come_along(tmp_path, capsys):
    """From a folder as transformers saves it to what transformers makes of the merged one."""
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "merged"))
    tiny = npgpt.GPT2.from_pretrained("tiny")
    tiny.name_or_path = str(base)
    tiny.save_pretrained(base)
    npgpt.Tokenizer.from_pretrained("tiny").save(base)
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(base)
    model.generation_config.update(do_sample=True, top_k=7)
    model.save_pretrained(base)
    npgpt.save_adapter(npgpt.add_lora(tiny, npgpt.LoraConfig()), adapter)
    arguments = ["--model", base, "--adapter", adapter, "--out", out, "--no-certificate"]
    with pytest.warns(UserWarning, match="generation_config.json: npgpt does not use top_k = 7"):
        assert merge_command.main(merge_command.parse_arguments([str(each) for each in arguments])) == 0
    assert capsys.readouterr().out.startswith(f"merged {adapter} into {base}: {out}")
    merged = transformers.GPT2LMHeadModel.from_pretrained(out)
    assert (merged.generation_config.do_sample, merged.generation_config.top_k) == (True, 7)
    text = "The arguments that don't fit: 3.14 <|endoftext|>"
    ids = transformers.AutoTokenizer.from_pretrained(out)(text)["input_ids"]
    np.testing.assert_array_equal(ids, npgpt.Tokenizer.from_pretrained("tiny").encode(text))


def test_merging_is_that_of_peft(tmp_path):
    theirs = with_peft(torch_model("deep"), ["c_attn", "mlp.c_proj"])
    theirs.save_pretrained(tmp_path / "adapter")
    ours = npgpt.load_adapter(npgpt_model(torch_model("deep")), tmp_path / "adapter")
    merge.save_merged(ours, tmp_path / "merged")
    theirs = npgpt_model(theirs.merge_and_unload()).parameters()
    for name, tensor in npgpt.GPT2.from_pretrained(tmp_path / "merged").parameters().items():
        assert_close(tensor.data, theirs[name].data, 1e-6, name)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_sum_of_two_is_that_of_peft(tmp_path):
    """PEFT merges several adapters one after another."""
    theirs = with_peft(torch_model("deep"), ["c_attn"])
    theirs.add_adapter("second", peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if key.endswith("lora_B.second.weight"):
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path)
    ours = npgpt_model(torch_model("deep"))
    npgpt.load_adapter(ours, tmp_path, "default")
    npgpt.load_adapter(ours, tmp_path, "second")
    npgpt.set_adapter(ours, ["default", "second"])
    merge.save_merged(ours, tmp_path / "merged")
    theirs = theirs.merge_and_unload(adapter_names=["default", "second"]).eval()
    (ids,) = texts(ours.config.vocab_size, [20])
    with torch.no_grad():
        expected = theirs(torch_ids(ids)).logits[0].numpy()
    assert_close(npgpt.GPT2.from_pretrained(tmp_path / "merged").logits(ids), expected, 1e-5, "logits")
