"""Which workers run where: the file, and the line for people."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

import pytest
import torch

from nmt.training.step import World
from nmt.training.workers import num_workers, read_workers, workers_line, workers_logged, write_workers


def test_each_start_is_a_line(tmp_path: Path) -> None:
    assert num_workers(tmp_path) == 1
    write_workers(tmp_path, World(), 0)
    write_workers(tmp_path, World(), 40)
    starts = read_workers(tmp_path)
    assert [start["update"] for start in starts] == [0, 40]
    assert starts[1]["workers"] == [
        {
            "rank": 0, "host": socket.gethostname(), "process": os.getpid(), "device": "cpu",
            "threads": torch.get_num_threads(),
        }
    ]  # fmt: skip
    with (tmp_path / "workers.jsonl").open("a") as file:
        file.write('{"update": 60, "wor')
    assert len(read_workers(tmp_path)) == 2
    write_workers(tmp_path, World(), 70)
    assert [start["update"] for start in read_workers(tmp_path)] == [0, 40, 70]


def test_the_line_names_each_worker() -> None:
    workers = [
        {"rank": 0, "host": "one", "process": 7, "device": "cuda:0", "threads": 1},
        {"rank": 1, "host": "two", "process": 8, "device": "cpu", "threads": 4},
    ]
    assert workers_line({"update": 1200, "workers": workers}) == (
        "from update 1,200 with 2 workers: 0 on one (process 7, cuda:0, 1 thread), 1 on two (process 8, cpu, 4 threads)"
    )


def test_starts_are_told_while_training_runs_and_those_before_it_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_workers(tmp_path, World(), 3)
    with caplog.at_level(logging.INFO), workers_logged(tmp_path):
        write_workers(tmp_path, World(), 5)
        deadline = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [message.partition(" with ")[0] for message in caplog.messages] == ["from update 5"]
        write_workers(tmp_path, World(), 9)
    assert [message.partition(" with ")[0] for message in caplog.messages] == ["from update 5", "from update 9"]
