"""W&B and MLflow, stood in for: the same records, the same run after a restart, nothing sent twice."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nmt.config import TrackingConfig
from nmt.training.metrics import MetricsWriter
from nmt.training.tracking import TRACKING_FILE, check_tracking, numbers
from pipelines.errors import InputError
from tests.nmt.training.test_metrics import train_record, validation_record

SETTINGS = {"train": {"seed": 1, "freeze": ["encoder"]}, "model": {"architecture": "recurrent"}}


class FakeWandb:
    """Keeps what is logged to each run, as W&B does it: a run of an identity that is known goes on."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.inits: list[dict[str, Any]] = []
        self.defined: list[tuple[str, str | None]] = []
        self.finished: list[int] = []

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        logged = self.runs.setdefault(options["id"], [])
        return SimpleNamespace(
            define_metric=lambda name, step_metric=None: self.defined.append((name, step_metric)),
            log=logged.append,
            finish=lambda exit_code: self.finished.append(exit_code),
        )

    def Table(self, columns: list[str], data: list[list[str]]) -> tuple[list[str], list[list[str]]]:
        return columns, data


class FakeMlflow:
    """Keeps experiments, runs, and what is logged to each."""

    class exceptions:
        MlflowException = type("MlflowException", (Exception,), {})

    class entities:
        @staticmethod
        def Metric(key: str, value: float, timestamp: int, step: int) -> tuple[str, float, int, int]:
            return key, value, timestamp, step

        @staticmethod
        def Param(key: str, value: str) -> tuple[str, str]:
            return key, value

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.uris: list[str] = []
        self.answers = True

    def MlflowClient(self, tracking_uri: str) -> Any:
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        if not self.answers:
            raise self.exceptions.MlflowException("connection refused")
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        identity = f"run{len(self.runs)}"
        self.runs[identity] = {"name": run_name, "metrics": [], "params": [], "status": "RUNNING", "files": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=identity))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] += params

    def log_dict(self, run_id: str, dictionary: Any, artifact_file: str) -> None:
        self.runs[run_id]["files"][artifact_file] = dictionary


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    return fake


WANDB = TrackingConfig(wandb_project="captions")
MLFLOW = TrackingConfig(mlflow_uri="http://tracker:5000", mlflow_experiment="captions")


def open_writer(folder: Path, update: int, validated: int, config: TrackingConfig) -> MetricsWriter:
    return MetricsWriter(folder, update, validated, tracking=config, settings=SETTINGS)


@pytest.mark.parametrize(
    ("config", "library", "key"),
    [(WANDB, "wandb", "tracking.wandb_project"), (MLFLOW, "mlflow", "tracking.mlflow_uri")],
)
def test_a_missing_library_is_told_with_its_remedy(
    config: TrackingConfig, library: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=f"{key}: the library {library} is not installed. pip install {library}"):
        check_tracking(config)


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A netrc that is not there yet, and an environment that says nothing to W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


@pytest.mark.usefixtures("wandb")
def test_wandb_without_a_key_is_told_before_training(netrc: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.wandb_project: W&B has no key for https://api\.wandb\.ai"):
        check_tracking(WANDB)
    netrc.write_text("machine other.example login user password secret\n")
    with pytest.raises(InputError, match="no key"):
        check_tracking(WANDB)
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    check_tracking(WANDB)


@pytest.mark.usefixtures("wandb", "netrc")
@pytest.mark.parametrize(
    ("name", "value"),
    [("WANDB_API_KEY", "secret"), ("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled")],
)
def test_wandb_needs_no_netrc_where_the_environment_has_its_key_or_says_that_nothing_is_sent(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    check_tracking(WANDB)


def test_wandb_on_a_host_of_ones_own_has_its_key(
    wandb: FakeWandb, netrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    with pytest.raises(InputError, match=r"no key for https://wandb\.example"):
        check_tracking(WANDB)


def test_nothing_is_imported_that_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, library, None)
    check_tracking(TrackingConfig())
    open_writer(tmp_path, 0, 0, TrackingConfig()).close()
    assert not (tmp_path / TRACKING_FILE).exists()


def test_a_server_of_mlflow_that_does_not_answer_is_told_before_training(mlflow: FakeMlflow) -> None:
    check_tracking(MLFLOW)
    assert mlflow.experiments == {}
    mlflow.answers = False
    with pytest.raises(InputError, match="MLflow does not answer"):
        check_tracking(MLFLOW)


def test_numbers_have_the_names_of_tensorboard() -> None:
    found = dict(numbers(train_record(4)))
    assert (found["train/loss"], found["train/waiting/1"]) == (3.25, 0.125)
    assert dict(numbers(validation_record(4)))["validation/best"] is True
    assert not {"train/update", "train/time", "train/kind", "validation/samples"} & set(found)


def test_wandb_gets_the_figures_over_the_updates(tmp_path: Path, wandb: FakeWandb) -> None:
    writer = open_writer(tmp_path, 0, 0, WANDB)
    writer.write(train_record(2))
    writer.write(validation_record(3))
    writer.close()
    (init,) = wandb.inits
    assert (init["project"], init["name"], init["config"]) == ("captions", tmp_path.name, SETTINGS)
    assert set(wandb.defined) >= {("train/*", "update"), ("validation/*", "update")}
    train, validation = wandb.runs[init["id"]]
    assert (train["update"], train["train/loss"], train["train/waiting/1"]) == (2, 3.25, 0.125)
    assert validation["validation/samples"] == (["source", "reference", "hypothesis"], [["a", "b", "c"]])
    assert validation["validation/bleu"] == 31.5
    assert wandb.finished == [0]


def test_a_continued_run_is_the_same_run_and_gets_nothing_twice(tmp_path: Path, wandb: FakeWandb) -> None:
    first = open_writer(tmp_path, 0, 0, WANDB)
    for record in (train_record(2), validation_record(3), train_record(4), train_record(6)):
        first.write(record)
    # Killed, and continued from update 3: updates 4 and 6 are computed again, and validation 3 is judged already.
    second = open_writer(tmp_path, 3, 3, WANDB)
    for record in (train_record(4), train_record(6), validation_record(6), train_record(8)):
        second.write(record)
    assert [init["resume"] for init in wandb.inits] == ["allow", "allow"]
    (logged,) = wandb.runs.values()
    assert [record["update"] for record in logged] == [2, 3, 4, 6, 6, 8]


def test_a_run_that_is_tracked_only_later_gets_what_was_recorded_before(
    tmp_path: Path, wandb: FakeWandb, mlflow: FakeMlflow
) -> None:
    first = open_writer(tmp_path, 0, 0, WANDB)
    for record in (train_record(2), train_record(4)):
        first.write(record)
    both = WANDB.model_copy(update={"mlflow_uri": "http://tracker:5000"})
    second = open_writer(tmp_path, 2, 0, both)
    second.write(train_record(4))
    (logged,) = wandb.runs.values()
    assert [record["update"] for record in logged] == [2, 4]
    (run,) = mlflow.runs.values()
    assert [step for key, _, _, step in run["metrics"] if key == "train/loss"] == [2, 4]


def test_another_project_has_a_run_of_its_own(tmp_path: Path, wandb: FakeWandb) -> None:
    open_writer(tmp_path, 0, 0, WANDB)
    open_writer(tmp_path, 0, 0, TrackingConfig(wandb_project="other"))
    assert len(wandb.runs) == 2
    assert json.loads((tmp_path / TRACKING_FILE).read_text())["wandb"]["project"] == "other"


def test_mlflow_gets_parameters_once_and_figures_at_their_updates(tmp_path: Path, mlflow: FakeMlflow) -> None:
    writer = open_writer(tmp_path, 0, 0, MLFLOW)
    writer.write(train_record(2))
    writer.write(validation_record(3))
    writer.close(finished=False)
    (run,) = mlflow.runs.values()
    assert run["status"] == "KILLED"
    resumed = open_writer(tmp_path, 3, 3, MLFLOW)
    assert run["status"] == "RUNNING"
    resumed.write(train_record(4))
    resumed.close()
    assert list(mlflow.runs.values()) == [run]
    assert run["params"] == [
        ("train.seed", "1"), ("train.freeze", "['encoder']"), ("model.architecture", "recurrent"),
    ]  # fmt: skip
    assert ("train/loss", 3.25, 1_002_000, 2) in run["metrics"]
    assert [(key, step) for key, _, _, step in run["metrics"] if key.endswith("/loss")] == [
        ("train/loss", 2), ("validation/loss", 3), ("train/loss", 4),
    ]  # fmt: skip
    assert run["files"] == {"samples/update-3.json": {"samples": validation_record(3)["samples"]}}
    assert run["status"] == "FINISHED"
    assert (run["name"], set(mlflow.uris)) == (tmp_path.name, {"http://tracker:5000"})


def test_many_parameters_are_sent_in_batches(tmp_path: Path, mlflow: FakeMlflow) -> None:
    settings = {"train": {f"key{n}": "x" * 600 for n in range(230)}}
    MetricsWriter(tmp_path, 0, 0, tracking=MLFLOW, settings=settings)
    (run,) = mlflow.runs.values()
    assert len(run["params"]) == 230
    assert {len(value) for _, value in run["params"]} == {500}
