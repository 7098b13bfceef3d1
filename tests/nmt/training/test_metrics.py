"""The record of a run: whole lines only, and nothing twice after a restart."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nmt.training import metrics
from nmt.training.metrics import METRICS_FILE, MetricsWriter, progress_logged, read_metrics, train_line, validation_line


def train_record(update: int) -> dict[str, Any]:
    return {
        "kind": "train", "update": update, "epoch": 1, "loss": 3.25, "learning_rate": 0.001, "gradient_norm": 0.5,
        "target_tokens_per_s": 1000.0, "target_tokens_per_update": 500.0, "padding": 0.03, "total_updates": 130,
        "seconds": 4.0,
    }  # fmt: skip


def validation_record(update: int) -> dict[str, Any]:
    return {
        "kind": "validation", "update": update, "epoch": 1, "loss": 2.0, "perplexity": 7.389, "bleu": 31.5,
        "best": True, "seconds": 2.2, "samples": [{"source": "a", "reference": "b", "hypothesis": "c"}],
    }  # fmt: skip


def test_a_restart_drops_what_it_will_compute_again(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, 0)
    for record in (train_record(2), validation_record(3), train_record(4), train_record(6)):
        first.write(record)
    first.close()
    second = MetricsWriter(tmp_path, 4)
    second.write(train_record(6))
    second.close()
    records = read_metrics(tmp_path / METRICS_FILE)
    assert [record["update"] for record in records] == [2, 3, 4, 6]


def test_a_restart_from_before_a_validation_drops_that_validation_too(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, 0)
    for record in (validation_record(2), train_record(4), validation_record(4)):
        first.write(record)
    first.close()
    MetricsWriter(tmp_path, 4, validated=True).close()
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 3
    MetricsWriter(tmp_path, 4, validated=False).close()
    kinds = [(record["kind"], record["update"]) for record in read_metrics(tmp_path / METRICS_FILE)]
    assert kinds == [("validation", 2), ("train", 4)]


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps(train_record(2)) + '\n{"kind": "tr', encoding="utf-8")
    assert [record["update"] for record in read_metrics(path)] == [2]
    assert read_metrics(tmp_path / "none") == []


def test_every_validation_is_logged_and_training_at_intervals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nmt.training.metrics")
    with progress_logged(tmp_path / METRICS_FILE):
        writer = MetricsWriter(tmp_path, 0)
        for record in (train_record(2), train_record(4), validation_record(5), validation_record(9)):
            writer.write(record)
        writer.close()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        train_line(train_record(2)),
        validation_line(validation_record(5)),
        validation_line(validation_record(9)),
    ]


def test_what_a_resumed_run_writes_again_is_logged_again(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    records = [validation_record(update) for update in (10, 20, 30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    follower = metrics._Follower(path)
    assert follower.look() == []
    # Longer than before at the next look, and other from the second line on.
    again = [records[0], validation_record(19), *(validation_record(update) for update in (21, 30, 40, 50))]
    path.write_text("".join(json.dumps(record) + "\n" for record in again) + '{"half')
    assert follower.look() == again[1:]
    path.write_text("".join(json.dumps(record) + "\n" for record in again[:2]))
    assert follower.look() == []


def test_lines_hold_the_figures() -> None:
    line = train_line(train_record(10))
    assert "update 10/130" in line
    assert "epoch 2" in line
    assert "1,000 target tokens/s" in line
    assert "at most 1 min to go" in line  # 120 updates of 500 pieces
    line = validation_line(validation_record(10))
    assert "perplexity 7.39" in line
    assert "BLEU 31.50" in line
    assert "best so far" in line
