"""One step of training."""

import contextlib
import importlib
import math

import numpy as np
import pytest

from npgpt import AdamW, Batch, LoraConfig, add_lora, backward, threads, train_step
from npgpt.errors import ConfigError, NpgptError
from npgpt.gradcases import randomise, small_batch, small_model
from npgpt.train import loss_and_gradients

LENGTHS = 5, 8, 1, 7, 4, 6, 8, 3


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Let batches of a few tokens be shared out among threads, as those of hundreds are."""
    monkeypatch.setattr(threads, "LEAST_TOKENS", 1)


def the_batch():
    draw = np.random.default_rng(0)
    return Batch.from_sequences([draw.integers(0, 13, length) for length in LENGTHS])


def lora_model(**fields):
    model = add_lora(small_model(**fields), LoraConfig(r=3, target_modules="all-linear"))
    randomise(model.trainable_parameters(), seed=1)
    return model


MODELS = {"full": small_model, "lora": lora_model}


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("n_threads", [1, 2, 3, None])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_result_does_not_depend_on_how_the_batch_is_cut_up(make, n_threads, micro_batches, assert_close):
    model, batch = make(), the_batch()
    whole = model.loss(batch)
    loss, grads = loss_and_gradients(model, batch, threads=n_threads, micro_batches=micro_batches)
    assert loss == pytest.approx(float(whole.data), rel=1e-12)
    expected = backward(whole)
    assert grads.keys() == expected.keys() == set(model.trainable_parameters().values())
    for tensor, gradient in expected.items():
        assert_close(grads[tensor], gradient)


def test_the_batches_above_are_really_cut_up():
    assert len(threads.plan(small_model(), the_batch(), 2)[0]) == 2
    assert len(threads.plan(small_model(), the_batch(), 3)[0]) == 3
    assert len(the_batch().split(3)) == 3


@pytest.mark.parametrize("lengths, blas", [((5, 5), 1), ((10,), 2)])
def test_a_part_has_one_thread_of_blas_and_a_whole_batch_all(monkeypatch, lengths, blas):
    counts = []

    def blas_threads(count):
        counts.append(count)
        return contextlib.nullcontext()

    monkeypatch.setattr(importlib.import_module("npgpt.train"), "blas_threads", blas_threads)
    batch = Batch.from_sequences([np.zeros(length, int) for length in lengths])
    loss_and_gradients(small_model(n_positions=10), batch, threads=2)
    assert counts == [blas]


def test_parts_without_targets_are_passed_over():
    batch = Batch.from_sequences([[1, 2, 3, 4], [1, 2, 3, 4]], [[0] * 4, [1] * 4])
    model = small_model()
    whole = float(model.loss(batch).data)
    assert loss_and_gradients(model, batch, threads=2)[0] == pytest.approx(whole, rel=1e-12)
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


def test_each_part_of_a_batch_has_its_own_dropout():
    """The same sequences in each part: with one stream for all, the parts' losses would be alike."""
    model = lora_model()
    batch = Batch.from_sequences([[1, 2, 3, 4, 5]] * 2)
    half = Batch.from_sequences([[1, 2, 3, 4, 5]])
    losses = []
    original = model.loss

    def loss(part, rng):
        losses.append(original(part, rng))
        return losses[-1]

    model.loss = loss
    for cut in ({"threads": 2}, {"threads": 1, "micro_batches": 2}):
        losses.clear()
        loss_and_gradients(model, batch, np.random.default_rng(0), **cut)
        one, two = (float(tensor.data) for tensor in losses)
        assert one != two
        assert float(original(half).data) not in (one, two)


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
    """With eps of order 1 AdamW does not undo the scale of the gradient, so clipping shows."""
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
    monkeypatch.setattr(importlib.import_module("npgpt.train"), "loss_and_gradients", lambda *args: (loss, grads))
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
