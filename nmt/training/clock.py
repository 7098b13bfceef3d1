"""The seconds of one update: what a worker computed, and what it spent in the sum over the workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class UpdateClock:
    """Times the update that it was begun for last.

    `computing` is what forward and backward passes took: on a CPU in seconds of it, which do not grow where several
    workers share one, on a GPU in seconds of the clock. `summing` is how long the sum over the workers took, the
    waiting for the last of them included; 0 of a single worker.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.computing = self.summing = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin an update."""
        self._began, self.computing, self.summing = self._now(), 0.0, 0.0

    @contextlib.contextmanager
    def sum_over_workers(self) -> Iterator[None]:
        """Time the sum of a `with` block; what has gone before it since `begin` was computing."""
        self.end_computing()
        started = time.monotonic()
        yield
        self._wait()
        self.summing += time.monotonic() - started

    def end_computing(self) -> None:
        """Say that forward and backward passes are done; of several calls the first one counts."""
        self._wait()
        self.computing = self.computing or self._now() - self._began

    def _now(self) -> float:
        return time.monotonic() if self._device.type == "cuda" else time.thread_time()

    def _wait(self) -> None:
        # What a GPU is asked for is done later; the loss, which is looked at in each update, waits for it anyway.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
