import numpy as np
import pytest

from npgpt import GPT2, Batch, backward
from npgpt.autograd import no_grad
from npgpt.checking.gradcases import small_batch, small_model
from npgpt.runtime.errors import ConfigError
from tests.adapters.test_tables import IDS, NONE, adapted, base

SEQUENCES = [[1, 5, 5, 2, 9], [7], [3, 4, 12], [0, 0, 6, 1, 2]]


def loss_of(model, batch, rng=None):
    with no_grad():
        return float(model.loss(batch, rng).data)


def test_logits_see_only_the_past(assert_close):
    model = small_model()
    ids = np.array([1, 5, 5, 2, 9, 3])
    logits = model.logits(ids)
    for length in range(1, len(ids)):
        assert_close(model.logits(ids[:length]), logits[:length])
    changed = ids.copy()
    changed[3] = 11
    assert_close(model.logits(changed)[:3], logits[:3])
    assert np.abs(model.logits(changed)[3:] - logits[3:]).max(axis=1).min() > 1e-6


def test_a_stack_of_sequences_is_each_by_itself(assert_close):
    model = small_model()
    ids = np.array([[1, 5, 2], [9, 9, 9], [0, 12, 3]])
    assert model.logits(ids).shape == (3, 3, 13)
    assert_close(model.logits(ids), np.stack([model.logits(row) for row in ids]))


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_next_token():
    model = small_model()
    ids = [1, 5, 5, 2, 9]
    logits = model.logits(ids)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -np.mean([log_probabilities[i, ids[i + 1]] for i in range(4)])
    assert loss_of(model, Batch.from_sequences([ids])) == pytest.approx(expected, rel=1e-12)


def test_a_ragged_batch_is_the_mean_of_its_sequences_weighted_by_their_targets(assert_close):
    model = small_model()
    loss = model.loss(Batch.from_sequences(SEQUENCES))
    singles = [Batch.from_sequences([sequence]) for sequence in SEQUENCES if len(sequence) > 1]
    weights = np.array([batch.n_targets for batch in singles]) / sum(batch.n_targets for batch in singles)
    losses = [model.loss(batch) for batch in singles]
    assert float(loss.data) == pytest.approx(np.dot(weights, [loss.data for loss in losses]), rel=1e-12)
    parts = [backward(single, weight) for single, weight in zip(losses, weights, strict=True)]
    for tensor, gradient in backward(loss).items():
        assert_close(gradient, sum(part[tensor] for part in parts))


def test_logits_keep_no_graph_and_leave_recording_on(monkeypatch):
    model = small_model()
    with monkeypatch.context() as patch:
        patch.setattr("npgpt.autograd.Record", None)  # so that recording anything fails
        model.logits([1, 2, 3])
    assert model.loss(small_batch()).record is not None
    with pytest.raises(ConfigError):
        model.logits([99])
    assert model.loss(small_batch()).record is not None


@pytest.mark.parametrize(
    "ids, message",
    [
        ([13], "token id 13 is outside this model's vocabulary of 13"),
        ([0, -1], "token id -1 is outside"),
        ([0] * 9, "9 tokens is longer than this model's context of 8"),
        ([], "ids of shape"),
        ([0.5], "float64"),
        (3, "ids of shape"),
        ([[[1]]], "ids of shape"),
    ],
)
def test_ids_that_cannot_be_used(ids, message):
    with pytest.raises(ConfigError, match=message) as error:
        small_model().logits(ids)
    assert "\n" not in str(error.value)


def test_the_loss_checks_ids_as_well():
    with pytest.raises(ConfigError, match="longer"):
        small_model().loss(Batch.from_sequences([[0] * 9]))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


def test_new_rows_are_the_mean_of_the_old(tied):
    old, model = small_model(np.float64, tie_word_embeddings=tied, **NONE), base(tied, dtype=np.float64)
    assert model.config.vocab_size == 15
    for before, after in ((old.wte.weight, model.wte.weight), (old.head(), model.head())):
        assert np.array_equal(after.data[:13], before.data)
        assert np.allclose(after.data[13:], before.data.mean(axis=0), rtol=0, atol=1e-15)
    assert (model.head() is model.wte.weight) == tied
    logits = model.logits([1, 5, 2])
    assert np.allclose(logits[:, :13], old.logits([1, 5, 2]), rtol=0, atol=1e-13)  # the same products, in other blocks
    assert np.allclose(logits[:, 13:], logits[:, :13].mean(axis=1, keepdims=True), rtol=0, atol=1e-13)


def test_a_new_token_is_no_likelier_than_an_old_one_is_on_average(tied):
    logits = base(tied, 14, np.float64).logits([1, 5, 2])
    p = np.exp(logits)
    assert (p[:, 13] <= p[:, :13].mean(axis=1)).all()


def test_fewer_rows(tied):
    model = base(tied, 9)
    assert model.wte.weight.shape == model.head().shape == (9, 8)
    assert np.array_equal(model.head().data, small_model(np.float32, tie_word_embeddings=tied).head().data[:9])
    with pytest.raises(ConfigError, match="token id 9 is outside this model's vocabulary of 9"):
        model.logits([9])


def test_the_same_number_of_rows_changes_nothing():
    model = base(rows=13)
    assert model.kept_rows is None
    assert np.array_equal(model.wte.weight.data, small_model(np.float32).wte.weight.data)


def test_rows_that_were_dropped_do_not_come_back():
    model = base(rows=9)
    model.resize_token_embeddings(13)
    assert model.kept_rows == 9
    assert np.array_equal(model.wte.weight.data[9], model.wte.weight.data[12])


def test_a_resized_model_is_saved_and_loaded(tied, tmp_path):
    model = base(tied)
    model.save_pretrained(tmp_path)
    again = GPT2.from_pretrained(tmp_path)
    assert again.config == model.config
    assert np.array_equal(again.logits(IDS), model.logits(IDS))


def test_a_mapped_model_is_resized_and_its_file_stays(tmp_path):
    small_model(np.float32).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    GPT2.from_pretrained(tmp_path).resize_token_embeddings(20)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("n", [0, -1, 2.5, "3"])
def test_sizes_that_cannot_be(n):
    with pytest.raises(ConfigError, match=r"resize_token_embeddings\(.*: the number of tokens must be whole"):
        base().resize_token_embeddings(n)


def test_tables_under_an_adapter_are_not_resized():
    model = adapted(base(), target_modules=["wte", "c_attn"])
    with pytest.raises(ConfigError, match="cannot resize the vocabulary: an adapter changes wte"):
        model.resize_token_embeddings(20)
    adapted(small := base(), target_modules=["c_attn"])
    small.resize_token_embeddings(20)
    assert small.logits(IDS).shape == (6, 20)
