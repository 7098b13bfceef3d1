"""One trial of a search: its trainings, one after the other, each in a process that ends with the trial.

The trial is a function in an actor of Ray Tune. It starts the stage `train` as a process of its own, follows its
metrics.jsonl, and reports once a validation. When Tune stops the trial, when the actor is killed, when the machine of
the search goes: the process's standard input closes, and it ends with all that it has started.

What is reported is where the trial stands, so that Tune only ever compares what is alike (`Ladder`): in the first
training the number of validations, later the number of folds that are done.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config import Profile, Recipe, TuneConfig
from flows.process import INPUT_STATUS, STOPPED_STATUSES, end_group, end_with_parent
from flows.stages import run_up_to
from flows.tune_records import TrainingRecord, scores_of
from nmt.training.json_lines import Follower
from nmt.training.metrics import METRICS_FILE
from nmt.training.stopping import Stopped
from pipelines.config import Table
from pipelines.errors import InputError
from pipelines.stage import StageRun, read_manifest

LOOK_EVERY_S = 0.5
# Beyond so many validations of one training nothing is compared: what is as long ends by patience.
MOST_VALIDATIONS = 1000
COMMAND = (sys.executable, "-m", "flows.tune_trial")

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Ladder:
    """The rungs of successive halving as positions that only grow: rung `n` is `grace * factor^n`.

    A validation of the first training is its own position. The end of the j-th fold is j times the first rung above all
    validations, so that the rungs of folds are 1, factor, factor^2 ... of them: each costs as much more than the one
    before as it does among the validations.
    """

    grace: int
    factor: int
    folds: int

    @classmethod
    def of(cls, config: TuneConfig) -> Ladder:
        """Return the ladder of a search."""
        return cls(config.grace_validations, config.reduction_factor, max(config.folds, 1))

    @property
    def first_fold(self) -> int:
        """The position of the end of the first fold."""
        rung = self.grace
        while rung <= MOST_VALIDATIONS:
            rung *= self.factor
        return rung

    @property
    def top(self) -> int:
        """A position that no trial reaches."""
        return self.first_fold * (self.folds + 1)

    def rungs_after(self, validation: int) -> list[int]:
        """Return the rungs among the validations of the first training that lie after one of them."""
        rungs, rung = [], self.grace
        while rung < self.first_fold:
            if rung > validation:
                rungs.append(rung)
            rung *= self.factor
        return rungs

    def position(self, folds_done: int, validation: int = 0) -> int:
        """Return where a trial stands that has done so many folds, and so many validations of the next."""
        return folds_done * self.first_fold + min(validation, self.first_fold - 1)


class TrainingSpec(Table):
    """What a training needs to know: it goes to the trial and to the training's process as a file of JSON."""

    recipe: Recipe
    profile: Profile
    workdir: str
    stages: dict[str, str]  # the folders of the finished stages that training reads
    folder: str  # of the stage itself
    fold: int | None
    metric: str
    log: str  # the file that its lines go to
    seconds: float  # that earlier runs of the command have spent on it

    @property
    def name(self) -> str:
        """The name of the training's folder."""
        return Path(self.folder).name


class TrainingFailed(Exception):
    """A training that ended without a result, and why."""


# --- In the actor --------------------------------------------------------------------------------------------------


def trial(config: dict[str, Any]) -> None:
    """Run a trial of Ray Tune: `config` is what `flows.tune` puts into it, JSON values only."""
    from ray import tune

    run_trial(config["point"]["specs"], Ladder(**config["ladder"]), config["attempts"], tune.report)


def run_trial(specs: Sequence[str], ladder: Ladder, attempts: int, report: Report) -> None:
    """Run the trainings of these files in their order, and report where the trial stands.

    A report has the trial's `position` and `score`, the `training` (a TrainingRecord) and whether it is the trial's
    `end`; one of a training that has failed, which ends the trial, has only why (`failed`). A training that is killed
    is started again, so that it has `attempts` at most.
    """
    done: list[float] = []
    for path in specs:
        spec = TrainingSpec.model_validate_json(Path(path).read_text(encoding="utf-8"))
        try:
            with contextlib.closing(followed(spec, path, attempts)) as states:
                for record in states:
                    for standing in standings(ladder, done, record):
                        end = record.finished and len(done) + 1 == len(specs)
                        report({**standing, "training": record.model_dump(mode="json"), "end": end})
        except TrainingFailed as error:
            report({"failed": f"{spec.name}: {error}"})
            return
        done.append(record.scores[-1])


def standings(ladder: Ladder, done: Sequence[float], record: TrainingRecord) -> list[dict[str, Any]]:
    """Return {"position", "score"} of a trial whose earlier folds came to `done`, by the state of the next.

    A training that has ended by itself stays at its score, which is that of all later validations too.
    """
    validations = len(record.scores)
    positions = [ladder.position(len(done), validations)]
    if record.finished:
        positions = [*([] if done else ladder.rungs_after(validations)), ladder.position(len(done) + 1)]
    score = statistics.fmean([*done, record.scores[-1]])
    return [{"position": position, "score": score} for position in positions]


def followed(spec: TrainingSpec, path: str, attempts: int) -> Generator[TrainingRecord, None, None]:
    """Run a training; yield its state after each validation, those of earlier runs too, and when it has finished.

    Raises TrainingFailed. The training is ended when the generator is closed.
    """
    state = TrainingRecord(training=spec.name, fold=spec.fold, seconds=spec.seconds)
    started = time.monotonic()
    figures = Follower(Path(spec.folder) / METRICS_FILE)
    news = list(figures.before)
    for attempt in range(attempts):
        with _process(spec, path) as process:
            running = True
            while running:
                running = process is not None and process.poll() is None
                news += figures.look()
                for values, scores in _validations(spec, len(state.scores), news):
                    seconds = round(spec.seconds + time.monotonic() - started, 3)
                    state = state.model_copy(update={"values": values, "scores": scores, "seconds": seconds})
                    yield state
                news = []
                if running:
                    time.sleep(LOOK_EVERY_S)
        if process is None or not _was_ended(process.returncode) or attempt + 1 == attempts:
            break
    if process is not None and process.returncode != 0:
        raise TrainingFailed(_reason(process.returncode, Path(spec.log)))
    if not state.scores:
        raise TrainingFailed("it ended without a validation")
    seconds = round(spec.seconds + time.monotonic() - started, 3)
    yield state.model_copy(update={"finished": True, "seconds": seconds})


def _validations(
    spec: TrainingSpec, known: int, news: Sequence[dict[str, Any]]
) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Yield values and scores up to each validation after the known ones, of which a restart may write some again.

    The record, which grows long, is only read where one of its new lines is of a validation.
    """
    if not any(line["kind"] == "validation" for line in news):
        return
    values, scores = scores_of(Path(spec.folder), spec.metric)
    for number in range(known + 1, len(scores) + 1):
        if not math.isfinite(values[number - 1]):
            raise TrainingFailed(f"{spec.metric} is {values[number - 1]} at validation {number}")
        yield values[:number], scores[:number]


@contextlib.contextmanager
def _process(spec: TrainingSpec, path: str) -> Iterator[subprocess.Popen[str] | None]:
    """Yield the training's process, and end it with its group; None where the training has finished before."""
    if read_manifest(Path(spec.folder)) is not None:
        yield None
        return
    with Path(spec.log).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*COMMAND, path], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, start_new_session=True
        )
    try:
        yield process
    finally:
        end_group(process, grace_s=0.0)
        if process.stdin is not None:
            process.stdin.close()


def _was_ended(status: int) -> bool:
    """Return whether a signal has ended a process, at once or when it had saved."""
    return status < 0 or status in STOPPED_STATUSES


def _reason(status: int, log: Path) -> str:
    if _was_ended(status):
        return f"it was ended by {signal.Signals(abs(status) % 128).name}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with exit status {status}"


# --- In the training's process -------------------------------------------------------------------------------------


def main(path: str) -> None:
    """Run the training of a file, as the leader of a group that ends when its standard input closes."""
    end_with_parent()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    spec = TrainingSpec.model_validate_json(Path(path).read_text(encoding="utf-8"))
    try:
        _train(spec)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(INPUT_STATUS)
    except Stopped as stopped:
        sys.exit(stopped.status)


def _train(spec: TrainingSpec) -> None:
    given = {}
    for name, folder in spec.stages.items():
        manifest = read_manifest(Path(folder))
        assert manifest is not None, folder
        given[name] = StageRun(Path(folder), manifest, reused=True)
    # One process of one worker: what a search has more of are trials.
    run = run_up_to("train", spec.recipe, spec.profile, Path(spec.workdir), given=given, use_ray=False)["train"]
    assert run.folder == Path(spec.folder), f"{run.folder} is not {spec.folder}"


if __name__ == "__main__":
    main(sys.argv[1])
