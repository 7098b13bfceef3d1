"""Requests to stop: from a signal to a checkpoint behind the next update, from which the next run continues.

The process that a person stops is seldom the one that trains. So the first SIGTERM or SIGINT leaves a file in the
stage's folder, at which the worker of rank 0 looks at most once a second. A worker may get SIGTERM itself, when its
machine is to go. Either way it raises a flag that is summed with the gradients (`nmt/training/gradients.py`), and all
workers save and leave behind the same update. A second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nmt.training.lease import Lease

STOP_FILE = "stop-requested"
LOOK_EVERY_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)
_leaving = threading.Event()


class Stopped(KeyboardInterrupt):
    """Training was stopped by a signal. `status` is the exit status that shells give for it: 143 of SIGTERM."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class StopRequest:
    """What signals have asked of the process that starts training; `number` is that of the first one.

    Before training `has_begun` nobody would hear them.
    """

    def __init__(self, folder: Path, has_begun: Callable[[], bool]) -> None:
        self._path, self._has_begun = folder / STOP_FILE, has_begun
        self.number: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Ask the workers to save and leave; when they have been asked, raise Stopped, now."""
        name = signal.Signals(number).name
        if self.number is not None:
            raise Stopped(f"ended at once by a second signal, {name}; the same command continues", number)
        self.number = number
        if not self._has_begun():
            raise Stopped(f"ended by {name} before training began; the same command continues", number)
        self._path.touch()
        log.warning("%s: training saves behind the next update and ends; once more ends it at once", name)

    def raise_stopped(self, update: int) -> None:
        """Raise Stopped, where a signal has asked for it; `update` is that of the newest checkpoint."""
        if self.number is not None:
            name = signal.Signals(self.number).name
            raise Stopped(f"stopped by {name}, saved at update {update:,}; the same command continues", self.number)


@contextlib.contextmanager
def stopped_by_signals(folder: Path, has_begun: Callable[[], bool] = lambda: True) -> Iterator[StopRequest]:
    """Let SIGTERM and SIGINT ask the training in `folder` to stop, within a `with` block; older requests are removed.

    Before training `has_begun` they end the block at once. Outside the main thread, where Python allows no handler,
    signals stay as they are.
    """
    (folder / STOP_FILE).unlink(missing_ok=True)
    request = StopRequest(folder, has_begun)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        (folder / STOP_FILE).unlink(missing_ok=True)


def leave_at_sigterm() -> None:
    """Let SIGTERM make this worker ask all others to save and leave; a second one ends it at once.

    To be called in the main thread of a worker's process.
    """
    _leaving.clear()

    def handle(number: int, _frame: FrameType | None) -> None:
        ask_to_leave()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)


def ask_to_leave() -> None:
    """Let this worker ask all others to save and leave behind the next update."""
    _leaving.set()


class LeaveWatch:
    """Whether this worker is to ask for leaving. That of rank 0 looks at the stage's folder, at most once a second.

    `also` is asked at each look: another reason to leave. Raises LeaseLost where a newer run works in the folder.
    """

    def __init__(self, folder: Path, lease: Lease | None, also: Callable[[], bool] | None = None) -> None:
        self._path, self._lease, self._also = folder / STOP_FILE, lease, also
        self._next_look = float("-inf")
        self._found = False

    def asks(self) -> bool:
        """Return whether to leave; once that is so, it stays so."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            self._found = self._found or self._look()
        return self._found or _leaving.is_set()

    def _look(self) -> bool:
        if self._lease is not None:
            self._lease.check()
            if self._path.exists():
                return True
        return self._also is not None and self._also()
