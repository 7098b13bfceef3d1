"""What the loop needs next, made by a thread of its own while the loop is at something else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Made and not yet taken. Two are enough for the loop to find the next one ready, whatever one costs on average.
_DEPTH = 2


class Ahead(Generic[T, R]):
    """Iterates once over `make(item)` of each item in order; closed at the end of a `with` block.

    At most two are held beside the one that was taken. What `make` raises is raised where its result is taken.
    `waited` is how long (seconds) the last one was waited for.
    """

    def __init__(self, make: Callable[[T], R], items: Sequence[T]) -> None:
        self._make, self._items = make, items
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
        self.waited = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[R]:
        items = iter(self._items)
        begun: deque[Future[R]] = deque(self._thread.submit(self._make, item) for item in islice(items, _DEPTH))
        while begun:
            started = time.monotonic()
            made = begun.popleft().result()
            self.waited = time.monotonic() - started
            begun.extend(self._thread.submit(self._make, item) for item in islice(items, 1))
            yield made
