"""Who may write into a stage's folder: the newest run, and its newest group of workers, alone.

Workers of a run whose driver was killed, or that Ray has given up, may go on for seconds or longer. The newest run
writes a random token into a file; whoever renames a checkpoint into place first holds the lock of that file and looks
whether the token is its own. So nothing that an older run does can touch what a newer one has read or written.

    <stage folder>/lease         token of the run, token of its newest group of workers
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from pipelines.stage import write_atomically

LEASE_FILE = "lease"
_LOCK_FILE = ".lease.lock"


class LeaseLost(RuntimeError):
    """A newer run, or a newer group of workers of this one, works in the folder: this one has to leave."""


class Lease:
    """The right to write into a folder. Taken by `taken_by_run` and `taken_by_workers`; another process may take it."""

    def __init__(self, folder: Path, run: str, workers: str = "") -> None:
        self.run, self._workers = run, workers
        self._folder = folder

    def check(self) -> None:
        """Raise LeaseLost where the folder is another's by now."""
        if _read(self._folder) != [self.run, self._workers]:
            raise LeaseLost(f"{self._folder} belongs to a newer run, or to newer workers of this one")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease for the length of a `with` block: nobody can take it meanwhile. Raises LeaseLost."""
        with _locked(self._folder):
            self.check()
            yield


def taken_by_run(folder: Path) -> Lease:
    """Return the lease of a new run, which takes it from any other."""
    lease = Lease(folder, uuid.uuid4().hex)
    with _locked(folder):
        write_atomically(folder / LEASE_FILE, f"{lease.run}\n\n")
    return lease


def taken_by_workers(folder: Path, run: str) -> Lease:
    """Return the lease of a new group of workers of a run. Raises LeaseLost where the folder is another run's."""
    lease = Lease(folder, run, uuid.uuid4().hex)
    with _locked(folder):
        if _read(folder)[:1] != [run]:
            raise LeaseLost(f"{folder} belongs to a newer run")
        write_atomically(folder / LEASE_FILE, f"{run}\n{lease._workers}\n")
    return lease


def _read(folder: Path) -> list[str]:
    path = folder / LEASE_FILE
    return path.read_text(encoding="utf-8").split("\n")[:2] if path.exists() else []


def _locked(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / _LOCK_FILE)
