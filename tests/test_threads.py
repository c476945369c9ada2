import numpy as np
import pytest

from npgpt import Batch, threads


def batch_of(*lengths):
    return Batch.from_sequences([np.zeros(length, int) for length in lengths])


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
    chosen, blas = threads.plan(batch_of(*lengths), allowed)
    assert [part.lengths.tolist() for part in chosen] == parts
    assert blas == (1 if len(parts) > 1 else allowed)


def test_a_batch_is_not_split_where_each_part_costs_much():
    chosen, blas = threads.plan(batch_of(128, 128), 2, parts_cost_little=False)
    assert (len(chosen), blas) == (1, 2)


def test_without_a_number_of_threads_it_is_all_that_blas_would_use():
    assert threads.plan(batch_of(2), None)[1] == threads.available() >= 1


def test_the_setting_of_blas_is_put_back():
    before = threads.available()
    with threads.blas_threads(1):
        assert threads.available() == 1
    assert threads.available() == before
    with pytest.raises(ArithmeticError), threads.blas_threads(1):
        raise ArithmeticError
    assert threads.available() == before
