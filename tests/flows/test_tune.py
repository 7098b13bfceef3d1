from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tune_toy import toy_recipe, trial_lines
from typer.testing import CliRunner, Result

from flows import tune as tune_module
from flows.cli import app
from flows.config import Profile, TuneConfig, load_recipe
from flows.stages import plan
from flows.tune import search
from flows.tune_records import TrainingRecord, TrialRecord
from flows.tune_trial import Ladder, standings
from pipelines.errors import InputError
from pipelines.stage import acquired

GOOD, BAD = 0.02, 1e-7
RATES = {"space": {"train.learning_rate": {"choice": [GOOD, BAD]}}, "trials": 2, "concurrent_trials": 1, "seed": 3}


def seqloom(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def record(number: int, *folds: tuple[float, ...], state: str = "done") -> TrialRecord:
    trainings = tuple(
        TrainingRecord(training=f"train-{number}-{fold}", fold=fold, values=scores, scores=scores, finished=True)
        for fold, scores in enumerate(folds)
    )
    found = TrialRecord(trial=number, point={}, metric="bleu", rule={}, trainings=trainings)
    return found.model_copy(update={"state": state})


def asked(scheduler: Any, ladder: Ladder, found: TrialRecord) -> list[str]:
    """What the scheduler says at each standing of a trial, up to where it stops it."""
    trial = SimpleNamespace(trial_id=str(found.trial))
    scheduler.on_trial_add(None, trial)
    answers = []
    for done, training in found.states():
        for standing in standings(ladder, done, training):
            answers.append(scheduler.on_trial_result(None, trial, standing))
            if answers[-1] == "STOP":
                return answers
    return answers


# What is held against what


def test_earlier_trials_stand_on_the_rungs_of_a_search_that_goes_on() -> None:
    config = TuneConfig.model_validate({"space": RATES["space"], "grace_validations": 2, "reduction_factor": 2})
    ladder = Ladder.of(config)
    bad = record(5, (1.0, 1.0, 1.0))
    fresh = tune_module._scheduler(config, ladder, [])
    assert "STOP" not in asked(fresh, ladder, bad)
    continued = tune_module._scheduler(config, ladder, [record(0, (9.0, 10.0, 11.0)), record(1, (8.0, 9.0))])
    assert asked(continued, ladder, bad) == ["CONTINUE", "STOP"]  # not before the grace is over
    failed = tune_module._scheduler(config, ladder, [record(0, (9.0, 10.0, 11.0), state="failed")])
    assert "STOP" not in asked(failed, ladder, bad)


def test_a_trial_whose_training_ended_early_is_held_against_those_that_go_on() -> None:
    config = TuneConfig.model_validate({"space": RATES["space"], "grace_validations": 1, "reduction_factor": 2})
    ladder = Ladder.of(config)
    scheduler = tune_module._scheduler(config, ladder, [record(0, (20.0, 30.0))])
    longer = record(1, (25.0, 31.0, 31.0, 29.0, 29.0))
    # Better at 1 and 2; at 4 it is below the 30 at which the other one has stayed.
    assert asked(scheduler, ladder, longer) == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP"]


def test_folds_are_compared_by_the_mean_over_the_same_folds_alone() -> None:
    config = TuneConfig.model_validate(
        {"space": RATES["space"], "grace_validations": 1, "reduction_factor": 2, "folds": 3}
    )
    ladder = Ladder.of(config)
    scheduler = tune_module._scheduler(config, ladder, [record(0, (10.0,), (2.0,), (2.0,))])
    # Fold 1 is harder for all: what counts is that after two folds the mean is 5.5, below (10 + 2) / 2.
    answers = asked(scheduler, ladder, record(1, (10.5,), (0.5,), (99.0,)))
    assert answers.count("STOP") == 1
    assert len(answers) == 1 + len(ladder.rungs_after(1)) + 1 + 1 + 1


def test_less_is_better_of_a_loss() -> None:
    config = TuneConfig.model_validate({"space": RATES["space"], "metric": "loss", "grace_validations": 1})
    ladder = Ladder.of(config)
    scheduler = tune_module._scheduler(config, ladder, [record(0, (2.0,)), record(1, (2.1,)), record(2, (2.2,))])
    assert asked(scheduler, ladder, record(3, (3.0,))) == ["STOP"]
    assert asked(scheduler, ladder, record(4, (1.0,)))[0] == "CONTINUE"


# What is refused before anything runs


def test_a_recipe_without_a_search_is_refused(tmp_path: Path) -> None:
    path = toy_recipe(tmp_path, RATES)
    tree = yaml.safe_load(path.read_text())
    del tree["tune"]
    path.write_text(yaml.safe_dump(tree))
    result = seqloom("tune", path, "--workdir", tmp_path / "runs")
    assert result.exit_code == 2
    assert "the recipe has no search. Add a table `tune`" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("space", "profile", "said"),
    [
        (
            {"train.precision": {"choice": ["float32", "float16"]}},
            "",
            "train.precision, at train.precision = float16: ",
        ),
        (RATES["space"], "tracking: {wandb_project: captions}", "the library wandb is not installed"),
    ],
)
def test_what_the_profile_cannot_train_ends_with_status_two_before_anything_runs(
    tmp_path: Path, space: dict[str, Any], profile: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    path = toy_recipe(tmp_path, {**RATES, "space": space})
    (tmp_path / "where.yaml").write_text(f"name: where\n{profile}\n")
    result = seqloom("tune", path, "--workdir", tmp_path / "runs", "--profile", tmp_path / "where.yaml")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_wrong_value_of_the_space_ends_with_status_two_before_anything_runs(tmp_path: Path) -> None:
    path = toy_recipe(tmp_path, {"space": {"model.dropout": {"uniform": [0.5, 1.5]}}})
    result = seqloom("tune", path, "--workdir", tmp_path / "runs")
    assert result.exit_code == 2
    assert "tune.space.model.dropout: model.dropout = 1.5 makes no recipe" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_second_search_of_the_same_recipe_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(str(toy_recipe(tmp_path, RATES)), define={}, with_model=False)
    folder = tmp_path / "runs" / "toy" / "tune"
    folder.mkdir(parents=True)
    held = acquired(folder / ".lock", "", where="", remedy="")
    with pytest.raises(InputError, match="another process is at this search"):
        search(recipe, Profile(), tmp_path / "runs")
    held.release()


def test_data_stages_that_refuse_every_point_are_the_users_to_mend(tmp_path: Path) -> None:
    space = {"tokenizer.vocab_size": {"choice": [5000, 6000]}}
    path = toy_recipe(tmp_path, {"space": space, "metric": "bleu", "trials": 2})
    result = seqloom("tune", path, "--workdir", tmp_path / "runs")
    assert result.exit_code == 2
    assert "tokenizer.vocab_size: " in result.stderr and "pieces are more than the cleaned corpus" in result.stderr


# Searches


@pytest.mark.slow
def test_a_search_stops_what_falls_behind_survives_failures_and_writes_the_best_recipe(tmp_path: Path) -> None:
    # A bound of two pieces leaves no row to train on, which the training finds out.
    space = {"train.learning_rate": {"choice": [GOOD, BAD]}, "train.max_pieces": {"choice": [2, 200]}}
    path = toy_recipe(tmp_path, {"space": space, "trials": 4, "concurrent_trials": 1, "seed": 1})
    workdir = tmp_path / "runs"
    result = seqloom("tune", path, "--workdir", workdir, "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    by_point = {(one["point"]["train.learning_rate"], one["point"]["train.max_pieces"]): one for one in told["trials"]}
    assert {one["trial"]: one for one in told["trials"]} == {one["trial"]: one for one in trial_lines(workdir)}
    assert by_point[(GOOD, 200)]["state"] == "done" and by_point[(GOOD, 200)]["validations"] == 3
    assert by_point[(BAD, 200)]["state"] == "stopped" and by_point[(BAD, 200)]["validations"] == 1
    for rate in (GOOD, BAD):
        assert by_point[(rate, 2)]["state"] == "failed" and "train.max_pieces" in by_point[(rate, 2)]["reason"]

    best = by_point[(GOOD, 200)]
    assert told["best"] == best and told["trials"][0] == best
    record = best["trainings"][0]
    lines = (workdir / "stages" / record["training"] / "metrics.jsonl").read_text().splitlines()
    losses = [one["loss"] for one in map(json.loads, lines) if one["kind"] == "validation"]
    assert record["values"] == losses and best["score"] == losses[-1] == min(losses)

    loaded = load_recipe(told["best_recipe"], define={})
    assert (loaded.train.learning_rate, loaded.train.max_pieces) == (GOOD, 200)
    assert loaded.tune is None
    original = load_recipe(str(path), define={})
    assert loaded.model_copy(update={"train": original.train, "tune": original.tune}) == original
    # What the search has trained is what the recipe would train.
    planned = {stage.name: stage for stage in plan(loaded, Profile(), workdir)}
    assert not planned["train"].runs and planned["train"].folder == workdir / "stages" / record["training"]
    assert told["command"] == f"seqloom run {told['best_recipe']} --workdir {workdir}"
    page = Path(told["report"]).read_text()
    assert page.count("<svg") == 3 and "http://" not in page.replace("http://www.w3.org", "")
    assert not list((workdir / "toy" / "tune").glob(".ray-*"))


@pytest.mark.slow
def test_a_search_that_was_killed_repeats_nothing_and_comes_to_the_same(tmp_path: Path) -> None:
    space = {"train.learning_rate": {"choice": [0.02, 0.01, 0.005]}}
    tune = {"space": space, "trials": 3, "concurrent_trials": 1, "grace_validations": 500}
    path = toy_recipe(tmp_path, tune, train={"max_epochs": 12, "checkpoint_updates": 2})
    workdir = tmp_path / "runs"
    command = [sys.executable, "-m", "flows.cli", "tune", str(path), "--quiet", "--json", "--workdir"]
    log = tmp_path / "log"
    with log.open("w") as file:
        search = subprocess.Popen([*command, str(workdir)], stdout=file, stderr=file)
    wait_until(lambda: state(workdir, 0) == "done" and validations(workdir, 1) >= 2, search, log)
    search.send_signal(signal.SIGKILL)
    search.wait()
    training = workdir / "stages" / trial_lines(workdir)[1]["trainings"][0]["training"]
    wait_until(lambda: not processes_of(training.name))
    finished = workdir / "stages" / trial_lines(workdir)[0]["trainings"][0]["training"] / "manifest.json"
    before, left = finished.stat().st_mtime_ns, len((training / "metrics.jsonl").read_text().splitlines())
    assert left and not (training / "manifest.json").exists()

    done = subprocess.run([*command, str(workdir)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [one["state"] for one in told["trials"]] == ["done"] * 3
    assert finished.stat().st_mtime_ns == before
    assert "continuing from" in (workdir / "toy" / "tune" / "trials" / f"{training.name}.log").read_text()
    assert not (workdir / "toy" / "tune" / "trials" / f"{finished.parent.name}.log").read_text().count("continuing")

    # A search in one go has the same scores, bit for bit, of the trial that was interrupted too.
    other = [*command, str(tmp_path / "other"), "--set", "tune.trials=2"]
    whole = subprocess.run(other, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    again = {one["trial"]: one for one in json.loads(whole.stdout)["trials"]}
    for one in told["trials"]:
        if one["trial"] in again:
            assert one["point"] == again[one["trial"]]["point"]
            assert one["trainings"][0]["values"] == again[one["trial"]]["trainings"][0]["values"]
    assert len(again) == 2


@pytest.mark.slow
def test_the_score_of_a_cross_validation_is_the_mean_over_its_folds(tmp_path: Path) -> None:
    tune = {**RATES, "folds": 2, "grace_validations": 2}
    recipe = load_recipe(str(toy_recipe(tmp_path, tune, train={"max_epochs": 2})), define={}, with_model=False)
    outcome = search(recipe, Profile(), tmp_path / "runs")
    good = next(found for found in outcome.records if found.point["train.learning_rate"] == GOOD)
    bad = next(found for found in outcome.records if found.point["train.learning_rate"] == BAD)
    assert outcome.best == good and good.state == "done"
    assert [training.fold for training in good.trainings] == [0, 1]
    last = [training.scores[-1] for training in good.trainings]
    assert good.score == pytest.approx(sum(last) / 2)
    assert good.deviation == pytest.approx(abs(last[0] - last[1]) / 2**0.5)
    # The bad one is stopped within its first fold, or at its end, where the good one came first.
    assert bad.trial < good.trial or (bad.state == "stopped" and not bad.trainings[1].scores)


@pytest.mark.slow
def test_where_all_trials_fail_the_search_has_failed(tmp_path: Path) -> None:
    tune = {"space": {"train.max_pieces": {"choice": [2, 3]}}, "trials": 2, "concurrent_trials": 2}
    path = toy_recipe(tmp_path, tune)
    result = seqloom("tune", path, "--workdir", tmp_path / "runs", "--quiet")
    assert result.exit_code == 1
    assert "all 2 trials failed:" in result.stderr and "trial 1: " in result.stderr
    assert [line["state"] for line in trial_lines(tmp_path / "runs")] == ["failed", "failed"]


@pytest.mark.slow
def test_points_that_come_to_the_same_training_are_trained_once(tmp_path: Path) -> None:
    space = {"augment.typo_words": {"choice": [0.1, 0.2]}}  # of rows with typos, of which there are none
    path = toy_recipe(tmp_path, {"space": space, "metric": "bleu", "trials": 2}, train={"max_epochs": 1})
    outcome = search(load_recipe(str(path), define={}, with_model=False), Profile(), tmp_path / "runs")
    assert [found.same_as for found in outcome.records] == [None, 0]
    assert outcome.records[1].state == "done" and outcome.records[1].score == outcome.records[0].score
    assert outcome.records[1].point != outcome.records[0].point
    assert len(list((tmp_path / "runs" / "stages").glob("train-*"))) == 1


def state(workdir: Path, number: int) -> str | None:
    lines = trial_lines(workdir)
    return lines[number]["state"] if len(lines) > number else None


def validations(workdir: Path, number: int) -> int:
    lines = trial_lines(workdir)
    return lines[number]["validations"] if len(lines) > number else 0


def processes_of(name: str) -> list[int]:
    """The processes that have a training's file among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_until(reached: Any, process: subprocess.Popen[Any] | None = None, log: Path | None = None) -> None:
    deadline = time.monotonic() + 180
    while not reached():
        assert process is None or process.poll() is None, log and log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_search_aligns_where_attention_is_guided(tmp_path: Path) -> None:
    space = {"train.guided_alignment_weight": {"choice": [0.0, 0.1]}}
    recipe = load_recipe(str(toy_recipe(tmp_path, {"space": space, "trials": 1})), define={})
    assert recipe.tune is not None
    data = tune_module._Data(recipe.tune, Profile(), tmp_path / "work")
    guided = recipe.model_copy(update={"train": recipe.train.model_copy(update={"guided_alignment_weight": 0.1})})
    (unguided_stages,), (guided_stages,) = data.of(recipe), data.of(guided)
    assert "align" not in unguided_stages
    assert guided_stages["align"].manifest.stage == "align"
    assert guided_stages["encode"].folder == unguided_stages["encode"].folder
