"""What happens in a search, as Ray Tune tells it: kept in trials.jsonl, and a line of log for people now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from flows.config import TuneConfig
from flows.tune_records import FINAL, METRIC_NAMES, TrainingRecord, TrialRecord, best_first, write_records

LINE_EVERY_S = 30.0

log = logging.getLogger(__name__)


class Recorder(tune.Callback):  # type: ignore[misc]
    """Keeps trials.jsonl, and logs a line for each trial that has ended and one each 30 s."""

    def __init__(self, path: Path, config: TuneConfig, records: list[TrialRecord]) -> None:
        self.records = records
        self._path, self._config = path, config
        self._ended: set[int] = set()
        self._last_line = time.monotonic()

    def write(self) -> None:
        """Write trials.jsonl."""
        write_records(self._path, self.records)

    def share(self) -> None:
        """Give the trials that have the same trainings as another one what that has come to."""
        for number, record in enumerate(self.records):
            if record.same_as is not None:
                other = self.records[record.same_as]
                kept = {"trial": record.trial, "point": record.point, "same_as": record.same_as}
                self.records[number] = other.model_copy(update=kept)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial runs."""
        self._change(trial, {"state": "running"})

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note what a trial reports: see `run_trial`."""
        number = _number(trial)
        if "failed" in result:
            self._change(trial, {"state": "failed", "reason": result["failed"]})
            return
        training = TrainingRecord.model_validate(result["training"])
        self.records[number] = self.records[number].with_training(training)
        if result["end"]:
            self._change(trial, {"state": "done"})
        self.write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial has ended: where it has not said how, it was stopped."""
        if self.records[_number(trial)].state not in FINAL:
            self._change(trial, {"state": "stopped"})
        self._tell(_number(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial's own process has failed or was killed, once too often."""
        lines = [line for line in str(trial.get_error()).splitlines() if line.strip()]
        self._change(trial, {"state": "failed", "reason": lines[-1].strip() if lines else "its process was killed"})
        self._tell(_number(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Log a line each 30 s."""
        if time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            log.info("%s", progress_line(self.records, self._config))

    def _change(self, trial: Any, update: dict[str, Any]) -> None:
        number = _number(trial)
        self.records[number] = self.records[number].model_copy(update=update)
        self.write()

    def _tell(self, number: int) -> None:
        if number not in self._ended:
            self._ended.add(number)
            log.info("%s", trial_line(self.records[number], self._config))


def _number(trial: Any) -> int:
    number: int = trial.config["point"]["number"]
    return number


def trial_line(record: TrialRecord, config: TuneConfig) -> str:
    """Return a line for people of a trial that has ended."""
    point = ", ".join(f"{key} = {value}" for key, value in record.point.items())
    if record.state == "failed":
        return f"trial {record.trial} failed: {record.reason}  ({point})"
    assert record.score is not None
    score = f"{METRIC_NAMES[config.metric]} {record.score:.4g}"
    if config.folds:
        score += f" in {len(record.begun())} of {config.folds} folds"
    how = f"stopped early at validation {record.validations}" if record.state == "stopped" else "done"
    return f"trial {record.trial} {how}: {score} in {record.seconds:.0f} s  ({point})"


def progress_line(records: Sequence[TrialRecord], config: TuneConfig) -> str:
    """Return a line for people of how far a search is."""
    states = [record.state for record in records if record.same_as is None]
    first = best_first(records, config)[0]
    leader = ""
    if first.state != "failed" and first.score is not None:
        leader = f"; best so far trial {first.trial}: {METRIC_NAMES[config.metric]} {first.score:.4g}"
    return (
        f"{sum(state in FINAL for state in states)} of {len(states)} trials ended: {states.count('done')} done, "
        f"{states.count('stopped')} stopped early, {states.count('failed')} failed; {states.count('running')} running"
        + leader
    )
