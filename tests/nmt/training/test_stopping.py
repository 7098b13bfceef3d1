"""Requests to stop: what signals leave for the workers, and what the workers look at."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nmt.training import stopping
from nmt.training.lease import Lease, LeaseLost, taken_by_run
from nmt.training.stopping import STOP_FILE, LeaveWatch, Stopped, ask_to_leave, leave_at_sigterm, stopped_by_signals


@pytest.fixture(autouse=True)
def _nobody_leaves() -> Iterator[None]:
    stopping._leaving.clear()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    stopping._leaving.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_asks_the_workers_and_the_second_ends_at_once(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="ended at once by a second signal") as raised, stopped_by_signals(tmp_path):
        send(number)
        assert (tmp_path / STOP_FILE).exists()
        send(number)
    assert raised.value.status == status
    assert signal.getsignal(number) == before
    assert not (tmp_path / STOP_FILE).exists()


def test_once_the_workers_have_left_it_is_said_where(tmp_path: Path) -> None:
    with stopped_by_signals(tmp_path) as request:
        request.raise_stopped(4)  # nobody has asked
        send(signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM, saved at update 1,234; the same command") as raised:
            request.raise_stopped(1234)
    assert raised.value.status == 143


def test_a_request_to_an_earlier_run_is_no_request_to_this_one(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).touch()
    with stopped_by_signals(tmp_path):
        assert not (tmp_path / STOP_FILE).exists()


def test_outside_the_main_thread_signals_stay_as_they_are(tmp_path: Path) -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with stopped_by_signals(tmp_path):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def lease_of(folder: Path) -> Lease:
    return taken_by_run(folder)


def test_the_worker_that_writes_sees_the_request_at_its_next_look_and_looks_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("nmt.training.stopping.time.monotonic", lambda: now)
    watch = LeaveWatch(tmp_path, lease_of(tmp_path))
    assert not watch.asks()
    (tmp_path / STOP_FILE).touch()
    now = 100.9
    assert not watch.asks()
    now = 101.0
    assert watch.asks()
    (tmp_path / STOP_FILE).unlink()
    now = 105.0
    assert watch.asks(), "what has been asked for stays so"


def test_other_workers_leave_the_file_to_that_one(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).touch()
    assert not LeaveWatch(tmp_path, None).asks()


def test_a_worker_leaves_where_its_machine_is_to_go(tmp_path: Path) -> None:
    assert LeaveWatch(tmp_path, None, lambda: True).asks()
    assert not LeaveWatch(tmp_path, None, lambda: False).asks()


def test_a_worker_whose_folder_is_a_newer_runs_ends_at_its_next_look(tmp_path: Path) -> None:
    watch = LeaveWatch(tmp_path, lease_of(tmp_path))
    lease_of(tmp_path)
    with pytest.raises(LeaseLost):
        watch.asks()


def test_sigterm_of_a_worker_makes_it_ask_and_a_second_one_is_no_longer_caught(tmp_path: Path) -> None:
    watch = LeaveWatch(tmp_path, None)
    leave_at_sigterm()
    assert not watch.asks()
    send(signal.SIGTERM)
    assert watch.asks()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_new_start_of_a_worker_forgets_what_was_asked_before(tmp_path: Path) -> None:
    ask_to_leave()
    leave_at_sigterm()
    assert not LeaveWatch(tmp_path, None).asks()
