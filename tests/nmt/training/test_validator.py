"""When a validation is due, what its scores decide, and that a run that was killed neither doubles nor loses one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from nmt.checkpoint import TrainState, read_state, training_checkpoints
from nmt.config import TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.train import train
from nmt.training.metrics import read_metrics
from nmt.training.run import Run, _with_validations
from nmt.training.saver import save
from nmt.training.validation import Scores, metric_of
from nmt.training.validator import due, is_last, judged, settle, validation_record
from pipelines.stage import StageRun
from tests.nmt.conftest import ToyStages

MODEL = RecurrentConfig(embedding_dim=12, hidden_dim=16, dropout=0.1, attention="none")  # no maps to be drawn
TRAIN = TrainConfig(
    max_epochs=3, patience=20, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.004, warmup_updates=4,
    ema_decay=0.9, validate_updates=4, checkpoint_updates=3, log_updates=2, early_stopping_metric="loss",
)  # fmt: skip


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(TRAIN.model_dump() | changes)


def run_train(toy: ToyStages, root: Path, train_config: TrainConfig = TRAIN) -> StageRun:
    return train(MODEL, train_config, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, root, use_ray=False)


def validations(run: StageRun) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run.folder / "metrics.jsonl") if record["kind"] == "validation"]


def state_of(folder: Path) -> TrainState:
    return read_state(training_checkpoints(folder / "checkpoints")[-1])


# When


@pytest.mark.parametrize(
    ("changes", "state", "expected"),
    [
        ({}, {"update": 4, "updates_of_epoch": 4}, True),  # by updates
        ({}, {"update": 5, "updates_of_epoch": 5}, False),
        ({}, {"update": 5, "epoch": 1}, True),  # by epochs
        ({}, {"update": 0}, False),
        ({}, {"update": 4, "updates_of_epoch": 4, "validated_update": 4}, False),  # done
        ({}, {"update": 5, "epoch": 1, "validated_update": 5}, False),
        ({}, {"update": 4, "updates_of_epoch": 4, "pending_validations": ((4, 0),)}, False),  # asked for
        ({}, {"update": 8, "updates_of_epoch": 8, "pending_validations": ((4, 0),)}, True),
        ({"validate_updates": None}, {"update": 4, "updates_of_epoch": 4}, False),
        ({"validate_epochs": None}, {"update": 5, "epoch": 1}, False),
        ({"validate_epochs": 2}, {"update": 5, "epoch": 1}, False),
        ({"validate_epochs": 2}, {"update": 9, "epoch": 2}, True),
        ({"validate_epochs": 2}, {"update": 15, "epoch": 3}, True),  # the last
        ({"validate_epochs": None}, {"update": 15, "epoch": 3}, True),
        ({"max_updates": 7}, {"update": 7, "updates_of_epoch": 2, "epoch": 1}, True),
        ({"max_updates": 7}, {"update": 7, "updates_of_epoch": 2, "epoch": 1, "validated_update": 7}, False),
    ],
)
def test_the_state_alone_decides_whether_a_validation_is_due(
    changes: dict[str, Any], state: dict[str, Any], expected: bool
) -> None:
    assert due(config(**changes), TrainState(**state)) is expected


def test_the_last_state_is_that_of_the_last_epoch_or_of_the_last_update() -> None:
    assert is_last(config(), TrainState(update=20, epoch=3))
    assert not is_last(config(), TrainState(update=20, epoch=2, updates_of_epoch=6))
    assert is_last(config(max_updates=20), TrainState(update=20, epoch=2, updates_of_epoch=6))


# What it decides


def scores(bleu: float, loss: float = 1.0) -> dict[str, float]:
    return {"loss": loss, "bleu": bleu, "chrf": 100.0 - bleu}


def by_bleu(**changes: Any) -> TrainConfig:
    return config(early_stopping_metric="bleu", **changes)


def all_judged(train_config: TrainConfig, every: list[dict[str, float]]) -> list[TrainState]:
    """The states after validations at 10, 20, ..., each asked for at its update."""
    state, states = TrainState(), []
    for update, dev in zip(range(10, 10 * len(every) + 1, 10), every):
        asked = state.model_copy(update={"update": update, "pending_validations": ((update, 0), (update + 10, 0))})
        state = judged(asked, train_config, update, dev)
        states.append(state)
    return states


def test_the_best_is_kept_and_validations_without_a_better_one_are_counted() -> None:
    found = all_judged(by_bleu(patience=2), [scores(10.0), scores(12.0), scores(12.0), scores(13.0), scores(1.0)])
    assert [state.best_update for state in found] == [10, 20, 20, 40, 40]
    assert [state.validations_since_best for state in found] == [0, 0, 1, 0, 1]
    assert [state.validated_update for state in found] == [10, 20, 30, 40, 50]
    assert [state.stopped for state in found] == [None] * 5
    assert (found[-1].best_metric, found[-1].best_dev) == (13.0, scores(13.0))
    assert [state.pending_validations for state in found] == [((update + 10, 0),) for update in (10, 20, 30, 40, 50)]


def test_patience_stops_and_gives_up_what_was_asked_for_after_it() -> None:
    found = all_judged(by_bleu(patience=2), [scores(10.0), scores(9.0), scores(8.0)])
    assert [state.stopped for state in found] == [None, None, "patience"]
    assert found[-1].pending_validations == ()


@pytest.mark.parametrize(("metric", "best"), [("bleu", 20), ("chrf", 10), ("loss", 30), ("perplexity", 30)])
def test_the_metric_of_the_config_decides(metric: str, best: int) -> None:
    every = [scores(10.0, 2.0), scores(12.0, 3.0), scores(11.0, 1.0)]
    assert all_judged(config(early_stopping_metric=metric), every)[-1].best_update == best


def test_a_score_that_is_not_finite_is_never_better() -> None:
    by_loss = config(early_stopping_metric="loss", average_checkpoints=3)
    found = all_judged(by_loss, [scores(1.0, math.nan), scores(1.0, 5.0), scores(1.0, math.nan), scores(1.0, 4.0)])
    assert [state.best_update for state in found] == [0, 20, 20, 40]
    assert [state.validations_since_best for state in found] == [1, 0, 1, 0]
    assert found[-1].best_models == ((40, -4.0), (20, -5.0))


def test_a_model_whose_loss_is_not_finite_is_none_of_the_best_whatever_its_bleu() -> None:
    found = all_judged(
        by_bleu(average_checkpoints=3), [scores(10.0, 4.0), scores(12.0, math.nan), scores(9.0, math.inf)]
    )
    assert found[-1].best_models == ((10, 10.0),)
    assert found[-1].best_update == 10
    for state in found:  # what a checkpoint could not say
        assert TrainState.model_validate_json(state.model_dump_json()) == state


def test_the_n_best_models_are_known_the_earlier_of_equal_ones_first() -> None:
    every = [scores(bleu) for bleu in (10.0, 12.0, 10.0, 11.0, 12.0)]
    found = [state.best_models for state in all_judged(by_bleu(average_checkpoints=3), every)]
    assert found == [
        ((10, 10.0),),
        ((20, 12.0), (10, 10.0)),
        ((20, 12.0), (10, 10.0), (30, 10.0)),
        ((20, 12.0), (40, 11.0), (10, 10.0)),
        ((20, 12.0), (50, 12.0), (40, 11.0)),
    ]
    assert all_judged(by_bleu(), every)[-1].best_models == ((20, 12.0),)


def test_the_plateau_schedule_hears_of_each_validation() -> None:
    plateau = by_bleu(schedule="plateau", plateau_patience=2, plateau_factor=0.5)
    found = all_judged(plateau, [scores(bleu) for bleu in (10.0, 9.0, 8.0, 11.0, 10.0)])
    assert [state.plateau_rate for state in found] == [1.0, 1.0, 0.5, 0.5, 0.5]


def test_models_are_compared_by_what_grows_with_quality() -> None:
    dev = {"loss": 2.0, "bleu": 30.0, "chrf": 50.0}
    metrics = ("bleu", "chrf", "loss", "perplexity")
    assert [metric_of(config(early_stopping_metric=metric), dev) for metric in metrics] == [30.0, 50.0, -2.0, -2.0]


def test_a_record_has_all_scores_and_the_seconds_of_loss_and_of_search() -> None:
    found = Scores(dev=scores(30.0, 2.0), seconds=5.0, loss_seconds=1.0, search_seconds=3.5, samples=[], attention=[])
    record = validation_record(TrainState(best_update=7), 7, 1, found)
    assert record["perplexity"] == pytest.approx(math.e**2)
    assert {name: record[name] for name in ("kind", "update", "epoch", "loss", "bleu", "chrf", "best")} == {
        "kind": "validation", "update": 7, "epoch": 1, "loss": 2.0, "bleu": 30.0, "chrf": 70.0, "best": True,
    }  # fmt: skip
    assert (record["seconds"], record["loss_seconds"], record["search_seconds"]) == (5.0, 1.0, 3.5)
    assert validation_record(TrainState(best_update=3), 7, 1, found)["best"] is False


# In a run


@pytest.fixture(scope="module")
def undisturbed(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("undisturbed"))


def test_validations_come_by_updates_and_by_epochs_and_at_the_end(undisturbed: StageRun) -> None:
    state = state_of(undisturbed.folder)
    per_epoch, rest = divmod(state.update, 3)
    assert rest == 0
    ends = {per_epoch * number for number in (1, 2, 3)}
    records = validations(undisturbed)
    expected = sorted(ends | set(range(4, state.update + 1, 4)))
    assert [record["update"] for record in records] == expected
    assert [record["epoch"] for record in records] == [(update - 1) // per_epoch for update in expected]
    assert state.validated_update == state.update
    best = min(records, key=lambda record: record["loss"])
    assert [record["update"] for record in records if record["best"]][-1] == best["update"] == state.best_update
    counters = undisturbed.manifest.counters
    assert [counters[f"best_{name}"] for name in ("loss", "bleu", "chrf")] == [
        best[n] for n in ("loss", "bleu", "chrf")
    ]


def test_only_updates_may_ask_for_validations_and_the_last_is_validated_still(toy: ToyStages, tmp_path: Path) -> None:
    run = run_train(toy, tmp_path, config(validate_epochs=None, validate_updates=4, max_updates=9, max_epochs=10))
    assert [record["update"] for record in validations(run)] == [4, 8, 9]
    assert run.manifest.counters["stopped"] == "max_updates"


def test_early_stopping_within_an_epoch_ends_at_that_validation(toy: ToyStages, tmp_path: Path) -> None:
    # A learning rate that changes nothing: no later validation can be better than the first.
    changes = {"validate_epochs": None, "validate_updates": 1, "patience": 2, "learning_rate": 1e-30}
    run = run_train(toy, tmp_path, config(**changes))
    assert [record["update"] for record in validations(run)] == [1, 2, 3]
    counters = run.manifest.counters
    assert (counters["updates"], counters["stopped"], counters["best_update"]) == (3, "patience", 1)


def broken_off(toy: ToyStages, root: Path, train_config: TrainConfig, at: int, when: str) -> None:
    """Train until a validation at an update, and break off between its checkpoint and it, or between it and its own."""

    def failing(run: Run) -> None:
        if run.state.update == at and when == "before":
            save(run)
            raise RuntimeError("the machine is gone")
        settle(run)
        if run.state.update == at:
            raise RuntimeError("the machine is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmt.training.loop.settle", failing)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run_train(toy, root, train_config)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [4, 10, 15])
def test_a_run_that_broke_off_at_a_validation_neither_doubles_nor_loses_it(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path, at: int, when: str
) -> None:
    assert at in [record["update"] for record in validations(undisturbed)]
    broken_off(toy, tmp_path, TRAIN, at, when)
    found = run_train(toy, tmp_path)
    timed = {"seconds", "loss_seconds", "search_seconds", "time"}

    def told(run: StageRun) -> list[dict[str, Any]]:
        return [{name: value for name, value in r.items() if name not in timed} for r in validations(run)]

    assert told(found) == told(undisturbed)
    assert state_of(found.folder).best_models == state_of(undisturbed.folder).best_models
    assert found.manifest.counters["stopped"] == "max_epochs"


def test_a_checkpoint_from_before_these_fields_is_not_validated_again() -> None:
    old = TrainState.model_validate({"update": 10, "epoch": 2, "best_update": 5, "best_metric": 3.0})
    found = _with_validations(old)
    assert (found.validated_update, found.best_models) == (10, ((5, 3.0),))
    within = _with_validations(TrainState.model_validate({"update": 10, "epoch": 2, "updates_of_epoch": 3}))
    assert (within.validated_update, within.best_models) == (9, ())
    new = TrainState.model_validate({"update": 10, "epoch": 2, "validated_update": 5})
    assert _with_validations(new) is new
