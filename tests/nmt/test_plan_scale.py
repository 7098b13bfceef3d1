"""The benchmark of the batch plan, at a small size: it measures what training would prepare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "plan_scale.py"


def test_windows_of_written_shards_are_prepared_and_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--rows", "3000", "--windows", "0", "--folder", str(tmp_path)]
    command += ["--rows-per-shard", "500", "--window-rows", "1000"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0].startswith("3,000 rows: ")
    found = json.loads(lines[1])
    assert (found["windows_of_epoch"], found["windows_measured"]) == (3, 3)
    assert 990 < found["rows_per_window"] <= 1000
    assert len(found["prepare_window_cpu_s"]) == 3
    assert 0.0 < found["padding"] < 0.3
    assert found["rows_of_small_corpus"] == [0, 0]
    assert found["peak_mib"] >= found["peak_mib_before"]


def test_a_small_corpus_that_is_seen_often_is_in_every_window(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--rows", "3000", "--windows", "0", "--folder", str(tmp_path)]
    command += ["--rows-per-shard", "100", "--window-rows", "1000", "--small", "50", "--weight", "20"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = json.loads(lines[1])
    assert found["windows_of_epoch"] == 5
    assert found["rows_of_small_corpus"] == [200, 200]
    assert found["most_rows_per_window"] <= 1200
