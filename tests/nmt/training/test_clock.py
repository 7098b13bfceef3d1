"""The seconds of an update: those of computing are of the CPU, those of the sum over the workers of the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from nmt.training.clock import UpdateClock


def compute(seconds: float) -> None:
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        pass


@pytest.fixture
def clock() -> UpdateClock:
    return UpdateClock(torch.device("cpu"))


def test_computing_is_what_the_cpu_did_and_no_sleep(clock: UpdateClock) -> None:
    clock.begin()
    compute(0.05)
    time.sleep(0.2)  # as if another process had the CPU
    with clock.sum_over_workers():
        time.sleep(0.1)
    assert 0.05 <= clock.computing < 0.1
    assert 0.1 <= clock.summing < 0.25


def test_what_follows_the_passes_is_no_computing(clock: UpdateClock) -> None:
    clock.begin()
    compute(0.02)
    clock.end_computing()
    compute(0.1)
    with clock.sum_over_workers():
        pass
    assert 0.02 <= clock.computing < 0.06


@pytest.mark.parametrize("end", [UpdateClock.end_computing, UpdateClock.begin])
def test_each_update_is_timed_anew(clock: UpdateClock, end: Callable[[UpdateClock], None]) -> None:
    clock.begin()
    compute(0.05)
    with clock.sum_over_workers():
        time.sleep(0.05)
    clock.begin()
    end(clock)
    assert clock.computing < 0.02
    assert clock.summing == 0.0
