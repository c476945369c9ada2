"""Adapter files: what PEFT writes runs the same here, and what is written here runs the same in PEFT."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
import transformers

import npgpt
from npgpt.adapters.stack import updates
from npgpt.data import Recipe

from .reference import assert_all_close, assert_close, npgpt_model, texts, torch_ids, torch_model, with_peft

TARGETS = {
    "c_attn": ["c_attn"],
    "all-linear": "all-linear",
    "attn.c_proj": ["attn.c_proj"],
    "both-c_proj": ["c_proj"],
    "regex": r"transformer\.h\.[02]\.(attn\.c_attn|mlp\.c_proj)",
    "one-module": ["transformer.h.1.mlp.c_fc"],
    "names of other models too": ["q_proj", "c_fc"],
}
MODEL = "relu-by-layer"  # three layers, so that an expression over layer numbers can leave one out
BOUND = 1e-5  # float32, relative to the largest logit


@pytest.fixture(params=TARGETS)
def targets(request):
    return TARGETS[request.param]


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch_ids(ids)).logits[0].numpy()


def weights_here(model):
    return {key: tensor.data for key, tensor in model.parameters().items()}


def random_adapter(model, targets, r=3, lora_alpha=7):
    """Put LoRA with B other than zero on a model of npgpt."""
    npgpt.add_lora(model, npgpt.LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=targets), seed=4)
    draw = np.random.default_rng(5)
    for update in updates(model).values():
        update.lora_B.data[...] = 0.2 * draw.standard_normal(update.lora_B.shape)
    return model


def test_peft_writes_and_npgpt_reads(tmp_path, targets):
    theirs = with_peft(torch_model(MODEL), targets, r=3, alpha=7, lora_dropout=0.25)
    theirs.save_pretrained(tmp_path)
    ours = npgpt.load_adapter(npgpt_model(torch_model(MODEL)), tmp_path)
    (ids,) = texts(ours.config.vocab_size, [20])
    assert_close(ours.logits(ids), torch_logits(theirs, ids), BOUND, "logits")
    assert {update.config.lora_dropout for update in updates(ours).values()} == {0.25}

    npgpt.merge_lora(ours)
    theirs = theirs.merge_and_unload()
    assert_close(ours.logits(ids), torch_logits(theirs, ids), BOUND, "merged logits")
    assert_all_close(weights_here(ours), weights_here(npgpt_model(theirs)), BOUND)


def test_peft_writes_the_older_file(tmp_path):
    """adapter_model.bin, a pickle, which npgpt reads without unpickling it."""
    theirs = with_peft(torch_model(MODEL), ["c_attn", "mlp.c_proj"], r=3, alpha=7)
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert sorted(path.suffix for path in tmp_path.glob("adapter_model.*")) == [".bin"]
    ours = npgpt.load_adapter(npgpt_model(torch_model(MODEL)), tmp_path)
    (ids,) = texts(ours.config.vocab_size, [20])
    assert_close(ours.logits(ids), torch_logits(theirs, ids), BOUND, "logits")


def test_npgpt_writes_and_peft_reads(tmp_path, targets):
    """Without a warning, which here would be an error."""
    targets = [name for name in targets if name != "q_proj"] if isinstance(targets, list) else targets
    ours = random_adapter(npgpt_model(torch_model(MODEL)), targets)
    npgpt.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(torch_model(MODEL), tmp_path).eval()
    (ids,) = texts(ours.config.vocab_size, [20])
    assert_close(ours.logits(ids), torch_logits(theirs, ids), BOUND, "logits")

    npgpt.merge_lora(ours)
    theirs = theirs.merge_and_unload()
    assert_close(ours.logits(ids), torch_logits(theirs, ids), BOUND, "merged logits")
    assert_all_close(weights_here(ours), weights_here(npgpt_model(theirs)), BOUND)


def test_files_are_peft_s_own(tmp_path, targets):
    """PEFT's files, read here and written again: the same tensors bit by bit, and the same configuration."""
    theirs = with_peft(torch_model(MODEL), targets, r=3, alpha=7)
    theirs.save_pretrained(tmp_path / "theirs")
    npgpt.save_adapter(npgpt.load_adapter(npgpt_model(torch_model(MODEL)), tmp_path / "theirs"), tmp_path / "ours")
    one, two = ((tmp_path / side / "adapter_model.safetensors").read_bytes() for side in ("theirs", "ours"))
    assert one == two
    one, two = (json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("theirs", "ours"))
    named_one, named_two = (config.pop("target_modules") for config in (one, two))
    assert one.pop("peft_version") == peft.__version__ and two.pop("peft_version") == "0.21.2"
    assert one == two
    if isinstance(named_one, list) and "q_proj" not in named_one:
        assert sorted(named_one) == named_two


def test_several_names(tmp_path):
    """PEFT puts a second adapter into a folder of its own name; so does npgpt, and each reads the other's."""
    theirs = with_peft(torch_model(MODEL), ["c_attn"])
    theirs.add_adapter("other", peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True))
    theirs.set_adapter("other")
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if key.endswith("lora_B.other.weight"):
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = npgpt.load_adapter(npgpt_model(torch_model(MODEL)), tmp_path / "theirs", name="other")
    (ids,) = texts(ours.config.vocab_size, [20])
    expected = torch_logits(theirs, ids)
    assert_close(ours.logits(ids), expected, BOUND, "logits")

    npgpt.save_adapter(ours, tmp_path / "ours", name="other")
    again = peft.PeftModel.from_pretrained(torch_model(MODEL), tmp_path / "ours" / "other", adapter_name="other").eval()
    assert_close(torch_logits(again, ids), expected, BOUND, "logits")


def test_adapter_of_a_model_without_a_head(tmp_path):
    """Its keys have no "transformer."; PEFT itself would run the language model without it."""
    theirs = torch_model(MODEL)
    expected = with_peft(theirs, r"transformer\.h\.\d\.attn\.c_attn")
    bare = torch_model(MODEL).transformer
    bare = peft.get_peft_model(
        bare, peft.LoraConfig(r=4, lora_alpha=8, target_modules=r"h\.\d\.attn\.c_attn", fan_in_fan_out=True)
    )
    lora = {key: weight for key, weight in expected.named_parameters() if ".lora_" in key}
    with torch.no_grad():
        for key, weight in bare.named_parameters():
            if ".lora_" in key:
                weight.copy_(lora[key.replace("base_model.model.", "base_model.model.transformer.")])
    bare.save_pretrained(tmp_path)
    ours = npgpt.load_adapter(npgpt_model(torch_model(MODEL)), tmp_path)
    (ids,) = texts(ours.config.vocab_size, [20])
    assert_close(ours.logits(ids), torch_logits(expected, ids), BOUND, "logits")


def compiled(model):
    return torch.compile(model)


def compiled_by_block(model):
    for i, block in enumerate(model.transformer.h):
        model.transformer.h[i] = torch.compile(block)
    return model


@pytest.mark.parametrize(("wrap", "targets"), [
    (compiled, ["c_attn"]), (compiled_by_block, ["c_attn"]), (compiled_by_block, "all-linear"),
])
def test_adapters_of_compiled_models(tmp_path, wrap, targets):
    """PEFT writes "_orig_mod." into keys and names, and reads them onto nothing but a compiled model."""
    fields = {"modules_to_save": ["ln_f"]}
    with_peft(wrap(torch_model(MODEL)), targets, **fields).save_pretrained(tmp_path)
    assert all("_orig_mod." in key for key in npgpt.files.safetensors.read(tmp_path / "adapter_model.safetensors")
               if ".lora_" in key)
    ours = npgpt.load_adapter(npgpt_model(torch_model(MODEL)), tmp_path)
    (ids,) = texts(ours.config.vocab_size, [20])
    expected = torch_logits(with_peft(torch_model(MODEL), targets, **fields), ids)  # compiling changes no weight
    assert_close(ours.logits(ids), expected, BOUND, "logits")


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_alone(tmp_path, init):
    """The base is as it was, and a trained A and B mean the same whatever they were drawn from."""
    theirs = with_peft(torch_model(MODEL), ["c_attn"], init_lora_weights=init)
    theirs.save_pretrained(tmp_path)
    ours = npgpt.load_adapter(npgpt_model(torch_model(MODEL)), tmp_path)
    (ids,) = texts(ours.config.vocab_size, [20])
    assert_close(ours.logits(ids), torch_logits(theirs, ids), BOUND, "logits")


def test_base_and_adapter_through_files(tmp_path):
    """The whole way: transformers and PEFT save, npgpt loads, trains and merges, and transformers loads that."""
    torch_model(MODEL).save_pretrained(tmp_path / "base")
    with_peft(torch_model(MODEL), "all-linear").save_pretrained(tmp_path / "adapter")
    ours = npgpt.load_adapter(npgpt.GPT2.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    sequences = texts(ours.config.vocab_size, [20, 9])
    optimizer = npgpt.AdamW(ours.trainable_parameters())
    npgpt.train_step(ours, npgpt.Batch.from_sequences(sequences), optimizer)
    expected = ours.logits(sequences[0])

    npgpt.save_adapter(ours, tmp_path / "trained")
    Recipe("text", "{text}").save(tmp_path / "trained")  # which PEFT does not read
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    written = json.loads((tmp_path / "trained" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "trained").eval()
    assert_close(expected, torch_logits(theirs, sequences[0]), BOUND, "logits")

    npgpt.merge_lora(ours).save_pretrained(tmp_path / "merged")
    merged = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    assert_close(expected, torch_logits(merged, sequences[0]), BOUND, "merged logits")
