"""Overlapping work: nothing is lost, nothing waits for ever, and errors come out where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from saev_core.support.threads import read_ahead, write_behind


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_ahead_gives_the_same_items_and_then_the_error() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise RuntimeError("the sixth")

    some = read_ahead(items(), 2)
    assert [next(some) for _ in range(5)] == list(range(5))
    with pytest.raises(RuntimeError, match="the sixth"):
        next(some)
    assert list(read_ahead(iter(range(3)), 1)) == [0, 1, 2]


def test_ahead_stays_within_its_depth() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    with closing(read_ahead(items(), 3)) as some:
        assert next(some) == 0
        time.sleep(0.05)
        assert len(made) <= 1 + 3 + 1


def test_ahead_closes_its_items_when_it_is_closed() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    with closing(read_ahead(items(), 2)) as some:
        next(some)
    assert closed == ["saev-ahead"]


def test_behind_works_off_everything_in_order() -> None:
    got: list[int] = []
    with write_behind(got.extend, 2) as hand_over:
        for i in range(50):
            hand_over(i)
    assert got == list(range(50))


def test_behind_lets_only_so_many_wait() -> None:
    got: list[int] = []

    def slowly(items: Iterator[int]) -> None:
        for item in items:
            time.sleep(0.01)
            got.append(item)

    with write_behind(slowly, 2) as hand_over:
        for i in range(10):
            hand_over(i)
            assert i + 1 - len(got) <= 2 + 2  # waiting, in hand, and just taken


@pytest.mark.parametrize("after", [0, 3, 9])
def test_an_error_behind_reaches_the_one_who_hands_over(after: int) -> None:
    def fails(items: Iterator[int]) -> None:
        for item in items:
            if item == after:
                raise RuntimeError("the disk is full")

    def hand_ten() -> None:
        with write_behind(fails, 1) as hand_over:
            for i in range(10):
                hand_over(i)

    with pytest.raises(RuntimeError, match="the disk is full"):
        hand_ten()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_caller_that_fails_drops_the_unfinished_after_the_finished(error: type[BaseException]) -> None:
    seen: list[object] = []

    def work(items: Iterator[int]) -> None:
        try:
            for item in items:
                seen.append(item)
            seen.append("whole")
        except BaseException as failure:
            seen.append(type(failure).__name__)
            raise

    def hand_two_and_fail() -> None:
        with write_behind(work, 4) as hand_over:
            hand_over(1)
            hand_over(2)
            raise error

    with pytest.raises(error):
        hand_two_and_fail()
    assert seen == [1, 2, "_Abandoned"]


def test_the_callers_torch_threads_stay() -> None:
    before = torch.get_num_threads()
    with write_behind(list, 1) as hand_over:
        hand_over(1)
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
