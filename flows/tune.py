"""The search of `seqloom tune`: points of a recipe's space under Ray Tune, with asynchronous successive halving.

    <workdir>/<recipe>/tune/
    ├── trials.jsonl        a line a trial: point, scores, state; see `flows/tune_records.py`
    ├── best.yaml           the recipe with the best point filled in
    ├── tune.html           the report
    └── trials/             what each training was given (.json), and what it said (.log)

The points are drawn before anything runs, the data stages are made here, once for each distinct data config, and what
is trained are stages as ever. So nothing of Tune's is kept: a search that was killed finds its finished trainings by
their folders, holds their scores against the rungs again, continues the trainings that were at work, and starts the
rest.

With folds, a trial trains one fold after the other. All trials have the same folds in the same order, so that two of
them are only ever compared by the mean over the same folds, and a bad one costs a few validations of one fold. With
the folds side by side each decision would wait for all of them, and a bad trial would cost so many times more.

Sources: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934 (ASHA). Birattari et
al. 2002, "A Racing Algorithm for Configuring Metaheuristics", GECCO (candidates compared fold by fold).
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from flows.config import Profile, Recipe, TuneConfig, check_profile
from flows.process import ProcessFailed, interrupted_by_sigterm
from flows.run_folder import RunFolder
from flows.stages import run_up_to, stages_read_by, stages_root
from flows.tune_recorder import Recorder
from flows.tune_records import METRIC_NAMES, TrainingRecord, TrialRecord, best_of, read_records, scores_of
from flows.tune_space import HIGHER_IS_BETTER, Point, base_tree, check_space, tree_at, trial_recipes
from flows.tune_trial import Ladder, TrainingSpec, standings, trial
from nmt.config import TrackingConfig
from nmt.ray_session import ray_session
from nmt.training.tracking import check_tracking
from pipelines.errors import InputError
from pipelines.fold import fold
from pipelines.stage import StageRun, WouldRun, acquired, digest_of, planning, read_manifest, write_atomically

log = logging.getLogger(__name__)


class AllTrialsFailed(ProcessFailed):
    """A search without one trial that has a score."""

    def __init__(self, records: Sequence[TrialRecord]) -> None:
        reasons = "\n".join(f"    trial {record.trial}: {record.reason}" for record in records)
        RuntimeError.__init__(self, f"all {len(records)} trials failed:\n{reasons}")
        self.status = 1


@dataclass(frozen=True)
class TuneFolder:
    """The paths of a search."""

    folder: Path

    @classmethod
    def of(cls, workdir: Path, recipe: Recipe) -> TuneFolder:
        """Return the folder of a recipe's search under a workdir; absolute, as trials have other folders."""
        return cls(RunFolder.of(workdir.absolute(), recipe).folder / "tune")

    @property
    def records(self) -> Path:
        """The path of trials.jsonl."""
        return self.folder / "trials.jsonl"

    @property
    def best(self) -> Path:
        """The path of best.yaml."""
        return self.folder / "best.yaml"

    @property
    def report(self) -> Path:
        """The path of tune.html."""
        return self.folder / "tune.html"

    @property
    def trials(self) -> Path:
        """The folder of what each training was given and said."""
        return self.folder / "trials"


@dataclass(frozen=True)
class Outcome:
    """A search that has ended: its config, all trials in their order, and the best one."""

    config: TuneConfig
    records: list[TrialRecord]
    best: TrialRecord
    folder: TuneFolder


def search(recipe: Recipe, profile: Profile, workdir: Path) -> Outcome:
    """Return what the search of a recipe has found, having trained what was not trained yet.

    `recipe` is one of `load_recipe` without its model's table, since a point may name another architecture.
    Raises InputError before anything runs where the recipe has no search, a point of it is no recipe or none that the
    profile can train, and where another process is at the same search; AllTrialsFailed.
    """
    config = recipe.tune
    if config is None:
        raise InputError(
            "the recipe has no search",
            where=recipe.name,
            remedy="Add a table `tune` with a `space`: see docs/tuning.md",
        )
    tree = base_tree(recipe)
    check_space(tree, config)
    drawn = trial_recipes(tree, config)
    _check_profile(drawn, profile)
    folder = TuneFolder.of(workdir, recipe)
    folder.trials.mkdir(parents=True, exist_ok=True)
    lock = acquired(
        folder.folder / ".lock",
        "another process is at this search",
        where=str(folder.folder),
        remedy="Wait for it to end, or use another --workdir",
    )
    try:
        records = _searched(drawn, config, profile, workdir, folder)
    finally:
        lock.release()
    best = best_of(records, config)
    if best is None:
        raise AllTrialsFailed(records)
    _write_best(folder.best, tree, best, config)
    return Outcome(config, records, best, folder)


def _check_profile(drawn: Sequence[tuple[Point, Recipe]], profile: Profile) -> None:
    """Raise InputError, naming the point, where a trial cannot be trained where the profile says."""
    check_tracking(profile.tracking)
    for point, recipe in drawn:
        try:
            check_profile(recipe, _untracked(profile), use_ray=False)
        except InputError as error:
            values = ", ".join(f"{key} = {value}" for key, value in point.items())
            raise InputError(error.what, where=f"{error.where}, at {values}", remedy=error.remedy) from error


def _untracked(profile: Profile) -> Profile:
    """Return the profile without its trackers, of which a server would be asked for each trial anew."""
    return profile.model_copy(update={"tracking": TrackingConfig()})


def _write_best(path: Path, tree: Mapping[str, Any], best: TrialRecord, config: TuneConfig) -> None:
    assert best.score is not None
    head = (
        f"# The best of {config.trials} trials, number {best.trial}: {METRIC_NAMES[config.metric]} {best.score:.4g}.\n"
    )
    filled = yaml.safe_dump(tree_at(tree, best.point), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, head + filled)


# --- What is to be trained -----------------------------------------------------------------------------------------


def _searched(
    drawn: Sequence[tuple[Point, Recipe]], config: TuneConfig, profile: Profile, workdir: Path, folder: TuneFolder
) -> list[TrialRecord]:
    earlier = {_names(record): record for record in read_records(folder.records) if record.metric == config.metric}
    data = _Data(config, profile, workdir)
    recorder = Recorder(folder.records, config, [])
    specs: dict[int, list[TrainingSpec]] = {}
    faults: list[InputError] = []
    for number, (point, recipe) in enumerate(drawn):
        record = TrialRecord(trial=number, point=point, metric=config.metric, rule=_rule(config))
        try:
            specs[number] = _specs(recipe, config, profile, workdir, folder, data.of(recipe))
        except InputError as error:
            faults.append(error)
            log.warning("trial %d failed: %s", number, error)
            recorder.records.append(record.model_copy(update={"state": "failed", "reason": str(error)}))
            continue
        recorder.records.append(_begun(record, specs[number], earlier, recorder.records))
    if len(faults) == len(drawn):
        raise faults[0]
    recorder.write()
    waiting = [record.trial for record in recorder.records if record.state == "waiting" and record.same_as is None]
    if waiting:
        known = {number: _with_seconds(specs[number], recorder.records[number]) for number in waiting}
        _run(recorder, known, config, profile, folder)
    recorder.share()
    recorder.write()
    return recorder.records


def _names(record: TrialRecord) -> tuple[str, ...]:
    return tuple(training.training for training in record.trainings)


def _rule(config: TuneConfig) -> dict[str, int]:
    return {"grace_validations": config.grace_validations, "reduction_factor": config.reduction_factor}


class _Data:
    """The data stages of recipes, each made once: their keys need not be found again for each trial."""

    def __init__(self, config: TuneConfig, profile: Profile, workdir: Path) -> None:
        self._config, self._profile, self._workdir = config, profile, workdir
        self._cleaned: dict[str, StageRun] = {}
        self._encoded: dict[str, list[dict[str, StageRun]]] = {}

    def of(self, recipe: Recipe) -> list[dict[str, StageRun]]:
        """Return the stages that training reads, for each fold; `clean` is the fold where there are folds."""
        cleaning = digest_of(recipe.clean.model_dump(mode="json"))
        read = stages_read_by("train", recipe)
        tables = [recipe.tokenizer.model_dump(mode="json"), recipe.align.model_dump(mode="json")]
        pieces = [cleaning, *tables, recipe.augment.changes_text, read]
        if (encoding := digest_of(pieces)) not in self._encoded:
            if cleaning not in self._cleaned:
                self._cleaned[cleaning] = run_up_to("clean", recipe, self._profile, self._workdir)["clean"]
            self._encoded[encoding] = [
                self._up_to(read, recipe, cleaned) for cleaned in self._folds(self._cleaned[cleaning])
            ]
        return self._encoded[encoding]

    def _up_to(self, read: Sequence[str], recipe: Recipe, cleaned: StageRun) -> dict[str, StageRun]:
        runs = {"clean": cleaned}
        for name in read:
            runs = run_up_to(name, recipe, self._profile, self._workdir, given=runs)
        return runs

    def _folds(self, cleaned: StageRun) -> Iterator[StageRun]:
        folds = self._config.folds
        if not folds:
            yield cleaned
        for index in range(folds):
            yield fold(cleaned, folds, index, stages_root(self._workdir))


def _specs(
    recipe: Recipe,
    config: TuneConfig,
    profile: Profile,
    workdir: Path,
    folder: TuneFolder,
    stages: Sequence[Mapping[str, StageRun]],
) -> list[TrainingSpec]:
    specs = []
    for index, runs in enumerate(stages):
        training = _training_folder(recipe, profile, workdir, runs)
        specs.append(
            TrainingSpec(
                recipe=recipe,
                profile=profile,
                workdir=str(workdir.absolute()),
                stages={name: str(run.folder) for name, run in runs.items()},
                folder=str(training),
                fold=index if config.folds else None,
                metric=config.metric,
                log=str(folder.trials / f"{training.name}.log"),
                seconds=0.0,
            )
        )
    return specs


def _training_folder(recipe: Recipe, profile: Profile, workdir: Path, runs: Mapping[str, StageRun]) -> Path:
    try:
        with planning():
            return run_up_to("train", recipe, _untracked(profile), workdir, given=runs, use_ray=False)["train"].folder
    except WouldRun as would:
        return would.folder


def _begun(
    record: TrialRecord,
    specs: Sequence[TrainingSpec],
    earlier: Mapping[tuple[str, ...], TrialRecord],
    before: Sequence[TrialRecord],
) -> TrialRecord:
    """Return the record of a trial as earlier runs of the command have left it."""
    trainings = tuple(TrainingRecord(training=spec.name, fold=spec.fold) for spec in specs)
    record = record.model_copy(update={"trainings": trainings})
    twin = next((other.trial for other in before if other.same_as is None and _names(other) == _names(record)), None)
    if twin is not None:
        return record.model_copy(update={"same_as": twin})
    known = earlier.get(_names(record))
    if known is not None and known.state == "stopped" and known.rule == record.rule:
        return known.model_copy(update={"trial": record.trial, "point": record.point})
    spent = {} if known is None else {training.training: training.seconds for training in known.trainings}
    manifests = [read_manifest(Path(spec.folder)) for spec in specs]
    for spec, manifest in zip(specs, manifests):
        values, scores = scores_of(Path(spec.folder), spec.metric)
        seconds = spent.get(spec.name) or (0.0 if manifest is None else manifest.seconds)
        record = record.with_training(
            TrainingRecord(
                training=spec.name,
                fold=spec.fold,
                values=values,
                scores=scores,
                seconds=seconds,
                finished=manifest is not None,
            )
        )
    return record.model_copy(update={"state": "waiting" if None in manifests else "done"})


def _with_seconds(specs: Sequence[TrainingSpec], record: TrialRecord) -> list[TrainingSpec]:
    spent = {training.training: training.seconds for training in record.trainings}
    return [spec.model_copy(update={"seconds": spent[spec.name]}) for spec in specs]


# --- Under Ray Tune ------------------------------------------------------------------------------------------------


def _run(
    recorder: Recorder,
    specs: Mapping[int, Sequence[TrainingSpec]],
    config: TuneConfig,
    profile: Profile,
    folder: TuneFolder,
) -> None:
    ladder = Ladder.of(config)
    points = []
    for number, trainings in specs.items():
        files = {str(folder.trials / f"{spec.name}.json"): spec for spec in trainings}
        for path, spec in files.items():
            write_atomically(Path(path), spec.model_dump_json(indent=1) + "\n")
        points.append({"number": number, "specs": list(files)})
    _set_environment()
    threads = profile.ray.threads_per_worker
    resources = {"cpu": threads} | ({"gpu": 1} if profile.ray.use_gpu else {})
    for left_over in folder.folder.glob(".ray-*"):
        shutil.rmtree(left_over)
    storage = folder.folder / f".ray-{uuid.uuid4().hex}"
    # SIGTERM once more, in the place of the handler that Ray sets as it starts.
    with ray_session(profile.ray, num_cpus=config.concurrent_trials * threads), interrupted_by_sigterm():
        try:
            tune.Tuner(
                tune.with_resources(trial, resources),
                param_space={
                    "point": tune.grid_search(points),
                    "ladder": asdict(ladder),
                    "attempts": profile.ray.max_failures + 1,
                },
                tune_config=tune.TuneConfig(
                    scheduler=_scheduler(config, ladder, recorder.records),
                    max_concurrent_trials=config.concurrent_trials,
                    reuse_actors=True,
                    trial_dirname_creator=lambda tried: f"trial-{tried.config['point']['number']}",
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=str(storage),
                    callbacks=[recorder],
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=profile.ray.max_failures),
                ),
            ).fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _set_environment() -> None:
    """Set what Tune reads from the environment: none of its lines and loggers, and Ctrl-C ends the search at once."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # what is newer prints to standard output whatever `verbose` says
    for name in (
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS",
        "TUNE_DISABLE_SIGINT_HANDLER",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING",  # a training that failed has no score
    ):
        os.environ[name] = "1"


def _scheduler(config: TuneConfig, ladder: Ladder, records: Sequence[TrialRecord]) -> ASHAScheduler:
    """Return the scheduler with the scores of the trials that are done or were stopped on its rungs."""
    scheduler = ASHAScheduler(
        time_attr="position",
        metric="score",
        mode="max" if config.metric in HIGHER_IS_BETTER else "min",
        max_t=ladder.top,
        grace_period=ladder.grace,
        reduction_factor=ladder.factor,
    )
    for record in records:
        if record.state in ("done", "stopped") and record.same_as is None:
            past = SimpleNamespace(trial_id=f"past-{record.trial}")
            scheduler.on_trial_add(None, past)
            for done, training in record.states():
                for standing in standings(ladder, done, training):
                    scheduler.on_trial_result(None, past, standing)
    return scheduler
