"""The figures of a line of metrics: sums over its updates, shares of its time, and who waited for whom."""

from __future__ import annotations

import json
import math
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nmt.checkpoint import TrainState
from nmt.training import record as record_module
from nmt.training.clock import UpdateClock
from nmt.training.record import Record, Share, peak_memory_gib, seconds_alone, waiting
from nmt.training.step import UpdateFigures, World

UPDATE = [np.asarray([0, 1]), np.asarray([2])]  # micro-batches of rows of these lengths


@dataclass(frozen=True)
class Rows:
    """What a record reads of a window."""

    src_lengths: Any = field(default_factory=lambda: np.asarray([2, 4, 5]))
    tgt_lengths: Any = field(default_factory=lambda: np.asarray([3, 1, 6]))
    rows: Any = field(default_factory=lambda: np.arange(3))
    made: Any = ()


WINDOW: Any = Rows()


class Now:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def namespace(self) -> SimpleNamespace:
        return SimpleNamespace(monotonic=lambda: self.wall, thread_time=lambda: self.cpu)

    def pass_by(self, wall: float, cpu: float | None = None) -> None:
        self.wall += wall
        self.cpu += wall if cpu is None else cpu


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    now = Now()
    monkeypatch.setattr(record_module, "time", now.namespace())
    return now


def clock(computing: float = 0.0, summing: float = 0.0) -> UpdateClock:
    made = UpdateClock(torch.device("cpu"))
    made.computing, made.summing = computing, summing
    return made


def add(record: Record, loss: float, nll: float, tokens: int, norm: float = 1.0) -> None:
    record.add(WINDOW, UPDATE, tokens, UpdateFigures(loss, nll, norm), clock())


def test_a_line_has_the_means_over_the_pieces_of_its_updates(now: Now) -> None:
    record = Record(World(), 2, {})
    add(record, 2.0, 1.5, 10, norm=0.5)
    add(record, 4.0, 3.0, 30, norm=0.75)
    now.pass_by(8.0)
    line = record.line(TrainState(update=2, epoch=1, seconds=9.0), 0.125, 50, WINDOW)
    assert line["loss"] == (2.0 * 10 + 4.0 * 30) / 40
    assert line["perplexity"] == pytest.approx(math.exp((1.5 * 10 + 3.0 * 30) / 40))
    assert line["gradient_norm"] == 0.75
    assert (line["target_tokens_per_s"], line["target_tokens_per_update"]) == (5.0, 20.0)
    # The first micro-batch has 2 rows of 4 + 3 places for 10 pieces, the second is full with 11.
    assert line["padding"] == pytest.approx(1 - (10 + 11) / (14 + 11))
    expected = {
        "kind": "train", "update": 2, "epoch": 1, "learning_rate": 0.125, "total_updates": 50, "epoch_rows": 3,
        "augmented_rows": 0, "num_workers": 1, "seconds": 9.0, "checkpoint": 0.0, "skipped_updates": 0,
    }  # fmt: skip
    assert expected.items() <= line.items()
    # What there is nothing to say of is left out.
    assert not {"data_wait", "communication", "waiting", "speedup", "gpu_memory_gib", "warnings"} & set(line)
    assert json.loads(json.dumps(line)) == line


def test_the_next_line_begins_anew(now: Now) -> None:
    record = Record(World(), 2, {})
    add(record, 2.0, 2.0, 10)
    now.pass_by(4.0)
    record.line(TrainState(), 0.1, 50, WINDOW)
    add(record, 6.0, 6.0, 10)
    now.pass_by(1.0)
    line = record.line(TrainState(), 0.1, 50, WINDOW)
    assert (line["loss"], line["target_tokens_per_s"]) == (6.0, 10.0)


def test_an_update_that_was_left_out_has_no_part_in_the_loss(now: Now) -> None:
    record = Record(World(), 2, {})
    add(record, 2.0, 2.0, 10, norm=0.5)
    add(record, math.nan, math.nan, 10, norm=math.nan)
    now.pass_by(1.0)
    line = record.line(TrainState(), 0.1, 50, WINDOW)
    assert (line["loss"], line["gradient_norm"], line["target_tokens_per_s"]) == (2.0, 0.5, 20.0)
    add(record, math.inf, math.inf, 10, norm=math.inf)
    line = record.line(TrainState(), 0.1, 50, WINDOW)
    assert (line["loss"], line["perplexity"]) == (None, None)
    assert "NaN" not in json.dumps(line) and "Infinity" not in json.dumps(line)


def test_shares_are_of_the_time_without_that_of_validation(now: Now) -> None:
    record = Record(World(), 2, {"checkpoints": 1.0})
    record.spend("data", 2.0)
    with record.spending("checkpoints"):
        now.pass_by(3.0)
    with record.spending("validation"):
        now.pass_by(90.0)
    now.pass_by(17.0)
    add(record, 2.0, 2.0, 40)
    line = record.line(TrainState(), 0.1, 50, WINDOW)
    assert line["data_wait"] == 0.1
    assert line["checkpoint"] == 0.15
    assert line["target_tokens_per_s"] == 2.0
    assert record.spent == {"checkpoints": 4.0, "data": 2.0, "validation": 90.0}


def share(*sums: float, computing: float = 0.0, other: float = 0.0, validation: float = 0.0) -> Share:
    return Share(0.0, validation, computing, other, 0.0, 0.0, sums)


def test_what_a_worker_is_in_a_sum_beyond_the_last_to_come_is_waiting() -> None:
    # Of three updates worker 1 comes last to the first, worker 0 to the others.
    communication, waits = waiting([share(5.0, 1.0, 2.0), share(1.0, 4.0, 2.5)])
    assert communication == 1.0 + 1.0 + 2.0
    assert waits == [4.0, 3.5]
    assert waiting([share(), share()]) == (0.0, [0.0, 0.0])
    # Worker 0 was done with validation 3 seconds before the other one, for which it waited in the first sum.
    assert waiting([share(5.0, 1.0, 2.0), share(1.0, 4.0, 2.5, validation=3.0)])[1] == [1.0, 3.5]


def test_one_worker_alone_would_do_all_micro_batches_and_the_rest_once() -> None:
    assert seconds_alone([share(computing=8.0, other=1.0), share(computing=6.0, other=1.0)]) == 8 + 6 + 1


def test_the_peak_of_memory_is_that_of_this_process() -> None:
    before = peak_memory_gib()
    held = np.ones(int((before + 0.1) * 2**30), dtype=np.uint8)
    assert before + 0.1 <= peak_memory_gib() < 2 * before + 0.2
    assert held[-1] == 1


def _worker(rank: int, folder: str) -> None:
    """One of two workers: the second one computes for 60 ms in each update, the first one for 5 ms."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world, updates = World(rank, 2), UpdateClock(torch.device("cpu"))
    record_module.JUDGED_S = 0.05
    record, lines = Record(world, 3, {}), []
    for _ in range(2):
        for _ in range(6):
            updates.begin()
            time.sleep(0.06 if rank else 0.005)
            with updates.sum_over_workers():
                dist.all_reduce(torch.zeros(1))
            record.add(WINDOW, UPDATE, 10, UpdateFigures(1.0, 1.0, 1.0), updates)
        lines.append(record.line(TrainState(), 0.1, 50, WINDOW))
    Path(folder, f"{rank}.json").write_text(json.dumps([lines, record.spent]))
    dist.destroy_process_group()


def test_a_worker_that_waits_for_another_one_is_named_with_its_host(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    (lines, spent), (others, others_spent) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    host = socket.gethostname()
    for line, other in zip(lines, others):
        waited, own = line["waiting"]
        assert waited > 0.6 and own < 0.2
        assert line["waiting"] == pytest.approx(other["waiting"], abs=0.1)
        assert line["communication"] < 0.3
        assert len(line["memory_gib"]) == 2
        assert line["num_workers"] == 2
    assert spent["waiting"] > 0.4 > others_spent["waiting"]
    assert "warnings" not in lines[0]  # the first line of a start tells nothing
    starving, slow = lines[1]["warnings"]
    percent = f"{lines[1]['waiting'][0]:.0%}"
    assert starving == (
        f"waited for worker 1 on {host}: worker 0 on {host} ({percent}); an update has 3 micro-batches for 2 workers"
    )
    # They sleep, so that one worker alone would have had next to nothing to compute.
    assert re.match(r"2 workers do \d+% of what one would do: \d+% of the time goes to the sum", slow)
    assert lines[1]["speedup"] < 0.5


def test_short_lines_are_judged_together(now: Now, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three workers of which the last one always comes last: the others wait for 0.4 s of each second."""
    waits = ((0.5, 0.1), (0.5, 0.1), (0.1, 0.1))
    shares = [share(wait, 0.1, computing=0.3, other=0.1) for wait, _ in waits]
    monkeypatch.setattr(record_module, "_gathered", lambda share, world: shares)
    monkeypatch.setattr(record_module, "_hosts", lambda world: ["a", "a", "b"])
    record, said = Record(World(0, 3), 3, {}), []
    for _ in range(22):
        now.pass_by(1.0)
        add(record, 1.0, 1.0, 10)
        said.append(record.line(TrainState(), 0.1, 50, WINDOW).get("warnings"))
    # The first line is left out; then ten seconds are judged at once.
    assert [number for number, warnings in enumerate(said) if warnings] == [10, 20]
    assert said[10] == [
        "waited for worker 2 on b: worker 0 on a (40%), worker 1 on a (40%)",
        "3 workers do 100% of what one would do: 20% of the time goes to the sum over the workers, 40% to waiting for "
        "each other, 0% to waiting for rows, and what is not in these to CPUs that they share",
    ]
    assert record.spent["waiting"] == pytest.approx(22 * 0.4)
    assert record.spent["communication"] == pytest.approx(22 * 0.2)


def test_workers_that_gain_enough_are_told_nothing(now: Now, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "_hosts", lambda world: ["a", "a", "b"])
    for computing, told in ((0.61, False), (0.59, True)):  # of a second of each of three workers
        shares = [share(0.0, computing=computing)] * 3
        monkeypatch.setattr(record_module, "_gathered", lambda share, world, shares=shares: shares)
        record = Record(World(0, 3), 3, {})
        lines = []
        for _ in range(11):
            now.pass_by(1.0)
            add(record, 1.0, 1.0, 10)
            lines.append(record.line(TrainState(), 0.1, 50, WINDOW))
        assert any("warnings" in line for line in lines) == told


def test_a_worker_that_waits_for_rows_is_named_and_a_single_one_too(now: Now) -> None:
    record, said = Record(World(), 1, {}), []
    for wait in (0.9,) + (0.3,) * 10 + (0.2,) * 10:  # the first line is left out
        now.pass_by(1.0)
        record.spend("data", wait)
        add(record, 1.0, 1.0, 10)
        said.append(record.line(TrainState(), 0.1, 50, WINDOW).get("warnings"))
    assert [number for number, warnings in enumerate(said) if warnings] == [10]
    assert said[10] == [
        f"waited for rows to train on: worker 0 on {socket.gethostname()} (30%); a faster disk would help, and where "
        "rows are augmented a higher ray.threads_per_worker"
    ]


def test_a_line_behind_a_restart_has_the_means_of_all_its_updates(now: Now) -> None:
    unbroken = Record(World(), 2, {})
    assert unbroken.unrecorded() == {}
    for loss, norm in ((2.0, 0.5), (math.nan, 3.0)):
        add(unbroken, loss, loss / 2, 10, norm=norm)
    restarted = Record(World(), 2, {}, json.loads(json.dumps(unbroken.unrecorded())))
    for record in (unbroken, restarted):
        add(record, math.nan, 1.0, 30)
        add(record, 5.0, 4.0, 30, norm=0.25)
    now.pass_by(2.0)
    lines = [record.line(TrainState(update=20), 0.1, 50, WINDOW) for record in (unbroken, restarted)]
    for name in ("loss", "perplexity", "padding", "gradient_norm"):
        assert lines[0][name] == lines[1][name]
    assert lines[0]["loss"] == (2.0 * 10 + 5.0 * 30) / 40
    assert lines[1]["target_tokens_per_s"] == 30.0  # of its own time
    assert restarted.unrecorded() == {}


def test_a_line_says_how_long_the_rest_takes_at_the_pace_so_far(now: Now) -> None:
    record = Record(World(), 2, {})
    now.pass_by(1.0)
    add(record, 2.0, 2.0, 40)
    line = record.line(TrainState(update=20, seconds=30.0), 0.1, 50, WINDOW)
    assert line["seconds_left"] == 45.0


def test_where_all_updates_were_left_out_there_is_no_norm(now: Now) -> None:
    record = Record(World(), 2, {})
    now.pass_by(1.0)
    add(record, math.nan, 2.0, 40, norm=7.0)
    line = record.line(TrainState(update=1, skipped_updates=1), 0.1, 50, WINDOW)
    assert line["gradient_norm"] is None
    assert line["loss"] is None
