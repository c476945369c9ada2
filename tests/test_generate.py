"""Sampling: the cache changes nothing, the distributions are the ones asked for, and what cannot be done is refused."""

import dataclasses
import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgpt
from npgpt.errors import ConfigError, NpgptError
from npgpt.generate import probabilities, sample
from npgpt.lora import updates
from npgpt.seeding import generator

CONFIG = npgpt.GPT2Config(vocab_size=61, n_positions=24, n_embd=16, n_layer=3, n_head=4, initializer_range=0.3)
PROMPT = [7, 0, 60, 7, 12]


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=5, dtype=np.float64)


def with_adapter(model):
    """Put an adapter on the model, with a B that is not zero, so that it shows."""
    npgpt.add_lora(model, npgpt.LoraConfig(r=2, lora_dropout=0.5, target_modules=["c_attn", "mlp.c_proj"]))
    for name, update in updates(model).items():
        update.lora_B.data[...] = generator(0, name).normal(0, 0.3, update.lora_B.shape)
    return model


MODELS = {
    "plain": {},
    "inverse layer scaling": {"scale_attn_by_inverse_layer_idx": True},
    "no scaling": {"scale_attn_weights": False},
    "untied head": {"tie_word_embeddings": False},
    "one head": {"n_head": 1, "activation_function": "relu", "n_inner": 8},
    "adapter": {},
}


@pytest.mark.parametrize("prompt", [[3], PROMPT], ids=["one token", "five tokens"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_cache_gives_the_logits_of_the_whole_sequence(monkeypatch, kind, prompt):
    model = npgpt.GPT2(dataclasses.replace(CONFIG, **MODELS[kind]), seed=5, dtype=np.float64)
    if kind == "adapter":
        plain = npgpt.generate(model, prompt, 24 - len(prompt), temperature=0)
        with_adapter(model)
        assert not np.array_equal(plain, npgpt.generate(model, prompt, 24 - len(prompt), temperature=0))
    seen = []

    def spy(logits, rng, *options):
        seen.append(logits)
        return sample(logits, rng, *options)

    monkeypatch.setattr(importlib.import_module("npgpt.generate"), "sample", spy)
    out = npgpt.generate(model, prompt, 24 - len(prompt), temperature=2.0, seed=1)  # up to the last position
    assert len(out) == 24
    assert len(set(out[len(prompt):])) > 8  # a varied text: a position or a key that is mixed up shows
    np.testing.assert_allclose(seen, model.logits(out)[len(prompt) - 1:-1], rtol=0, atol=1e-12)


def test_huge_scores_of_cached_tokens_do_not_overflow():
    model = npgpt.GPT2(CONFIG, seed=5, dtype=np.float64)
    for block in model.h:
        block.attn.c_attn.weight.data *= 1e4
    out = npgpt.generate(model, PROMPT, 19, temperature=0)
    assert out[5:].tolist() == model.logits(out)[4:-1].argmax(axis=1).tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_greedy_takes_the_likeliest_token_each_time(dtype):
    model = npgpt.GPT2(CONFIG, seed=2, dtype=dtype)
    expected = list(PROMPT)
    for _ in range(19):
        expected.append(int(model.logits(expected)[-1].argmax()))
    assert len(set(expected[5:])) > 2
    for options in ({"temperature": 0}, {"temperature": 0, "top_k": 3, "top_p": 0.5, "seed": 8}, {"top_k": 1},
                    {"top_p": 1e-9}, {"temperature": 1e-9, "seed": 3}, {"temperature": 1e-300}):
        assert npgpt.generate(model, PROMPT, 19, **options).tolist() == expected, options


def test_the_prompt_and_the_new_ids_come_back(model):
    for prompt in (PROMPT, tuple(PROMPT), np.array(PROMPT, np.uint8), np.array(PROMPT, np.int32)):
        out = npgpt.generate(model, prompt, 4, seed=0)
        assert out.dtype == np.int64
        assert out.shape == (9,)
        assert out[:5].tolist() == PROMPT
        assert list(prompt) == PROMPT
        assert np.array_equal(npgpt.generate(model, prompt, max_new_tokens=0), PROMPT)


def test_a_seed_decides_the_text(model):
    def text(**options):
        return npgpt.generate(model, PROMPT, 19, **options).tolist()

    assert text(seed=3) == text(seed=3)
    assert text(seed=0) == text(seed=0)
    assert text(seed=3)[:10] == npgpt.generate(model, PROMPT, 5, seed=3).tolist()  # a longer text begins the same
    assert len({tuple(text(seed=seed)) for seed in range(5)}) == 5
    assert text(seed=3, top_k=61, top_p=1.0) == text(seed=3)  # which keep everything
    assert text() != text()  # 61^19 texts to choose from


def test_it_stops_after_the_end_of_text(model):
    whole = npgpt.generate(model, PROMPT, 19, seed=4)
    new = whole[5:].tolist()
    eos = next(token for i, token in enumerate(new) if i >= 3 and token not in new[:i])
    end = 5 + new.index(eos) + 1
    assert 8 < end < 24
    assert npgpt.generate(model, PROMPT, 19, seed=4, eos_id=eos).tolist() == whole[:end].tolist()
    never = next(token for token in range(61) if token not in whole)
    assert npgpt.generate(model, PROMPT, 19, seed=4, eos_id=never).tolist() == whole.tolist()
    in_prompt = next(token for token in PROMPT if token not in new)  # only a new token ends the text
    assert npgpt.generate(model, PROMPT, 19, seed=4, eos_id=in_prompt).tolist() == whole.tolist()


def test_generation_records_nothing_and_changes_nothing(monkeypatch):
    model = npgpt.GPT2(CONFIG)
    before = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    hidden, records = model.hidden, []

    def spy(*args):
        result = hidden(*args)
        records.append(result.record)
        return result

    monkeypatch.setattr(model, "hidden", spy)
    npgpt.generate(model, PROMPT, 5, seed=0)
    assert records == [None] * 5
    for name, tensor in model.parameters().items():
        assert tensor.trainable
        assert np.array_equal(tensor.data, before[name])


# What is refused


@pytest.mark.parametrize("ids, message", [
    ([], r"the prompt has shape \(0,\)"),
    ([[1, 2]], r"the prompt has shape \(1, 2\)"),
    (3, r"the prompt has shape \(\)"),
    ([1.0, 2.0], "float64: generate takes integers"),
    ([1, 61], "token id 61 is outside this model's vocabulary of 61"),
    ([-1, 2], "token id -1 is outside"),
    (range(25), "a prompt of 25 tokens and 2 new ones make 27, more than this model's context of 24"),
])
def test_unusable_prompts(model, ids, message):
    with pytest.raises(ConfigError, match=message):
        npgpt.generate(model, ids, 2)


@pytest.mark.parametrize("options, message", [
    ({"max_new_tokens": 20}, "a prompt of 5 tokens and 20 new ones make 25, more than this model's context of 24"),
    ({"max_new_tokens": -1}, "max_new_tokens = -1: it must be at least 0"),
    ({"temperature": -0.1}, "temperature = -0.1: it must be at least 0"),
    ({"temperature": float("nan")}, "temperature = nan"),
    ({"temperature": float("inf")}, "temperature = inf"),
    ({"top_k": 0}, "top_k = 0: it must be at least 1"),
    ({"top_k": -2}, "top_k = -2"),
    ({"top_p": 0.0}, "top_p = 0.0: it must be above 0 and at most 1"),
    ({"top_p": 1.1}, "top_p = 1.1"),
    ({"top_p": float("nan")}, "top_p = nan"),
    ({"seed": -1}, "seed = -1: it must be at least 0"),
])
def test_unusable_options(model, options, message):
    with pytest.raises(ConfigError, match=message):
        npgpt.generate(model, PROMPT, **{"max_new_tokens": 1, **options})


def test_weights_that_diverged_are_named():
    model = npgpt.GPT2(CONFIG)
    model.ln_f.weight.data[3] = np.nan
    for temperature in (0, 1):
        with pytest.raises(NpgptError, match=r"the model's logits are not numbers: its weights.* hold NaN"):
            npgpt.generate(model, PROMPT, 2, temperature)


# The distributions, on logits made by hand

FOUR = np.log([0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize("options, expected", [
    ({}, [0.1, 0.4, 0.2, 0.3]),
    ({"temperature": 0.5}, np.array([0.01, 0.16, 0.04, 0.09]) / 0.3),
    ({"top_k": 1}, [0, 1, 0, 0]),
    ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
    ({"top_k": 4}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_p": 0.91}, [0.1, 0.4, 0.2, 0.3]),
    ({"top_p": 0.89}, [0, 4 / 9, 2 / 9, 3 / 9]),
    ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
    ({"top_p": 0.39}, [0, 1, 0, 0]),
    ({"top_p": 1e-12}, [0, 1, 0, 0]),
    # of the two that top_k leaves, 4/7 and 3/7, the first alone reaches 0.55
    ({"top_k": 2, "top_p": 0.55}, [0, 1, 0, 0]),
    ({"top_k": 2, "top_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
    # the temperature comes first: 16/30 reaches 0.5, where 0.4 would not
    ({"temperature": 0.5, "top_p": 0.5}, [0, 1, 0, 0]),
])
def test_distributions(options, expected):
    before = FOUR.copy()
    p = probabilities(FOUR, **options)
    np.testing.assert_allclose(p, expected, rtol=0, atol=1e-12)
    assert np.array_equal(p == 0, np.equal(expected, 0))  # what is cut is cut entirely
    assert p.dtype == np.float64
    assert np.array_equal(FOUR, before)


def test_ties():
    tied = np.array([2.0, 5.0, 2.0, 2.0, -1.0])
    assert (probabilities(tied, top_k=2) > 0).tolist() == [True, True, True, True, False]  # all that tie with the 2nd
    equal = np.zeros(5, np.float32)
    assert probabilities(equal, top_k=3).tolist() == [0.2] * 5
    assert probabilities(equal, top_p=0.5).tolist() == [1 / 3, 1 / 3, 1 / 3, 0, 0]  # no more than reach 0.5
    assert probabilities(equal, top_p=1e-9).tolist() == [1, 0, 0, 0, 0]
    assert probabilities(np.zeros(4), top_p=0.5).tolist() == [0.5, 0.5, 0, 0]  # two reach 0.5 exactly


def test_extreme_logits_do_not_overflow():
    assert probabilities(np.array([3e38, -3e38, 0], np.float32)).tolist() == [1, 0, 0]
    assert probabilities(np.array([1000.0, 1000.0, 0])).tolist() == [0.5, 0.5, 0]
    assert probabilities(np.array([3.0, 2.0]), temperature=1e-300).tolist() == [1, 0]
    np.testing.assert_allclose(probabilities(np.array([30.0, -30.0]), temperature=1e300), [0.5, 0.5])


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.floats(0.1, 5), st.none() | st.integers(1, 40), st.none() | st.floats(0, 1, exclude_min=True),
)
def test_what_is_kept_is_the_likeliest_and_no_more_than_needed(logits, temperature, top_k, top_p):
    logits = np.array(logits, np.float32)
    whole = probabilities(logits, temperature)
    assert whole.sum() == pytest.approx(1)
    p = probabilities(logits, temperature, top_k, top_p)
    assert p.sum() == pytest.approx(1)
    kept = p > 0
    np.testing.assert_allclose(p[kept], whole[kept] / whole[kept].sum(), rtol=1e-9)
    if not kept.all():
        assert whole[kept].min() >= whole[~kept].max()
    if top_k is not None:
        kth = np.sort(whole)[::-1][min(top_k, len(whole)) - 1]
        assert whole[kept].min() >= kth
        assert top_p is not None or kept.sum() == (whole >= kth).sum()
    if top_p is not None:
        allowed = probabilities(logits, temperature, top_k)
        assert allowed[kept].sum() >= top_p - 1e-9
        if kept.sum() > 1:
            assert allowed[kept].sum() - allowed[kept].min() < top_p + 1e-9  # without the last it would not reach p


def test_tokens_are_drawn_as_often_as_they_are_likely():
    rng = generator(0, "test")
    for options in ({}, {"top_k": 3}, {"temperature": 1.5, "top_p": 0.8}):
        p = probabilities(FOUR, **options)
        drawn = np.bincount([sample(FOUR, rng, **options) for _ in range(10_000)], minlength=4) / 10_000
        assert (drawn[p == 0] == 0).all()
        assert (abs(drawn - p) <= 5 * np.sqrt(p * (1 - p) / 10_000)).all()


def test_what_is_cut_is_never_drawn():
    class Lowest:
        def random(self):
            return 0.0

    class Highest:
        def random(self):
            return np.nextafter(1.0, 0.0)

    assert sample(FOUR, Lowest(), top_k=2) == 1
    assert sample(FOUR[::-1], Highest(), top_k=2) == 2
