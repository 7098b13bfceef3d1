"""The lease of a stage's folder: the newest run has it, and nobody takes it while something is renamed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nmt.training.lease import LeaseLost, taken_by_run, taken_by_workers


def test_the_newest_run_has_the_lease(tmp_path: Path) -> None:
    older = taken_by_run(tmp_path)
    older.check()
    newer = taken_by_run(tmp_path)
    newer.check()
    with pytest.raises(LeaseLost, match="belongs to a newer run"):
        older.check()
    with pytest.raises(LeaseLost), older.held():
        pytest.fail("the block is not entered")


def test_the_newest_workers_of_a_run_have_the_lease(tmp_path: Path) -> None:
    run = taken_by_run(tmp_path).run
    first = taken_by_workers(tmp_path, run)
    second = taken_by_workers(tmp_path, run)
    second.check()
    with pytest.raises(LeaseLost):
        first.check()


def test_workers_of_an_older_run_cannot_take_it_back(tmp_path: Path) -> None:
    older = taken_by_run(tmp_path).run
    newer = taken_by_workers(tmp_path, taken_by_run(tmp_path).run)
    with pytest.raises(LeaseLost):
        taken_by_workers(tmp_path, older)
    newer.check()


def test_a_new_run_waits_until_what_is_being_renamed_is_in_its_place(tmp_path: Path) -> None:
    older = taken_by_run(tmp_path)
    taken = threading.Event()

    def take() -> None:
        taken_by_run(tmp_path)
        taken.set()

    with older.held():
        threading.Thread(target=take, daemon=True).start()
        assert not taken.wait(0.3)
        older.check()
    assert taken.wait(30)
    with pytest.raises(LeaseLost):
        older.check()
