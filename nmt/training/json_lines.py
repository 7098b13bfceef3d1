"""Files of JSON lines: one process appends to them, others follow."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_LOOK_EVERY_S = 0.5


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines in order, none where there is no file; a last line that is not whole yet is left out."""
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


class Follower:
    """The lines that were not there at the last look; those that are there at the start, `before`, are none of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stat: tuple[int, int, int] | None = None
        self._seen: list[bytes] = []
        self.before = self.look()

    def look(self) -> list[dict[str, Any]]:
        """Return the lines that are new. A resumed run drops what it will write again, which then is new, too."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return []
        if (found := (stat.st_ino, stat.st_size, stat.st_mtime_ns)) == self._stat:
            return []
        self._stat = found
        lines, seen = _whole_lines(self._path), self._seen
        self._seen = lines
        known = len(seen)
        if lines[:known] != seen:
            known = next((n for n, (one, other) in enumerate(zip(lines, seen)) if one != other), len(lines))
        return [json.loads(line) for line in lines[known:]]


@contextlib.contextmanager
def followed(follower: Follower, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell of each new line, from a thread, within a `with` block; of the last ones at its end."""
    done = threading.Event()

    def follow() -> None:
        finished = False
        while not finished:
            finished = done.wait(_LOOK_EVERY_S)
            for line in follower.look():
                tell(line)

    thread = threading.Thread(target=follow, name="follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
