"""The published numbers of the released GPT-2, and a stand-in that keeps the way to them in working order.

    pytest -m official

downloads gpt2 (0.5 GB, once) or takes it from the cache, and is the proof that this is GPT-2: what it says, and how it
learns. A default run leaves these tests out. What they call to get their numbers is tried in every run, on small random
models, against a second GPT-2 written here in the plainest way, with derivatives that no one had to derive.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.files import hub

PROMPT = "Alan Turing theorized that computers would one day become"
# 40 tokens, likeliest first. Source: the README of github.com/jaymody/picoGPT, for --model_size 124M.
CONTINUATION = """ the most powerful machines on the planet.

The computer is a machine that can perform complex calculations, and it can perform these calculations in a way that \
is very similar to the human brain.
"""

# Ten steps on one batch. Source: test_gpt2.c in github.com/karpathy/llm.c, where they were recorded from PyTorch.
LOSSES = (
    5.270007133483887, 4.059706687927246, 3.3751230239868164, 2.8007826805114746, 2.315382242202759,
    1.8490285873413086, 1.3946564197540283, 0.9991465210914612, 0.6240804195404053, 0.37651097774505615,
)  # fmt: skip
# llm.c and its ports to other languages, which add float32 up in other orders, print losses that are up to 0.0019 away
# from these in the last steps; llm.c lets 0.01 pass. The decay of 0.01 is in its test, but was not in the run that was
# recorded; the losses of a random model of this size change by 0.00005.
TOLERANCE = 0.002

# How the file begins whose first tokens are llm.c's batch, as far as they go: tiny Shakespeare, public domain.
# Source: github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt.
SHAKESPEARE = """\
First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved rather to die than to famish?

All:
Resolved. resolved.

First Citizen:
First, you know Caius Marcius is chief enemy to the people.

All:
We know't, we know't.

First Citizen:
Let us kill him, and we'll have corn at our own price.
Is't a verdict?

All:
No more talking on't; let it be done: away, away!

Second Citizen:
One word, good citizens.

First Citizen:
We are accounted poor citizens, the patricians good.
What authority surfeits on would relieve us: if they
would yield us but the superfluity, while it were
wholesome, we might guess they relieved us humanely;
but they think we are too dear: the leanness that
afflicts us, the object of our misery, is as an
inventory to particularise their abundance; our
sufferance is a gain to them Let us revenge this with
our pikes, ere we become rakes: for the gods know I
"""
B, T = 4, 64
TOKENS_CRC32 = 1323921540  # of the B T + 1 tokens as little-endian uint16, the form of llm.c's data files


def continuation(model, tokenizer, text, new_tokens):
    """The text that the model adds to `text` when it always takes the likeliest token."""
    ids = tokenizer.encode(text)
    return tokenizer.decode(npgpt.generate(model, ids, new_tokens, temperature=0)[len(ids) :])


def shakespeare_tokens(tokenizer):
    """The tokens of llm.c's batch and one more: as in its dev/data/tinyshakespeare.py, an end-of-text token stands at
    the start and after each blank line."""
    end = "<|endoftext|>"
    return tokenizer.encode(end + SHAKESPEARE.replace("\n\n", "\n\n" + end))[: B * T + 1]


def training_losses(model, tokens, B, T, steps):
    """The loss before each step of training all weights on one batch, as llm.c's test does.

    Row t predicts token t + 1, also where that is the first of the next sequence. AdamW decays every weight; the
    gradient is not clipped.
    """
    batch = npgpt.Batch(tokens[: B * T], tokens[1 : B * T + 1], np.full(B, T))
    opt = npgpt.AdamW(model.trainable_parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    return [npgpt.train_step(model, batch, opt, max_grad_norm=None).loss for _ in range(steps)]


# On the released model


def official(test):
    """Only for `pytest -m official`. What libraries warn of while they download is no failure of this project."""
    return pytest.mark.official(pytest.mark.filterwarnings("default")(test))


@pytest.fixture
def released():
    """The released model and its tokenizer. Skipped without: anything wrong with the way to them is a failure."""
    if not hub.cached("gpt2") and not hub.reachable():
        pytest.skip("gpt2 is not in the cache and the hub cannot be reached")
    return npgpt.GPT2.from_pretrained("gpt2"), npgpt.Tokenizer.from_pretrained("gpt2")


@official
def test_the_released_model_has_124_439_808_parameters(released):
    model, tokenizer = released
    assert sum(tensor.data.size for tensor in model.parameters().values()) == 124_439_808
    assert tokenizer.vocab_size == model.config.vocab_size == 50257


@official
def test_the_released_model_continues_as_in_picogpt(released):
    assert continuation(*released, PROMPT, 40) == CONTINUATION


@official
def test_the_released_model_learns_as_in_llm_c(released):
    model, tokenizer = released
    tokens = shakespeare_tokens(tokenizer)
    assert zlib.crc32(tokens.astype("<u2").tobytes()) == TOKENS_CRC32
    assert training_losses(model, tokens, B, T, len(LOSSES)) == pytest.approx(LOSSES, abs=TOLERANCE)


# The same on stand-ins, in every run


def plain_logits(weights, config, ids):
    """ids (B, T) -> logits (B, T, V): GPT-2 from the paper, by the names in the released file.

    Every function in it is analytic, so that it takes complex weights too.
    """
    B, T = ids.shape

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weights[name + ".weight"] + weights[name + ".bias"]

    def linear(x, name):
        return x @ weights[name + ".weight"] + weights[name + ".bias"]

    x = weights["wte.weight"][ids] + weights["wpe.weight"][:T]
    for i in range(config.n_layer):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = qkv.reshape(B, T, 3, config.n_head, -1).transpose(2, 0, 3, 1, 4)
        p = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * np.tri(T)
        mixed = (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + linear(mixed, f"h.{i}.attn.c_proj")
        x_in = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        gelu = x_in / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x_in + 0.044715 * x_in**3)))
        x = x + linear(gelu, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["wte.weight"].T


def plain_loss(weights, config, x, y):
    """Mean cross-entropy of predicting y (B, T) from x (B, T)."""
    logits = plain_logits(weights, config, x)
    right = np.take_along_axis(logits, y[..., None], -1)[..., 0]
    return (np.log(np.exp(logits).sum(-1)) - right).mean()


def plain_gradient(weights, config, x, y, h=1e-30):
    """The loss and its gradient by the complex step: f(w + ih) = f(w) + ih f'(w) - ..., so f'(w) = Im f(w + ih) / h.

    Nothing is subtracted, so h can be so small that what is left out is nothing and the derivative has all its digits.
    """
    weights = {name: array.astype(complex) for name, array in weights.items()}
    gradient = {name: np.zeros(array.shape) for name, array in weights.items()}
    for name, array in weights.items():
        for index in np.ndindex(array.shape):
            array[index] += 1j * h
            gradient[name][index] = plain_loss(weights, config, x, y).imag / h
            array[index] -= 1j * h
    return plain_loss(weights, config, x, y).real, gradient


def random_model(seed, std, dtype, **sizes):
    """A model with no weight at a value that could hide a mistake: no biases of 0, no scales of 1."""
    model = npgpt.GPT2(npgpt.GPT2Config(**sizes), dtype=dtype)
    draw = np.random.default_rng(seed)
    for tensor in model.parameters().values():
        tensor.data[...] = draw.normal(0.1, std, tensor.shape)
    return model


def test_the_continuation_is_that_of_a_model_without_cache(tmp_path):
    tokenizer = npgpt.Tokenizer.from_pretrained("tiny")
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 64, "vocab_size": tokenizer.vocab_size}
    random_model(5, 0.4, np.float32, **sizes).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    model, tokenizer = npgpt.GPT2.from_pretrained(tmp_path), npgpt.Tokenizer.from_pretrained(tmp_path)

    weights = {name: tensor.data.astype(float) for name, tensor in model.parameters().items()}
    ids = tokenizer.encode(PROMPT).tolist()
    start = len(ids)
    for _ in range(20):
        ids.append(int(plain_logits(weights, model.config, np.array([ids]))[0, -1].argmax()))
    assert len(set(ids[start:])) > 3, "it repeats itself, which shows little"
    assert continuation(model, tokenizer, PROMPT, 20) == tokenizer.decode(ids[start:])


def test_the_losses_are_those_of_plain_training():
    B, T, steps = 3, 5, 10
    model = random_model(4, 1.0, np.float64, n_layer=1, n_head=2, n_embd=4, n_positions=7, vocab_size=11)
    weights = {name: tensor.data.copy() for name, tensor in model.parameters().items()}
    tokens = np.random.default_rng(5).integers(0, 11, B * T + 4)

    x, y = tokens[: B * T].reshape(B, T), tokens[1 : B * T + 1].reshape(B, T)
    losses = []
    m, v = ({name: np.zeros(array.shape) for name, array in weights.items()} for _ in range(2))
    for t in range(1, steps + 1):
        loss, gradient = plain_gradient(weights, model.config, x, y)
        losses.append(loss)
        assert sum((g**2).sum() for g in gradient.values()) > 1, "clipping would not show"
        for name, g in gradient.items():  # as gpt2_update in llm.c's train_gpt2.c
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            m_hat, v_hat = m[name] / (1 - 0.9**t), v[name] / (1 - 0.999**t)
            weights[name] -= 1e-4 * (m_hat / (np.sqrt(v_hat) + 1e-8) + 0.01 * weights[name])
    assert training_losses(model, tokens, B, T, steps) == pytest.approx(losses, rel=1e-11)


SHARED = Path(__file__).parents[3] / "shared" / "data"

if SHARED.is_dir():

    def test_the_tokens_are_those_of_llm_c():
        """llm.c prints that its two parts of the file have 32,768 and 305,260 tokens."""
        tokenizer = npgpt.Tokenizer.from_pretrained(SHARED / "gpt2-tokenizer")
        text = (SHARED / "tinyshakespeare.txt").read_text()
        tokens = tokenizer.encode("<|endoftext|>" + text.replace("\n\n", "\n\n<|endoftext|>"))
        assert len(tokens) == 32_768 + 305_260
        np.testing.assert_array_equal(shakespeare_tokens(tokenizer), tokens[: B * T + 1])
        assert zlib.crc32(tokens[: B * T + 1].astype("<u2").tobytes()) == TOKENS_CRC32
        assert len(tokenizer.encode(CONTINUATION)) == 40
