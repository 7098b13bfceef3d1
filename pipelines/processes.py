"""Steps in several processes of this machine: what the in-process runner uses where a profile allows for it.

The processes come from a server that has imported what steps need, once, so that a worker starts in milliseconds; it
has no threads and never imports Beam. A worker that is killed takes nothing with it: steps write their files whole or
not at all, and what it had in hand is done again by another one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Each round of a killed worker costs what all workers had in hand; more of them mean that a step kills its worker.
MAX_KILLED = 3
# pyarrow imports pandas when it first makes an array, where there is one.
_PRELOADED = ["pandas", "pipelines.decisions", "pipelines.encoding", "pipelines.rating", "pipelines.scoring"]
_pools: dict[int, ProcessPoolExecutor] = {}

log = logging.getLogger(__name__)


def available_processes() -> int:
    """Return how many processes can run at once: the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_server() -> None:
    """Start the server that workers come from, unless it runs, without waiting for it to be ready."""
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


@contextmanager
def processes_closed() -> Iterator[None]:
    """End, at the end of the block, the workers that `each` started in it: they serve all steps until then."""
    try:
        yield
    finally:
        for processes in list(_pools):
            _pools.pop(processes).shutdown(wait=True, cancel_futures=True)


def _pool(processes: int) -> ProcessPoolExecutor:
    if processes not in _pools:
        context = multiprocessing.get_context("forkserver")
        _pools[processes] = ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare)
    return _pools[processes]


def each(step: Callable[[T], R], elements: Sequence[T], processes: int) -> Iterator[R]:
    """Yield what a step returns for each element, in the order in which they are done.

    `step` and what it takes and returns go through pickle, between our own processes only. What a step raises is raised
    here. Raises RuntimeError when workers are killed again and again: by lack of memory, or a fault of a library.
    """
    left = list(elements)
    for _ in range(MAX_KILLED + 1):
        if not left:
            return
        done: set[int] = set()
        try:
            yield from _round(step, left, processes, done)
        except BrokenProcessPool:
            _pools.pop(processes).shutdown(wait=True, cancel_futures=True)
            log.warning("a worker process was killed; %d of %d pieces are left to do", len(left) - len(done), len(left))
        left = [element for place, element in enumerate(left) if place not in done]
    if left:
        raise RuntimeError(
            f"worker processes were killed {MAX_KILLED + 1} times; if memory is short, use fewer processes "
            "(beam.processes) or smaller pieces (shards.rows_per_shard). A script that calls the stages itself needs "
            "`if __name__ == '__main__':`, since workers import it"
        )


def _round(step: Callable[[T], R], elements: Sequence[T], processes: int, done: set[int]) -> Iterator[R]:
    """Yield the results of one set of workers; the places of elements whose result was yielded are put into `done`."""
    pool = _pool(processes)
    # Few more than can run, so that a failure does not wait for all.
    waiting = iter(enumerate(elements))
    running: dict[Future[R], int] = {}
    while True:
        while len(running) < 2 * processes and (following := next(waiting, None)) is not None:
            running[pool.submit(step, following[1])] = following[0]
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in sorted(finished, key=running.__getitem__):
            result = future.result()
            done.add(running.pop(future))
            yield result


def _prepare() -> None:
    import pyarrow as pa

    # The processes share the CPUs: threads of each would only wait for those of the others.
    pa.set_cpu_count(1)
    logging.disable(logging.INFO)
    threading.Thread(target=_end_with_starter, name="end with starter", daemon=True).start()


def _end_with_starter() -> None:
    """End this worker when the process that it works for is gone: nobody else would tell it."""
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os._exit(1)
