import threading

import numpy as np
import pytest

from npgpt import GPT2, Batch, GPT2Config, threads
from npgpt.errors import ConfigError


def batch_of(*lengths):
    return Batch.from_sequences([np.zeros(length, int) for length in lengths])


def model_of(width, **changes):
    return GPT2(GPT2Config(n_embd=width, n_head=1, n_layer=1, vocab_size=8, n_positions=8, **changes), seed=None)


@pytest.mark.parametrize(
    "lengths, allowed, parts",
    [
        ((128, 128), 2, [[128], [128]]),
        ((64, 64, 60, 70), 2, [[64, 64], [60, 70]]),
        ((64, 64, 60, 70), 1, [[64, 64, 60, 70]]),          # nothing to share out
        ((60, 60), 2, [[60, 60]]),                          # too few tokens for each
        ((500, 130), 2, [[500, 130]]),                      # one thread would wait for the other
        ((400, 400), 4, [[400, 400]]),                      # fewer sequences than threads
    ],
)
def test_a_batch_is_split_where_every_thread_gets_enough_and_as_much(lengths, allowed, parts):
    chosen, blas = threads.plan(model_of(8), batch_of(*lengths), allowed)
    assert [part.lengths.tolist() for part in chosen] == parts
    assert blas == (1 if len(parts) > 1 else allowed)


def test_a_batch_is_not_split_where_there_are_many_gradients_to_add_up():
    model = model_of(2000)
    assert sum(tensor.data.size for tensor in model.trainable_parameters().values()) > 10_000_000
    chosen, blas = threads.plan(model, batch_of(128, 128), 2)
    assert (len(chosen), blas) == (1, 2)
    model.freeze()
    assert len(threads.plan(model, batch_of(128, 128), 2)[0]) == 2


def test_without_a_number_of_threads_narrow_models_keep_to_one_and_others_use_all(monkeypatch):
    assert threads.available() >= 1
    monkeypatch.setattr(threads, "available", lambda: 5)  # on any machine
    assert threads.plan(model_of(299), batch_of(2))[1] == 1
    assert threads.plan(model_of(300), batch_of(2))[1] == 5
    assert threads.for_products(model_of(8), 3) == 3


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_threads_than_one_are_refused(count):
    with pytest.raises(ConfigError, match=f"threads = {count}: it must be at least 1"):
        threads.plan(model_of(8), batch_of(2), count)


def test_the_setting_of_blas_is_put_back():
    before = threads.available()
    with threads.blas_threads(1):
        assert threads.available() == 1
    assert threads.available() == before
    with pytest.raises(ArithmeticError), threads.blas_threads(1):
        raise ArithmeticError
    assert threads.available() == before


@pytest.mark.parametrize("items, allowed, expected", [(5, 3, 3), (2, 3, 2), (5, 1, 1), (1, 3, 1), (0, 3, 0)])
def test_items_are_spread_over_threads(items, allowed, expected):
    """Each thread waits for the others at its first item: fewer of them would not get past it."""
    meeting = threading.Barrier(max(expected, 1), timeout=10)
    seen = {}

    def work(item):
        if item < expected:
            meeting.wait()
        seen[item] = threading.get_ident(), threads.available()

    with threads.blas_threads(allowed):
        threads.spread(work, range(items))
        assert threads.available() == allowed
    assert sorted(seen) == list(range(items))
    if expected > 1:
        assert len({thread for thread, _ in seen.values()}) == expected
        assert {blas for _, blas in seen.values()} == {1}


def test_an_error_in_spread_work_comes_out():
    def work(item):
        raise ArithmeticError(item)

    with threads.blas_threads(2), pytest.raises(ArithmeticError, match="0"):
        threads.spread(work, [0, 1])


def test_work_from_another_thread_stays_on_it(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 2)
    seen = []
    caller = threading.Thread(target=lambda: threads.spread(lambda _: seen.append(threading.current_thread()), [0, 1]))
    caller.start()
    caller.join()
    assert seen == [caller, caller]
