"""The figures of the updates since the last line of metrics, and what the time went to.

Each worker counts its own seconds. At a line of metrics they are put together by one small gathering, so that a worker
that waits for another one is named. Workers leave the sum of an update's gradients at the same time, so the one that
was in it for the shortest time came last: what the others were in it beyond that, they waited for it.
"""

from __future__ import annotations

import contextlib
import math
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

from nmt.batches import Rows
from nmt.checkpoint import TrainState
from nmt.training.clock import UpdateClock
from nmt.training.epochs import Window
from nmt.training.step import UpdateFigures, World

# What time goes to beside computing. `communication` and `waiting` are parts of the sum over the workers.
Spending = Literal["data", "communication", "waiting", "checkpoints", "validation"]

WAITING_SHARE = 0.25  # of the time: a worker that waits more for the others, or for data, is named
LEAST_GAIN = 0.6  # of what so many workers could gain: where they gain less it is said
JUDGED_S = 10.0  # of the lines that are judged together, at the least: a few updates say nothing
_GIB = 2**30


@dataclass
class _Sums:
    """What the means of a line are of: sums over the updates since the last one, and the last finite norm."""

    loss: float = 0.0
    nll: float = 0.0
    finite_tokens: float = 0
    real: float = 0
    padded: float = 0
    gradient_norm: float | None = None


class Share(NamedTuple):
    """What one worker did since the last line of metrics: seconds, peaks of memory in GiB.

    `computing` and `other` are of this worker's CPU, or on a GPU of the clock; `sums` [updates] is how long it was in
    each sum over the workers.
    """

    data: float
    validation: float
    computing: float
    other: float
    memory: float
    gpu_memory: float
    sums: tuple[float, ...]


class _Judged(NamedTuple):
    """Seconds: of all, of sums by themselves, that one worker would need, and each one's waits for others and rows."""

    seconds: float
    communication: float
    alone: float
    waits: tuple[float, ...]
    data: tuple[float, ...]

    @classmethod
    def nothing(cls, workers: int) -> _Judged:
        return cls(0.0, 0.0, 0.0, (0.0,) * workers, (0.0,) * workers)

    def plus(self, other: _Judged) -> _Judged:
        waits, data = _added(self.waits, other.waits), _added(self.data, other.data)
        sums = (self.seconds + other.seconds, self.communication + other.communication, self.alone + other.alone)
        return _Judged(*sums, waits, data)


class Record:
    """Adds up updates until a line of metrics is made of them, and seconds over the whole run.

    `microbatches` are those of a whole update; `spent` has the seconds that the kept part of the run went to, and
    `unrecorded` what was added before a checkpoint and is in no line yet.
    """

    def __init__(
        self, world: World, microbatches: int, spent: Mapping[str, float], unrecorded: Mapping[str, float] | None = None
    ) -> None:
        self.spent: dict[str, float] = dict(spent)
        self._world, self._microbatches = world, microbatches
        self._hosts = _hosts(world)
        self._lines = 0
        self._unjudged = _Judged.nothing(world.size)
        self.restart()
        self._of_means = _Sums(**(unrecorded or {}))

    def unrecorded(self) -> dict[str, float]:
        """Return what the next line's means are of so far, for `unrecorded` of another record; empty behind a line."""
        return {name: value for name, value in asdict(self._of_means).items() if value}

    def restart(self) -> None:
        """Forget what was added since the last line."""
        self._started, self._cpu_started = time.monotonic(), time.thread_time()
        self._since: dict[str, float] = {}
        self._paused_cpu = 0.0
        self._of_means = _Sums()
        self._tokens = self._updates = 0
        self._computing = 0.0
        self._sums: list[float] = []

    def spend(self, kind: Spending, seconds: float) -> None:
        """Add seconds that went to something."""
        self._since[kind] = self._since.get(kind, 0.0) + seconds
        self.spent[kind] = round(self.spent.get(kind, 0.0) + seconds, 3)

    @contextlib.contextmanager
    def spending(self, kind: Spending) -> Iterator[None]:
        """Add the time of a `with` block."""
        started, cpu_started = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self.spend(kind, time.monotonic() - started)
            if kind == "validation":
                self._paused_cpu += time.thread_time() - cpu_started

    def add(self, window: Window, update: list[Rows], tokens: int, figures: UpdateFigures, clock: UpdateClock) -> None:
        """Add an update of so many target pieces. One that was left out, as it was not finite, has no loss."""
        means = self._of_means
        if math.isfinite(figures.loss) and math.isfinite(figures.nll) and math.isfinite(figures.gradient_norm):
            means.loss += figures.loss * tokens
            means.nll += figures.nll * tokens
            means.finite_tokens += tokens
            means.gradient_norm = figures.gradient_norm
        self._tokens += tokens
        self._updates += 1
        self._computing += clock.computing
        self._sums.append(clock.summing)
        for rows in update:
            src, tgt = window.src_lengths[rows], window.tgt_lengths[rows]
            means.real += int(src.sum() + tgt.sum())
            means.padded += len(rows) * int(src.max() + tgt.max())

    def line(self, state: TrainState, rate: float, total: int, window: Window) -> dict[str, Any]:
        """Return the record of training at `state`, and start anew. All workers call it at the same updates.

        Shares are of the time since the last line, without that of validation. A figure that there is not, such as
        the waiting of a single worker or the memory of no GPU, is left out.
        """
        shares = _gathered(self._share(), self._world)
        seconds = self._seconds(max(share.validation for share in shares))
        means = self._of_means
        record: dict[str, Any] = {
            "kind": "train",
            "update": state.update,
            "epoch": state.epoch,
            "loss": means.loss / means.finite_tokens if means.finite_tokens else None,
            "perplexity": _perplexity(means.nll / means.finite_tokens) if means.finite_tokens else None,
            "learning_rate": rate,
            "gradient_norm": means.gradient_norm,
            "target_tokens_per_s": self._tokens / seconds,
            "target_tokens_per_update": self._tokens / self._updates,
            "padding": 1.0 - means.real / means.padded,
            "total_updates": total,
            "epoch_rows": len(window.rows),
            "augmented_rows": len(window.made),
            "skipped_updates": state.skipped_updates,
            "num_workers": self._world.size,
            "seconds": state.seconds,
            "seconds_left": round(max(total - state.update, 0) * state.seconds / max(state.update, 1), 1),
            "memory_gib": [round(share.memory, 3) for share in shares],
        }
        if self._world.device.type == "cuda":
            record["gpu_memory_gib"] = round(max(share.gpu_memory for share in shares), 3)
        if "data" in self._since:
            record["data_wait"] = _rounded(max(share.data for share in shares) / seconds)
        record["checkpoint"] = _rounded(self._since.get("checkpoints", 0.0) / seconds)
        communication, waits = waiting(shares)
        alone = seconds_alone(shares)
        if self._world.size > 1:
            self.spend("communication", communication)
            self.spend("waiting", waits[self._world.rank])
            record["communication"] = _rounded(communication / seconds)
            record["waiting"] = [_rounded(wait / seconds) for wait in waits]
            record["speedup"] = round(alone / seconds, 3)
        data = tuple(share.data for share in shares)
        if warnings := self._warnings(_Judged(seconds, communication, alone, tuple(waits), data)):
            record["warnings"] = warnings
        self._lines += 1
        self.restart()
        return record

    def _seconds(self, validation: float) -> float:
        """Return the seconds since the last line, without those of validation."""
        return max(time.monotonic() - self._started - validation, 1e-9)

    def _share(self) -> Share:
        validation = self._since.get("validation", 0.0)
        if self._world.device.type == "cuda":
            gpu_memory = peak_gpu_memory_gib(self._world.device)
            whole = self._seconds(validation) - sum(self._sums)
        else:
            gpu_memory = 0.0
            whole = time.thread_time() - self._cpu_started - self._paused_cpu
        other = max(whole - self._computing, 0.0)
        data, memory = self._since.get("data", 0.0), peak_memory_gib()
        return Share(data, validation, self._computing, other, memory, gpu_memory, tuple(self._sums))

    def _warnings(self, since: _Judged) -> list[str]:
        """Return what is to be said of the time since it was last judged; nothing while that is too short."""
        if self._lines:  # not the first updates: memory, kernels and files are made in them
            self._unjudged = self._unjudged.plus(since)
        if self._unjudged.seconds < JUDGED_S:
            return []
        judged, self._unjudged = self._unjudged, _Judged.nothing(self._world.size)
        waits = [wait / judged.seconds for wait in judged.waits]
        data = [wait / judged.seconds for wait in judged.data]
        said = []
        if starving := self._named(waits):
            slowest = min(range(len(waits)), key=waits.__getitem__)
            said.append(f"waited for worker {slowest} on {self._hosts[slowest]}: {starving}{self._uneven()}")
        if starving := self._named(data):
            said.append(
                f"waited for rows to train on: {starving}; a faster disk would help, and where rows are augmented a "
                "higher ray.threads_per_worker"
            )
        gained = judged.alone / judged.seconds
        if self._world.size > 1 and gained < LEAST_GAIN * self._world.size:
            said.append(
                f"{self._world.size} workers do {gained:.0%} of what one would do: "
                f"{judged.communication / judged.seconds:.0%} of the time goes to the sum over the workers, "
                f"{max(waits):.0%} to waiting for each other, {max(data):.0%} to waiting for rows, and what is not in "
                "these to CPUs that they share"
            )
        return said

    def _named(self, waits: Sequence[float]) -> str:
        """Return the workers that waited too long, with the share of the time; nothing where none did."""
        return ", ".join(
            f"worker {rank} on {self._hosts[rank]} ({share:.0%})"
            for rank, share in enumerate(waits)
            if share > WAITING_SHARE
        )

    def _uneven(self) -> str:
        if self._microbatches % self._world.size == 0:
            return ""
        return f"; an update has {self._microbatches} micro-batches for {self._world.size} workers"


def waiting(shares: Sequence[Share]) -> tuple[float, list[float]]:
    """Return the seconds that the sums over the workers took by themselves, and those each worker waited in them.

    They leave a sum together: the time of the last to come is that of the sum, and what another one was in it beyond
    that was waiting. One whose part of validation was shorter waits in the sum behind it for the others, which is
    validation too.
    """
    shortest = [min(of_update) for of_update in zip(*(share.sums for share in shares))]
    validation = max(share.validation for share in shares)
    waits = [
        sum(own - least for own, least in zip(share.sums, shortest, strict=True)) - (validation - share.validation)
        for share in shares
    ]
    return sum(shortest), [max(wait, 0.0) for wait in waits]


def seconds_alone(shares: Sequence[Share]) -> float:
    """Return how long one worker would have taken for what these did: an estimate.

    It would compute all micro-batches, one after the other, and do the rest of the work (the optimiser's, data) once.
    """
    return sum(share.computing for share in shares) + sum(share.other for share in shares) / len(shares)


def peak_memory_gib() -> float:
    """Return the most memory (GiB) that this process has held at once."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:  # getrusage's figure may be that of the process this one was made from
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / _GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB


def peak_gpu_memory_gib(device: torch.device) -> float:
    """Return the most memory (GiB) that torch has taken of a GPU at once."""
    return torch.cuda.max_memory_reserved(device) / _GIB


def _gathered(share: Share, world: World) -> list[Share]:
    """Return the share of each worker, on every worker. All have the same number of updates."""
    if world.size == 1:
        return [share]
    own = torch.tensor([*share[:-1], *share.sums], dtype=torch.float64, device=world.device)
    found = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(found, own)
    rows: list[list[float]] = [tensor.tolist() for tensor in found]
    return [Share(row[0], row[1], row[2], row[3], row[4], row[5], tuple(row[6:])) for row in rows]


def _hosts(world: World) -> list[str]:
    if world.size == 1:
        return [socket.gethostname()]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, socket.gethostname())
    return found


def _added(these: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    return tuple(one + other for one, other in zip(these, others, strict=True))


def _perplexity(nll: float) -> float:
    return math.exp(min(nll, 700.0))


def _rounded(share: float) -> float:
    return round(share, 4)
