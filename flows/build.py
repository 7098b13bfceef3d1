"""The flow `build`: from corpora to a published model, each stage in a process of its own.

    build(recipe="demo-en-de", define={"DATA": "/data/demo"}, workdir="runs")

Prefect only keeps the order, the log and the history: whether a stage is done stands in its manifest, so a flow run
that died is continued by the next one. A stage process that was killed or failed is started again once; with bad input
it never is.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task

from flows import summary
from flows.config import Profile, Recipe, check_profile, load_profile, load_recipe
from flows.process import GRACE_S, STOPPED_STATUSES, ProcessFailed, run_process
from flows.registry import publish
from flows.report import report
from flows.run_folder import RunFolder, RunManifest
from flows.stages import Stage, given_stage, stages_of
from pipelines.errors import InputError
from pipelines.stage import StageRun

STAGE_COMMAND: tuple[str, ...] = (sys.executable, "-m", "flows.cli", "stage")
RETRIES = 1
RETRY_DELAY_S = 5.0
# Between asking training to save and leave, and ending it: an update, a checkpoint, and the end of a Ray of its own.
TRAINING_GRACE_S = 60.0

log = logging.getLogger(__name__)


def may_help(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry may help: always but for bad input, which stays bad, and a stage that was told to stop."""
    if isinstance(state.data, ProcessFailed) and state.data.status in STOPPED_STATUSES:
        return False
    return not isinstance(state.data, InputError)


def stage_task(stage: Stage) -> Task[..., str]:
    """Return the task of a stage: it takes the command's arguments and the folders of the stages before it."""

    @task(
        name=stage.name,
        task_run_name=stage.name,
        description=stage.title,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY_S,
        retry_condition_fn=may_help,
    )
    def run(recipe_name: str, arguments: list[str], folders: dict[str, str]) -> str:
        """Run the stage's process, its lines in this task's log, and return the stage's folder."""
        logger = get_run_logger()

        def on_line(line: str) -> None:
            logger.info(line)
            log.info(line)  # the terminal's

        inputs = [part for name, folder in folders.items() for part in ("--input", f"{name}={folder}")]
        command = [*STAGE_COMMAND, stage.name, *arguments, *inputs, "--supervised", "--json"]
        grace_s = TRAINING_GRACE_S if stage.name == "train" else GRACE_S
        folder: str = run_process(f"stage {stage.name}", command, on_line, grace_s=grace_s)["folder"]
        create_artifacts(given_stage(stage.name, Path(folder)), recipe_name)
        return folder

    return run


@task(name="publish", task_run_name="publish", description="Ask the gate, and publish the model where it lets it pass")
def publish_model(recipe: Recipe, runs: dict[str, StageRun], run_folder: RunFolder) -> dict[str, Any]:
    """Return the gate's answer: {"published", "reasons", ...}."""
    answer = publish(recipe, runs, run_folder.model)
    verdict = "published" if answer["published"] else "NOT published"
    get_run_logger().info("%s: %s", verdict, "; ".join(answer["reasons"]))
    markdown = "\n".join([f"**{verdict}**", "", *(f"- {reason}" for reason in answer["reasons"])])
    create_markdown_artifact(markdown, key=_key("gate", recipe.name), description=f"The gate of {recipe.name}")
    return answer


@task(name="report", task_run_name="report", description="Write report.html from the stages' manifests")
def write_report(
    recipe: Recipe, profile: Profile, runs: dict[str, StageRun], gate: dict[str, Any], run_folder: RunFolder
) -> str:
    """Return the path of the report."""
    report(runs, recipe, run_folder.report, verdict=gate, prices=profile.prices)
    link = run_folder.report.resolve().as_uri()
    create_link_artifact(link, link_text="report.html", key=_key("report", recipe.name), description=recipe.name)
    return str(run_folder.report)


def _flow_run_name() -> str:
    return f"{Path(str(flow_run.parameters['recipe'])).stem} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


@flow(name="build", description="Corpora to a published model", flow_run_name=_flow_run_name)
def build(
    recipe: str,
    define: dict[str, str] | None = None,
    overrides: list[str] | None = None,
    profile: str | None = None,
    workdir: str = "runs",
    continue_from_earlier: bool = False,
) -> dict[str, Any]:
    """Return the figures of the run: its folder, report, scores, and the gate's answer.

    The parameters are those of `seqloom run`: a recipe's name or path, what it leaves open, overrides as of `--set`, a
    profile's name or path, the folder for everything that is made, and whether training leaves out checkpoints that
    cannot be read.
    """
    started_at, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    loaded = load_recipe(recipe, define=define or {}, overrides=overrides or ())
    where = load_profile(profile)
    check_profile(loaded, where)
    arguments = stage_arguments(recipe, define or {}, overrides or [], profile, workdir)
    folders: dict[str, str] = {}
    for stage in stages_of(loaded):
        extra = ["--continue-from-earlier"] if stage.name == "train" and continue_from_earlier else []
        folders[stage.name] = stage_task(stage)(loaded.name, arguments + extra, dict(folders))
    runs = {name: given_stage(name, Path(folder)) for name, folder in folders.items()}
    run_folder = RunFolder.of(Path(workdir), loaded)
    run_folder.link(runs)
    gate = publish_model(loaded, runs, run_folder)
    report_path = write_report(loaded, where, runs, gate, run_folder)
    evaluated = runs.get("evaluate")  # a language model has no test sets to translate
    scores = {} if evaluated is None else evaluated.manifest.counters
    manifest = RunManifest(
        recipe=loaded,
        profile=where,
        stages={name: os.path.relpath(run.folder, run_folder.folder) for name, run in runs.items()},
        scores=scores,
        gate=gate,
        started_at=started_at,
        seconds=round(time.monotonic() - start, 3),
    )
    run_folder.write(manifest, evaluated)
    return {"folder": str(run_folder.folder), "report": report_path, "gate": gate, "scores": scores, "stages": folders}


def stage_arguments(
    recipe: str, define: Mapping[str, str], overrides: list[str], profile: str | None, workdir: str
) -> list[str]:
    """Return the arguments of `seqloom stage NAME` that stand for these parameters."""
    arguments = [recipe, "--workdir", workdir]
    arguments += [part for name, value in define.items() for part in ("--define", f"{name}={value}")]
    arguments += [part for override in overrides for part in ("--set", override)]
    return arguments + ([] if profile is None else ["--profile", profile])


def create_artifacts(run: StageRun, recipe_name: str) -> None:
    """Show the waterfall of a finished `clean`, and the scores of a finished `evaluate`, in Prefect."""
    match run.manifest.stage:
        case "clean":
            _create_tables("waterfall", recipe_name, summary.waterfall(run), "Rows read, rejected by each rule, kept")
        case "evaluate":
            _create_tables("scores", recipe_name, summary.scores(run), "Scores of the test sets")


def _create_tables(kind: str, recipe_name: str, rows: summary.Rows, description: str) -> None:
    create_markdown_artifact(rows.markdown(), key=_key(kind, recipe_name), description=description)
    create_table_artifact(rows.records(), key=_key(f"{kind}-table", recipe_name), description=description)


def _key(kind: str, recipe: str) -> str:
    """Return an artifact key, which may hold lower-case letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{recipe}".lower()).strip("-")
