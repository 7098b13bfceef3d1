"""The figures of a run in Weights & Biases and in MLflow, where the profile asks for them; each is imported only then.

    trackers = open_trackers(job.tracking, folder, settings, known=records)
    for tracker in trackers: tracker.write(record)

`<folder>/tracking.json` holds the identity of the run there, so that a continued training continues that run. What an
interrupted run had recorded beyond its checkpoint is computed again to the same figures: it is not sent again. A run
that is tracked only from a later start on is first sent what metrics.jsonl already holds.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nmt.config import TrackingConfig
from pipelines.errors import InputError
from pipelines.stage import write_atomically

TRACKING_FILE = "tracking.json"
_BATCH = 100  # parameters that MLflow takes at once,
_LONGEST = 500  # and characters of one
_WANDB_HOST = "https://api.wandb.ai"
_WANDB_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_WANDB_ALONE = ("offline", "disabled", "dryrun")  # modes in which it talks to nobody; the last is an old name

Record = Mapping[str, Any]
Settings = Mapping[str, Any]


class Tracker(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Send one record; its numbers become figures named `<kind>/<name>` at its update."""

    def close(self, *, finished: bool) -> None:
        """Send what is left, and say whether training has finished or is to be continued."""


def check_tracking(config: TrackingConfig) -> None:
    """Raise InputError where a library that the profile asks for is missing, W&B has no key or MLflow no answer."""
    if config.wandb_project is not None:
        _library("wandb", "tracking.wandb_project")
        _check_wandb_key()
    if config.mlflow_uri is not None:
        mlflow = _library("mlflow", "tracking.mlflow_uri")
        try:
            mlflow.MlflowClient(tracking_uri=config.mlflow_uri).get_experiment_by_name(config.mlflow_experiment)
        except mlflow.exceptions.MlflowException as error:
            raise InputError(
                f"MLflow does not answer ({error})", where="tracking.mlflow_uri", remedy="Give the URI of its server"
            ) from error


def _check_wandb_key() -> None:
    """Raise InputError where W&B would ask for a key: it takes one from the environment, or its host's from netrc."""
    if os.environ.get("WANDB_MODE") in _WANDB_ALONE or any(os.environ.get(name) for name in _WANDB_KEYS):
        return
    from requests.utils import get_netrc_auth  # as W&B looks it up

    host = os.environ.get("WANDB_BASE_URL", _WANDB_HOST)
    if get_netrc_auth(host) is None:
        raise InputError(
            f"W&B has no key for {host}",
            where="tracking.wandb_project",
            remedy="Set WANDB_API_KEY, here and for the workers of a cluster, or run `wandb login`; "
            "with WANDB_MODE=offline none is needed",
        )


def open_trackers(
    config: TrackingConfig, folder: Path, settings: Settings, *, kept: Sequence[Record], known: Sequence[Record]
) -> list[Tracker]:
    """Return what the profile asks for, open: new runs of the name of `folder`, or those that it has had before.

    `settings` are the tables that decide the training; `known` are the records that an earlier start has written, of
    which `kept` stand in metrics.jsonl.
    Raises InputError where a library is missing.
    """
    opened: list[_Run] = []
    if config.wandb_project is not None:
        opened.append(_WandbTracker(config.wandb_project, folder, settings))
    if config.mlflow_uri is not None:
        opened.append(_MlflowTracker(config.mlflow_uri, config.mlflow_experiment, folder, settings))
    return [_once(tracker, kept, known) for tracker in opened]


def numbers(record: Record) -> Iterator[tuple[str, float]]:
    """Yield the figures of a record under their full names; one for each worker is named by its rank."""
    for name, value in record.items():
        if isinstance(value, int | float) and name not in ("update", "time"):
            yield f"{record['kind']}/{name}", value
        elif isinstance(value, list) and value and isinstance(value[0], int | float):
            yield from ((f"{record['kind']}/{name}/{rank}", own) for rank, own in enumerate(value))


class _Run(Protocol):
    """A tracker that knows whether its run was there before."""

    resumed: bool

    def write(self, record: Record) -> None: ...

    def close(self, *, finished: bool) -> None: ...


class _Once:
    """Keeps from a tracker what an earlier start has sent it: by the update of the last record of each kind."""

    def __init__(self, tracker: _Run, known: Sequence[Record]) -> None:
        self._tracker = tracker
        self._last: dict[str, int] = {}
        for record in known:
            self._last[record["kind"]] = max(record["update"], self._last.get(record["kind"], 0))

    def write(self, record: Record) -> None:
        if record["update"] > self._last.get(record["kind"], -1):
            self._tracker.write(record)

    def close(self, *, finished: bool) -> None:
        self._tracker.close(finished=finished)


def _once(tracker: _Run, kept: Sequence[Record], known: Sequence[Record]) -> Tracker:
    if tracker.resumed:
        return _Once(tracker, known)
    for record in kept:
        tracker.write(record)
    return _Once(tracker, ())


class _WandbTracker:
    """A run of Weights & Biases. Its steps only count up, so figures stand over `update`, a figure of their own."""

    def __init__(self, project: str, folder: Path, settings: Settings) -> None:
        self._wandb = _library("wandb", "tracking.wandb_project")
        # The identity is ours, and stored before the run begins: a kill in between starts no second one.
        identity, self.resumed = _identity(folder, "wandb", {"project": project}, lambda: secrets.token_hex(8))
        self._run = self._wandb.init(
            project=project,
            id=identity,
            name=folder.name,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings={"console": "off"},
        )
        self._run.define_metric("update")
        for kind in ("train", "validation"):
            self._run.define_metric(f"{kind}/*", step_metric="update")

    def write(self, record: Record) -> None:
        values: dict[str, Any] = dict(numbers(record))
        if samples := record.get("samples"):
            columns = list(samples[0])
            rows = [[sample[column] for column in columns] for sample in samples]
            values[f"{record['kind']}/samples"] = self._wandb.Table(columns=columns, data=rows)
        self._run.log({"update": record["update"], **values})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0)


class _MlflowTracker:
    """A run of MLflow, by its client alone: nothing global is set."""

    def __init__(self, uri: str, experiment: str, folder: Path, settings: Settings) -> None:
        self._mlflow = _library("mlflow", "tracking.mlflow_uri")
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)

        def created() -> str:
            number = _experiment(self._client, experiment)
            identity: str = self._client.create_run(number, run_name=folder.name).info.run_id
            return identity

        self._id, self.resumed = _identity(folder, "mlflow", {"uri": uri, "experiment": experiment}, created)
        if self.resumed:
            self._client.update_run(self._id, status="RUNNING")
            return
        params = [self._mlflow.entities.Param(name, value) for name, value in _flat(settings)]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._id, params=params[start : start + _BATCH])

    def write(self, record: Record) -> None:
        milliseconds = int(1000 * record["time"])
        metric = self._mlflow.entities.Metric
        values = [metric(name, float(value), milliseconds, record["update"]) for name, value in numbers(record)]
        self._client.log_batch(self._id, metrics=values)
        if samples := record.get("samples"):
            self._client.log_dict(self._id, {"samples": samples}, f"samples/update-{record['update']}.json")

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    number: str = client.create_experiment(name) if found is None else found.experiment_id
    return number


def _identity(folder: Path, kind: str, where: Mapping[str, str], create: Callable[[], str]) -> tuple[str, bool]:
    """Return the identity of the run that a folder has there, and whether it had one before."""
    path = folder / TRACKING_FILE
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entry = stored.get(kind, {})
    if {key: entry.get(key) for key in where} == dict(where):
        return str(entry["id"]), True
    identity = create()
    write_atomically(path, json.dumps(stored | {kind: {**where, "id": identity}}, indent=1) + "\n")
    return identity, False


def _flat(settings: Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:_LONGEST]


def _library(name: str, key: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"the library {name} is not installed", where=key, remedy=f"pip install {name}, or leave the key out"
        ) from error
