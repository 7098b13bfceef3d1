from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows import build as build_module
from flows.build import build, stage_arguments
from flows.config import Recipe
from flows.run_folder import RunFolder
from flows.stages import ALIGNING_STAGES, RATING_STAGES, STAGE_NAMES
from nmt.config import PricesConfig
from pipelines.errors import InputError
from pipelines.stage import StageRun

RECIPE = """
name: Tiny_1
languages: {source: en, target: de}
corpora:
  train: [{name: a, tsv: a.tsv}]
  dev: [{name: a, tsv: a.tsv}]
  test: [{name: a, tsv: a.tsv}]
"""


@pytest.fixture(scope="module")
def build_with(prefect_server: None) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that runs the flow with stage processes of a given behaviour, and a gate that lets all pass."""

    def publish(recipe: Recipe, runs: Mapping[str, StageRun], destination: Path) -> dict[str, Any]:
        return {"published": True, "reasons": [f"{len(runs)} stages"], "model": str(destination)}

    def report(
        runs: Mapping[str, StageRun], recipe: Recipe, output: Path, verdict: Mapping[str, Any], prices: PricesConfig
    ) -> None:
        output.write_text(str(verdict["published"]))

    with pytest.MonkeyPatch.context() as patch:

        def run(behaviour: str, folder: Path, recipe: str = RECIPE) -> dict[str, Any]:
            path = folder / "tiny.yaml"
            path.write_text(recipe, encoding="utf-8")
            fake = str(Path(__file__).with_name("fake_stage.py"))
            patch.setattr(build_module, "STAGE_COMMAND", (sys.executable, fake, behaviour))
            result: dict[str, Any] = build(str(path), workdir=str(folder))
            return result

        patch.setattr(build_module, "publish", publish)
        patch.setattr(build_module, "report", report)
        patch.setattr(build_module, "RETRY_DELAY_S", 0.0)
        yield run


# The recipe asks for no ratings and guides no attention.
RUN = [name for name in STAGE_NAMES if name not in RATING_STAGES | ALIGNING_STAGES]


@dataclass(frozen=True)
class Finished:
    """A run of the flow whose stage fit_tokenizer was killed at its first attempt."""

    workdir: Path
    result: dict[str, Any]
    lines: list[str]
    folder: RunFolder


@pytest.fixture(scope="module")
def finished(build_with: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    workdir, lines = tmp_path_factory.mktemp("build"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flows.build")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        result = build_with("killed-once", workdir)
        yield Finished(workdir, result, lines, RunFolder(workdir / "Tiny_1"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_the_stages_run_in_order_and_a_killed_one_is_started_again(finished: Finished) -> None:
    once = [f"{name}: attempt 1" for name in RUN]
    assert finished.lines == [*once[:3], "fit_tokenizer: attempt 2", *once[3:]]


def test_the_run_folder_points_to_the_stages(finished: Finished) -> None:
    folder = finished.folder
    assert finished.result["folder"] == str(folder.folder)
    assert list(folder.stage_runs()) == RUN
    for name, path in finished.result["stages"].items():
        assert (folder.folder / "stages" / name).resolve() == Path(path).resolve()


def test_the_run_folder_holds_scores_report_and_the_gates_answer(finished: Finished) -> None:
    folder = finished.folder
    assert json.loads(folder.scores.read_text())["tests"]["a"]["metrics"]["bleu"]["score"] == 61.25
    assert folder.report.read_text() == "True"
    assert folder.read().gate == {"published": True, "reasons": ["7 stages"], "model": str(folder.model)}


def test_a_workdir_can_be_moved(finished: Finished, tmp_path: Path) -> None:
    moved = shutil.copytree(finished.workdir, tmp_path / "moved", symlinks=True)
    runs = RunFolder(moved / "Tiny_1").stage_runs()
    assert all(run.folder.is_relative_to(moved.resolve()) for run in runs.values())
    linked = RunFolder(moved / "Tiny_1").linked("clean")
    assert linked is not None
    assert linked.folder == runs["clean"].folder


def test_prefect_shows_the_tasks_in_order(finished: Finished) -> None:
    with get_client(sync_client=True) as client:
        (run,) = (run for run in client.read_flow_runs() if run.state_name == "Completed")
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert run.name.startswith("tiny ")
    ordered = sorted(tasks, key=lambda task: task.expected_start_time or task.created)
    assert [task.name.partition("-")[0] for task in ordered] == [*RUN, "publish", "report"]
    assert [task.run_count for task in ordered] == [1, 1, 2, 1, 1, 1, 1, 1, 1]


def test_prefect_shows_waterfall_scores_gate_and_report(finished: Finished) -> None:
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact.data for artifact in client.read_artifacts()}
    waterfall = "| rows | train a |\n| --- | --- |\n| read | 9 |\n| - html | 2   22.2 % |\n| kept | 7   77.8 % |"
    assert artifacts["waterfall-tiny-1"] == waterfall
    assert json.loads(artifacts["scores-table-tiny-1"])[0]["score"] == "61.25"
    assert "**published**" in artifacts["gate-tiny-1"]
    assert finished.folder.report.resolve().as_uri() in artifacts["report-tiny-1"]


def test_bad_input_fails_the_flow_at_once(build_with: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        build_with("bad-input", tmp_path)
    assert str(raised.value) == "a.en: no text. Give another file"
    assert (tmp_path / "fit_tokenizer.attempts").read_text() == "1"
    assert not (tmp_path / "encode.attempts").exists()


def test_a_language_models_run_ends_with_training_and_has_no_scores(
    build_with: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "Tiny_1")
    folder.folder.mkdir()
    folder.scores.write_text("{}", encoding="utf-8")  # of the recipe when its model translated
    recipe = f"{RECIPE}model: {{architecture: recurrent_lm}}\ntrain: {{early_stopping_metric: loss}}\n"
    result = build_with("well", tmp_path, recipe)
    assert list(result["stages"]) == ["score", "clean", "fit_tokenizer", "encode", "train"]
    assert list(folder.stage_runs()) == list(result["stages"])
    assert result["scores"] == folder.read().scores == {}
    assert not folder.scores.exists()
    assert folder.report.read_text() == "True"


def test_the_parameters_become_the_arguments_of_a_stage() -> None:
    arguments = stage_arguments("r.yaml", {"A": "x y"}, ["train.seed=2"], "gpu", "runs")
    assert arguments == [
        "r.yaml", "--workdir", "runs", "--define", "A=x y", "--set", "train.seed=2", "--profile", "gpu",
    ]  # fmt: skip
