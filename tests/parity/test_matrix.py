"""Every LoRA feature against PEFT, in every direction. One case is one (feature, direction).

    read       PEFT writes the adapter, npgpt reads it: equal logits
    write      npgpt writes the adapter, PEFT reads it: equal logits
    merge      what PEFT wrote, merged by npgpt into plain weights: the logits of PEFT's model, unmerged
    gradients  the same adapter on both sides: equal loss, and equal gradients of everything that trains

Logits, losses and gradients agree within 1e-5 of their largest entry, in float32.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch

import npgpt

from .reference import (
    assert_all_close,
    assert_close,
    npgpt_gradients,
    npgpt_model,
    texts,
    torch_ids,
    torch_mean_loss,
    torch_model,
)

ALL = {"target_modules": "all-linear"}
SOME = {"target_modules": ["c_attn", "mlp.c_fc"]}
FEATURES = {
    "target list": SOME,
    "all-linear": ALL,
    "target regex": {"target_modules": r"transformer\.h\.[02]\.(attn\.c_attn|mlp\.c_proj)"},
    "exclude list": {**SOME, "exclude_modules": ["h.1.attn.c_attn"]},
    "exclude regex": {**ALL, "exclude_modules": r".*\.1\..*c_proj"},
    "layers_to_transform": {**SOME, "layers_to_transform": 1},
    "layers_pattern": {**SOME, "layers_to_transform": [0, 2], "layers_pattern": "h"},
    "rank_pattern": {**SOME, "rank_pattern": {r"h\.1\..*": 2, "mlp.c_fc": 6}},
    "alpha_pattern": {**SOME, "alpha_pattern": {"c_attn": 2, "h.0.mlp.c_fc": 40}},
    "rsLoRA": {**SOME, "use_rslora": True},
    "rsLoRA, patterns": {**SOME, "use_rslora": True, "rank_pattern": {"c_fc": 6}, "alpha_pattern": {"h.1.mlp.c_fc": 3}},
    "DoRA": {"target_modules": ["c_attn"], "use_dora": True},
    "DoRA, all-linear, rsLoRA": {**ALL, "use_dora": True, "use_rslora": True},
    "lora_bias": {**SOME, "lora_bias": True},
    "bias lora_only": {**SOME, "bias": "lora_only"},
    "bias all": {**SOME, "bias": "all"},
    "DoRA, bias all": {**SOME, "use_dora": True, "bias": "all"},
    "modules_to_save norm": {**SOME, "modules_to_save": ["ln_f", "ln_1"]},
    "modules_to_save wpe, wte": {**SOME, "modules_to_save": ["wpe", "wte"]},
    "modules_to_save head": {**SOME, "modules_to_save": ["lm_head"]},
    "modules_to_save mlp": {**SOME, "modules_to_save": ["h.1.mlp"]},
    "wte": {"target_modules": ["wte", "c_attn"]},
    "wte, wpe, DoRA": {"target_modules": ["wte", "wpe"], "use_dora": True},
    "tied head": {"target_modules": ["lm_head", "c_attn"]},
    "untied head": {"target_modules": ["lm_head", "c_attn"]},
    "untied head, DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "untied wte": {"target_modules": ["wte"]},
    "gaussian": {**SOME, "init_lora_weights": "gaussian"},
    "orthogonal": {**SOME, "init_lora_weights": "orthogonal"},
    "PiSSA": {**SOME, "init_lora_weights": "pissa"},
    "PiSSA, rsLoRA": {**SOME, "init_lora_weights": "pissa", "use_rslora": True},
}
BOUND = 1e-5
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter 'default':UserWarning"),  # PEFT takes lora_B's bias for a broken lora_B
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),  # for the head, and sets it back
    pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern:UserWarning"),
]


@pytest.fixture(params=FEATURES)
def feature(request):
    return request.param


def base(feature):
    return torch_model("untied" if "untied" in feature else "gelu_new", n_layer=3, vocab_size=61)


def wrapped(feature):
    """PEFT's model with everything that trains moved away from where it starts."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
                             | FEATURES[feature])
    model = peft.get_peft_model(base(feature), config).eval()
    draw, size = np.random.default_rng(1), 0.05 if "PiSSA" in feature else 0.2  # its A and B are large already
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.tensor(size * draw.standard_normal(tuple(parameter.shape)), dtype=torch.float32)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(torch_ids(ids)).logits[0].numpy()


def our_name(key):
    """What npgpt calls a trained parameter of PEFT's model."""
    key = key.removeprefix("base_model.model.").removeprefix("transformer.").replace(".default", "")
    for segment in (".modules_to_save", ".base_layer"):
        key = key.replace(segment, "")
    if ".lora_" in key:
        return key.replace(".lora_B.bias", ".lora_B_bias").removesuffix(".weight")
    module, _, tensor = key.rpartition(".")
    return f"{module}.trained_{tensor}"


@pytest.fixture
def ids():
    return texts(61, [20])[0]


def test_read(feature, ids, tmp_path):
    theirs = wrapped(feature)
    theirs.save_pretrained(tmp_path)
    ours = npgpt.load_adapter(npgpt_model(base(feature)), tmp_path)
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "logits")


def test_write(feature, ids, tmp_path):
    ours = npgpt_model(base(feature))
    before = {name: tensor.data.tobytes() for name, tensor in ours.parameters().items()}
    npgpt.add_lora(ours, npgpt.LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0} | FEATURES[feature]), seed=3)
    draw = np.random.default_rng(4)
    for tensor in ours.trainable_parameters().values():
        tensor.data += (0.2 * draw.standard_normal(tensor.shape)).astype(np.float32)
    expected = ours.logits(ids)
    assert np.abs(expected - npgpt_model(base(feature)).logits(ids)).max() > 0.01, "an adapter without effect"
    npgpt.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(feature), tmp_path).eval()
    assert_close(expected, logits(theirs, ids), BOUND, "logits")
    again = npgpt.load_adapter(npgpt_model(base(feature)), tmp_path)
    assert_close(again.logits(ids), expected, BOUND, "logits after npgpt's own round trip")
    after = ours.parameters()
    assert all(after[name].data.tobytes() == bits for name, bits in before.items()), "the base was written to"


def test_merge(feature, ids, tmp_path):
    theirs = wrapped(feature)
    theirs.save_pretrained(tmp_path)
    ours = npgpt.merge_lora(npgpt.load_adapter(npgpt_model(base(feature)), tmp_path))
    assert_close(ours.logits(ids), logits(theirs, ids), BOUND, "merged logits")
    plain = {"lm_head.weight"} if not ours.config.tie_word_embeddings else set()
    assert ours.parameters().keys() | plain == npgpt_model(base(feature)).parameters().keys() | plain


def test_gradients(feature, tmp_path):
    wrapped(feature).save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(feature), tmp_path, is_trainable=True).eval()
    ours = npgpt.load_adapter(npgpt_model(base(feature)), tmp_path)
    sequences = texts(61, [9, 2, 24, 9, 15])
    loss, expected = ours.loss(npgpt.Batch.from_sequences(sequences)), torch_mean_loss(theirs, sequences)
    assert_close(loss.data, expected.detach(), BOUND, "loss")
    expected.backward()
    gradients = {our_name(key): parameter.grad.numpy() for key, parameter in theirs.named_parameters()
                 if parameter.grad is not None}
    assert_all_close(npgpt_gradients(ours, loss), gradients, BOUND)
