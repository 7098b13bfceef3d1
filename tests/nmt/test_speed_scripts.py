"""The benchmark beside the peers: the file of batches, our script over it, and the figures of several workers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
VOCABULARY = 30


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def written(folder: Path) -> Path:
    """Return a file of two updates of two micro-batches."""
    from step_timing import Padded, write_batches

    def micro(rows: int) -> Padded:
        lengths = torch.arange(2, 2 + rows)
        ids = torch.full((rows, 1 + rows), 7).where(torch.arange(1 + rows) < lengths[:, None], 0)
        ids[torch.arange(rows), lengths - 1] = 3
        return Padded(ids, lengths, ids.clone(), lengths)

    path = folder / "batches.npz"
    write_batches(path, VOCABULARY, [[micro(2), micro(3)], [micro(4), micro(2)]])
    return path


def test_batches_are_read_as_they_were_written(tmp_path: Path) -> None:
    from step_timing import read_batches, target_pieces

    vocabulary, updates = read_batches(written(tmp_path))
    assert vocabulary == VOCABULARY
    assert [[len(batch.src) for batch in update] for update in updates] == [[2, 3], [4, 2]]
    assert updates[0][0].tgt.tolist() == [[7, 3, 0], [7, 7, 3]]
    assert [target_pieces(update) for update in updates] == [2 + 3 + 2 + 3 + 4, 2 + 3 + 4 + 5 + 2 + 3]


def test_two_workers_do_the_updates_of_one_and_report_their_timings(tmp_path: Path) -> None:
    path, losses = written(tmp_path), []
    for workers in (1, 2):
        command = [sys.executable, str(BENCHMARKS / "training_speed.py"), str(path), "--system=general", "--warmup=1"]
        command += ["--updates=3", f"--workers={workers}", f"--store={tmp_path / 'store'}"]
        processes = [
            subprocess.Popen([*command, f"--rank={rank}"], stdout=subprocess.PIPE, text=True) for rank in range(workers)
        ]
        reports = [json.loads(process.communicate()[0]) for process in processes]
        assert all(report["tokens"] == [19, 14, 19] and min(report["wall"]) > 0 for report in reports)
        losses += [report["loss"] for report in reports]
    assert losses[0][0] == pytest.approx(math.log(VOCABULARY), rel=0.5)
    assert losses[0][0] > losses[0][-1]
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_an_update_of_workers_takes_the_clock_of_the_last_and_the_cpu_time_of_all() -> None:
    from peers_training import merged

    first = {"wall": [2.0, 4.0], "cpu": [1.0, 2.0], "foreign": [0.5, 0.5], "tokens": [8, 16]}
    second = {"wall": [1.0, 4.0], "cpu": [1.0, 2.0], "foreign": [0.5, 0.5], "tokens": [8, 16]}
    rest = {"loss": [3.0, 2.5], "parameters": 10, "peak_mb": 100}
    figures = merged([first | rest, second | rest])
    assert (figures.wall, figures.cpu, figures.foreign) == (4.0, 4.0, 0.0)
    assert (figures.loss, figures.parameters, figures.peak_mb) == (2.5, 10, 200)


def test_a_ratio_is_to_the_fastest_peer_that_has_the_line() -> None:
    from peers_training import System, ratio

    ours, plain, line, slow = (
        System(owner, "lstm", precision, ())
        for owner, precision in (("seqloom", "line"), ("a", "bf16"), ("b", "line"), ("c", "line"))
    )
    rates = {ours: [6.0, 9.0, 8.0], plain: [100.0], line: [4.0], slow: [2.0]}
    assert ratio(ours, rates) == "2.00"
    assert ratio(ours, {ours: [6.0]}) == "-"
