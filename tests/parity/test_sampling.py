"""Each rule for the next token against Hugging Face's logits processor of the same name, on random scores; all of them
in their order; and greedy decoding of a ragged batch, and beam search,
against transformers' generate."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
import transformers
from transformers.generation import logits_process as theirs

import npgpt
from npgpt.generation import warpers
from npgpt.generation.sampling import Sampling

from .reference import npgpt_model, texts, torch_ids, torch_model

V = 300


def words(ids):
    """Some that the next token could complete, and some that it could not."""
    return [[5], [ids[-1], 8], [7, ids[-1], 9], [*ids[-2:], 2]]


CASES = {
    "temperature": (lambda z, ids: warpers.temperature(z, 0.7), lambda: theirs.TemperatureLogitsWarper(0.7)),
    "top_k": (lambda z, ids: warpers.top_k(z, 7), lambda: theirs.TopKLogitsWarper(7)),
    "top_k of all": (lambda z, ids: warpers.top_k(z, 999), lambda: theirs.TopKLogitsWarper(999)),
    **{f"top_p {p}": (lambda z, ids, p=p: warpers.top_p(z, p), lambda p=p: theirs.TopPLogitsWarper(p))
       for p in (0.01, 0.5, 0.95)},
    **{f"min_p {p}": (lambda z, ids, p=p: warpers.min_p(z, p), lambda p=p: theirs.MinPLogitsWarper(p))
       for p in (0.01, 0.3, 1.0)},
    **{f"typical_p {p}": (lambda z, ids, p=p: warpers.typical_p(z, p), lambda p=p: theirs.TypicalLogitsWarper(p))
       for p in (0.01, 0.5, 0.95)},
    **{f"repetition_penalty {p}": (lambda z, ids, p=p: warpers.repetition_penalty(z, ids, p),
                                   lambda p=p: theirs.RepetitionPenaltyLogitsProcessor(p)) for p in (1.3, 0.8)},
    **{f"no_repeat_ngram {n}": (lambda z, ids, n=n: warpers.no_repeat_ngram(z, ids, n),
                                lambda n=n: theirs.NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3)},
    "bad_words": (lambda z, ids: warpers.bad_words(z, ids, words(ids)),
                  lambda ids: theirs.NoBadWordsLogitsProcessor(words(ids))),
    "logit_bias": (lambda z, ids: warpers.logit_bias(z, {3: 1.5, 9: -4.0}),
                   lambda: theirs.SequenceBiasLogitsProcessor({(3,): 1.5, (9,): -4.0})),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_is_hugging_faces(case):
    ours, make = CASES[case]
    draw = np.random.default_rng(0)
    for length in (3, 40):
        for scale in (0.5, 4.0):
            z, ids = scale * draw.standard_normal(V), draw.integers(12, size=length).tolist()
            processor = make(ids) if make.__code__.co_argcount and not make.__defaults__ else make()
            expected = processor(torch.tensor([ids]), torch.tensor(z)[None])[0].numpy()
            assert_same(ours(z, ids), expected)


def assert_same(ours, theirs):
    """The same tokens can come, with the same probabilities; scores may differ by a constant."""
    assert np.array_equal(ours > -np.inf, theirs > -np.inf)
    np.testing.assert_allclose(warpers.softmax(ours), warpers.softmax(theirs), rtol=1e-9)


def test_all_rules_in_their_order():
    model = torch_model()
    config = transformers.GenerationConfig(
        do_sample=True, temperature=0.8, top_k=60, top_p=0.9, min_p=0.02, typical_p=0.9, repetition_penalty=1.2,
        no_repeat_ngram_size=2, bad_words_ids=[[3], [4, 5]], sequence_bias={(6,): 0.7}, min_new_tokens=9,
        eos_token_id=0, pad_token_id=0, bos_token_id=0)
    model._prepare_special_tokens(config, device="cpu")
    processors = model._get_logits_processor(generation_config=config, input_ids_seq_length=4, device="cpu")
    sampling = Sampling(0.8, 60, 0.9, min_p=0.02, typical_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=2,
                        bad_words_ids=[[3], [4, 5]], logit_bias={6: 0.7}, min_new_tokens=9)
    draw = np.random.default_rng(1)
    for length in (5, 9, 30):
        z, ids = 3 * draw.standard_normal(V), draw.integers(12, size=length).tolist()
        expected = processors(torch.tensor([ids]), torch.tensor(z)[None])[0].numpy()
        assert_same(sampling.scores(z, ids, 4, 0), expected)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 6}])
@pytest.mark.parametrize("name", ["gelu_new", "untied", "relu-by-layer"])
def test_greedy_text_in_a_ragged_batch(name, options):
    model = torch_model(name, dtype=torch.float64)
    ours = npgpt_model(model, np.float64)
    prompts = texts(ours.config.vocab_size, [5, 1, 9, 5])
    together = npgpt.generate_batch(ours, prompts, 14, temperature=0, eos_id=0, **options)
    for prompt, ids in zip(prompts, together, strict=True):
        mask = torch_ids(np.ones(len(prompt), np.int64))
        expected = model.generate(torch_ids(prompt), attention_mask=mask, do_sample=False, max_new_tokens=14,
                                  eos_token_id=0, pad_token_id=0, **options)
        assert ids.tolist() == expected[0].tolist()


@pytest.mark.parametrize("options", [
    {}, {"length_penalty": 0.0}, {"length_penalty": 2.5}, {"length_penalty": -1.0}, {"early_stopping": True},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 3},
], ids=str)
@pytest.mark.parametrize("num_beams", [2, 4])
def test_beam_search(num_beams, options):
    early = 0
    for seed in range(3):
        model = torch_model(seed=seed, dtype=torch.float64, vocab_size=23)
        ours = npgpt_model(model, np.float64)
        (prompt,) = texts(23, [4], seed)
        expected = model.generate(
            torch_ids(prompt), attention_mask=torch_ids(np.ones(4, np.int64)), do_sample=False, num_beams=num_beams,
            num_return_sequences=num_beams, max_new_tokens=12, eos_token_id=5, pad_token_id=22, output_scores=True,
            return_dict_in_generate=True, **options)
        found = npgpt.beam_search(ours, prompt, num_beams, 12, eos_id=5, **options)
        assert len(found) == num_beams
        for (score, ids), sequence, theirs_score in zip(found, expected.sequences.tolist(),
                                                        expected.sequences_scores.tolist(), strict=True):
            assert ids.tolist() == sequence[:len(ids)]
            assert set(sequence[len(ids):]) <= {22}
            assert abs(score - theirs_score) <= 1e-5 * abs(theirs_score)
            early += len(ids) < 16
    assert early > 0
