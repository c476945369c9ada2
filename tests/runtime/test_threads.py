import contextlib
import threading
import time
import types

import pytest

from npgpt import GPT2, GPT2Config
from npgpt.runtime import threads
from npgpt.runtime.errors import ConfigError
from npgpt.training.train import TrainConfig


def model_of(width, **changes):
    return GPT2(GPT2Config(n_embd=width, n_head=1, n_layer=1, vocab_size=8, n_positions=8, **changes), seed=None)


@pytest.mark.parametrize("width, tokens, count", [
    (threads.LEAST_WIDTH, 1, 5), (threads.LEAST_WIDTH - 1, 1, 1),                    # a wide model, whatever the tokens
    (32, threads.LEAST_WORK // 32, 5), (32, threads.LEAST_WORK // 32 - 1, 1)])       # a narrow one with many
def test_without_a_number_of_threads_there_are_as_many_as_pay(monkeypatch, width, tokens, count):
    assert threads.available() >= 1
    monkeypatch.setattr(threads, "available", lambda: 5)  # on any machine
    assert threads.that_pay(model_of(width), tokens) == count
    assert threads.that_pay(model_of(width), tokens, 3) == 3


@pytest.mark.parametrize("count", [0, -1, threads.MOST + 1, 1_000_000, 2.0, True, "2"])
def test_so_many_threads_are_refused(count):
    for use in (threads.checked, lambda count: threads.that_pay(model_of(8), 2, count),
                lambda count: TrainConfig(threads=count)):
        with pytest.raises(ConfigError, match=f"threads = {count!r}: it must be a whole number from 1 to 1,024"):
            use(count)


@pytest.mark.parametrize("count", [1, 4 * threads.available(), threads.MOST])
def test_more_threads_than_cores_are_allowed(count):
    """The number of threads decides the last bits of a run, and the run may come from another machine."""
    assert threads.that_pay(model_of(8), 2, count) == TrainConfig(threads=count).threads == count


@pytest.mark.parametrize("many", [threads.blas_threads, threads.workers])
def test_the_setting_of_blas_is_put_back(many):
    before = threads.available()
    with many(1):
        assert threads.available() == 1
    assert threads.available() == before
    with pytest.raises(ArithmeticError), many(1):
        raise ArithmeticError
    assert threads.available() == before


@pytest.mark.parametrize("items, allowed, expected", [(5, 3, 3), (2, 3, 2), (5, 1, 1), (1, 3, 1), (0, 3, 0)])
def test_items_are_spread_over_threads(items, allowed, expected):
    """Each thread waits for the others at its first item, so fewer threads would never get past it."""
    meeting = threading.Barrier(max(expected, 1), timeout=10)
    seen = {}

    def work(item):
        if item < expected:
            meeting.wait()
        seen[item] = threading.get_ident(), threads.available()
        return 10 * item

    with threads.workers(allowed):
        assert threads.crew() == allowed
        assert threads.spread(work, range(items)) == [10 * item for item in range(items)]
    assert threads.crew() == 1
    assert sorted(seen) == list(range(items))
    assert len({thread for thread, _ in seen.values()}) == expected
    assert {blas for _, blas in seen.values()} <= {1}


def test_without_workers_the_caller_works_alone():
    assert threads.spread(lambda _: threading.current_thread(), [0, 1]) == [threading.current_thread()] * 2


def test_an_error_in_spread_work_comes_out():
    def work(item):
        raise ArithmeticError(item)

    with threads.workers(2), pytest.raises(ArithmeticError, match=r"[01]"):
        threads.spread(work, [0, 1])


def test_an_error_of_the_caller_waits_for_the_others():
    """Otherwise they would still write into arrays that no longer belong to the caller."""
    done = []

    def work(item):
        if threading.current_thread() is threading.main_thread():
            raise ArithmeticError
        time.sleep(0.1)
        done.append(item)

    with threads.workers(2):
        with pytest.raises(ArithmeticError):
            threads.spread(work, [0, 1])
        assert len(done) == 1


def test_an_error_of_a_helper_comes_out():
    meeting = threading.Barrier(2, timeout=10)

    def work(item):
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ArithmeticError

    with threads.workers(2), pytest.raises(ArithmeticError):
        threads.spread(work, [0, 1])


@pytest.mark.parametrize("inner", [1, 2, 4])
def test_workers_inside_workers_are_put_back(inner):
    with threads.workers(3):
        with threads.workers(inner):
            assert threads.crew() == inner
            assert len(threads.spread(lambda item: item, range(9))) == 9
        assert threads.crew() == 3
        assert threads.that_pay(model_of(threads.LEAST_WIDTH), 1) == 3
        assert len(threads.spread(lambda item: item, range(9))) == 9


@pytest.mark.parametrize("count", [1, 2])
def test_after_an_error_nothing_is_begun(count):
    begun = []

    def work(item):
        begun.append(item)
        if item == 0:
            raise ArithmeticError
        time.sleep(0.05)

    with threads.workers(count), pytest.raises(ArithmeticError):
        threads.spread(work, range(40))
    assert len(begun) <= 2


def test_in_another_thread_the_work_stays_on_it():
    seen = []

    def call():
        with threads.workers(2):
            seen.append(threads.crew())
            threads.spread(lambda _: seen.append(threading.current_thread()), [0, 1])

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert seen == [1, caller, caller]


def test_blocks_of_two_threads_that_overlap_leave_blas_as_it_was(monkeypatch):
    class Blas:
        """One setting for all threads. (OpenBLAS has that too, but what another thread sets may come late.)"""

        count = 4

        def info(self):
            return [{"num_threads": self.count}]

        def limit(self, limits):
            before, self.count = self.count, limits
            return types.SimpleNamespace(restore_original_limits=lambda: setattr(self, "count", before))

    blas, entered, leave = Blas(), threading.Event(), threading.Event()
    monkeypatch.setattr(threads, "blas", lambda: blas)

    def call():
        with threads.workers(2):
            entered.set()
            assert leave.wait(10)

    def overlap(block):
        entered.clear()
        leave.clear()
        other = threading.Thread(target=call)
        with block:
            other.start()
            assert entered.wait(10)
            inside = blas.count
        leave.set()
        other.join()
        return inside

    assert overlap(threads.workers(3)) == 1
    assert blas.count == 4
    assert overlap(contextlib.nullcontext()) == 2  # and the setting is free again
    assert blas.count == 4
