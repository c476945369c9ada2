"""Checkpoints that torch writes as nanoGPT and minGPT do, converted: npgpt and transformers compute the same."""

import warnings

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
import transformers

import npgpt
from npgpt.exchange import nanogpt
from tests.goldens import make_nanogpt

from .reference import assert_close, texts, torch_ids

SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 61}
BOUND = 1e-5  # float32, relative to the largest logit
FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("program", "bias", "compiled"), [
    ("nanoGPT", True, False), ("nanoGPT", False, True), ("nanoGPT", True, True), ("minGPT", True, False),
])
def test_npgpt_and_transformers_compute_what_the_checkpoint_does(tmp_path, program, bias, compiled, form):
    theirs = make_nanogpt.GPT(program, bias, SIZES)
    saved = make_nanogpt.checkpoint(program, theirs, bias, compiled, SIZES)
    torch.save(saved, tmp_path / "ckpt.pt", **FORMATS[form])
    given = {"n_head": 4, "activation": "gelu_new"} if program == "minGPT" else {}
    ours = nanogpt.convert(tmp_path / "ckpt.pt", tmp_path / "model", **given)
    (ids,) = texts(SIZES["vocab_size"], [24])
    expected = make_nanogpt.logits(theirs, ids)
    assert_close(ours.logits(ids), expected, BOUND, "logits")
    assert_close(npgpt.GPT2.from_pretrained(tmp_path / "model").logits(ids), expected, BOUND, "logits of the folder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        assert_close(model.eval()(torch_ids(ids)).logits[0].numpy(), expected, BOUND, "transformers' logits")


def test_gpt2_that_was_put_into_nanogpt(tmp_path):
    """Transposed there and transposed back here: the same bits."""
    config = transformers.GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=24, vocab_size=61,
                                     activation_function="gelu", bos_token_id=None, eos_token_id=None)
    theirs, other = transformers.GPT2LMHeadModel(config), make_nanogpt.GPT("nanoGPT", True, SIZES)
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {key: tensor.T if key.endswith(transposed) else tensor for key, tensor in theirs.state_dict().items()}
    masks = {key for key in other.state_dict() if key.endswith(".attn.bias")}
    assert set(other.load_state_dict(state, strict=False).missing_keys) == masks
    torch.save(make_nanogpt.checkpoint("nanoGPT", other, True, False, SIZES), tmp_path / "ckpt.pt")
    ours = nanogpt.convert(tmp_path / "ckpt.pt", tmp_path / "model")
    for name, tensor in ours.parameters().items():
        np.testing.assert_array_equal(tensor.data, theirs.get_parameter(f"transformer.{name}").detach(), err_msg=name)


def test_transformers_takes_the_tokenizer_of_characters(tmp_path):
    tokenizer = nanogpt.character_tokenizer(make_nanogpt.FOLDER / "meta.pkl")
    nanogpt.convert(make_nanogpt.FOLDER / "ckpt.pt", tmp_path / "model", tokenizer=tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "a line \n'another' h\u00e9"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(theirs(text)["input_ids"]) == text


@pytest.mark.parametrize("name", make_nanogpt.CHECKPOINTS)
def test_the_goldens_are_as_torch_makes_them_now(tmp_path, name):
    program, bias, options = make_nanogpt.CHECKPOINTS[name]
    model = make_nanogpt.GPT(program, bias)
    with np.load(make_nanogpt.FOLDER / "answers.npz") as answers:
        assert_close(answers[name], make_nanogpt.logits(model), BOUND, "logits")
    make_nanogpt.save(tmp_path / "ckpt.pt", program, model, bias, options, "compiled" in name)
    ours, theirs = (npgpt.files.torchfile.read(path) for path in (make_nanogpt.FOLDER / f"{name}.pt",
                                                                  tmp_path / "ckpt.pt"))
    assert list(ours) == list(theirs)
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key], err_msg=key)
