"""What the launcher shows of a run: lines in a log, a bar in a terminal."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nmt.training import progress
from nmt.training.json_lines import Follower
from nmt.training.metrics import METRICS_FILE, MetricsWriter
from nmt.training.progress import Pace, dev_score, duration, progress_shown, train_line, validation_line
from tests.nmt.training.test_metrics import train_record, validation_record


def write(folder: Path, *records: dict[str, Any]) -> None:
    writer = MetricsWriter(folder, 10**6, 10**6)
    for record in records:
        writer.write(record)
    writer.close()


def test_every_validation_is_logged_and_training_at_intervals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nmt.training.progress")
    with progress_shown(tmp_path / METRICS_FILE, Console(file=io.StringIO())):
        write(tmp_path, train_record(2), train_record(4), validation_record(5), validation_record(9))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        train_line(train_record(2)),
        validation_line(validation_record(5)),
        validation_line(validation_record(9)),
    ]


def test_a_line_of_counters_comes_every_thirty_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="nmt.training.progress")
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = progress._Lines()
    for now in (0.0, 29.0, 30.0, 31.0, 59.0, 60.5):
        lines.show(train_record(round(2 * now)))
    assert [re.match(r"update (\d+)", record.getMessage()).group(1) for record in caplog.records] == ["0", "60", "121"]  # type: ignore[union-attr]


def test_a_quiet_log_shows_nothing_but_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="nmt.training.progress")
    out = io.StringIO()
    with progress_shown(tmp_path / METRICS_FILE, Console(file=out, force_terminal=True)):
        write(tmp_path, train_record(2), validation_record(5), train_record(6) | {"warnings": ["a worker starves"]})
    assert [record.getMessage() for record in caplog.records] == ["update 6: a worker starves"]
    assert out.getvalue() == ""


def test_a_warning_is_said_once_for_the_workers_that_it_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="nmt.training.progress")
    said = ["worker 1 (40%)", "worker 1 (57%)", "worker 0 (40%)"]
    with progress_shown(tmp_path / METRICS_FILE):
        write(tmp_path, *(train_record(n) | {"warnings": [warning]} for n, warning in enumerate(said)))
    assert [record.getMessage() for record in caplog.records] == [
        "update 0: worker 1 (40%)",
        "update 2: worker 0 (40%)",
    ]


def test_a_terminal_has_a_bar_with_the_figures_and_lines_above_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="nmt.training.progress")
    out = io.StringIO()
    write(tmp_path, validation_record(1) | {"bleu": 12.25})
    with progress_shown(tmp_path / METRICS_FILE, Console(file=out, force_terminal=True, width=160)):
        write(tmp_path, train_record(26))
        time.sleep(0.8)
        write(tmp_path, validation_record(39), train_record(52))
        time.sleep(0.8)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert re.search(
        r"epoch 2  update 26 .* 20%  ?loss 3\.250  ppl 20\.25  1,000 tok/s  52 s left  best BLEU 12\.25", shown
    )
    assert re.search(r"epoch 2  update 52 .* 40%  ?loss 3\.250  .*  best BLEU 31\.50", shown)
    # No line of counters stands in the way of the bar.
    assert [record.getMessage() for record in caplog.records] == [validation_line(validation_record(39))]


def test_what_a_resumed_run_writes_again_is_logged_again(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    records = [validation_record(update) for update in (10, 20, 30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    follower = Follower(path)
    assert follower.before == records
    assert follower.look() == []
    # Longer than before at the next look, and other from the second line on.
    again = [records[0], validation_record(19), *(validation_record(update) for update in (21, 30, 40, 50))]
    path.write_text("".join(json.dumps(record) + "\n" for record in again) + '{"half')
    assert follower.look() == again[1:]
    path.write_text("".join(json.dumps(record) + "\n" for record in again[:2]))
    assert follower.look() == []
    path.unlink()
    assert follower.look() == []


def test_the_time_left_is_of_the_updates_since_the_first_look() -> None:
    pace = Pace()
    assert pace.seconds_left(train_record(10)) == 60.0  # by its rate: 120 updates of 500 pieces at 1,000 a second
    slow = train_record(30) | {"time": 1010.0 + 100.0}
    assert pace.seconds_left(slow) == 500.0  # 20 updates took 100 s, validations among them
    assert pace.seconds_left(train_record(20)) == 55.0  # a restart: by its rate again


def test_lines_hold_the_figures() -> None:
    line = train_line(train_record(10))
    assert line == (
        "update 10/130  epoch 2  loss 3.250  perplexity 20.25  learning rate 1.00e-03  gradient norm 0.50  "
        "1,000 target tokens/s  padding 3.0%  at most 1 min to go"
    )
    more = {"data_wait": 0.015, "communication": 0.2, "gpu_memory_gib": 11.25, "skipped_updates": 3}
    assert "waiting for data 1.5%  communication 20.0%  GPU memory 11.2 GiB  3 updates left out" in train_line(
        train_record(10) | more
    )
    assert "loss none  perplexity none" in train_line(train_record(10) | {"loss": None, "perplexity": None})
    line = validation_line(validation_record(10) | {"chrf": 51.0})
    assert line == (
        "validation at update 10, epoch 2:  loss 2.000  perplexity 7.39  BLEU 31.50  chrF 51.00  (2 s, best so far)"
    )
    assert dev_score(validation_record(10)) == "BLEU 31.50"
    assert dev_score({"perplexity": 7.389}) == "perplexity 7.39"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.4, "4 s"),
        (59.4, "59 s"),
        (90, "2 min"),
        (3540, "59 min"),
        (3 * 3600 + 300, "3 h 05 min"),
        (100_000, "1 d 4 h"),
    ],
)
def test_times_are_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
