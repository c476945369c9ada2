"""Generation: the cache changes no text, a batch equals its prompts one by one, and bad requests are refused."""

import dataclasses

import numpy as np
import pytest

import npgpt
from npgpt.adapters.stack import updates
from npgpt.generation.generate import before_stop, final_length, tokens, window
from npgpt.generation.sampling import Sampling
from npgpt.runtime.errors import ConfigError, NpgptError
from npgpt.runtime.seeding import generator

CONFIG = npgpt.GPT2Config(vocab_size=61, n_positions=24, n_embd=16, n_layer=3, n_head=4, initializer_range=0.3)
PROMPT = [7, 0, 60, 7, 12]


@pytest.fixture(scope="module")
def model():
    return npgpt.GPT2(CONFIG, seed=5, dtype=np.float64)


def with_adapter(model):
    """Put an adapter on the model. Its B is not zero, so that it has an effect."""
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
def test_the_cache_gives_the_logits_of_the_whole_sequence(kind, prompt):
    model = npgpt.GPT2(dataclasses.replace(CONFIG, **MODELS[kind]), seed=5, dtype=np.float64)
    if kind == "adapter":
        plain = npgpt.generate(model, prompt, 24 - len(prompt), temperature=0)
        with_adapter(model)
        assert not np.array_equal(plain, npgpt.generate(model, prompt, 24 - len(prompt), temperature=0))
    new, seen = [], []
    for _, token, logits in tokens(model, [prompt], 24 - len(prompt), Sampling(temperature=2.0), seed=1):
        new.append(token)
        seen.append(logits)
    out = [*prompt, *new]
    assert len(out) == 24  # up to the last position
    assert len(set(new)) > 8  # a varied text, so that a wrong position or key changes it
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
        logits = model.logits(expected)[-1]
        second, first = np.sort(logits)[-2:]
        assert first - second > 1e-4 * np.abs(logits).max()  # far apart, so that rounding does not decide
        expected.append(int(logits.argmax()))
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
    assert text(seed=3)[:10] == npgpt.generate(model, PROMPT, 5, seed=3).tolist()  # a longer text has the same start
    assert len({tuple(text(seed=seed)) for seed in range(5)}) == 5
    assert text(seed=3, top_k=61, top_p=1.0) == text(seed=3)  # these keep every token
    assert text() != text()  # there are 61^19 texts


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


# Many prompts

RAGGED = [[3], PROMPT, [9, 9, 9], [60, 1, 2, 3, 4, 5, 6], PROMPT, [1, 2, 3]]


@pytest.mark.parametrize("options", [
    {"temperature": 0}, {"seed": 5, "logit_bias": {7: 2.0}},
    {"seed": 2, "temperature": 1.5, "top_k": 20, "top_p": 0.9, "logit_bias": {7: 3.0}},
    {"seed": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "frequency_penalty": 0.5, "logit_bias": {7: 3.0}},
], ids=["greedy", "sampled", "top_k and top_p", "penalties"])
@pytest.mark.parametrize("kind", ["plain", "adapter", "untied head"])
def test_a_batch_is_its_prompts_one_by_one(kind, options):
    """In float64, because in float32 different rounding too often changes the drawn token."""
    model = npgpt.GPT2(dataclasses.replace(CONFIG, **MODELS[kind]), seed=5, dtype=np.float64)
    if kind == "adapter":
        with_adapter(model)
    eos_id, ends = 7, set()
    together = npgpt.generate_batch(model, RAGGED, 17, eos_id=eos_id, **options)
    for i, (prompt, ids) in enumerate(zip(RAGGED, together, strict=True)):
        seed = {"seed": options["seed"] + i} if "seed" in options else {}
        assert ids.tolist() == npgpt.generate(model, prompt, 17, eos_id=eos_id, **{**options, **seed}).tolist()
        ends.add(len(ids) - len(prompt))
    assert "seed" not in options or len(ends) > 2  # the texts left the batch at different times


@pytest.mark.parametrize("dtype, bound", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_logits_of_a_ragged_batch_are_those_of_each_sequence(dtype, bound, assert_close):
    """Equal up to rounding: about ten eps for a pass through the model."""
    model = npgpt.GPT2(CONFIG, seed=5, dtype=dtype)
    made = {i: [] for i in range(len(RAGGED))}
    for i, token, logits in tokens(model, RAGGED, 17, Sampling(), seed=0, eos_id=7):
        made[i].append((token, logits))
    for i, prompt in enumerate(RAGGED):
        ids = [*prompt, *(token for token, _ in made[i])]
        assert_close([logits for _, logits in made[i]], model.logits(ids)[len(prompt) - 1:-1], bound)


def test_no_prompts(model):
    assert npgpt.generate_batch(model, [], 5) == []


# Beyond the context


def test_the_context_slides_by_halves(model):
    """The rule for 24 positions: tokens 25 to 36 do not see the first 12, tokens 37 to 48 not the first 24, ..."""
    made = list(tokens(model, [PROMPT], 60, Sampling(), seed=0, context="slide"))
    ids = [*PROMPT, *(token for _, token, _ in made)]
    for t in range(5, 65):
        first = 0 if t <= 24 else 12 * ((t - 24 + 11) // 12)
        assert window(ids[:t], 24) == ids[first:t]
        np.testing.assert_allclose(made[t - 5][2], model.logits(ids[first:t])[-1], rtol=0, atol=1e-12)
    assert len(set(ids)) > 20


def test_prompts_longer_than_the_context_slide(model):
    prompts = [list(range(30)), PROMPT, list(range(60))]
    together = npgpt.generate_batch(model, prompts, 30, seed=3, context="slide")
    for i, prompt in enumerate(prompts):
        assert together[i].tolist() == npgpt.generate(model, prompt, 30, seed=3 + i, context="slide").tolist()


# Text


class Bytes:
    """A tokenizer of bytes: id 60 ends the text, id i is the byte TABLE[i]."""

    TABLE = "aé€😀b".encode() + bytes([255, 32])
    end_ids = (60,)

    def encode(self, text):
        return np.array([self.TABLE.index(byte) for byte in text.encode()])

    def decode(self, ids):
        return bytes(self.TABLE[i % len(self.TABLE)] for i in ids).decode(errors="replace")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("stop", [(), ("ab", "b\U0001f600"), (" ", "\ufffd\ufffd\ufffd\ufffd")])
def test_pieces_join_to_the_text_and_break_no_character(model, seed, stop):
    tokenizer = Bytes()
    options = {"seed": seed, "logit_bias": dict.fromkeys(range(13), 3.0)}
    pieces = list(npgpt.stream(model, tokenizer, "a", 22, stop_strings=stop, **options))
    ids = npgpt.generate(model, tokenizer.encode("a"), 22, eos_id=60, stop_strings=stop, tokenizer=tokenizer, **options)
    text, stopped = before_stop(tokenizer.decode([i for i in ids[1:] if i != 60]), stop)
    assert "".join(pieces) == text
    assert stopped == (len(ids) < 23 and ids[-1] != 60)
    assert all(pieces)


def test_pieces_come_as_soon_as_they_are_known():
    assert final_length("abc", ()) == 3
    assert final_length("ab\ufffd", ()) == 2  # this may be the beginning of a character
    assert final_length("ab\ufffdc", ()) == 4
    assert final_length("abc", ("cd",)) == 2
    assert final_length("abc", ("bcd", "cd")) == 1
    assert final_length("abc", ("abx",)) == 3


def test_each_character_is_whole():
    """The four bytes of one character, one token each: nothing, nothing, nothing, the character."""
    tokenizer = Bytes()
    new, shown = [], []
    for byte in "\u20ac\U0001f600".encode():
        new.append(tokenizer.TABLE.index(byte))
        text = tokenizer.decode(new)
        shown.append(text[:final_length(text, ())])
    assert shown == ["", "", "\u20ac", "\u20ac", "\u20ac", "\u20ac", "\u20ac\U0001f600"]


def test_of_several_stop_strings_the_first_in_the_text_ends_it():
    assert before_stop("one two three", ["three", "two"]) == ("one ", True)
    assert before_stop("one two three", ["four"]) == ("one two three", False)


def test_a_stop_string_in_the_prompt_stops_nothing(model):
    tokenizer = Bytes()
    whole = npgpt.generate(model, PROMPT, 4, seed=2)
    stop = tokenizer.decode(PROMPT)
    assert npgpt.generate(model, PROMPT, 4, seed=2, stop_strings=[stop], tokenizer=tokenizer).tolist() == whole.tolist()


def test_stop_strings_span_tokens(model):
    tokenizer = Bytes()
    whole = npgpt.generate(model, PROMPT, 19, seed=2)
    text = tokenizer.decode(whole[5:])
    at = next(i for i in range(4, 15) if text.find(text[i:i + 3]) == i)
    stop = text[at:at + 3]
    cut = npgpt.generate(model, PROMPT, 19, seed=2, stop_strings=[stop], tokenizer=tokenizer)
    assert cut.tolist() == whole[:len(cut)].tolist()
    assert stop in tokenizer.decode(cut[5:])
    assert stop not in tokenizer.decode(cut[5:-1])


# What is refused


@pytest.mark.parametrize("ids, message", [
    ([], r"the prompt has shape \(0,\)"),
    ([[1, 2]], r"the prompt has shape \(1, 2\)"),
    (3, r"the prompt has shape \(\)"),
    ([1.0, 2.0], r"dtype float64: expected integers \(T,\)"),
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
    ({"min_p": 1.5}, "min_p = 1.5: it must be above 0 and at most 1"),
    ({"typical_p": 0}, "typical_p = 0: it must be above 0"),
    ({"repetition_penalty": 0}, "repetition_penalty = 0: it must be above 0"),
    ({"frequency_penalty": float("nan")}, "frequency_penalty = nan: it must be a finite number"),
    ({"no_repeat_ngram_size": 0}, "no_repeat_ngram_size = 0: it must be at least 1"),
    ({"bad_words_ids": [[3], []]}, "bad_words_ids = .*: it must be sequences of at least one id"),
    ({"bad_words_ids": [[3, 61]]}, "bad_words_ids has token id 61: this model's ids go from 0 to 60"),
    ({"logit_bias": {-1: 2.0}}, "logit_bias has token id -1"),
    ({"min_new_tokens": -1}, "min_new_tokens = -1: it must be at least 0"),
    ({"stop_strings": ["a"]}, "together with tokenizer="),
    ({"stop_strings": "ab", "tokenizer": 1}, "expected a list of strings"),
    ({"context": "slides"}, "context = 'slides': it must be 'whole' or 'slide'"),
    ({"logit_bias": dict.fromkeys(range(61), -np.inf)}, "no token can come next"),
])
def test_unusable_options(model, options, message):
    with pytest.raises(NpgptError, match=message):
        npgpt.generate(model, PROMPT, **{"max_new_tokens": 1, **options})


def test_weights_that_diverged_are_named():
    model = npgpt.GPT2(CONFIG)
    model.ln_f.weight.data[3] = np.nan
    for temperature in (0, 1):
        with pytest.raises(NpgptError, match=r"the model's logits are NaN: the weights of the model .* hold NaN"):
            npgpt.generate(model, PROMPT, 2, temperature)
