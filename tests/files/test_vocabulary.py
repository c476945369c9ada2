"""Added tokens: their rows in a model, and their rows in an adapter's file. The comparison with PEFT is in
tests/parity/test_matrix.py."""

import numpy as np
import pytest

from npgpt import GPT2, Batch, LoraConfig, add_lora, backward, load_adapter, merge_lora, save_adapter
from npgpt.checking.gradcases import small_model
from npgpt.files import safetensors
from npgpt.files.adapter import WEIGHTS_FILE
from npgpt.files.checkpoint import from_pretrained
from npgpt.files.merge import save_merged
from npgpt.lora import disable_adapter, set_adapter, updates
from npgpt.runtime.errors import ConfigError, FormatError

FLOAT32 = 1e-5  # relative to the largest logit: sums of products in another order, rounded through two blocks
IDS = [1, 13, 5, 14, 2, 13]  # 13 and 14 are added to the small model's 13 tokens
NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TABLES = {"base_model.model.transformer.wte.weight", "base_model.model.lm_head.weight"}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


def base(tied=True, rows=15, dtype=np.float32):
    model = small_model(dtype, tie_word_embeddings=tied, **NONE)
    model.resize_token_embeddings(rows)
    return model


def adapted(model, **fields):
    """Return `model` with an adapter, and with all trainable numbers changed."""
    add_lora(model, LoraConfig(**{"r": 2, "lora_alpha": 4, "lora_dropout": 0.0} | fields))
    draw = np.random.default_rng(1)
    for tensor in model.trainable_parameters().values():
        tensor.data += draw.normal(0, 0.2, tensor.shape).astype(tensor.dtype)
    return model


def keys(folder):
    return safetensors.read(folder / WEIGHTS_FILE).keys()


# Resizing


def test_new_rows_are_the_mean_of_the_old(tied):
    old, model = small_model(np.float64, tie_word_embeddings=tied, **NONE), base(tied, dtype=np.float64)
    assert model.config.vocab_size == 15
    for before, after in ((old.wte.weight, model.wte.weight), (old.head(), model.head())):
        assert np.array_equal(after.data[:13], before.data)
        assert np.allclose(after.data[13:], before.data.mean(axis=0), rtol=0, atol=1e-15)
    assert (model.head() is model.wte.weight) == tied
    logits = model.logits([1, 5, 2])
    assert np.allclose(logits[:, :13], old.logits([1, 5, 2]), rtol=0, atol=1e-13)  # the same products, in other blocks
    assert np.allclose(logits[:, 13:], logits[:, :13].mean(axis=1, keepdims=True), rtol=0, atol=1e-13)


def test_a_new_token_is_no_likelier_than_an_old_one_is_on_average(tied):
    logits = base(tied, 14, np.float64).logits([1, 5, 2])
    p = np.exp(logits)
    assert (p[:, 13] <= p[:, :13].mean(axis=1)).all()


def test_fewer_rows(tied):
    model = base(tied, 9)
    assert model.wte.weight.shape == model.head().shape == (9, 8)
    assert np.array_equal(model.head().data, small_model(np.float32, tie_word_embeddings=tied).head().data[:9])
    with pytest.raises(ConfigError, match="token id 9 is outside this model's vocabulary of 9"):
        model.logits([9])


def test_the_same_number_of_rows_changes_nothing():
    model = base(rows=13)
    assert model.kept_rows is None
    assert np.array_equal(model.wte.weight.data, small_model(np.float32).wte.weight.data)


def test_rows_that_were_dropped_do_not_come_back():
    model = base(rows=9)
    model.resize_token_embeddings(13)
    assert model.kept_rows == 9
    assert np.array_equal(model.wte.weight.data[9], model.wte.weight.data[12])


def test_a_resized_model_is_saved_and_loaded(tied, tmp_path):
    model = base(tied)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == model.config
    assert np.array_equal(again.logits(IDS), model.logits(IDS))


def test_a_mapped_model_is_resized_and_its_file_stays(tmp_path):
    small_model(np.float32).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    GPT2.from_pretrained(tmp_path).resize_token_embeddings(20)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("n", [0, -1, 2.5, "3"])
def test_sizes_that_cannot_be(n):
    with pytest.raises(ConfigError, match=r"resize_token_embeddings\(.*: the number of tokens must be whole"):
        base().resize_token_embeddings(n)


def test_tables_under_an_adapter_are_not_resized():
    model = adapted(base(), target_modules=["wte", "c_attn"])
    with pytest.raises(ConfigError, match="cannot resize the vocabulary: an adapter changes wte"):
        model.resize_token_embeddings(20)
    adapted(small := base(), target_modules=["c_attn"])
    small.resize_token_embeddings(20)
    assert small.logits(IDS).shape == (6, 20)


# Rows that train


def test_only_the_rows_that_were_named_change(tied):
    model = adapted(base(tied), target_modules=["c_attn"], trainable_token_indices=[14, 3])
    plain = base(tied)
    table = merge_lora(model).wte.weight.data
    changed = np.flatnonzero((table != plain.wte.weight.data).any(axis=1))
    assert changed.tolist() == [3, 14]
    assert np.array_equal(model.head().data, table if tied else plain.head().data)


def test_rows_are_listed_once(tied):
    model = adapted(base(tied), target_modules=["c_attn"], trainable_token_indices=[14, 3])
    rows = [name for name in model.trainable_parameters() if "lora" not in name]
    assert rows == ["wte.trainable_tokens_delta"]
    assert list(updates(model)) == ["wte", "h.0.attn.c_attn", "h.1.attn.c_attn"] + ["lm_head"] * tied


def test_rows_of_which_no_text_has_any(tied):
    """At the look-up their gradient is zero, but through a tied head it is not."""
    model = adapted(base(tied, dtype=np.float64), target_modules=["c_attn"], trainable_token_indices=[14])
    gradients = backward(model.loss(Batch.from_sequences([[1, 2, 3]])))
    (row,) = gradients[model.parameters()["wte.trainable_tokens_delta"]]
    assert row.any() == tied


def test_rows_and_an_update_of_one_table_exclude_each_other():
    with pytest.raises(ConfigError, match="wte is among the target_modules or modules_to_save, and some of its rows"):
        adapted(base(), target_modules=["wte"], trainable_token_indices=[1])
    with pytest.raises(ConfigError, match="the head is tied to the token table, some of whose rows"):
        adapted(base(), target_modules=["lm_head"], trainable_token_indices=[1])
    adapted(base(tied=False), target_modules=["lm_head"], trainable_token_indices=[1])


def test_rows_beyond_the_table():
    with pytest.raises(ConfigError, match=r"row 15 of wte, which has 15 rows; .*resize_token_embeddings\(16\) first"):
        adapted(base(), target_modules=["c_attn"], trainable_token_indices=[15])


def test_two_adapters_with_rows(tied, assert_close):
    """In a weighted sum, each adapter moves its rows by its weight; a single adapter stays the same."""
    model = adapted(base(tied, dtype=np.float64), target_modules=["c_attn"], trainable_token_indices=[13])
    alone = model.logits(IDS)
    add_lora(model, LoraConfig(r=2, lora_dropout=0.0, trainable_token_indices=[14, 13]), name="b")
    model.parameters()["wte.trainable_tokens_delta.b"].data += 0.3
    set_adapter(model, {"default": 0.5, "b": 2.0})
    weighted = model.logits(IDS)
    set_adapter(model, "default")
    assert_close(model.logits(IDS), alone)
    with disable_adapter(model):
        assert_close(model.logits(IDS), base(tied, dtype=np.float64).logits(IDS))
    set_adapter(model, {"default": 0.5, "b": 2.0})
    W = base(tied, dtype=np.float64).wte.weight.data.copy()
    rows, others = (updates(model, name)["wte"].trainable_tokens_delta.data for name in ("default", "b"))
    W[13], W[14] = W[13] + 0.5 * (rows[0] - W[13]) + 2 * (others[1] - W[13]), W[14] + 2 * (others[0] - W[14])
    assert_close(merge_lora(model).logits(IDS), weighted)
    assert_close(model.wte.weight.data, W)
    assert model.config.tie_word_embeddings == tied


def test_merging_keeps_a_table_that_both_uses_share(tmp_path, assert_close):
    model = adapted(base(), target_modules=["c_attn"], trainable_token_indices=[13, 14])
    expected = model.logits(IDS)
    save_merged(model, tmp_path)
    for merged in (from_pretrained(tmp_path), merge_lora(model)):
        assert merged.config.tie_word_embeddings
        assert "lm_head.weight" not in merged.parameters()
        assert_close(merged.logits(IDS), expected, FLOAT32)


def test_merging_parts_what_only_one_use_changes(tmp_path, assert_close):
    model = adapted(base(), target_modules=["c_attn"], trainable_token_indices={"wte": [13], "lm_head": [14]})
    expected = model.logits(IDS)
    save_merged(model, tmp_path)
    for merged in (from_pretrained(tmp_path), merge_lora(model)):
        assert not merged.config.tie_word_embeddings
        assert_close(merged.logits(IDS), expected, FLOAT32)


def test_merging_parts_a_table_for_one_adapter_and_keeps_the_rows_of_another_on_both(assert_close):
    model = adapted(base(dtype=np.float64), target_modules=["c_attn"], trainable_token_indices=[13, 14])
    add_lora(model, LoraConfig(r=2, lora_dropout=0.0, target_modules=["wte"]), name="b")
    model.parameters()["wte.lora_embedding_A.b"].data += 0.3
    set_adapter(model, ["default", "b"])
    expected = model.logits(IDS)
    assert_close(merge_lora(model).logits(IDS), expected)
    assert not model.config.tie_word_embeddings


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
