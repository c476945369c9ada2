"""One step of training."""

import importlib
import math

import numpy as np
import pytest

from npgpt import AdamW, Batch, LoraConfig, add_lora, backward, train_step
from npgpt.checking.gradcases import randomise, small_batch, small_model
from npgpt.runtime import shares, threads
from npgpt.runtime.errors import ConfigError, NpgptError
from npgpt.training.train import loss_and_gradients

LENGTHS = 5, 8, 1, 7, 4, 6, 8, 3


@pytest.fixture(autouse=True)
def small_shares(monkeypatch):
    """Let the workers share even these small arrays."""
    monkeypatch.setattr(shares, "LEAST_BYTES", 1)
    monkeypatch.setattr(shares, "LEAST_PRODUCT", 1)


def the_batch():
    draw = np.random.default_rng(0)
    return Batch.from_sequences([draw.integers(0, 13, length) for length in LENGTHS])


def lora_model(**fields):
    model = add_lora(small_model(**fields), LoraConfig(r=3, target_modules="all-linear"))
    randomise(model.trainable_parameters(), seed=1)
    return model


MODELS = {"full": small_model, "lora": lora_model}


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_result_does_not_depend_on_how_the_batch_is_cut_up(make, n_threads, micro_batches, assert_close):
    model, batch = make(), the_batch()
    whole = model.loss(batch)
    with threads.workers(n_threads):
        loss, grads = loss_and_gradients(model, batch, micro_batches=micro_batches)
    assert loss == pytest.approx(float(whole.data), rel=1e-12)
    expected = backward(whole)
    assert grads.keys() == expected.keys() == set(model.trainable_parameters().values())
    for tensor, gradient in expected.items():
        assert_close(grads[tensor], gradient)


@pytest.mark.parametrize("asked, got", [(1, 1), (3, 3), (None, 5)])
def test_a_step_has_the_threads_asked_for_or_as_many_as_pay(monkeypatch, asked, got):
    monkeypatch.setattr(threads, "available", lambda: 5)  # on any machine
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    model, crews = small_model(), []
    loss, opt = model.loss, AdamW(model.parameters())
    update = opt.step
    monkeypatch.setattr(model, "loss", lambda *args: (crews.append(threads.crew()), loss(*args))[1])
    monkeypatch.setattr(opt, "step", lambda grads: (crews.append(threads.crew()), update(grads))[1])
    train_step(model, the_batch(), opt, threads=asked)
    assert crews == [got, got]
    assert threads.crew() == 1


def test_parts_without_targets_are_passed_over():
    batch = Batch.from_sequences([[1, 2, 3, 4], [1, 2, 3, 4]], [[0] * 4, [1] * 4])
    model = small_model()
    whole = float(model.loss(batch).data)
    assert loss_and_gradients(model, batch, micro_batches=2)[0] == pytest.approx(whole, rel=1e-12)


def test_a_batch_without_targets_is_an_error_before_anything_is_done():
    model = small_model()
    opt = AdamW(model.parameters())
    with pytest.raises(ConfigError, match="no target"):
        train_step(model, Batch.from_sequences([[1], [2]]), opt)
    assert opt.steps == 0


@pytest.mark.parametrize("n_threads, micro_batches", [(1, 1), (2, 1), (3, 2), (1, 4)])
def test_the_same_seed_and_thread_count_give_the_same_bits(n_threads, micro_batches):
    def trained(seed):
        model = lora_model()
        opt = AdamW(model.trainable_parameters(), lr=0.1)
        for step in range(3):
            rng = np.random.default_rng([seed, step])
            result = train_step(model, the_batch(), opt, rng=rng, threads=n_threads, micro_batches=micro_batches)
        return result, {name: tensor.data for name, tensor in model.trainable_parameters().items()}

    (result, weights), (again, weights_again) = trained(0), trained(0)
    assert result == again
    assert all(np.array_equal(array, weights_again[name]) for name, array in weights.items())
    assert trained(1)[0].loss != result.loss


def test_each_micro_batch_has_its_own_dropout():
    """Each part has the same sequences, so with a common dropout mask their losses would be equal."""
    model = lora_model()
    batch = Batch.from_sequences([[1, 2, 3, 4, 5]] * 2)
    losses = []
    original = model.loss

    def loss(part, rng):
        losses.append(original(part, rng))
        return losses[-1]

    model.loss = loss
    loss_and_gradients(model, batch, np.random.default_rng(0), micro_batches=2)
    one, two = (float(tensor.data) for tensor in losses)
    assert one != two
    assert float(original(Batch.from_sequences([[1, 2, 3, 4, 5]])).data) not in (one, two)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_drops_out_does_not_depend_on_the_number_of_threads(make, assert_close):
    model, results = make(embd_pdrop=0.3, resid_pdrop=0.3, attn_pdrop=0.3), []
    for count in (1, 2, 3):
        with threads.workers(count):
            results.append(loss_and_gradients(model, the_batch(), np.random.default_rng(0)))
    for loss, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-12)
        for tensor, gradient in grads.items():
            assert_close(gradient, results[0][1][tensor])


def test_dropout_happens_if_and_only_if_a_generator_is_given():
    model, batch = lora_model(), the_batch()
    assert loss_and_gradients(model, batch)[0] == loss_and_gradients(model, batch)[0]
    assert loss_and_gradients(model, batch, np.random.default_rng(0))[0] != loss_and_gradients(model, batch)[0]


def test_a_step_tells_loss_norm_and_tokens_from_before_the_update():
    model, batch = small_model(), the_batch()
    loss, grads = loss_and_gradients(model, batch)
    norm = math.sqrt(sum((gradient**2).sum() for gradient in grads.values()))
    result = train_step(model, batch, AdamW(model.parameters()), max_grad_norm=norm / 2)
    assert result.loss == loss
    assert result.grad_norm == pytest.approx(norm, rel=1e-12)
    assert result.tokens == sum(LENGTHS)


@pytest.mark.parametrize("max_grad_norm, clipped", [(1e-3, True), (1e3, False), (None, False)])
def test_a_step_is_clip_and_update(max_grad_norm, clipped):
    """With eps of order 1, AdamW does not undo the scale of the gradient, so that clipping has an effect."""
    ours, by_hand = small_model(), small_model()
    train_step(ours, the_batch(), AdamW(ours.parameters(), eps=1.0), max_grad_norm)
    grads = backward(by_hand.loss(the_batch()))
    if clipped:
        norm = math.sqrt(sum((gradient**2).sum() for gradient in grads.values()))
        grads = {tensor: gradient * (max_grad_norm / (norm + 1e-6)) for tensor, gradient in grads.items()}
    AdamW(by_hand.parameters(), eps=1.0).step(grads)
    for name, tensor in ours.parameters().items():
        assert np.allclose(tensor.data, by_hand.parameters()[name].data, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("loss, gradient", [(math.inf, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, 1e200)])
def test_no_step_is_taken_where_loss_or_gradient_norm_is_not_finite(monkeypatch, loss, gradient):
    model = small_model()
    bias, opt = model.ln_f.bias, AdamW(model.parameters())
    before, grads = bias.data.copy(), {bias: np.full(bias.shape, gradient)}
    monkeypatch.setattr(importlib.import_module("npgpt.training.train"), "loss_and_gradients",
                        lambda *args: (loss, grads))
    with pytest.raises(NpgptError, match=rf"step 1 has loss {loss:g} and gradient norm .* diverged"):
        train_step(model, the_batch(), opt)
    assert opt.steps == 0
    assert np.array_equal(bias.data, before)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_falls(make, dtype):
    model, batch = make(dtype=dtype), small_batch()
    opt = AdamW(model.trainable_parameters(), lr=0.02)
    losses = [train_step(model, batch, opt).loss for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(tensor.dtype == dtype for tensor in model.parameters().values())
