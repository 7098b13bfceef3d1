"""What a run has cost: all of its starts counted, the killed ones too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nmt.checkpoint import TrainState
from nmt.config import PricesConfig
from nmt.training import ledger as ledger_module
from nmt.training.ledger import ATTEMPTS_FILE, Attempt, attempt, ledger, read_attempts
from nmt.training.step import World

HOUR = 3600.0


def worker(
    folder: Path, update: int, *, size: int = 2, rank: int = 0, last: dict[str, Any] | None = None, device: str = "cpu"
) -> Any:
    metrics = SimpleNamespace(last=last) if rank == 0 else None
    world = World(rank, size, torch.device(device))
    return SimpleNamespace(
        job=SimpleNamespace(beside=None, folder=str(folder)),
        world=world,
        metrics=metrics,
        state=TrainState(update=update),
    )


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets the time that an attempt ends at."""
    return lambda seconds: monkeypatch.setattr(ledger_module.time, "time", lambda: seconds)


def test_an_attempt_is_noted_at_its_start_and_at_its_end(tmp_path: Path, at: Any) -> None:
    run = worker(tmp_path, 100, device="cuda")
    with attempt(run, 1000.0):
        begun = Attempt(started=1000.0, ended=None, update=100, reached=100, num_workers=2, gpus=2)
        assert read_attempts(tmp_path / ATTEMPTS_FILE) == [begun]
        run.state = TrainState(update=140)
        at(1500.0)
    (ended,) = read_attempts(tmp_path / ATTEMPTS_FILE)
    assert ended.memory_gib is not None and ended.memory_gib > 0.05
    assert ended == begun.model_copy(
        update={"ended": 1500.0, "reached": 140, "memory_gib": ended.memory_gib, "gpu_memory_gib": 0.0}
    )


def test_an_attempt_that_fails_is_noted_too(tmp_path: Path, at: Any) -> None:
    at(1500.0)
    with pytest.raises(FloatingPointError), attempt(worker(tmp_path, 0), 1000.0):
        raise FloatingPointError
    assert [entry.ended for entry in read_attempts(tmp_path / ATTEMPTS_FILE)] == [1500.0]


def test_only_the_worker_of_rank_zero_notes_anything(tmp_path: Path) -> None:
    with attempt(worker(tmp_path, 0, rank=1), 1000.0):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("last", "ended", "reached"),
    [
        ({"update": 90, "time": 4600.0}, 4600.0, 90),
        ({"update": 30, "time": 900.0}, 1000.0, 40),  # of a start before it: killed before its first record
        ({"update": 90}, 1000.0, 40),  # of an older version, which had no times
        (None, 1000.0, 40),
    ],
)
def test_a_killed_attempt_ended_at_its_last_sign_of_life(
    tmp_path: Path, at: Any, last: dict[str, Any] | None, ended: float, reached: int
) -> None:
    killed = Attempt(started=1000.0, ended=None, update=40, reached=40, num_workers=3, gpus=0)
    (tmp_path / ATTEMPTS_FILE).write_text(killed.model_dump_json() + "\n")
    at(9000.0)
    with attempt(worker(tmp_path, 60, last=last), 8000.0):
        pass
    first, second = read_attempts(tmp_path / ATTEMPTS_FILE)
    assert first == killed.model_copy(update={"ended": ended, "reached": reached})
    assert (second.started, second.ended, second.update) == (8000.0, 9000.0, 60)


ATTEMPTS = (
    # Two workers for two hours, killed at update 500, of which 400 were kept; then four for an hour and a half.
    Attempt(started=0.0, ended=2 * HOUR, update=0, reached=500, num_workers=2, gpus=0),
    Attempt(started=10 * HOUR, ended=11.5 * HOUR, update=400, reached=1000, num_workers=4, gpus=4),
)
STATE = TrainState(
    update=1000, target_tokens=5_400_000, seconds=3 * HOUR, spent={"validation": 0.3 * HOUR, "data": 0.015 * HOUR}
)


def test_the_ledger_counts_the_hours_of_all_attempts(tmp_path: Path) -> None:
    lines = "".join(entry.model_dump_json() + "\n" for entry in ATTEMPTS)
    (tmp_path / ATTEMPTS_FILE).write_text(lines)
    expected = {
        "wall_hours": 3.5,
        "worker_hours": 2 * 2 + 1.5 * 4,
        "gpu_hours": 6.0,
        "again_hours": 0.5,
        "restarts": 1,
        "updates": 1000,
        "updates_again": 100,
        "target_tokens": 5_400_000,
        "target_tokens_per_s": 500.0,
        "shares": {"data": 0.005, "validation": 0.1},
    }
    assert ledger(tmp_path, STATE, PricesConfig()) == expected
    prices = PricesConfig(currency="EUR", worker_hour=1.5, machine_hour=0.25)
    cost = {"cost": round(10.0 * 1.5 + 3.5 * 0.25, 2), "currency": "EUR"}
    assert ledger(tmp_path, STATE, prices) == expected | cost
    (tmp_path / ATTEMPTS_FILE).write_text(
        lines.replace('"memory_gib":null', '"memory_gib":1.5', 1).replace("null}", "2.25}")
    )
    assert ledger(tmp_path, STATE, prices) == expected | cost | {"memory_gib": 1.5, "gpu_memory_gib": 2.25}
    # Workers that validate beside training are there as long as the others of their start.
    attempts = [ATTEMPTS[0], ATTEMPTS[1].model_copy(update={"validation_workers": 2, "gpus": 6})]
    (tmp_path / ATTEMPTS_FILE).write_text("".join(entry.model_dump_json() + "\n" for entry in attempts))
    beside = ledger(tmp_path, STATE, prices)
    assert beside["worker_hours"] == 2 * 2 + 1.5 * 6
    assert beside["gpu_hours"] == 1.5 * 6
    assert beside["cost"] == round(13.0 * 1.5 + 3.5 * 0.25, 2)


def test_a_run_of_an_older_version_has_a_ledger_without_attempts(tmp_path: Path) -> None:
    found = ledger(tmp_path, TrainState(update=3, seconds=2.0, target_tokens=10), PricesConfig())
    assert (found["wall_hours"], found["restarts"], found["shares"], found["target_tokens_per_s"]) == (0, 0, {}, 5.0)
