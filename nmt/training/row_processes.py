"""Processes beside training that change and encode the rows of shards: those of `pipelines/epoch_rows.py`."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipelines.epoch_rows import EpochConfig, ShardRows, Share, read_answer


class RowProcesses:
    """A number of such processes, started when first asked; a thread waits for each."""

    def __init__(self, config: EpochConfig, number: int) -> None:
        self._config, self._number = config, number
        self._threads = ThreadPoolExecutor(max_workers=number, thread_name_prefix="epoch-rows")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False

    def ask(self, shard: Path, epoch: int, weights: Mapping[str, float] | None, share: Share) -> Future[ShardRows]:
        """Return a share of a shard's rows in an epoch of which the corpora have these weights, when they are there."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the processes that prepare the rows of epochs have been closed")
            if not self._processes:
                self._start()
        request = {"shard": str(shard.absolute()), "epoch": epoch, "weights": weights, "share": share}
        return self._threads.submit(self._answer, json.dumps(request))

    def close(self) -> None:
        """End the processes, whatever they are at."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def pids(self) -> list[int]:
        """Return the ids of the processes that were started."""
        return [process.pid for process in self._processes]

    def _start(self) -> None:
        root = Path(__file__).parents[2]  # where the packages lie, also where nothing is installed
        for _ in range(self._number):
            command = [sys.executable, "-m", "pipelines.epoch_rows"]
            # In groups of their own, which Ctrl-C does not reach: training saves first. They end with their input.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, process_group=0
            )
            self._processes.append(process)
            self._write(process, self._config.model_dump_json())
            self._idle.put(process)

    def _answer(self, request: str) -> ShardRows:
        process = self._idle.get()
        try:
            self._write(process, request)
            assert process.stdout is not None
            return read_answer(process.stdout)
        finally:
            self._idle.put(process)

    def _write(self, process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
