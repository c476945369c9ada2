"""Files against transformers and safetensors: what either side writes, the other loads, to the same weights."""

import json
import warnings

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import safetensors.numpy
import safetensors.torch
import torch
import transformers

import npgpt
from npgpt.files import safetensors as own_safetensors

from .reference import CONFIGS, assert_close, npgpt_model, texts, torch_ids, torch_model, with_peft


def assert_same_logits(ours, theirs):
    (ids,) = texts(ours.config.vocab_size, [24])
    with torch.no_grad():
        expected = theirs(torch_ids(ids)).logits[0].numpy()
    assert_close(ours.logits(ids), expected, 1e-5, "logits")


def assert_same_weights(ours, theirs):
    expected = npgpt_model(theirs).parameters()
    assert ours.parameters().keys() == expected.keys()
    for name, tensor in ours.parameters().items():
        np.testing.assert_array_equal(tensor.data, expected[name].data, err_msg=name)


def test_the_defaults_of_a_configuration_are_theirs():
    assert npgpt.GPT2Config().to_dict().items() <= transformers.GPT2Config().to_dict().items()


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_writes_and_npgpt_loads(tmp_path, name):
    theirs = torch_model(name)
    theirs.save_pretrained(tmp_path)
    ours = npgpt.GPT2.from_pretrained(tmp_path)
    assert_same_weights(ours, theirs)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    theirs = torch_model("untied").to(dtype)
    theirs.save_pretrained(tmp_path)
    assert_same_weights(npgpt.GPT2.from_pretrained(tmp_path), theirs.to(torch.float32))


def test_shards(tmp_path):
    theirs = torch_model("deep")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert_same_weights(npgpt.GPT2.from_pretrained(tmp_path), theirs)


def test_compiled_models(tmp_path):
    theirs = torch_model()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for i, block in enumerate(theirs.transformer.h):
        theirs.transformer.h[i] = torch.compile(block)
    state = torch.compile(theirs).state_dict()
    assert "_orig_mod.transformer.h.0._orig_mod.ln_1.weight" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_weights(npgpt.GPT2.from_pretrained(tmp_path), torch_model())


def test_the_bare_model_and_a_shared_tensor_stored_once(tmp_path):
    theirs = torch_model()
    theirs.transformer.save_pretrained(tmp_path / "bare")  # keys without "transformer."
    assert_same_weights(npgpt.GPT2.from_pretrained(tmp_path / "bare"), theirs)
    theirs.save_pretrained(tmp_path / "once")
    safetensors.torch.save_model(theirs, str(tmp_path / "once" / "model.safetensors"))  # keeps one name of the two
    assert "lm_head.weight" in own_safetensors.read(tmp_path / "once" / "model.safetensors")
    assert_same_weights(npgpt.GPT2.from_pretrained(tmp_path / "once"), theirs)


def test_a_second_head_is_left_out(tmp_path):
    """GPT2DoubleHeadsModel's file, from which GPT2LMHeadModel takes the language model too."""
    theirs = transformers.GPT2DoubleHeadsModel(torch_model().config)
    theirs.transformer.load_state_dict(torch_model().transformer.state_dict())
    theirs.save_pretrained(tmp_path)
    assert any("multiple_choice_head" in key for key in own_safetensors.read(tmp_path / "model.safetensors"))
    with pytest.warns(UserWarning, match=r"left out 'multiple_choice_head\.summary\.bias'"):
        ours = npgpt.GPT2.from_pretrained(tmp_path)
    assert_same_weights(ours, transformers.GPT2LMHeadModel.from_pretrained(tmp_path))
    assert_same_logits(ours, torch_model())


@pytest.mark.parametrize("kind, head", [("SequenceClassification", "score"), ("TokenClassification", "classifier"),
                                        ("QuestionAnswering", "qa_outputs")])
def test_a_classifier_is_read_as_a_language_model(tmp_path, kind, head):
    """GPT2LMHeadModel reads it too: its head is the token table."""
    theirs = getattr(transformers, f"GPT2For{kind}")(torch_model().config)
    theirs.transformer.load_state_dict(torch_model().transformer.state_dict())
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=rf"left out '{head}\.") as found:
        ours = npgpt.GPT2.from_pretrained(tmp_path)
    assert len(found) == 1
    assert_same_weights(ours, transformers.GPT2LMHeadModel.from_pretrained(tmp_path))
    assert_same_logits(ours, torch_model())


def test_the_state_of_a_model_under_an_adapter_is_refused(tmp_path):
    torch_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(with_peft(torch_model(), ["c_attn"]).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(npgpt.runtime.errors.FormatError, match=r"lora_A.default.weight' belongs to LoRA that was"):
        npgpt.GPT2.from_pretrained(tmp_path)


def test_general_names_in_the_configuration(tmp_path):
    theirs = torch_model("untied")
    theirs.save_pretrained(tmp_path)
    names = {field: alias for alias, field in npgpt.files.model_config.ALIASES.items()}
    assert names.items() == {field: alias for alias, field in theirs.config.attribute_map.items()}.items()
    fields = json.loads((tmp_path / "config.json").read_text())
    fields = {names.get(field, field): value for field, value in fields.items()}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert_same_logits(npgpt.GPT2.from_pretrained(tmp_path),
                       transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval())


def test_metadata_that_is_null(tmp_path):
    theirs = torch_model()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]) | {"__metadata__": None}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert_same_weights(npgpt.GPT2.from_pretrained(tmp_path), transformers.GPT2LMHeadModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("name", CONFIGS)
def test_npgpt_writes_and_transformers_loads(tmp_path, name, caplog):
    ours = npgpt_model(torch_model(name))
    ours.save_pretrained(tmp_path / "ours")
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level("WARNING"):
            warnings.simplefilter("error")
            theirs, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    finally:
        transformers.logging.disable_propagation()
        transformers.logging.set_verbosity_error()
    assert not any(info.values()), info
    assert not caplog.messages
    assert theirs.dtype == torch.float32
    assert_same_weights(ours, theirs)
    assert_same_logits(ours, theirs.eval())

    theirs.save_pretrained(tmp_path / "theirs")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    fields = json.loads((ours / "config.json").read_text())
    assert fields.items() <= json.loads((theirs / "config.json").read_text()).items()


def test_safetensors_files_are_the_same_bytes(tmp_path):
    draw = np.random.default_rng(0)
    dtypes = ["?", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "f8", "i8", "u8"]
    tensors = {f"{i % 3} é\n{i}": draw.integers(0, 2, (i % 4, 3)).astype(t) for i, t in enumerate(dtypes + dtypes)}
    tensors["scalar"] = np.array(1, np.float32)
    own_safetensors.write(tmp_path / "ours", tensors, {"format": "pt"})
    safetensors.numpy.save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, array in own_safetensors.read(tmp_path / "theirs").items():
        np.testing.assert_array_equal(array, tensors[name])
        assert array.dtype == tensors[name].dtype
