from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import tune_recorder
from flows.config import TuneConfig
from flows.tune_recorder import Recorder, progress_line, trial_line
from flows.tune_records import TrainingRecord, TrialRecord, read_records

CONFIG = TuneConfig.model_validate({"space": {"train.learning_rate": {"choice": [0.1, 0.2, 0.3]}}, "trials": 3})


def fresh(tmp_path: Path) -> Recorder:
    records = [
        TrialRecord(
            trial=number,
            point={"train.learning_rate": rate},
            metric="bleu",
            rule={},
            trainings=(TrainingRecord(training=f"train-{number}"),),
        )
        for number, rate in enumerate((0.1, 0.2, 0.3))
    ]
    return Recorder(tmp_path / "trials.jsonl", CONFIG, records)


def trial(number: int, error: str = "") -> Any:
    return SimpleNamespace(config={"point": {"number": number}}, get_error=lambda: error)


def told(number: int, *scores: float, end: bool = False) -> dict[str, Any]:
    training = TrainingRecord(training=f"train-{number}", values=scores, scores=scores, seconds=7.0, finished=end)
    return {"position": len(scores), "score": scores[-1], "training": training.model_dump(mode="json"), "end": end}


def test_the_file_says_at_each_moment_what_has_been_told(tmp_path: Path) -> None:
    recorder = fresh(tmp_path)
    recorder.on_trial_start(0, [], trial(1))
    assert [found.state for found in read_records(tmp_path / "trials.jsonl")] == ["waiting", "running", "waiting"]
    recorder.on_trial_result(0, [], trial(1), told(1, 10.0, 12.0))
    assert read_records(tmp_path / "trials.jsonl")[1].trainings[0].scores == (10.0, 12.0)
    recorder.on_trial_result(0, [], trial(1), told(1, 10.0, 12.0, end=True))
    recorder.on_trial_complete(0, [], trial(1))
    last = read_records(tmp_path / "trials.jsonl")[1]
    assert (last.state, last.score, last.validations, last.seconds) == ("done", 12.0, 2, 7.0)


def test_a_trial_that_ends_without_saying_so_was_stopped(tmp_path: Path) -> None:
    recorder = fresh(tmp_path)
    recorder.on_trial_result(0, [], trial(0), told(0, 3.0))
    recorder.on_trial_complete(0, [], trial(0))
    assert recorder.records[0].state == "stopped"
    assert trial_line(recorder.records[0], CONFIG) == (
        "trial 0 stopped early at validation 1: BLEU 3 in 7 s  (train.learning_rate = 0.1)"
    )


def test_a_training_and_a_trial_that_fail_say_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = fresh(tmp_path)
    with caplog.at_level(logging.INFO, "flows"):
        recorder.on_trial_result(0, [], trial(0), {"failed": "train-0: error: no row"})
        recorder.on_trial_complete(0, [], trial(0))
        recorder.on_trial_error(0, [], trial(2, "Traceback\n  line\nThe actor died: out of memory\n"))
    assert caplog.messages == [
        "trial 0 failed: train-0: error: no row  (train.learning_rate = 0.1)",
        "trial 2 failed: The actor died: out of memory  (train.learning_rate = 0.3)",
    ]
    assert [found.state for found in recorder.records] == ["failed", "waiting", "failed"]


def test_a_line_each_half_a_minute_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = fresh(tmp_path)
    recorder.on_trial_start(0, [], trial(0))
    recorder.on_trial_result(0, [], trial(0), told(0, 3.0, end=True))
    recorder.on_trial_start(0, [], trial(1))
    recorder.on_trial_result(0, [], trial(1), told(1, 5.5))
    now = tune_recorder.time.monotonic()
    with caplog.at_level(logging.INFO, "flows"):
        for seconds in (10.0, 31.0, 45.0, 62.0):
            monkeypatch.setattr(tune_recorder.time, "monotonic", lambda seconds=seconds: now + seconds)
            recorder.on_step_end(0, [])
    line = "1 of 3 trials ended: 1 done, 0 stopped early, 0 failed; 1 running; best so far trial 1: BLEU 5.5"
    assert caplog.messages == [line, line]


def test_before_the_first_validation_there_is_no_best_trial(tmp_path: Path) -> None:
    assert progress_line(fresh(tmp_path).records, CONFIG).endswith("0 running")


def test_trials_with_the_same_trainings_share_what_they_came_to(tmp_path: Path) -> None:
    recorder = fresh(tmp_path)
    recorder.records[2] = recorder.records[2].model_copy(update={"same_as": 0})
    recorder.on_trial_result(0, [], trial(0), told(0, 3.0, end=True))
    recorder.share()
    assert recorder.records[2].score == 3.0 and recorder.records[2].state == "done"
    assert recorder.records[2].point == {"train.learning_rate": 0.3} and recorder.records[2].trial == 2
