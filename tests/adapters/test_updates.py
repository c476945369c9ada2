"""What each kind of adapter does to a layer, and what is saved of it. PEFT's side of it is in tests/parity."""

import json

import numpy as np
import pytest

from npgpt import AdamW, LoraConfig, add_lora, backward, load_adapter, merge_lora, save_adapter
from npgpt.adapters.stack import delete_adapter, disable_adapter, set_adapter, updates
from npgpt.checking.gradcases import randomise, small_batch, small_model
from npgpt.checking.gradcheck import check_parameters
from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FormatError

IDS = [1, 5, 5, 2, 9]
NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SOME = {"target_modules": ("c_attn", "mlp.c_fc")}
KINDS = {
    "plain": SOME,
    "rsLoRA": {**SOME, "use_rslora": True},
    "DoRA": {**SOME, "use_dora": True},
    "lora_bias": {**SOME, "lora_bias": True},
    "bias lora_only": {**SOME, "bias": "lora_only"},
    "DoRA, bias all": {**SOME, "use_dora": True, "bias": "all"},
    "modules_to_save": {**SOME, "modules_to_save": ("ln_f", "h.1.mlp", "wte")},
    "embeddings": {"target_modules": ("wte", "wpe", "c_attn")},
    "embeddings, DoRA": {"target_modules": ("wte",), "use_dora": True},
    "head": {"target_modules": ("lm_head", "c_attn")},
    "head, DoRA": {"target_modules": ("lm_head",), "use_dora": True},
    "head, PiSSA": {"target_modules": ("lm_head",), "init_lora_weights": "pissa"},
    "head to save": {**SOME, "modules_to_save": ("lm_head",)},
    "token rows": {**SOME, "trainable_token_indices": (5, 2)},
    "token rows of two tables": {**SOME, "trainable_token_indices": {"lm_head": [9], "wte": [5, 9]}},
    "patterns": {**SOME, "rank_pattern": {"c_fc": 4}, "alpha_pattern": {r"h\.0\..*": 8}},
    "gaussian": {**SOME, "init_lora_weights": "gaussian"},
    "orthogonal": {**SOME, "init_lora_weights": "orthogonal"},
    "PiSSA": {**SOME, "init_lora_weights": "pissa"},
    "OLoRA": {**SOME, "init_lora_weights": "olora", "use_rslora": True},
}


def config(kind, **fields):
    return LoraConfig(**{"r": 2, "lora_alpha": 6, "lora_dropout": 0.0} | KINDS[kind] | fields)


def fresh(kind, dtype=np.float64, tied=True, **fields):
    return add_lora(small_model(dtype, tie_word_embeddings=tied, **NONE), config(kind, **fields))


def trained(kind, dtype=np.float64, tied=True, **fields):
    """A model under an adapter of this kind, everything that trains moved."""
    model = fresh(kind, dtype, tied, **fields)
    draw = np.random.default_rng(0)
    for tensor in model.trainable_parameters().values():
        tensor.data += (0.1 * draw.standard_normal(tensor.shape)).astype(dtype)
    return model


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


def test_training_starts_from_the_base(kind, tied, assert_close):
    assert_close(fresh(kind, tied=tied).logits(IDS), small_model(tie_word_embeddings=tied, **NONE).logits(IDS))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "DoRA" not in kind])
def test_gradients_are_those_of_finite_differences(kind):
    """DoRA's, with its norm held constant, are checked with the operations, and against PEFT's."""
    model = trained(kind)
    report = check_parameters(lambda: model.loss(small_batch()), model.trainable_parameters())
    assert report.passed, f"\n{report}"


def test_merging_computes_the_same(kind, tied, assert_close):
    model = trained(kind, tied=tied)
    before, plain = model.logits(IDS), small_model(tie_word_embeddings=tied, **NONE)
    assert np.abs(before - plain.logits(IDS)).max() > 0.01
    merged = merge_lora(model)
    assert_close(merged.logits(IDS), before)
    untied = {"lm_head.weight"} if not merged.config.tie_word_embeddings else set()
    assert merged.parameters().keys() == plain.parameters().keys() | untied


def test_the_base_is_never_written_to(kind, tied):
    model = small_model(np.float32, tie_word_embeddings=tied, **NONE)
    before = {name: tensor.data.tobytes() for name, tensor in model.parameters().items()}
    logits = model.logits(IDS)
    for tensor in model.parameters().values():
        tensor.data.flags.writeable = False  # as mapped files are
    add_lora(model, config(kind, lora_dropout=0.3))
    opt = AdamW(model.trainable_parameters(), lr=0.1)
    for step in range(2):
        opt.step(backward(model.loss(small_batch(), np.random.default_rng(step))))
    with disable_adapter(model):
        np.testing.assert_array_equal(model.logits(IDS), logits)
    set_adapter(model, {"default": 0.5})
    delete_adapter(model, "default")
    assert {name: tensor.data.tobytes() for name, tensor in model.parameters().items()} == before


def test_round_trip_through_files(kind, tied, tmp_path, assert_close):
    model = trained(kind, np.float32, tied)
    save_adapter(model, tmp_path / "one")
    loaded = load_adapter(small_model(np.float32, tie_word_embeddings=tied, **NONE), tmp_path / "one")
    assert_close(loaded.logits(IDS), model.logits(IDS), 2e-6)
    save_adapter(loaded, tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 0.5, "b": -2}])
def test_a_stack_is_the_sum_of_what_each_adds(kind, weights, assert_close):
    """For one layer, in weights; the parts are the deltas that merging uses, which the test above holds right."""
    model = small_model(**NONE)
    for name in weights:
        add_lora(model, config(kind), seed=len(name), name=name)
        randomise(model.trainable_parameters(), seed=ord(name))
    set_adapter(model, weights)
    stacked = model.logits(IDS)
    assert_close(merge_lora(model).logits(IDS), stacked)


# What only some of them do


@pytest.mark.parametrize("method", ["pissa", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_start_taken_from_the_base_is_saved_as_plain_lora_of_twice_the_rank(method, use_rslora, tmp_path,
                                                                              assert_close):
    model = trained("PiSSA", np.float32, init_lora_weights=method, use_rslora=use_rslora)
    save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["init_lora_weights"] is True and written["r"] == 4
    tensors = safetensors.read(tmp_path / "adapter_model.safetensors")
    assert {array.shape[0] for key, array in tensors.items() if "lora_A" in key} == {4}
    loaded = load_adapter(small_model(np.float32, **NONE), tmp_path)
    assert_close(loaded.logits(IDS), model.logits(IDS), 2e-6)
    for update, first in zip(updates(loaded).values(), updates(model).values(), strict=True):
        assert update.scale == pytest.approx(first.scale, rel=1e-15)


@pytest.mark.parametrize("fields, message", [
    ({"init_lora_weights": "orthogonal", "r": 3}, "the rank must be even"),
    ({"init_lora_weights": "pissa", "r": 9}, "must be at most 8"),
    ({"init_lora_weights": "olora", "r": 9}, "must be at most 8"),
    ({"lora_bias": True, "target_modules": ["wte"]}, "lora_bias cannot be used on transformer.wte"),
    ({"lora_bias": True, "target_modules": ["lm_head"]}, "lora_bias cannot be used on lm_head"),
    ({"init_lora_weights": "pissa", "use_dora": True}, "use_dora does not go together with init_lora_weights"),
    ({"init_lora_weights": "eva"}, "init_lora_weights = 'eva': it must be true, false, 'gaussian'"),
    ({"modules_to_save": ["classifier"]}, "'classifier' in modules_to_save is no module"),
])
def test_what_cannot_be_made_changes_nothing(fields, message):
    model = small_model()
    with pytest.raises(ConfigError, match=message):
        add_lora(model, config("plain", **fields))
    assert all(tensor.trainable for tensor in model.parameters().values())
    assert model.parameters().keys() == small_model().parameters().keys()


def test_dropout_falls_on_what_dora_adds_and_not_on_embeddings_or_the_head():
    batch = small_batch()
    for kind, falls in (("DoRA", True), ("embeddings, DoRA", False), ("head", True), ("head, DoRA", False)):
        model = trained(kind, lora_dropout=0.4)
        losses = {float(model.loss(batch, rng).data) for rng in (None, np.random.default_rng(0))}
        assert (len(losses) == 2) == falls, kind
    model = fresh("DoRA", lora_dropout=0.4)
    assert float(model.loss(batch, np.random.default_rng(0)).data) == pytest.approx(float(model.loss(batch).data))


# Patterns and their order in a file


def test_patterns_mean_the_same_after_the_file_is_sorted(tmp_path, assert_close):
    """PEFT writes them as they are, sorted, so that another one comes first: its scale of h.1 falls from 32 to 0.5."""
    fields = {"rank_pattern": {"h.1.mlp.c_fc": 4, "c_fc": 1}, "alpha_pattern": {"h.1.mlp.c_fc": 64, "c_fc": 1}}
    model = trained("plain", np.float32, **fields)
    save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["alpha_pattern"] == {"transformer.h.0.mlp.c_fc": 1, "transformer.h.1.mlp.c_fc": 64}
    assert written["rank_pattern"] == {"transformer.h.0.mlp.c_fc": 1, "transformer.h.1.mlp.c_fc": 4}
    loaded = load_adapter(small_model(np.float32, **NONE), tmp_path)
    np.testing.assert_array_equal(loaded.logits(IDS), model.logits(IDS))


def test_a_file_whose_patterns_have_lost_their_order(tmp_path):
    """As PEFT wrote it. The ranks are in the tensors' shapes; the alphas are nowhere, and it is refused."""
    model = trained("plain", np.float32, rank_pattern={"h.1.mlp.c_fc": 4, "c_fc": 1})
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"rank_pattern": {"c_fc": 1, "h.1.mlp.c_fc": 4}}))
    loaded = load_adapter(small_model(np.float32, **NONE), tmp_path)
    np.testing.assert_array_equal(loaded.logits(IDS), model.logits(IDS))
    path.write_text(json.dumps(written | {"alpha_pattern": {"c_fc": 1, "h.1.mlp.c_fc": 64}}))
    with pytest.raises(FormatError, match=r"alpha_pattern gives transformer\.h\.1\.mlp\.c_fc the values 1, 64"):
        load_adapter(small_model(np.float32, **NONE), tmp_path)


def test_an_adapter_brings_its_own_head(tmp_path, assert_close):
    """PEFT writes the head it adapted beside the update, and puts it in the base's place when it loads the adapter."""
    model = trained("head", np.float32, tied=False)
    save_adapter(model, tmp_path)
    path, base = tmp_path / "adapter_model.safetensors", small_model(np.float32, tie_word_embeddings=False, **NONE)
    tensors = {key: array.copy() for key, array in safetensors.read(path).items()}
    key = "base_model.model.lm_head.base_layer.weight"
    table = base.lm_head.weight.data
    safetensors.write(path, tensors | {key: table})
    load_adapter(base, tmp_path)
    safetensors.write(path, tensors | {key: table + 1})
    with pytest.warns(UserWarning, match="has its own token table"):
        load_adapter(base, tmp_path, "other")
    own = base.logits(IDS)
    table += 1
    assert_close(own, load_adapter(base, tmp_path, "same").logits(IDS), 1e-6)
