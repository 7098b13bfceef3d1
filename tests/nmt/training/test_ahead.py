"""Work ahead of the loop: in order, bounded, with its errors, and ended with its block."""

from __future__ import annotations

import threading
import time

import pytest

from nmt.training.ahead import Ahead


def test_what_is_made_comes_in_the_order_of_the_items() -> None:
    with Ahead(lambda number: number * 10, range(20)) as ahead:
        assert list(ahead) == [*range(0, 200, 10)]
    with Ahead(str, []) as ahead:
        assert list(ahead) == []


def test_the_next_two_are_made_while_the_loop_is_at_something_else_and_no_more() -> None:
    made: list[int] = []
    with Ahead(made.append, range(10)) as ahead:
        for taken, _ in enumerate(ahead, start=1):
            deadline = time.monotonic() + 30
            while len(made) < min(taken + 2, 10) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert made == [*range(min(taken + 2, 10))]


def test_it_is_made_by_another_thread() -> None:
    with Ahead(lambda _: threading.get_ident(), range(3)) as ahead:
        assert threading.get_ident() not in set(ahead)


def test_what_fails_is_raised_where_it_is_taken() -> None:
    with Ahead(lambda number: 1 // (2 - number), range(5)) as ahead:
        found = iter(ahead)
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(found)


def test_the_seconds_that_the_loop_waited_are_those_of_the_last_item() -> None:
    gate = threading.Event()

    def make(number: int) -> int:
        if number == 0:
            time.sleep(0.2)
        if number == 1:
            gate.wait(30)
        return number

    with Ahead(make, range(2)) as ahead:
        found = iter(ahead)
        next(found)
        assert 0.19 < ahead.waited < 10
        gate.set()
        time.sleep(0.2)
        next(found)
        assert ahead.waited < 0.1


def test_a_block_that_is_left_early_leaves_no_thread_and_begins_nothing_more() -> None:
    made: list[int] = []
    before = threading.active_count()
    with pytest.raises(KeyError), Ahead(made.append, range(1000)) as ahead:
        for _ in ahead:
            raise KeyError
    assert threading.active_count() == before
    assert len(made) <= 3
