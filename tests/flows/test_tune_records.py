from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flows.config import TuneConfig
from flows.tune_records import (
    TrainingRecord,
    TrialRecord,
    best_first,
    best_of,
    read_records,
    scores_of,
    write_records,
)
from pipelines.errors import InputError

SPACE = {"train.learning_rate": {"choice": [0.1, 0.2]}}
BLEU = TuneConfig.model_validate({"space": SPACE})
LOSS = TuneConfig.model_validate({"space": SPACE, "metric": "loss"})


def training(name: str, *scores: float, fold: int | None = None, finished: bool = True) -> TrainingRecord:
    return TrainingRecord(training=name, fold=fold, values=scores, scores=scores, seconds=2.0, finished=finished)


def record(number: int, *trainings: TrainingRecord, state: str = "done") -> TrialRecord:
    found = TrialRecord.model_validate(
        {"trial": number, "point": {"train.learning_rate": 0.1}, "metric": "bleu", "rule": {}, "state": state}
    )
    found = found.model_copy(
        update={"trainings": tuple(TrainingRecord(training=one.training, fold=one.fold) for one in trainings)}
    )
    for one in trainings:
        found = found.with_training(one)
    return found


def test_the_score_after_a_validation_is_that_of_the_weights_kept_by_then(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "update": 1, "loss": 9.0},
        {"kind": "validation", "update": 2, "loss": 5.0, "bleu": 10.0, "best": True},
        {"kind": "validation", "update": 4, "loss": 4.0, "bleu": 8.0, "best": False},  # kept by BLEU
        {"kind": "validation", "update": 6, "loss": 4.5, "bleu": 12.0, "best": True},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scores_of(tmp_path, "bleu") == ((10.0, 8.0, 12.0), (10.0, 10.0, 12.0))
    assert scores_of(tmp_path, "loss") == ((5.0, 4.0, 4.5), (5.0, 5.0, 4.5))
    with pytest.raises(RuntimeError, match="a validation without chrf"):
        scores_of(tmp_path, "chrf")


def test_a_training_without_a_record_has_no_scores(tmp_path: Path) -> None:
    assert scores_of(tmp_path, "bleu") == ((), ())


def test_the_score_of_a_trial_is_the_mean_over_its_folds() -> None:
    found = record(0, training("a", 10.0, 12.0, fold=0), training("b", 20.0, fold=1), training("c", fold=2))
    assert found.score == pytest.approx(16.0)
    assert found.deviation == pytest.approx(math.sqrt(2 * 4.0**2))  # of a sample of two
    assert (found.validations, found.seconds) == (3, 6.0)
    assert found.running_means() == pytest.approx([10.0, 12.0, 16.0])


def test_a_record_tells_its_states_again_in_their_order() -> None:
    found = record(0, training("a", 1.0, 2.0, fold=0), training("b", 3.0, fold=1, finished=False))
    told = [(done, state.training, state.scores, state.finished) for done, state in found.states()]
    assert told == [
        ([], "a", (1.0,), False),
        ([], "a", (1.0, 2.0), False),
        ([], "a", (1.0, 2.0), True),
        ([2.0], "b", (3.0,), False),
    ]


def test_trials_are_ordered_by_score_those_of_more_folds_first_and_failed_ones_last() -> None:
    records = [
        record(0, training("a", 30.0, fold=0), training("b", fold=1), state="stopped"),
        record(1, training("c", 20.0, fold=0), training("d", 22.0, fold=1)),
        record(2, training("e", 20.0, fold=0), training("f", 26.0, fold=1)),
        record(3, training("g", 99.0, fold=0), training("h", 99.0, fold=1), state="failed"),
    ]
    assert [found.trial for found in best_first(records, BLEU)] == [2, 1, 0, 3]
    assert [found.trial for found in best_first(records, LOSS)] == [1, 2, 0, 3]
    best = best_of(records, BLEU)
    assert best is not None and best.trial == 2


def test_a_trial_that_runs_or_failed_is_not_the_best() -> None:
    assert best_of([record(0, training("a", 9.0), state="running")], BLEU) is None
    assert best_of([record(0, training("a", 9.0), state="failed")], BLEU) is None
    assert best_of([record(0, state="done")], BLEU) is None


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    assert read_records(path) == []
    records = [record(0, training("a", 1.0, 0.1 + 0.2)), record(1, training("b"), state="waiting")]
    write_records(path, records)
    assert read_records(path) == records
    assert json.loads(path.read_text().splitlines()[0])["score"] == 0.1 + 0.2


def test_a_broken_record_is_refused_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text('{"trial": 0}\n')
    with pytest.raises(InputError, match="not the record of a search") as error:
        read_records(path)
    assert error.value.where == str(path)
