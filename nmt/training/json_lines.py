"""Files of JSON lines: one process appends to them, others follow.

Where a process is killed or the disk is full, half a line may stand at the end. No reader takes it for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from nmt.training.background import beside_block
from pipelines.errors import InputError

_LOOK_EVERY_S = 0.5
_TAIL_BYTES = 4096  # of what was read, by which a file that has only grown is known


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines in order, none where there is no file; a last line that is not whole yet is left out.

    Raises InputError naming a line that is no JSON.
    """
    return _parsed(path, path.read_bytes().split(b"\n")[:-1], 1) if path.exists() else []


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a line to a file, which need not be there; half a line at its end is cut off before."""
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(len(_whole(file.read())))
        file.write(json.dumps(record).encode() + b"\n")


class Follower:
    """The lines that were not there at the last look; those that are there at the start, `before`, are none of them.

    Of a file that has only grown no more than what is new is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stat: tuple[int, int, int] | None = None
        self._seen: list[int] = []  # hashes of the lines
        self._end, self._tail = 0, b""  # of what was seen, in bytes
        self.before = self.look()

    def look(self) -> list[dict[str, Any]]:
        """Return the lines that are new. A resumed run drops what it will write again, which then is new, too."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            stat = os.fstat(file.fileno())
            if (found := (stat.st_ino, stat.st_size, stat.st_mtime_ns)) == self._stat:
                return []
            if self._stat is None or stat.st_ino != self._stat[0] or not self._has_grown(file):
                self._end, self._tail = 0, b""
            self._stat = found
            file.seek(self._end)
            data = _whole(file.read())
        first = len(self._seen) if self._end else 0
        lines = data.split(b"\n")[:-1]
        hashes = [hash(line) for line in lines]
        known = _num_equal(hashes, self._seen[first:])
        self._seen[first:] = hashes
        self._end += len(data)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        return _parsed(self._path, lines[known:], first + known + 1)

    def _has_grown(self, file: BinaryIO) -> bool:
        file.seek(self._end - len(self._tail))
        return file.read(len(self._tail)) == self._tail


@contextlib.contextmanager
def followed(follower: Follower, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell of each new line, from a thread, within a `with` block; of the last ones at its end."""

    def follow(done: threading.Event) -> None:
        finished = False
        while not finished:
            finished = done.wait(_LOOK_EVERY_S)
            for line in follower.look():
                tell(line)

    with beside_block("follower", follow):
        yield


def _whole(data: bytes) -> bytes:
    """Return the lines that are whole."""
    return data[: data.rfind(b"\n") + 1]


def _num_equal(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many of the first of each are equal."""
    return next((n for n, (one, other) in enumerate(zip(some, others)) if one != other), min(len(some), len(others)))


def _parsed(path: Path, lines: Sequence[bytes], first: int) -> list[dict[str, Any]]:
    """Return what lines say, the `first` of which has that number in its file."""
    found = []
    for number, line in enumerate(lines, first):
        try:
            found.append(json.loads(line))
        except ValueError as error:  # no JSON, or not UTF-8
            remedy = "Remove the line: nothing that is learned depends on it"
            raise InputError(f"not JSON ({error})", where=f"{path}:{number}", remedy=remedy) from error
    return found
