"""Added tokens: their rows in a model, and their rows in an adapter's file. The comparison with PEFT is in
tests/parity/test_matrix.py."""

import numpy as np
import pytest

from npgpt import load_adapter, merge_lora, save_adapter
from npgpt.adapters.peft import WEIGHTS_FILE
from npgpt.adapters.stack import disable_adapter, updates
from npgpt.files import safetensors
from npgpt.runtime.errors import ConfigError, FormatError
from tests.adapters.test_tables import FLOAT32, IDS, adapted, base

TABLES = {"base_model.model.transformer.wte.weight", "base_model.model.lm_head.weight"}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


def keys(folder):
    return safetensors.read(folder / WEIGHTS_FILE).keys()


# Files


def test_tables_are_saved_where_new_rows_are_not_the_adapters_own(tied, tmp_path, assert_close):
    model = adapted(base(tied), target_modules=["c_attn"])
    save_adapter(model, tmp_path)
    assert keys(tmp_path) >= TABLES
    assert_close(load_adapter(base(tied), tmp_path).logits(IDS), model.logits(IDS), FLOAT32)
    save_adapter(model, tmp_path / "without", save_embedding_layers=False)
    assert not keys(tmp_path / "without") & TABLES


@pytest.mark.parametrize(("rows", "whole"), [([13, 14], False), ([14], True), ([2, 13], True)])
def test_tables_are_not_saved_where_the_adapter_has_all_new_rows(rows, whole, tmp_path, assert_close):
    model = adapted(base(), target_modules=["c_attn"], trainable_token_indices=rows)
    save_adapter(model, tmp_path)
    delta = "base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"
    assert delta in keys(tmp_path)
    assert ("base_model.model.transformer.wte.token_adapter.base_layer.weight" in keys(tmp_path)) == whole
    assert_close(load_adapter(base(), tmp_path).logits(IDS), model.logits(IDS), FLOAT32)


def test_an_untied_head_needs_rows_of_its_own(tmp_path):
    model = adapted(base(tied=False), target_modules=["c_attn"], trainable_token_indices=[13, 14])
    save_adapter(model, tmp_path / "one")
    assert "base_model.model.lm_head.weight" in keys(tmp_path / "one")
    both = {"wte": [13, 14], "lm_head": [13, 14]}
    save_adapter(adapted(base(tied=False), target_modules=["c_attn"], trainable_token_indices=both), tmp_path / "two")
    assert not any(key.endswith("head.weight") or "base_layer" in key for key in keys(tmp_path / "two"))


@pytest.mark.parametrize("fields", [
    {"target_modules": ["c_attn"]}, {"target_modules": ["wte", "c_attn"]}, {"target_modules": ["lm_head", "wte"]},
    {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["c_attn"], "trainable_token_indices": [14, 2]},
], ids=lambda fields: "-".join(fields["target_modules"] + fields.get("modules_to_save", []) + list(fields)[1:]))
def test_saved_tables_take_the_place_of_other_rows(fields, tied, tmp_path, assert_close):
    """Another program may have drawn the base's new rows. The adapter then computes only with the rows of its file."""
    model = base(tied)
    draw = np.random.default_rng(3)
    for weight in {id(table): table for table in (model.wte.weight, model.head())}.values():
        weight.data[13:] = draw.normal(0, 0.2, (2, 8))
    expected = adapted(model, **fields).logits(IDS)
    save_adapter(model, tmp_path, save_embedding_layers=True)
    loaded = load_adapter(base(tied), tmp_path)
    assert_close(loaded.logits(IDS), expected, FLOAT32)
    assert loaded.trainable_parameters().keys() == model.trainable_parameters().keys()
    save_adapter(loaded, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)
    with disable_adapter(loaded):
        assert np.array_equal(loaded.logits(IDS), base(tied).logits(IDS))
    apart = tied and len(fields) + len(fields["target_modules"]) > 2 and "trainable_token_indices" not in fields
    assert_close(merge_lora(loaded).logits(IDS), expected, FLOAT32)
    assert loaded.config.tie_word_embeddings == (tied and not apart)


def test_a_table_equal_to_the_bases_is_not_kept_twice(tied, tmp_path):
    model = adapted(base(tied), target_modules=["c_attn"])
    save_adapter(model, tmp_path)
    assert updates(load_adapter(base(tied), tmp_path)).keys() == updates(model).keys()


@pytest.mark.parametrize(("rows", "match"), [
    (13, r"wte.weight' has shape \(15, 8\), float32, but this model's table has shape \(13, 8\); the adapter was "
         r"trained after tokens were added: call model.resize_token_embeddings\(15\) first$"),
    (16, r"has shape \(15, 8\).* \(16, 8\); the adapter is for a vocabulary of 15: load it onto the base without"),
])
def test_another_number_of_rows(rows, match, tied, tmp_path):
    save_adapter(adapted(base(tied), target_modules=["c_attn"]), tmp_path)
    model = base(tied, rows)
    with pytest.raises(FormatError, match=match):
        load_adapter(model, tmp_path)
    assert model.logits([1]).shape == (1, rows)


def test_a_low_rank_update_of_another_number_of_rows(tmp_path):
    save_adapter(adapted(base(), target_modules=["wte"]), tmp_path, save_embedding_layers=False)
    with pytest.raises(FormatError, match=r"lora_embedding_A' has shape \(2, 15\).*resize_token_embeddings\(15\)"):
        load_adapter(base(rows=13), tmp_path)


def test_tied_tables_that_differ_are_refused(tmp_path):
    save_adapter(adapted(base(), target_modules=["c_attn"]), tmp_path)
    path = tmp_path / WEIGHTS_FILE
    tensors = {key: array.copy() for key, array in safetensors.read(path).items()}
    tensors["base_model.model.lm_head.weight"][3] += 1
    safetensors.write(path, tensors)
    with pytest.raises(FormatError, match=r"wte.weight' and '.*lm_head.weight' mean the same tensor and differ"):
        load_adapter(base(), tmp_path)


def test_rows_of_a_tied_head_that_differ_are_refused(tmp_path):
    save_adapter(adapted(base(), target_modules=["c_attn"], trainable_token_indices=[13, 14]), tmp_path)
    path, key = tmp_path / WEIGHTS_FILE, "base_model.model.{}.token_adapter.trainable_tokens_delta"
    tensors = {key: array.copy() for key, array in safetensors.read(path).items()}
    rows = tensors[key.format("transformer.wte")]
    safetensors.write(path, tensors | {key.format("lm_head"): rows})  # as PEFT repeats them
    load_adapter(base(), tmp_path)
    safetensors.write(path, tensors | {key.format("lm_head"): rows + 1})
    with pytest.raises(FormatError, match=r"lm_head.token_adapter.trainable_tokens_delta' mean the same tensor and"):
        load_adapter(base(), tmp_path)


def test_a_table_that_differs_from_the_bases_is_pointed_out(tmp_path):
    model = adapted(base(rows=13), target_modules=["c_attn"])
    model.wte.weight.data[4] += 1
    save_adapter(model, tmp_path, save_embedding_layers=True)
    with pytest.warns(UserWarning, match="has its own token table, whose rows differ from this model's"):
        loaded = load_adapter(base(rows=13), tmp_path)
    assert np.allclose(loaded.logits([4, 1]), model.logits([4, 1]), atol=1e-5)


def test_what_may_be_said_of_tables(tmp_path):
    with pytest.raises(ConfigError, match="save_embedding_layers = 'all': it must be True, False"):
        save_adapter(adapted(base(), target_modules=["c_attn"]), tmp_path, save_embedding_layers="all")
