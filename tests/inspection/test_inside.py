"""The collected numbers are the model's own: attention, losses, ranks, the logit lens, an adapter's changes."""

import numpy as np
import pytest

import npgpt
from npgpt import ops
from npgpt.autograd import Tensor
from npgpt.inspection import inside
from npgpt.runtime.errors import ConfigError
from npgpt.runtime.seeding import generator

V, T = 31, 14
CONFIGS = {
    "tied": npgpt.GPT2Config(vocab_size=V, n_positions=16, n_embd=16, n_layer=3, n_head=4, initializer_range=0.3,
                             attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5),
    "untied": npgpt.GPT2Config(vocab_size=V, n_positions=16, n_embd=12, n_layer=2, n_head=2, initializer_range=0.3,
                               tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True),
}
IDS = generator(0, "test").integers(0, V, T)


@pytest.fixture(params=CONFIGS)
def model(request):
    return npgpt.GPT2(CONFIGS[request.param], seed=1, dtype=np.float64)


@pytest.fixture
def seen(model):
    return inside.look(model, IDS)


def adapt(model):
    npgpt.add_lora(model, npgpt.LoraConfig(r=2, target_modules="all-linear"), seed=0)
    for name, tensor in model.trainable_parameters().items():
        if name.endswith("lora_B"):
            tensor.data[...] = generator(0, name).normal(0, 0.1, tensor.shape)
    return model


@pytest.fixture
def adapted(model, seen):
    return inside.look(adapt(model), IDS)


def test_shapes_and_logits(model, seen, assert_close):
    config = model.config
    assert seen.ids.tolist() == IDS.tolist()
    assert seen.hidden.shape == (config.n_layer + 1, T, config.n_embd)
    assert seen.attention.shape == (config.n_layer, config.n_head, T, T)
    assert_close(seen.logits, model.logits(IDS))


def test_hidden_states(model, seen, assert_close):
    """The input of the first block is the sum of the two tables. The output of each block is the input of the next."""
    assert_close(seen.hidden[0], model.wte.weight.data[IDS] + model.wpe.weight.data[:T])
    for layer, block in enumerate(model.h):
        def attend(_layer, qkv, scale):
            return ops.causal_attention(qkv, np.array([T]), model.config.n_head, scale)

        assert_close(seen.hidden[layer + 1], block(Tensor(seen.hidden[layer]), attend, None).data)


def test_attention_is_a_distribution_over_the_past(seen):
    assert np.allclose(seen.attention.sum(axis=-1), 1, atol=1e-12)
    assert (seen.attention >= 0).all()
    assert (np.triu(seen.attention, k=1) == 0).all()
    assert (np.tril(seen.attention)[..., np.tri(T, dtype=bool)] > 0).all()


def test_attention_mixes_values_as_the_operation_does(model, seen, assert_close):
    """P V, with the heads side by side, equals the result of `causal_attention`."""
    for layer, block in enumerate(model.h):
        qkv = block.attn.c_attn(block.ln_1(Tensor(seen.hidden[layer])))
        v = qkv.data.reshape(T, 3, model.config.n_head, -1)[:, 2].transpose(1, 0, 2)
        mixed = (seen.attention[layer] @ v).transpose(1, 0, 2).reshape(T, -1)
        expected = ops.causal_attention(qkv, np.array([T]), model.config.n_head, block.attn.scale).data
        assert_close(mixed, expected)


def test_losses_are_the_models(model, seen, assert_close):
    losses = inside.losses(seen)
    assert losses.shape == (T - 1,)
    assert_close(losses.mean(), model.loss(npgpt.Batch.from_sequences([IDS])).data)
    for t in (1, 5, T - 1):
        mask = np.zeros(T)
        mask[t] = 1
        assert_close(losses[t - 1], model.loss(npgpt.Batch.from_sequences([IDS], [mask])).data)


def test_ranks(seen):
    for t, rank in enumerate(inside.ranks(seen).tolist(), start=1):
        assert np.argsort(-seen.logits[t - 1]).tolist().index(IDS[t]) == rank - 1


def test_ranks_count_what_is_likelier():
    """Equally likely tokens all have the better rank."""
    logits = np.array([[0.0, 3, 3, 1], [5, 5, 5, 5], [1, 2, 3, 4]])
    seen = inside.Inside(np.array([9, 1, 0]), None, None, logits)
    assert inside.ranks(seen).tolist() == [1, 1]
    assert inside.ranks(seen._replace(ids=np.array([9, 0, 3]))).tolist() == [4, 1]


def test_likeliest(seen, assert_close):
    ids, p = inside.likeliest(seen.logits, 4)
    every = np.exp(seen.logits) / np.exp(seen.logits).sum(axis=1, keepdims=True)
    assert ids.shape == p.shape == (T, 4)
    assert_close(p, -np.sort(-every, axis=1)[:, :4])
    assert_close(np.take_along_axis(every, ids, 1), p)
    assert inside.likeliest(seen.logits, 10 * V)[0].shape == (T, V)


def test_logit_lens(model, seen, assert_close):
    """The last are the model's logits. Those of an earlier layer are the logits of a model that ends there."""
    layers = list(inside.logit_lens(model, seen))
    assert len(layers) == len(model.h) + 1
    assert_close(layers[-1], model.logits(IDS))
    blocks = model.h
    for layer, logits in enumerate(layers):
        model.h = blocks[:layer]
        assert_close(logits, model.logits(IDS))


def test_norms(seen, assert_close):
    assert_close(inside.norms(seen), np.sqrt((seen.hidden ** 2).sum(axis=-1)))


def test_an_adapter_that_does_nothing_changes_nothing(model, seen):
    npgpt.add_lora(model, npgpt.LoraConfig(r=2), seed=0)
    same = inside.look(model, IDS)
    assert (inside.moved(seen, same) == 0).all()
    assert np.abs(inside.divergence(seen, same)).max() < 1e-12
    _, before, after = inside.biggest_changes(seen, same, 3)
    assert (before == after).all()


def test_what_an_adapter_changed(model, seen, adapted, assert_close):
    moved = inside.moved(seen, adapted)
    assert (moved[0] == 0).all()  # the adapter does not change the input of the first block
    assert (moved[1:] > 0).all()
    assert_close(moved[2], np.sqrt(((adapted.hidden[2] - seen.hidden[2]) ** 2).sum(-1) / (seen.hidden[2] ** 2).sum(-1)))
    p, q = (np.exp(s.logits) / np.exp(s.logits).sum(axis=1, keepdims=True) for s in (adapted, seen))
    assert_close(inside.divergence(seen, adapted), (p * np.log(p / q)).sum(axis=1), 1e-10)
    ids, before, after = inside.biggest_changes(seen, adapted, 5)
    assert_close(before, np.take_along_axis(q, ids, 1))
    assert_close(after, np.take_along_axis(p, ids, 1))
    assert_close(np.abs(after - before), -np.sort(-np.abs(p - q), axis=1)[:, :5], 1e-10)


def test_large_logits_overflow_nothing():
    base = inside.Inside(np.array([0, 1]), None, None, np.array([[2000.0, -2000.0], [0.0, 0.0]]))
    other = base._replace(logits=-base.logits)
    assert inside.losses(base).tolist() == [4000]
    assert inside.divergence(base, other).tolist() == [4000, 0]


def test_nothing_is_recorded_or_changed(model, seen):
    before = {name: (tensor.data.copy(), tensor.trainable) for name, tensor in model.parameters().items()}
    blocks = list(model.h)
    inside.look(model, IDS)
    assert model.h == blocks
    for name, tensor in model.parameters().items():
        assert (tensor.data == before[name][0]).all()
        assert tensor.trainable == before[name][1]
        assert tensor.record is None


def test_one_token(model):
    seen = inside.look(model, IDS[:1])
    assert (seen.attention == 1).all()
    assert inside.losses(seen).shape == inside.ranks(seen).shape == (0,)


@pytest.mark.parametrize("ids, message", [
    ([], r"ids of shape \(0,\)"),
    ([[1, 2]], r"ids of shape \(1, 2\)"), ([1.5], "integers"), ([V], "outside this model"),
    ([1] * 17, "longer than this model's context of 16"),
])
def test_what_is_refused(model, ids, message):
    with pytest.raises(ConfigError, match=message):
        inside.look(model, ids)
