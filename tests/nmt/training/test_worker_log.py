"""What a worker logs, in the log of the process that started training."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from nmt.training.json_lines import read_lines
from nmt.training.worker_log import LOG_FILE, log_told, log_written
from pipelines.stage import write_atomically


def test_what_is_ours_is_written_as_it_is_logged(tmp_path: Path) -> None:
    ours, other = logging.getLogger("nmt.training.probe"), logging.getLogger("another")
    level = logging.getLogger("nmt").level
    with log_written(tmp_path):
        ours.info("the largest take %.2f GiB", 1.5)
        ours.debug("not this")
        other.error("nor this")
        assert read_lines(tmp_path / LOG_FILE) == [
            {"logger": "nmt.training.probe", "level": logging.INFO, "message": "the largest take 1.50 GiB"}
        ]
    ours.warning("nor what comes later")
    assert len(read_lines(tmp_path / LOG_FILE)) == 1
    assert logging.getLogger("nmt").level == level


def test_what_is_written_meanwhile_is_told_with_its_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(*messages: str) -> None:
        lines = [{"logger": "nmt.training.probe", "level": logging.WARNING, "message": text} for text in messages]
        write_atomically(tmp_path / LOG_FILE, "".join(json.dumps(line) + "\n" for line in lines))

    write("of an earlier run")
    with caplog.at_level(logging.INFO), log_told(tmp_path):
        write("of the first start", "100 % of it")
        deadline = time.monotonic() + 30
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        write("of the second start")
    assert caplog.record_tuples == [
        ("nmt.training.probe", logging.WARNING, text)
        for text in ("of the first start", "100 % of it", "of the second start")
    ]
