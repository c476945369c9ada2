
import numpy as np
import pytest

from npgpt import GPT2, Batch, LoraConfig, add_lora, backward, merge_lora
from npgpt.adapters.stack import disable_adapter, set_adapter, updates
from npgpt.checking.gradcases import randomise, small_model
from npgpt.exchange.merge import save_merged
from npgpt.runtime.errors import ConfigError

IDS = [1, 13, 5, 14, 2, 13]  # 13 and 14 are added to the small model's 13 tokens
NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FLOAT32 = 1e-5  # relative to the largest logit: sums of products in another order, rounded through two blocks


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
    with pytest.raises(ConfigError, match="wte is in target_modules or modules_to_save, and some of its rows"):
        adapted(base(), target_modules=["wte"], trainable_token_indices=[1])
    with pytest.raises(ConfigError, match="the head is tied to the token table, and trainable_token_indices"):
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
    for merged in (GPT2.from_pretrained(tmp_path), merge_lora(model)):
        assert merged.config.tie_word_embeddings
        assert "lm_head.weight" not in merged.parameters()
        assert_close(merged.logits(IDS), expected, FLOAT32)


def test_merging_parts_what_only_one_use_changes(tmp_path, assert_close):
    model = adapted(base(), target_modules=["c_attn"], trainable_token_indices={"wte": [13], "lm_head": [14]})
    expected = model.logits(IDS)
    save_merged(model, tmp_path)
    for merged in (GPT2.from_pretrained(tmp_path), merge_lora(model)):
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


@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_tied_tables_part_when_one_use_of_them_is_adapted_and_merged(target, assert_close):
    """PEFT's merge adds the update to both uses, and moves the logits by whole units (peft#2018)."""
    model = add_lora(small_model(**NONE), LoraConfig(r=2, lora_alpha=6, target_modules=[target]))
    randomise(model.trainable_parameters(), seed=1)
    table, before = model.wte.weight.data.copy(), model.logits([1, 5, 5, 2, 9])
    merged = merge_lora(model)
    assert_close(merged.logits([1, 5, 5, 2, 9]), before)
    assert merged.config.tie_word_embeddings is False
    same = merged.lm_head if target == "wte" else merged.wte
    np.testing.assert_array_equal(same.weight.data, table)
    assert np.abs(merged.lm_head.weight.data - merged.wte.weight.data).max() > 0.01


def test_tables_stay_tied_where_no_update_of_them_is_in_force():
    for target in ("wte", "lm_head"):
        model = add_lora(small_model(), LoraConfig(target_modules=[target]))
        set_adapter(model, [])
        assert merge_lora(model).config.tie_word_embeddings is True
        assert model.parameters().keys() == small_model().parameters().keys()
