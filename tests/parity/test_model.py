"""The model against transformers: logits, loss and the gradient of every weight, on random models of six configs."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

import npgpt

from .reference import (
    CONFIGS,
    DTYPES,
    assert_all_close,
    assert_close,
    npgpt_gradients,
    npgpt_model,
    texts,
    torch_gradients,
    torch_ids,
    torch_loss,
    torch_mean_loss,
    torch_model,
)

RAGGED = [9, 2, 24, 9, 1, 15, 9]


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(params=DTYPES)
def pair(request, name):
    """The same random model on both sides, and the error allowed between them."""
    dtype, torch_dtype, bound = DTYPES[request.param]
    theirs = torch_model(name, dtype=torch_dtype)
    return npgpt_model(theirs, dtype), theirs, bound


def test_logits(pair):
    ours, theirs, bound = pair
    one, *two = texts(ours.config.vocab_size, [24, 13, 13])
    for ids in (one, np.stack(two)):
        with torch.no_grad():
            expected = theirs(torch_ids(ids)).logits.numpy()
        logits = ours.logits(ids)
        assert logits.dtype == ours.parameters()["wte.weight"].dtype
        assert_close(logits, expected if ids.ndim == 2 else expected[0], bound, "logits")


def test_loss_and_gradients_of_full_training(pair):
    ours, theirs, bound = pair
    ours.unfreeze()
    sequences = texts(ours.config.vocab_size, [17, 17, 17])
    expected = torch_loss(theirs, np.stack(sequences))
    loss = ours.loss(npgpt.Batch.from_sequences(sequences))
    assert_close(loss.data, expected.detach(), bound, "loss")
    gradients = npgpt_gradients(ours, loss)
    assert sorted(gradients) == sorted(ours.parameters())
    assert_all_close(gradients, torch_gradients(theirs, expected), bound)


def test_ragged_batch_is_the_target_weighted_mean_of_its_sequences(pair):
    ours, theirs, bound = pair
    ours.unfreeze()
    sequences = texts(ours.config.vocab_size, RAGGED)
    loss = ours.loss(npgpt.Batch.from_sequences(sequences))
    # A single token has no target; transformers' mean over none would be nan.
    expected = torch_mean_loss(theirs, [ids for ids in sequences if len(ids) > 1])
    assert_close(loss.data, expected.detach(), bound, "loss")
    assert_all_close(npgpt_gradients(ours, loss), torch_gradients(theirs, expected), bound)


def test_ragged_batch_is_a_padded_batch_without_the_padding(pair):
    ours, theirs, bound = pair
    ours.unfreeze()
    draw = np.random.default_rng(3)
    sequences = texts(ours.config.vocab_size, RAGGED)
    masks = [(draw.random(len(ids)) < 0.7).astype(np.int64) for ids in sequences]
    shape = len(sequences), max(RAGGED)
    ids, labels, attention_mask = np.zeros(shape, np.int64), np.full(shape, -100), np.zeros(shape, np.int64)
    for row, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
        ids[row, : len(sequence)] = sequence
        labels[row, : len(sequence)] = np.where(mask, sequence, -100)
        attention_mask[row, : len(sequence)] = 1
    expected = torch_loss(theirs, ids, labels, attention_mask)
    loss = ours.loss(npgpt.Batch.from_sequences(sequences, loss_masks=masks))
    assert_close(loss.data, expected.detach(), bound, "loss")
    assert_all_close(npgpt_gradients(ours, loss), torch_gradients(theirs, expected), bound)
