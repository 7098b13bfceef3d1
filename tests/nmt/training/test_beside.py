"""Validation beside training publishes and records what validation in its place does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from nmt.checkpoint import TrainState, load_model, read_state, training_checkpoints
from nmt.config import RayConfig, TrainConfig, check_beside
from nmt.model.recurrent_config import RecurrentConfig
from nmt.ray_session import ray_session
from nmt.train import train
from nmt.training import beside, loop, validator
from nmt.training import run as run_module
from nmt.training.beside import RayValidations, reserved, weights_folder
from nmt.training.job import BesideConfig, TrainJob
from nmt.training.metrics import read_metrics
from nmt.training.run import Run
from nmt.training.step import World
from nmt.training.validation import Scores, score_model
from pipelines.errors import InputError
from pipelines.stage import StageRun
from tests.nmt.conftest import ToyStages
from tests.nmt.training.test_validation import job_of

MODEL = RecurrentConfig(embedding_dim=12, hidden_dim=16, dropout=0.1, attention="none")  # no maps to be drawn
TRAIN = TrainConfig(
    max_epochs=4, patience=20, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.004, warmup_updates=4,
    ema_decay=0.9, validate_updates=2, checkpoint_updates=3, log_updates=2, average_checkpoints=2,
    early_stopping_metric="loss",
)  # fmt: skip


def run_train(
    toy: ToyStages, root: Path, *, workers: int | None, validation_workers: int = 0, **changes: Any
) -> StageRun:
    """Train under Ray with so many workers of each kind, or in this process for no `workers`."""
    settings = {"num_workers": workers or 1, "validation_workers": validation_workers}
    config = TrainConfig.model_validate(TRAIN.model_dump() | changes)
    profile = toy.ray.model_copy(update=settings)
    return train(
        MODEL, config, toy.encoded, toy.cleaned, toy.tokenizer, profile, root, use_ray=workers is not None
    )  # fmt: skip


def validations(run: StageRun) -> list[dict[str, Any]]:
    """The records of validation in the order of the file, without what time has measured."""
    timed = {"seconds", "loss_seconds", "search_seconds", "time"}
    records = [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "validation"]
    return [{name: value for name, value in record.items() if name not in timed} for record in records]


def state_of(run: StageRun) -> TrainState:
    return read_state(training_checkpoints(run.folder / "checkpoints")[-1])


def assert_same_outcome(found: StageRun, expected: StageRun) -> None:
    """Hold published weights, records and what was decided against each other, bit for bit."""
    assert validations(found) == validations(expected)
    weights = load_file(expected.folder / "best" / "model.safetensors")
    published = load_file(found.folder / "best" / "model.safetensors")
    assert weights.keys() == published.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in weights.items())
    for run in (found, expected):
        config = json.loads((run.folder / "best" / "config.json").read_text(encoding="utf-8"))
        assert config["dev"]["loss"] == expected.manifest.counters["best_loss"]
    names = ("best_update", "best_metric", "best_dev", "best_models", "mean_dev", "validated_update", "stopped")
    assert {name: getattr(state_of(found), name) for name in names} == {
        name: getattr(state_of(expected), name) for name in names
    }
    assert state_of(found).pending_validations == ()


@pytest.fixture(scope="module")
def inline(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("inline"), workers=None)


def test_one_training_and_one_validation_worker_publish_and_record_what_inline_does(
    toy: ToyStages, inline: StageRun, tmp_path: Path
) -> None:
    found = run_train(toy, tmp_path, workers=1, validation_workers=1)
    assert_same_outcome(found, inline)
    assert len(validations(found)) > 8


@pytest.mark.slow
def test_two_training_workers_judge_alike_what_is_validated_beside_them(toy: ToyStages, tmp_path: Path) -> None:
    expected = run_train(toy, tmp_path / "inline", workers=2)
    assert_same_outcome(run_train(toy, tmp_path / "beside", workers=2, validation_workers=1), expected)


# Without Ray: validations that come late, in this process


class Late:
    """Scores weights at once, and hands out none of it before so many more were asked for, or training waits."""

    def __init__(self, run: Run, late: int) -> None:
        self.run, self.late = run, late
        self.scores: dict[int, Scores] = {}
        self.closed = False

    def ask(self, update: int) -> None:
        self.scores[update] = validator._score_asked(self.run, update)

    def finished(self, updates: list[int], seconds: float) -> list[Scores]:
        if self.run.saver is not None:
            self.run.saver.wait()  # asking is the last thing that it does
        number = 1 if seconds else max(0, len(updates) - self.late)
        return [self.scores[update] for update in updates[:number]]

    def score(self, folder: Path) -> Scores:
        model, _ = load_model(folder, tokenizer=self.run.tokenizer.digest)
        return score_model(model, self.run.dev, self.run.references, self.run.tokenizer, self.run.job, World())

    def close(self) -> None:
        self.closed = True


def stand_in(patch: pytest.MonkeyPatch) -> list[Late]:
    """Have training in this process validate beside itself; return what stands in for Ray, one for each start."""
    made: list[Late] = []
    start = loop.start

    def starting(job: TrainJob, *arguments: Any) -> Run:
        run = start(job, *arguments)
        run.job = job.model_copy(update={"beside": BesideConfig(workers=2, places="", use_gpu=False, max_retries=0)})
        made.append(Late(run, late=2))
        run.beside = made[-1]
        for update, _ in run.state.pending_validations:
            made[-1].ask(update)
        return run

    patch.setattr(loop, "start", starting)
    return made


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    return stand_in(monkeypatch)


def test_scores_that_come_late_decide_the_same(
    toy: ToyStages, inline: StageRun, tmp_path: Path, late: list[Late]
) -> None:
    found = run_train(toy, tmp_path, workers=None)
    assert_same_outcome(found, inline)
    assert [fake.closed for fake in late] == [True]
    # Training goes on meanwhile: the second validation, at update 4, is judged two validations later.
    order = [(record["kind"], record["update"]) for record in read_metrics(found.folder / "metrics.jsonl")]
    assert order.index(("validation", 4)) > order.index(("train", 6))


def test_early_stopping_by_late_scores_publishes_the_same_model(
    toy: ToyStages, tmp_path: Path, late: list[Late]
) -> None:
    # A learning rate that changes nothing: no later validation can be better than the first.
    changes = {"learning_rate": 1e-30, "patience": 3, "validate_updates": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "start", run_module.start)
        expected = run_train(toy, tmp_path / "inline", workers=None, **changes)
    assert (expected.manifest.counters["stopped"], expected.manifest.counters["updates"]) == ("patience", 4)
    found = run_train(toy, tmp_path / "beside", workers=None, **changes)
    assert_same_outcome(found, expected)
    assert found.manifest.counters["updates"] == 6  # of which the last two were done for nothing


def broken_off(toy: ToyStages, root: Path, at: int) -> TrainState:
    """Train until the checkpoint of an update is written, and break off; return its state."""
    save = loop.save

    def failing(run: Run) -> None:
        save(run)
        if run.state.update >= at:
            raise RuntimeError("the machine is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save", failing)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run_train(toy, root, workers=None)
    return read_state(training_checkpoints(next(root.glob("train-*")) / "checkpoints")[-1])


@pytest.mark.parametrize("at", [3, 6, 9])
def test_validations_that_are_open_at_a_restart_are_done_then(
    toy: ToyStages, inline: StageRun, tmp_path: Path, late: list[Late], at: int
) -> None:
    state = broken_off(toy, tmp_path, at)
    assert len(state.pending_validations) >= 1
    assert state.validated_update < state.pending_validations[0][0]
    assert_same_outcome(run_train(toy, tmp_path, workers=None), inline)
    assert len(late) == 2


def test_a_run_that_has_no_workers_for_open_validations_any_more_does_them_itself(
    toy: ToyStages, inline: StageRun, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        assert broken_off(toy, tmp_path, 6).pending_validations
    assert_same_outcome(run_train(toy, tmp_path, workers=None), inline)


def test_weights_of_an_open_validation_that_are_gone_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="validate-00000004"):
        weights_folder(tmp_path, 4)
    (tmp_path / "best-00000004").mkdir()
    assert weights_folder(tmp_path, 4) == tmp_path / "best-00000004"
    (tmp_path / "validate-00000004").mkdir()
    assert weights_folder(tmp_path, 4) == tmp_path / "validate-00000004"


def test_the_plateau_schedule_is_refused_before_anything_starts(toy: ToyStages, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="plateau") as refused:
        run_train(toy, tmp_path, workers=1, validation_workers=1, schedule="plateau")
    assert "validation_workers: 0" in str(refused.value)
    assert not ray.is_initialized()
    assert not list(tmp_path.iterdir())
    check_beside(TrainConfig(schedule="plateau"), RayConfig())
    check_beside(TrainConfig(), RayConfig(validation_workers=2))


@pytest.fixture(scope="module")
def session(toy: ToyStages) -> Iterator[None]:
    with ray_session(toy.ray, num_cpus=2):
        yield


def test_scores_are_handed_out_in_the_order_of_the_updates(
    session: None, toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_for_the_first(job_json: dict[str, Any], folder: str) -> str:
        time.sleep(2.0 if folder.endswith("2") else 0.0)
        if folder.endswith("8"):
            raise ValueError("no such weights")
        return folder

    monkeypatch.setattr(beside, "_score", slow_for_the_first)
    profile = RayConfig(validation_workers=2)
    job = job_of(toy, tmp_path)
    for update in (2, 4, 6, 8):
        (job.checkpoints / f"validate-{update:08d}").mkdir(parents=True)
    with reserved(profile) as config:
        assert config is not None
        validations = RayValidations(job, config)
        for update in (2, 4, 6):
            validations.ask(update)
        assert validations.finished([2, 4, 6], 0.0) == []
        found: list[Any] = []
        while len(found) < 3:
            found += validations.finished([2, 4, 6][len(found) :], 30.0)
        assert [name[-1] for name in found] == ["2", "4", "6"]
        assert validations.finished([8], 0.0) == []  # whose weights are still being written
        validations.ask(8)
        with pytest.raises(ValueError, match="no such weights"):
            validations.finished([8], 30.0)
        validations.close()


def test_a_validation_whose_process_is_killed_is_done_again(
    session: None, toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_once(job_json: dict[str, Any], folder: str) -> str:
        mark = Path(folder) / "killed"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return folder

    monkeypatch.setattr(beside, "_score", killed_once)
    job = job_of(toy, tmp_path)
    folder = job.checkpoints / "validate-00000002"
    folder.mkdir(parents=True)
    with reserved(RayConfig(validation_workers=1)) as config:
        assert config is not None
        validations = RayValidations(job, config)
        validations.ask(2)
        assert validations.finished([2], 60.0) == [str(folder)]
        validations.close()


def test_places_that_a_cluster_has_not_are_refused(session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_PLACES_TIMEOUT_S", 1.0)
    with pytest.raises(InputError, match="9 validation workers"), reserved(RayConfig(validation_workers=9)):
        pass
    with reserved(RayConfig()) as config:
        assert config is None
