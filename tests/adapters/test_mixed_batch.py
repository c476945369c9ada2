import numpy as np
import pytest

from npgpt import (
    Batch,
    LoraConfig,
    add_lora,
    generate_batch,
    mixed_batch,
    perplexity,
)
from npgpt.adapters.stack import set_adapter
from npgpt.checking.gradcases import randomise, small_model
from npgpt.evaluation.evaluate import mean_nll
from npgpt.runtime.errors import ConfigError
from tests.adapters.test_combine import CONFIGS, IDS, NONE, model_with


def without_head(*names):
    model = small_model(tie_word_embeddings=False, **NONE)
    for name in names:
        config = LoraConfig(r=2, lora_alpha=6, target_modules=["wte", "c_attn"]) if name == "a" else CONFIGS[name]
        add_lora(model, config, name=name)
        randomise(model.trainable_parameters(), seed=ord(name[0]))
    return model


def alone(model, name, ids):
    set_adapter(model, [] if name is None else name)
    return model.logits(ids)


def test_each_sequence_of_a_batch_through_its_own_adapter(assert_close):
    model = without_head("a", "b", "dora")
    names = ["a", None, "b", "dora", "a"]
    batch = np.random.default_rng(0).integers(0, 13, (5, 6))
    set_adapter(model, "b")
    in_force = model.logits(batch)
    with mixed_batch(model, names):
        mixed = model.logits(batch)
    np.testing.assert_array_equal(model.logits(batch), in_force)  # afterwards all is as it was
    for row, name, ids in zip(mixed, names, batch, strict=True):
        assert_close(row, alone(model, name, ids), 1e-13)
    assert np.abs(mixed[0] - mixed[4]).max() > 0.01


def test_sequences_of_unequal_length(assert_close):
    model = without_head("a", "b")
    draw, names = np.random.default_rng(0), ["b", None, "a"]
    sequences = [draw.integers(0, 13, length) for length in (3, 1, 5)]
    lengths = np.array([len(ids) for ids in sequences])
    with mixed_batch(model, names, lengths):
        hidden = model.hidden_states(np.concatenate(sequences), lengths).data
    mixed = hidden @ model.head().data.T
    parts = np.split(mixed, np.cumsum(lengths)[:-1])
    for part, name, ids in zip(parts, names, sequences, strict=True):
        assert_close(part, alone(model, name, ids), 1e-13)


def test_the_head_can_be_adapted_where_all_go_through_one(assert_close):
    model = model_with("a", "b")
    batch = np.random.default_rng(0).integers(0, 13, (2, 6))
    expected = alone(model, "a", batch)
    set_adapter(model, "b")
    with mixed_batch(model, ["a", "a"]):
        assert_close(model.logits(batch), expected, 1e-13)
    with pytest.raises(ConfigError, match="one of them changes the head"), mixed_batch(model, ["a", "b"]):
        pass


def test_nothing_is_recorded_in_a_mixed_batch():
    model = without_head("a", "b")
    with mixed_batch(model, ["a"]):
        assert model.loss(Batch.from_sequences([IDS])).record is None


def test_names_and_sequences_that_do_not_fit():
    model = without_head("a")
    with pytest.raises(ConfigError, match="no adapter called 'x'"), mixed_batch(model, ["a", "x"]):
        pass
    with pytest.raises(ConfigError, match="2 adapter names for 5 tokens"), mixed_batch(model, ["a", None]):
        model.logits(IDS)


@pytest.mark.parametrize("work", [
    lambda model: generate_batch(model, [[1, 2, 3, 4, 5], [1, 2, 3]], 2, temperature=0),
    lambda model: mean_nll(model, [np.arange(5), np.arange(3)]),
    lambda model: perplexity(model, np.arange(12), context=4),
])
def test_what_puts_sequences_into_an_order_of_its_own_refuses_a_mixed_batch(work):
    model = without_head("a", "b")
    with mixed_batch(model, ["a", "b"]), pytest.raises(ConfigError, match="run the adapters one by one"):
        work(model)
    work(model)
