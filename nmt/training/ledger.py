"""What a training run has cost: hours, all of its starts counted, what they went to, and money.

`<folder>/attempts.jsonl` has a line for each start of the workers: {"started", "ended" (Unix seconds), "update" (from
which it went on), "reached", "num_workers", "gpus", "validation_workers", "memory_gib", "gpu_memory_gib"}. One that was
killed has no end until the next start, which finds its last sign of life in the last record of metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from nmt.checkpoint import TrainState
from nmt.config import PricesConfig
from nmt.training.record import peak_gpu_memory_gib, peak_memory_gib
from pipelines.stage import write_atomically

if TYPE_CHECKING:
    from nmt.training.run import Run

ATTEMPTS_FILE = "attempts.jsonl"


class Attempt(BaseModel):
    """One start of the workers. Times are Unix seconds; `ended` is None while it goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: float
    ended: float | None
    update: int
    reached: int
    num_workers: int
    gpus: int
    validation_workers: int = 0  # beside the others; their GPUs are among `gpus`
    memory_gib: float | None = None  # the most that the worker of rank 0 held; known at the end
    gpu_memory_gib: float | None = None

    def hours(self) -> float:
        """Return how long it took."""
        return max((self.started if self.ended is None else self.ended) - self.started, 0.0) / 3600


@contextlib.contextmanager
def attempt(run: Run, started: float) -> Iterator[None]:
    """Note the attempt of a `with` block, which began at `started` (Unix seconds). The worker of rank 0 does it."""
    if run.metrics is None:
        yield
        return
    path = Path(run.job.folder) / ATTEMPTS_FILE
    earlier = [_closed(entry, run.metrics.last) for entry in read_attempts(path)]
    size, update = run.world.size, run.state.update
    beside = 0 if run.job.beside is None else run.job.beside.workers
    own = Attempt(
        started=started,
        ended=None,
        update=update,
        reached=update,
        num_workers=size,
        gpus=size + beside if run.world.device.type == "cuda" else 0,
        validation_workers=beside,
    )
    _write(path, [*earlier, own])
    try:
        yield
    finally:
        _write(path, [*earlier, own.model_copy(update=_at_end(run))])


def read_attempts(path: Path) -> list[Attempt]:
    """Return the attempts of a run, the first one first; none where the file is not there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Attempt.model_validate_json(line) for line in lines]


def ledger(folder: Path, state: TrainState, prices: PricesConfig) -> dict[str, Any]:
    """Return the ledger of a run that has come to `state`: hours, shares of the time of its updates, cost.

    Hours are of all starts, from the start of the workers to their end. `again_hours` of them led to nothing that was
    kept: updates behind the last checkpoint of a start that was killed, and what comes before the first update.
    Shares are of the time that was kept. The cost is left out where the profile states no price.
    """
    attempts = read_attempts(folder / ATTEMPTS_FILE)
    wall = sum(entry.hours() for entry in attempts)
    workers = sum(entry.hours() * (entry.num_workers + entry.validation_workers) for entry in attempts)
    figures: dict[str, Any] = {
        "wall_hours": round(wall, 4),
        "worker_hours": round(workers, 4),
        "gpu_hours": round(sum(entry.hours() * entry.gpus for entry in attempts), 4),
        "again_hours": round(max(wall - state.seconds / 3600, 0.0), 4),
        "restarts": max(len(attempts) - 1, 0),
        "updates": state.update,
        "updates_again": _again(attempts),
        "target_tokens": state.target_tokens,
        "target_tokens_per_s": round(state.target_tokens / max(state.seconds, 1e-9), 1),
        "shares": {name: round(seconds / max(state.seconds, 1e-9), 4) for name, seconds in sorted(state.spent.items())},
    }
    for name in ("memory_gib", "gpu_memory_gib"):
        if known := [value for entry in attempts if (value := getattr(entry, name)) is not None]:
            figures[name] = max(known)
    if (cost := prices.cost(workers, wall)) is not None:
        figures["cost"] = round(cost, 2)
        figures["currency"] = prices.currency
    return figures


def _at_end(run: Run) -> dict[str, Any]:
    found = {"ended": time.time(), "reached": run.state.update, "memory_gib": round(peak_memory_gib(), 3)}
    if run.world.device.type == "cuda":
        found["gpu_memory_gib"] = round(peak_gpu_memory_gib(run.world.device), 3)
    return found


def _again(attempts: Sequence[Attempt]) -> int:
    """Return how many updates were done more than once."""
    return sum(max(before.reached - after.update, 0) for before, after in itertools.pairwise(attempts))


def _closed(entry: Attempt, last: Mapping[str, Any] | None) -> Attempt:
    if entry.ended is not None:
        return entry
    if last is None or last.get("time", 0.0) < entry.started:
        return entry.model_copy(update={"ended": entry.started})
    return entry.model_copy(update={"ended": last["time"], "reached": max(last["update"], entry.update)})


def _write(path: Path, attempts: Sequence[Attempt]) -> None:
    write_atomically(path, "".join(json.dumps(entry.model_dump()) + "\n" for entry in attempts))
