"""Which workers run where: written by them at each start, and told by the process that started training."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nmt.training.json_lines import Follower, append_line, followed, read_lines
from nmt.training.step import World

WORKERS_FILE = "workers.jsonl"

log = logging.getLogger(__name__)


def write_workers(folder: Path, world: World, update: int) -> None:
    """Append a line to workers.jsonl: {"update", "workers": [{"rank", "host", "process", "device", "threads"}]}.

    All workers call it at their start, with the update from which they continue; that of rank 0 writes.
    """
    own = {
        "rank": world.rank,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": str(world.device),
        "threads": torch.get_num_threads(),
    }
    found: list[Any] = [own]
    if world.size > 1:
        found = [None] * world.size
        dist.all_gather_object(found, own)
    if world.rank == 0:
        append_line(folder / WORKERS_FILE, {"update": update, "workers": found})


def read_workers(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of workers.jsonl; a last one that is not whole yet is left out. Raises as `read_lines` does."""
    return read_lines(folder / WORKERS_FILE)


def num_workers(folder: Path) -> int:
    """Return how many workers there were since the last start; 1 where none has written a line."""
    starts = read_workers(folder)
    return len(starts[-1]["workers"]) if starts else 1


def workers_line(start: dict[str, Any]) -> str:
    """Return a line for people of a start of the workers."""
    workers = start["workers"]
    places = ", ".join(
        f"{worker['rank']} on {worker['host']} (process {worker['process']}, {worker['device']}, "
        f"{worker['threads']} thread{'s' if worker['threads'] > 1 else ''})"
        for worker in workers
    )
    return f"from update {start['update']:,} with {len(workers)} worker{'s' if len(workers) > 1 else ''}: {places}"


@contextlib.contextmanager
def workers_logged(folder: Path) -> Iterator[None]:
    """Log each start of workers in `folder` within a `with` block."""
    with followed(Follower(folder / WORKERS_FILE), lambda start: log.info("%s", workers_line(start))):
        yield
