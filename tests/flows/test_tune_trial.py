from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from finished_runs import small_recipe

from flows import tune_trial
from flows.config import Profile
from flows.tune_records import TrainingRecord, scores_of
from flows.tune_trial import MOST_VALIDATIONS, Ladder, TrainingSpec, followed, run_trial, standings

# In the place of the training's process: does what a plan beside its folder says, one item after the other.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
from flows.process import end_with_parent
end_with_parent()
folder = Path(json.loads(Path(sys.argv[1]).read_text())["folder"])
folder.mkdir(exist_ok=True)
plan = folder.with_suffix(".plan")
(folder.with_suffix(".pid")).write_text(str(os.getpid()))
while items := json.loads(plan.read_text()):
    plan.write_text(json.dumps(items[1:]))
    item = items[0]
    if item == "manifest":
        manifest = {"stage": "train", "version": 1, "key": "k", "config": {}, "inputs": {}, "outputs": [],
                    "counters": {}, "started_at": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    elif item == "sleep":
        time.sleep(60)
    elif item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif item == "forget":
        (folder / "metrics.jsonl").write_text("")
    elif isinstance(item, int):
        sys.exit(item)
    elif isinstance(item, str):
        print(item, flush=True)
    else:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "validation", "bleu": item[0], "best": item[1]}) + "\\n")
"""
GOOD, WORSE = [30.0, True], [20.0, False]
LADDER = Ladder(grace=2, factor=3, folds=1)


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(tune_trial, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(tune_trial, "LOOK_EVERY_S", 0.02)


def spec_file(tmp_path: Path, plan: list[Any], name: str = "train-a", fold: int | None = None) -> str:
    spec = TrainingSpec(
        recipe=small_recipe(),
        profile=Profile(),
        workdir=str(tmp_path),
        stages={},
        folder=str(tmp_path / name),
        fold=fold,
        metric="bleu",
        log=str(tmp_path / f"{name}.log"),
        seconds=0.0,
    )
    (tmp_path / f"{name}.plan").write_text(json.dumps(plan))
    path = tmp_path / f"{name}.json"
    path.write_text(spec.model_dump_json())
    return str(path)


def reported(specs: list[str], ladder: Ladder = LADDER, attempts: int = 1) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []
    run_trial(specs, ladder, attempts, reports.append)
    return reports


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def waited_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
    return path.read_text()


# Where a trial stands


def test_rungs_lie_a_factor_apart_among_validations_and_among_folds() -> None:
    ladder = Ladder(grace=2, factor=3, folds=5)
    assert ladder.rungs_after(0) == [2, 6, 18, 54, 162, 486]
    assert ladder.rungs_after(6) == [18, 54, 162, 486]
    assert ladder.first_fold == 1458 > MOST_VALIDATIONS
    assert [ladder.position(folds) / ladder.first_fold for folds in (1, 2, 3)] == [1, 2, 3]
    assert ladder.position(0, 5) == 5
    assert ladder.position(1, 5) == 1463
    assert ladder.position(1, 10**6) < ladder.position(2)
    assert ladder.position(5) < ladder.top


def test_a_training_that_has_ended_stands_at_all_later_rungs_with_its_score() -> None:
    record = TrainingRecord(training="a", values=(1.0, 3.0), scores=(1.0, 3.0))
    assert standings(LADDER, [], record) == [{"position": 2, "score": 3.0}]
    ended = standings(LADDER, [], record.model_copy(update={"finished": True}))
    assert [standing["position"] for standing in ended] == [6, 18, 54, 162, 486, 1458]
    assert {standing["score"] for standing in ended} == {3.0}


def test_a_later_fold_stands_at_the_mean_of_the_folds() -> None:
    record = TrainingRecord(training="b", fold=1, values=(5.0,), scores=(5.0,))
    assert standings(LADDER, [2.0], record) == [{"position": 1459, "score": 3.5}]
    finished = record.model_copy(update={"finished": True})
    assert standings(LADDER, [2.0], finished) == [{"position": 2916, "score": 3.5}]


# A trial and its process


def test_a_trial_reports_each_validation_once_and_its_end(tmp_path: Path) -> None:
    reports = reported([spec_file(tmp_path, [GOOD, WORSE, "manifest"])])
    assert [(report["position"], report["score"]) for report in reports[:2]] == [(1, 30.0), (2, 30.0)]
    assert [report["training"]["values"] for report in reports[:2]] == [[30.0], [30.0, 20.0]]
    assert [report["end"] for report in reports] == [False, False] + [True] * 6
    assert reports[-1]["position"] == LADDER.position(1)
    assert all(report["training"]["finished"] for report in reports[2:])


def test_a_finished_training_is_not_started_again(tmp_path: Path) -> None:
    path = spec_file(tmp_path, [GOOD, "manifest"])
    first = reported([path])
    (tmp_path / "train-a.pid").unlink()
    again = reported([path])
    assert [(one["position"], one["score"], one["end"]) for one in again] == [
        (one["position"], one["score"], one["end"]) for one in first
    ]
    assert not (tmp_path / "train-a.pid").exists()


def test_folds_are_trained_in_their_order_and_the_score_is_their_mean(tmp_path: Path) -> None:
    specs = [
        spec_file(tmp_path, [[value, True], "manifest"], f"train-{n}", fold=n) for n, value in enumerate((10.0, 30.0))
    ]
    reports = reported(specs, Ladder(grace=1, factor=2, folds=2))
    assert [report["training"]["fold"] for report in reports] == sorted(
        report["training"]["fold"] for report in reports
    )
    assert reports[-1]["score"] == 20.0
    assert [report["end"] for report in reports if report["training"]["fold"] == 0].count(True) == 0
    assert reports[-1]["end"]


def test_a_training_that_is_killed_is_started_again_and_its_validations_are_told_once(tmp_path: Path) -> None:
    reports = reported([spec_file(tmp_path, [GOOD, "kill", "forget", GOOD, WORSE, "manifest"])], attempts=2)
    assert [len(report["training"]["values"]) for report in reports if not report["end"]] == [1, 2]


def test_the_record_is_read_again_only_when_a_validation_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(folder: Path, metric: str) -> Any:
        read.append(folder)
        return scores_of(folder, metric)

    monkeypatch.setattr(tune_trial, "scores_of", counted)
    reported([spec_file(tmp_path, [GOOD, "said", "said", WORSE, "manifest"])])
    assert 1 <= len(read) <= 2


def test_a_training_that_is_killed_too_often_fails(tmp_path: Path) -> None:
    path = spec_file(tmp_path, ["kill", "kill", "manifest"])
    assert reported([path], attempts=2) == [{"failed": "train-a: it was ended by SIGKILL"}]


def test_a_training_that_fails_says_why_and_is_not_started_again(tmp_path: Path) -> None:
    specs = [
        spec_file(tmp_path, [GOOD, "noise", "error: no row is left", 2, GOOD, "manifest"]),
        spec_file(tmp_path, [GOOD, "manifest"], "train-b", fold=1),
    ]
    reports = reported(specs, attempts=3)
    assert reports[-1] == {"failed": "train-a: error: no row is left"}
    assert not (tmp_path / "train-b").exists()


def test_a_score_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    reports = reported([spec_file(tmp_path, [GOOD, [float("nan"), False], "sleep"])])
    assert reports[-1] == {"failed": "train-a: bleu is nan at validation 2"}


def test_a_training_without_a_validation_is_a_failure(tmp_path: Path) -> None:
    assert reported([spec_file(tmp_path, ["manifest"])]) == [{"failed": "train-a: it ended without a validation"}]


def test_the_training_ends_when_the_trial_is_stopped(tmp_path: Path) -> None:
    path = spec_file(tmp_path, [GOOD, "sleep"])

    class Stop(BaseException):
        pass

    def report(told: dict[str, Any]) -> None:
        raise Stop

    with contextlib.suppress(Stop):
        run_trial([path], LADDER, 1, report)
    assert not lives(int((tmp_path / "train-a.pid").read_text()))


def test_the_training_ends_when_its_trial_is_killed(tmp_path: Path) -> None:
    path = spec_file(tmp_path, ["sleep"])
    text = (
        "import sys; from flows import tune_trial; from flows.tune_trial import *\n"
        f"tune_trial.COMMAND = {tune_trial.COMMAND!r}\n"
        f"run_trial([{path!r}], Ladder(1, 2, 1), 1, print)"
    )
    trial = subprocess.Popen([sys.executable, "-c", text])
    pid = int(waited_for(tmp_path / "train-a.pid"))
    assert lives(pid)
    trial.send_signal(signal.SIGKILL)
    trial.wait()
    deadline = time.monotonic() + 10
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(pid)


def test_seconds_are_those_of_earlier_runs_and_of_this_one(tmp_path: Path) -> None:
    path = spec_file(tmp_path, [GOOD, "manifest"])
    spec = TrainingSpec.model_validate_json(Path(path).read_text()).model_copy(update={"seconds": 100.0})
    states = list(followed(spec, path, 1))
    assert all(100.0 < state.seconds < 130.0 for state in states)
