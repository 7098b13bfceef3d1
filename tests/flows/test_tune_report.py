from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flows.config import TuneConfig
from flows.tune_cli import run_command
from flows.tune_records import TrainingRecord, TrialRecord
from flows.tune_report import parameter_chart, report, score_curves, trial_rows

SPACE: dict[str, Any] = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "model.attention": {"choice": ["general", "<b>", None, 3]},
    "train.warmup_updates": {"integers": [0, 400]},
}
CONFIG = TuneConfig.model_validate({"space": SPACE, "trials": 4})
FOLDS = TuneConfig.model_validate({"space": SPACE, "trials": 4, "folds": 2})


def record(number: int, point: tuple[Any, ...], *folds: tuple[float, ...], **keys: Any) -> TrialRecord:
    trainings = tuple(
        TrainingRecord(training=f"train-{number}-{fold}", fold=fold, values=scores, scores=scores, seconds=600.0)
        for fold, scores in enumerate(folds)
    )
    empty = TrialRecord(trial=number, point=dict(zip(SPACE, point)), metric="bleu", rule={}, trainings=trainings)
    for training in trainings:
        empty = empty.with_training(training)
    return empty.model_copy(update={"state": "done", **keys})


RECORDS = [
    record(0, (0.0005, "general", 100), (10.0, 20.0, 24.5)),
    record(1, (0.001, "<b>", 200), (12.0, 25.0, 31.25)),
    record(2, (0.009, None, 0), (1.0,), state="stopped"),
    record(3, (0.002, 3, 400), state="failed", reason="<script>alert(1)</script>"),
]


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def paths_of(svg: str, color: str) -> int:
    return len(re.findall(rf"(?:stroke|fill): {color}", svg))


def test_the_table_has_the_best_trial_first_and_what_became_of_each() -> None:
    rows = trial_rows(CONFIG, RECORDS)
    assert rows.header == ["trial", "BLEU", *SPACE, "validations", "seconds", "state"]
    assert rows.rows[0] == ["1", "31.25", "0.001", "<b>", "200", "3", "600", "done"]
    assert [row[0] for row in rows.rows] == ["1", "0", "2", "3"]
    assert [row[-1] for row in rows.rows[2:]] == ["stopped at validation 1", "failed: <script>alert(1)</script>"]
    assert rows.rows[3][1] == ""


def test_the_table_of_folds_has_the_deviation_and_how_many_there_were() -> None:
    records = [
        record(0, (0.0005, "general", 100), (10.0,), (14.0,)),
        record(1, (0.001, "general", 100), (40.0,), (), state="stopped"),
    ]
    rows = trial_rows(FOLDS, records)
    assert rows.header[:4] == ["trial", "BLEU", "deviation", "folds"]
    assert rows.rows[0][:4] == ["0", "12", "2.828", "2/2"]
    assert rows.rows[1][:4] == ["1", "40", "", "1/2"]


def test_a_trial_with_the_trainings_of_another_names_it() -> None:
    shared = RECORDS[1].model_copy(update={"trial": 4, "same_as": 1})
    assert trial_rows(CONFIG, [*RECORDS, shared]).rows[1][-1] == "as trial 1"


def test_the_curves_show_each_trial_and_the_best_in_its_own_colour() -> None:
    svg = score_curves(CONFIG, RECORDS)
    assert {"validation", "BLEU on dev"} <= set(texts(svg))
    assert paths_of(svg, "#c2621b") == 1  # the best one's line
    assert paths_of(svg, "#2563a8") >= 2


def test_a_parameter_is_shown_on_the_scale_that_it_was_drawn_on() -> None:
    rates = parameter_chart("train.learning_rate", CONFIG, RECORDS)
    assert "train.learning_rate" in texts(rates)
    assert {"0.001", "0.01"} <= set(texts(rates))
    choices = parameter_chart("model.attention", CONFIG, RECORDS)
    assert [text for text in texts(choices) if text in ("general", "&lt;b&gt;", "null", "3")] == [
        "general",
        "&lt;b&gt;",
        "null",
        "3",
    ]
    assert all("." not in text for text in texts(parameter_chart("train.warmup_updates", CONFIG, RECORDS))[:4])


def test_the_page_holds_everything_and_nothing_that_a_trial_said_is_markup(tmp_path: Path) -> None:
    page = report("small", CONFIG, RECORDS, "seqloom run best.yaml", tmp_path / "tune.html").read_text()
    assert page.count("<svg") == 1 + len(SPACE)
    assert "seqloom run best.yaml" in page and "1 stopped early, 1 failed" in page
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_records_give_the_same_page(tmp_path: Path) -> None:
    pages = [report("small", FOLDS, RECORDS, "run", tmp_path / name).read_bytes() for name in ("one", "other")]
    assert pages[0] == pages[1]


def test_the_command_runs_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my profile.yaml").touch()
    command = run_command(tmp_path / "best.yaml", Path("runs"), "my profile.yaml")
    best, workdir = f"{tmp_path}/best.yaml", f"{tmp_path}/runs"
    assert command == f"seqloom run {best} --workdir {workdir} --profile '{tmp_path}/my profile.yaml'"
    assert run_command(tmp_path / "best.yaml", Path("runs"), "dask").endswith("--profile dask")
    assert run_command(tmp_path / "best.yaml", Path("runs"), None).endswith("runs")
