"""What is recorded of a search: trials.jsonl, a line a trial, from the metrics of each trial's trainings.

The score of a training after a validation is the metric of the weights that training would publish then: those of the
best validation so far by `train.early_stopping_metric`. The score of a trial is the mean over its trainings.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flows.config import TuneConfig
from flows.tune_space import HIGHER_IS_BETTER
from nmt.training.metrics import METRICS_FILE, read_metrics
from pipelines.config import Table
from pipelines.errors import InputError
from pipelines.stage import write_atomically

TRIALS_FILE = "trials.jsonl"
State = Literal["waiting", "running", "done", "stopped", "failed"]
METRIC_NAMES = {"bleu": "BLEU", "chrf": "chrF", "loss": "loss", "perplexity": "perplexity"}
FINAL: tuple[State, ...] = ("done", "stopped", "failed")


class TrainingRecord(Table):
    """One training of a trial: `values` are of each validation, `scores` of the weights that were kept by then."""

    training: str  # the name of its stage's folder
    fold: int | None = None
    values: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    seconds: float = 0.0
    finished: bool = False


class TrialRecord(Table):
    """A line of trials.jsonl. `rule` is what a trial that was stopped was held against: another one takes it up again.

    `reason` says why a trial failed; `same_as` names the trial that has the same trainings, where one has: its point
    differs in what decides nothing here, such as the kind of an augmentation that no row gets.
    """

    trial: int
    point: dict[str, Any]
    metric: str
    rule: dict[str, int]
    state: State = "waiting"
    trainings: tuple[TrainingRecord, ...] = ()
    reason: str | None = None
    same_as: int | None = None
    # What follows from the trainings, for whoever reads the file.
    score: float | None = None
    deviation: float | None = None  # between folds, of a sample; None of fewer than two
    validations: int = 0
    seconds: float = 0.0

    def states(self) -> Iterator[tuple[list[float], TrainingRecord]]:
        """Yield what earlier folds came to, and a training as it was after each validation and when it had finished."""
        done: list[float] = []
        for training in self.begun():
            for number in range(1, len(training.scores) + 1):
                known = {"values": training.values[:number], "scores": training.scores[:number], "finished": False}
                yield list(done), training.model_copy(update=known)
            if training.finished:
                yield list(done), training
            done.append(training.scores[-1])

    def begun(self) -> tuple[TrainingRecord, ...]:
        """Return the trainings that were validated at least once."""
        return tuple(training for training in self.trainings if training.scores)

    def with_training(self, training: TrainingRecord) -> TrialRecord:
        """Return the record with another state of one of its trainings, and what follows from it."""
        trainings = tuple(training if training.training == old.training else old for old in self.trainings)
        return self.model_copy(update={"trainings": trainings, **_figures(trainings)})

    def running_means(self) -> list[float]:
        """Return the score after each validation: the mean of the folds that are done and of the one at work."""
        means = []
        done: list[float] = []
        for training in self.begun():
            means += [statistics.fmean([*done, score]) for score in training.scores]
            done.append(training.scores[-1])
        return means


def _figures(trainings: Sequence[TrainingRecord]) -> dict[str, Any]:
    last = [training.scores[-1] for training in trainings if training.scores]
    return {
        "score": statistics.fmean(last) if last else None,
        "deviation": statistics.stdev(last) if len(last) > 1 else None,
        "validations": sum(len(training.scores) for training in trainings),
        "seconds": round(sum(training.seconds for training in trainings), 3),
    }


def scores_of(folder: Path, metric: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the values of the metric at each validation of a training, and the scores after each.

    Raises RuntimeError where the record of a validation has no such metric.
    """
    values: list[float] = []
    scores: list[float] = []
    for record in read_metrics(folder / METRICS_FILE):
        if record["kind"] == "validation":
            if metric not in record:
                raise RuntimeError(f"{folder / METRICS_FILE}: a validation without {metric}")
            values.append(math.nan if record[metric] is None else float(record[metric]))  # null: it was not finite
            scores.append(values[-1] if record["best"] or not scores else scores[-1])
    return tuple(values), tuple(scores)


def best_first(records: Iterable[TrialRecord], config: TuneConfig) -> list[TrialRecord]:
    """Return the records in the order of their scores: those of all folds first, those that failed last.

    A trial that was stopped among the folds has the mean of fewer, which is not the mean of the same.
    """
    sign = -1.0 if config.metric in HIGHER_IS_BETTER else 1.0

    def place(record: TrialRecord) -> tuple[bool, int, float, int]:
        scored = record.state != "failed" and record.score is not None and math.isfinite(record.score)
        return not scored, -len(record.begun()), sign * (record.score or 0.0) if scored else 0.0, record.trial

    return sorted(records, key=place)


def best_of(records: Iterable[TrialRecord], config: TuneConfig) -> TrialRecord | None:
    """Return the trial with the best score, of those that were done or stopped; None where there is none."""
    return next(
        (
            record
            for record in best_first(records, config)
            if record.state in ("done", "stopped") and record.score is not None and math.isfinite(record.score)
        ),
        None,
    )


def write_records(path: Path, records: Iterable[TrialRecord]) -> None:
    """Write trials.jsonl whole: a reader sees all of it."""
    write_atomically(path, "".join(record.model_dump_json() + "\n" for record in records))


def read_records(path: Path) -> list[TrialRecord]:
    """Return the lines of trials.jsonl, none where there is no such file. Raises InputError where it is not one."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [TrialRecord.model_validate_json(line) for line in lines]
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(
            f"not the record of a search ({error})",
            where=str(path),
            remedy="Remove it: what was trained is found again by the stages' folders",
        ) from error
