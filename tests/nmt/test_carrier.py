"""What carries training under Ray, without a Ray: errors, signals, and the number of workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError

from nmt.carrier import (
    _cause,
    _in_thread,
    ending_by_signals,
    failing_for_good,
    newest_state,
    train_under_ray,
    waiting_told,
)
from nmt.checkpoint import CheckpointConfig, TrainState, save_training
from nmt.config import RayConfig, TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.training.job import TrainJob
from nmt.training.optim import make_optimizer
from nmt.training.stopping import STOP_FILE, Stopped
from pipelines.config import AugmentConfig
from pipelines.errors import InputError

MODEL = RecurrentConfig(embedding_dim=6, hidden_dim=8)


def job_in(folder: Path) -> TrainJob:
    return TrainJob(
        model=MODEL, train=TrainConfig(), folder=str(folder), shards="", references="", tokenizer="",
        bleu_tokenize="13a", threads=1, augment=AugmentConfig(), weights={},
    )  # fmt: skip


def save_state(folder: Path, state: TrainState) -> None:
    from nmt.architectures import build_model

    model = build_model(MODEL, 11, 11)
    config = CheckpointConfig(model=MODEL, source_size=11, target_size=11, tokenizer="t" * 64, update=state.update)
    save_training(folder / "checkpoints", model, make_optimizer(TrainConfig(), model.parameters()), None, config, state)


def test_more_workers_at_the_least_than_at_the_most_are_refused() -> None:
    assert RayConfig(num_workers=3, min_workers=3).min_workers == 3
    with pytest.raises(ValidationError, match="min_workers is 4, and num_workers only 3"):
        RayConfig(num_workers=3, min_workers=4)


def test_the_newest_state_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_state(job_in(tmp_path)) is None
    for update in (9, 12):
        save_state(tmp_path, TrainState(update=update))
    state = newest_state(job_in(tmp_path))
    assert state is not None
    assert state.update == 12


@pytest.mark.parametrize(
    "error", [InputError("too long", where="row 3", remedy="Cut it"), FloatingPointError("not finite")]
)
def test_a_failure_for_good_is_raised_again_before_anything_is_done(tmp_path: Path, error: Exception) -> None:
    job = job_in(tmp_path).model_copy(update={"lease": "a"})
    with pytest.raises(type(error)), failing_for_good(job):
        raise error
    for run, expected in (("a", type(error)), ("b", ConnectionError)):
        with pytest.raises(expected) as raised, failing_for_good(job.model_copy(update={"lease": run})):
            raise ConnectionError("another failure, of another run")
        assert isinstance(raised.value, ConnectionError) or str(raised.value) == str(error)


def test_training_that_a_signal_has_ended_says_where(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="saved at update 12;") as raised, ending_by_signals(job_in(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
        save_state(tmp_path, TrainState(update=12))
    assert raised.value.status == 143


def test_a_failure_behind_a_signal_is_told_as_the_signals(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="saved at update 0;"), ending_by_signals(job_in(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("Ray is gone")


def test_a_signal_before_training_has_begun_ends_it_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(Stopped, match="ended by SIGTERM before training began") as raised,
        ending_by_signals(job_in(tmp_path), lambda: False),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert raised.value.status == 143
    assert not (tmp_path / STOP_FILE).exists()


@pytest.mark.parametrize(
    ("sessions", "max_failures", "expected"),
    [
        # What a session has reached and how it has failed; the last one comes to its end.
        ([(0, RayActorError), (0, RayActorError), (9, None)], 2, None),
        ([(0, RayActorError), (0, RayActorError), (0, RayActorError)], 2, RayActorError),
        ([(3, RayActorError), (5, RayActorError), (6, RayActorError), (9, None)], 1, None),
        ([(3, RayActorError), (3, RayActorError)], 1, RayActorError),
        ([(3, TrainingFailedError), (6, TrainingFailedError), (9, None)], 1, None),
        ([(0, TrainingFailedError)], 3, TrainingFailedError),
        ([(3, TrainingFailedError), (3, TrainingFailedError)], 3, TrainingFailedError),
        ([(3, TrainingFailedError)], 0, TrainingFailedError),
    ],
)
def test_training_is_started_again_while_checkpoints_come(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sessions: list[tuple[int, type[Exception] | None]],
    max_failures: int,
    expected: type[Exception] | None,
) -> None:
    left = iter(sessions)

    def session(job: TrainJob, config: RayConfig) -> None:
        update, failure = next(left)
        save_state(tmp_path, TrainState(update=update, stopped="max_epochs" if failure is None else None))
        if failure is not None:
            raise failure("gone")

    monkeypatch.setattr("nmt.carrier._session", session)
    config = RayConfig(max_failures=max_failures)
    if expected is None:
        train_under_ray(job_in(tmp_path), config)
    else:
        with pytest.raises(expected):
            train_under_ray(job_in(tmp_path), config)
    assert next(left, None) is None


def test_what_workers_wait_for_is_told_until_training_begins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nmt.carrier.WAITING_TOLD_EVERY_S", 0.02)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "memory": 1e9})
    config = RayConfig(num_workers=8, use_gpu=True)
    with caplog.at_level("INFO"), waiting_told(config, lambda: len(caplog.messages) == 2):
        deadline = time.monotonic() + 30
        while len(caplog.messages) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
    assert caplog.messages == [
        "training has not begun: 8 workers need 1 CPU, 1 GPU each, and all of Ray has 4 CPU, 0 GPU, some of it perhaps "
        "in use"
    ] * 2  # fmt: skip
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    caplog.clear()
    with caplog.at_level("INFO"), waiting_told(RayConfig(num_workers=4), lambda: bool(caplog.messages)):
        time.sleep(0.5)
    assert {record.levelname for record in caplog.records} == {"INFO"}  # they are only slow to start


def test_training_that_came_to_its_end_before_the_signal_did_is_finished(tmp_path: Path) -> None:
    with ending_by_signals(job_in(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
        save_state(tmp_path, TrainState(update=12, stopped="max_epochs"))


def test_a_failure_without_a_signal_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Ray is gone"), ending_by_signals(job_in(tmp_path)):
        raise RuntimeError("Ray is gone")


def test_work_in_a_thread_raises_what_it_raised_and_leaves_signals_to_the_main_thread() -> None:
    def work() -> None:
        assert threading.current_thread() is not threading.main_thread()
        raise InputError("no line", where="a.txt", remedy="Fill it")

    with pytest.raises(InputError, match="no line"):
        _in_thread(work)


def test_of_what_workers_raised_bad_input_and_a_full_disk_are_told() -> None:
    class Failed(Exception):
        def __init__(self, *failures: Exception) -> None:
            self.worker_failures = dict(enumerate(failures))

    class Wrapped(Exception):
        def __init__(self, error: Exception) -> None:
            self._base_exc = error

    bad, full = InputError("no line", where="a.txt", remedy="Fill it"), OSError(28, "No space left on device")
    assert _cause(Failed(RuntimeError("collateral"), Wrapped(bad))) is bad
    assert _cause(Failed(Wrapped(full))) is full
    assert _cause(Failed(Wrapped(RuntimeError("a fault")))) is None
    assert _cause(RuntimeError("of the controller")) is None
