"""What `scripts/gradcheck.py` and the tests check: every operation over awkward shapes, and whole small models.

Values are of order 1 (weights of the models 0.2): at GPT-2's own 0.02 attention is nearly uniform, GELU nearly linear,
and a term left out of a derivation hardly shows. For the same reason lora_B is random here, not zero.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npgpt import ops
from npgpt.adapters.dora import dora_linear
from npgpt.adapters.index_copy import index_copy
from npgpt.adapters.lora_config import LoraConfig
from npgpt.adapters.stack import add_lora, set_adapter
from npgpt.autograd import Tensor
from npgpt.batch import Batch
from npgpt.checking.gradcheck import check_parameters, gradcheck
from npgpt.gpt2 import GPT2, GPT2Config
from npgpt.runtime.seeding import generator


class Case(NamedTuple):
    """An operation as a function of Tensors, and the arrays to check it at."""

    name: str
    function: Callable
    arrays: list


class ModelCase(NamedTuple):
    """A loss as a function of nothing, and the parameters it reads: dict name -> Tensor."""

    name: str
    loss: Callable
    tensors: dict[str, Tensor]


def reports(seed=0):
    """Check everything: yield (name, Report)."""
    for case in operations():
        yield case.name, gradcheck(case.function, case.arrays, seed)
    for model in models():
        yield model.name, check_parameters(model.loss, model.tensors, seed)


def operations():
    """Return the Cases of every operation, primitives first."""
    groups = (_primitives, _linear, _dora, _layer_norm, _activations, _attention, _embedding, _index_copy, _dropout,
              _cross_entropy)
    return [Case(*case) for group in groups for case in group(generator(0, group.__name__).standard_normal)]


def _rng():
    """A dropout generator: the same draws every time it is made, as a check needs."""
    return generator(0, "dropout")


def _primitives(normal):
    positive = np.exp(normal((3, 4)))
    yield "add", ops.add, [normal((3, 4)), normal((3, 4))]
    yield "add, broadcast", ops.add, [normal((2, 1, 4)), normal((3, 1))]
    yield "add, a scalar", ops.add, [normal((2, 3)), normal(())]
    yield "add, x and x", lambda x: ops.add(x, x), [normal((3, 4))]
    yield "mul", ops.mul, [normal((3, 4)), normal((3, 4))]
    yield "mul, broadcast", ops.mul, [normal((3, 1)), normal((2, 1, 4))]
    yield "mul, x and x", lambda x: ops.mul(x, x), [normal((3, 4))]
    yield "matmul", ops.matmul, [normal((3, 4)), normal((4, 5))]
    yield "matmul, stacked", ops.matmul, [normal((2, 3, 4)), normal((4, 5))]
    yield "matmul, broadcast", ops.matmul, [normal((2, 1, 3, 4)), normal((5, 4, 2))]
    yield "matmul, x and x", lambda x: ops.matmul(x, x), [normal((3, 3))]
    yield "sum", ops.sum, [normal((2, 3))]
    yield "sum, last axis", lambda x: ops.sum(x, axis=-1), [normal((2, 3))]
    yield "sum, two axes kept", lambda x: ops.sum(x, axis=(0, 2), keepdims=True), [normal((2, 3, 4))]
    yield "exp", ops.exp, [normal((3, 4))]
    yield "exp, a scalar", ops.exp, [normal(())]
    yield "log", ops.log, [positive]
    yield "tanh", ops.tanh, [normal((3, 4))]
    yield "reshape", lambda x: ops.reshape(x, (2, 6)), [normal((3, 4))]
    yield "transpose", lambda x: ops.transpose(x, (2, 0, 1)), [normal((2, 3, 4))]
    yield "transpose, from the end", lambda x: ops.transpose(x, (-1, 0, 1)), [normal((2, 2, 2))]
    yield "take, repeated index", lambda x: ops.take(x, [2, 0, 2, 2]), [normal((3, 4))]
    yield "take, slices", lambda x: ops.take(x, (slice(1, None), 0)), [normal((3, 2, 4))]
    yield ("an expression read twice", lambda x, y: ops.mul(ops.add(ops.exp(x), y), ops.tanh(ops.exp(x))),
           [normal((3, 4)), normal(4)])


def _linear(normal):
    yield "linear", ops.linear, [normal((5, 4)), normal((4, 3)), normal(3)]
    yield "linear, one row", ops.linear, [normal((1, 4)), normal((4, 3)), normal(3)]
    yield "linear, no bias", ops.linear, [normal((5, 4)), normal((4, 3))]
    yield "linear, strided", ops.linear, [normal((4, 5)).T, normal((3, 4)).T, normal(6)[::2]]

    def lora(p=0.0):
        def lora_linear(x, weight, lora_A, lora_B, bias=None):
            return ops.lora_linear(x, weight, bias, lora_A, lora_B, 0.7, p, _rng())
        return lora_linear

    def arrays(rows=5, rank=2):
        return [normal((rows, 4)), normal((4, 3)), normal((rank, 4)), normal((3, rank)), normal(3)]

    yield "lora_linear", lora(), arrays()
    yield "lora_linear, dropout", lora(0.3), arrays()
    yield "lora_linear, one row", lora(), arrays(rows=1)
    yield "lora_linear, rank 1", lora(0.3), arrays(rank=1)
    yield "lora_linear, rank above the width", lora(), arrays(rank=7)
    yield "lora_linear, no bias", lora(0.3), arrays()[:4]
    yield ("lora_linear, strided", lora(0.3),
           [normal((4, 5)).T, normal((3, 4)).T, normal((4, 2)).T, normal((2, 3)).T, normal(6)[::2]])


def _dora(normal):
    def dora(p=0.0):
        norm = np.abs(normal(3)) + 0.5  # held constant, as in the derivation: the differences must not move it

        def function(x, weight, lora_A, lora_B, magnitude, bias=None):
            return dora_linear(x, weight, bias, lora_A, lora_B, magnitude, norm.astype(x.dtype), 0.7, p, _rng())
        return function

    def arrays(rows=5, rank=2):
        return [normal((rows, 4)), normal((4, 3)), normal((rank, 4)), normal((3, rank)), normal(3), normal(3)]

    yield "dora_linear", dora(), arrays()
    yield "dora_linear, dropout", dora(0.3), arrays()
    yield "dora_linear, one row", dora(0.3), arrays(rows=1)
    yield "dora_linear, rank 1", dora(), arrays(rank=1)
    yield "dora_linear, rank above the width", dora(0.3), arrays(rank=7)
    yield "dora_linear, no bias", dora(0.3), arrays()[:5]
    yield ("dora_linear, strided", dora(0.3), [normal((4, 5)).T, normal((3, 4)).T, normal((4, 2)).T, normal((2, 3)).T,
                                               normal(6)[::2], normal(6)[::2]])


def _layer_norm(normal):
    def layer_norm(x, weight, bias):
        return ops.layer_norm(x, weight, bias, 1e-5)

    def soft(x, weight, bias):  # eps above the rows' variance
        return ops.layer_norm(x, weight, bias, 1e-2)

    def arrays(x):
        return [x, 1 + normal(x.shape[1]), normal(x.shape[1])]

    uneven = normal((5, 6)) * [[1], [1e-6], [30], [1e-3], [0]] + 2  # the last row is all equal
    yield "layer_norm", layer_norm, arrays(normal((5, 6)))
    yield "layer_norm, one row", layer_norm, arrays(normal((1, 6)))
    yield "layer_norm, width 2", soft, arrays(normal((3, 2)))
    yield "layer_norm, tiny variance, equal row", soft, arrays(uneven)
    yield "layer_norm, strided", layer_norm, arrays(normal((6, 5)).T)
    yield "layer_norm, several blocks of rows", layer_norm, arrays(normal((300, 1024)))


def _activations(normal):
    for name, activation in (("gelu_new", ops.gelu_new), ("gelu", ops.gelu), ("relu", ops.relu), ("silu", ops.silu)):
        yield name, activation, [normal((4, 5))]
        yield f"{name}, one row", activation, [normal((1, 7))]
        yield f"{name}, large values", activation, [8 * normal((3, 7))]
        yield f"{name}, strided", activation, [normal((5, 8)).T[::2]]
        yield f"{name}, several blocks of rows", activation, [normal((300, 1024))]


def _attention(normal):
    def attention(lengths, n_head, scale, p=0.0):
        def causal_attention(qkv):
            return ops.causal_attention(qkv, np.array(lengths), n_head, scale, p, _rng())
        return causal_attention

    ragged = [3, 1, 4, 3, 3, 2]  # equal lengths, some adjacent and some not
    equal = np.tile(normal((1, 12)), (5, 1))
    yield "causal_attention", attention([6], 2, 0.7), [normal((6, 12))]
    yield "causal_attention, one token", attention([1], 2, 0.7), [normal((1, 12))]
    yield "causal_attention, two sequences", attention([4, 4], 2, 0.7), [normal((8, 12))]
    yield "causal_attention, ragged", attention(ragged, 2, 0.7), [normal((16, 12))]
    yield "causal_attention, heads of width 1", attention([3, 2], 4, 1.0), [normal((5, 12))]
    yield "causal_attention, one head", attention([3, 2], 1, 0.5), [normal((5, 12))]
    yield "causal_attention, equal rows", attention([5], 2, 0.7), [equal]
    yield "causal_attention, strided", attention(ragged, 2, 0.7), [normal((12, 16)).T]
    yield "causal_attention, sharp", attention([6], 2, 5.0), [normal((6, 12))]
    yield "causal_attention, several query blocks", attention([130, 3], 1, 0.7), [normal((133, 6))]
    yield "causal_attention, dropout", attention(ragged, 2, 0.7, 0.3), [normal((16, 12))]
    yield "causal_attention, blocks and dropout", attention([3, 130], 1, 0.7, 0.3), [normal((133, 6))]


def _embedding(normal):
    def embedding(*ids):
        return lambda weight: ops.embedding(weight, np.array(ids))

    yield "embedding", embedding(4, 0, 2), [normal((6, 3))]
    yield "embedding, repeated ids", embedding(1, 3, 1, 0, 3, 1), [normal((6, 3))]
    yield "embedding, one id", embedding(2), [normal((6, 3))]
    yield "embedding, all ids equal", embedding(5, 5, 5, 5), [normal((6, 3))]


def _index_copy(normal):
    def copy(*ids):
        return lambda weight, rows: index_copy(weight, np.array(ids, int), rows)

    yield "index_copy", copy(4, 0), [normal((6, 3)), normal((2, 3))]
    yield "index_copy, strided", copy(1, 3), [normal((3, 4)).T, normal((3, 2)).T]


def _dropout(normal):
    yield "dropout", lambda x: ops.dropout(x, 0.5, _rng()), [normal((4, 5))]
    yield "dropout, p = 0.1", lambda x: ops.dropout(x, 0.1, _rng()), [normal((2, 3, 4))]
    yield "dropout, strided", lambda x: ops.dropout(x, 0.5, _rng()), [normal((5, 4)).T]


def _cross_entropy(normal):
    def loss(targets, *blocks):
        def cross_entropy(hidden, weight):
            return ops.cross_entropy(hidden, weight, np.array(targets), *blocks)
        return cross_entropy

    some = [4, -100, 0, 4, -100, -100, 10, 3]
    yield "cross_entropy", loss([4, 1, 0, 10]), [normal((4, 3)), normal((11, 3))]
    yield "cross_entropy, one row", loss([7]), [normal((1, 3)), normal((11, 3))]
    yield "cross_entropy, rows without target", loss(some), [normal((8, 3)), normal((11, 3))]
    yield "cross_entropy, blocks of 2 rows", loss(some, 2), [normal((8, 3)), normal((11, 3))]
    yield "cross_entropy, blocks of 3 tokens", loss(some, 5, 3), [normal((8, 3)), normal((11, 3))]
    yield "cross_entropy, large logits", loss(some), [20 * normal((8, 3)), normal((11, 3))]
    yield "cross_entropy, strided", loss(some), [normal((3, 8)).T, normal((3, 11)).T]
    yield "cross_entropy, x and x", lambda x: loss([1, 0, 3, -100])(x, x), [normal((4, 3))]


def models():
    """Return the ModelCases: a GPT-2 of two blocks, trained whole and by LoRA, with and without dropout."""
    batch = small_batch()
    full = small_model()
    other = small_model(activation_function="gelu", n_inner=12, scale_attn_by_inverse_layer_idx=True,
                        tie_word_embeddings=False)

    def adapted(model=None, **fields):
        model = add_lora(model or small_model(), LoraConfig(r=3, lora_alpha=4, **fields))
        randomise(model.trainable_parameters(), seed=1)
        return model

    lora = adapted(target_modules="all-linear")
    biased = adapted(target_modules=["attn.c_proj", "c_fc"], use_rslora=True, lora_bias=True, bias="all")
    tables = adapted(small_model(tie_word_embeddings=False), target_modules=["wte", "wpe", "lm_head", "c_attn"],
                     modules_to_save=["ln_f"])
    rows = adapted(target_modules=["c_attn"], trainable_token_indices=[7, 2])
    pissa = adapted(target_modules=["c_attn"], init_lora_weights="pissa")
    stacked = add_lora(adapted(target_modules=["c_attn", "wte"]), LoraConfig(r=2, lora_alpha=2), name="b")
    set_adapter(stacked, {"default": 0.5, "b": -0.75})
    randomise(stacked.trainable_parameters(), seed=2)
    return [ModelCase(name, loss, model.trainable_parameters()) for name, model, loss in [
        ("GPT-2", full, lambda: full.loss(batch)),
        ("GPT-2, dropout", full, lambda: full.loss(batch, _rng())),
        ("GPT-2, untied, gelu, scaled by layer", other, lambda: other.loss(batch)),
        ("LoRA, all linears", lora, lambda: lora.loss(batch)),
        ("LoRA, all linears, dropout", lora, lambda: lora.loss(batch, _rng())),
        ("LoRA, scaled by root r, biases", biased, lambda: biased.loss(batch)),
        ("LoRA, tables, head, a saved norm", tables, lambda: tables.loss(batch, _rng())),
        ("LoRA, rows of the token table", rows, lambda: rows.loss(batch)),
        ("LoRA, PiSSA", pissa, lambda: pissa.loss(batch)),
        ("LoRA, two adapters, weighted", stacked, lambda: stacked.loss(batch)),
    ]]


def small_batch(vocab_size=13, also=()):
    """Ragged sequences with repeated ids, one of a single token, and loss on some tokens only. Each id of `also` is
    there too, and is predicted."""
    draw = generator(0, "small batch")
    sequences = [draw.integers(0, vocab_size, length) for length in (5, 1, 7, 5, 2)]
    masks = [draw.random(len(s)) < 0.8 for s in sequences]
    pairs = [np.array([i, i]) for i in also]
    return Batch.from_sequences(sequences + pairs, masks + [np.ones(2)] * len(pairs))


def small_model(dtype=np.float64, **changes):
    """A GPT2 of two blocks, weights of order 0.2, and dropout of probability 0.2 where a generator is given."""
    fields = {"vocab_size": 13, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.2,
              "embd_pdrop": 0.2, "attn_pdrop": 0.2}
    model = GPT2(GPT2Config(**fields | changes), seed=None, dtype=dtype)
    randomise(model.parameters())
    return model


def randomise(tensors, seed=0):
    """Fill each of `tensors`, dict name -> Tensor, with N(0, 0.2^2), the layer norms' weights with 1 more."""
    for name, tensor in tensors.items():
        centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        tensor.data[...] = generator(seed, name).normal(centre, 0.2, tensor.shape)
