"""The rows and updates of each epoch: the rows that its shards give for it, and the batch plan.

All of it is a pure function of (seed, epoch) and of the shards, the same on every worker and after any restart. Where
augmentation changes rows, helper processes change and encode them before the epoch, so that the plan knows their
lengths: those of the next epoch while this one is trained on.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from nmt.batches import Lengths, Rows, one_sided, plan_epoch
from nmt.config import Side, TrainConfig
from pipelines.config import AugmentConfig
from pipelines.epoch_rows import EpochConfig, ShardRows, held_rows, read_answer, tag_ids, trainable_rows
from pipelines.errors import InputError
from pipelines.shards import ShardColumns, check_texts, columns_of, joined, read_corpora, shard_paths, shard_sizes
from pipelines.tokenizer import Tokenizer

_Read = Callable[[Rows], list[npt.NDArray[np.int32]]]


@dataclass(frozen=True)
class Epoch:
    """An epoch's rows and updates. Row number len(shards) + i is the i-th of the rows that were `made` for it.

    `rows` are the numbers that the epoch holds, one of them several times where a corpus's weight says so; `stayed` of
    them could not become what was drawn for them. src_lengths and tgt_lengths are of all numbers.
    """

    shards: ShardColumns
    made: ShardColumns
    rows: Rows
    stayed: int
    src_lengths: Lengths
    tgt_lengths: Lengths
    updates: list[list[Rows]]

    def sources(self, rows: Rows) -> list[npt.NDArray[np.int32]]:
        """Return the source ids of each of these rows."""
        return self._ids(self.shards.sources, self.made.sources, rows)

    def targets(self, rows: Rows) -> list[npt.NDArray[np.int32]]:
        """Return the target ids of each of these rows."""
        return self._ids(self.shards.targets, self.made.targets, rows)

    def _ids(self, of_shards: _Read, of_made: _Read, rows: Rows) -> list[npt.NDArray[np.int32]]:
        if not len(self.made):
            return of_shards(rows)
        own = rows < len(self.shards)
        found, made = iter(of_shards(rows[own])), iter(of_made(rows[~own] - len(self.shards)))
        return [next(found) if is_own else next(made) for is_own in own.tolist()]


class Epochs:
    """Prepares epochs, each the same whenever and wherever it is prepared. Closed at the end of a `with` block.

    `folder` holds the shards of train, and `shards` are its rows; `weights` are those of corpora, 1 where not named;
    `helpers` is how many processes change rows, where any are to be changed; with a `side` epochs hold that one alone,
    see `one_sided`.
    Raises InputError when no row is short enough, when the weights leave the first epoch without a row, when a tag is
    not one piece of the tokeniser, or when there is no text for `augment` to change.
    """

    def __init__(
        self,
        config: TrainConfig,
        augment: AugmentConfig,
        weights: Mapping[str, float],
        folder: Path,
        shards: ShardColumns,
        tokenizer: Path,
        *,
        helpers: int = 1,
        side: Side | None = None,
    ) -> None:
        self._config, self._side, self._shards = config, side, one_sided(shards, side)
        self._epoch_config = EpochConfig(
            seed=config.seed,
            max_pieces=config.max_pieces,
            augment=augment,
            weights=dict(weights),
            tokenizer=str(tokenizer.absolute()),
        )
        self.trainable = trainable_rows(shards.src_lengths(), shards.tgt_lengths(), config.max_pieces)
        if not len(self.trainable):
            raise InputError(
                f"no row of train has at most {config.max_pieces} pieces on both sides",
                where="train.max_pieces",
                remedy="Raise it, or look at the corpus",
            )
        self._weights: npt.NDArray[np.float64] | None = None
        if weights:
            names, corpus = read_corpora(folder)
            self._weights = np.asarray([weights.get(name, 1.0) for name in names], dtype=np.float64)[corpus]
        if not len(self._held(0)):
            raise InputError(
                "the weights of the corpora leave an epoch without a row",
                where="corpora.train: weight",
                remedy="Raise them",
            )
        self._helpers: _Helpers | None = None
        if augment.active:
            loaded = Tokenizer.load(tokenizer)
            for tag in augment.tags:
                tag_ids(tag.tag, loaded)
            if augment.changes_text:
                check_texts(folder)
            self._paths, self._sizes = shard_paths(folder), shard_sizes(folder)
            self._helpers = _Helpers(self._epoch_config, helpers)
        self._begun: dict[int, list[Future[ShardRows]]] = {}
        self._first: Epoch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._helpers is not None:
            self._helpers.close()

    def total_updates(self) -> int:
        """Return what the learning rate's schedule counts on: the updates of the first epoch times the epochs.

        With augmentation, or weights that are no whole numbers, epochs differ a little: where there are more updates
        than this in the end, the last ones have the schedule's last learning rate.
        """
        self._first = self._first or self._prepared(0)
        return len(self._first.updates) * self._config.max_epochs

    def epoch(self, number: int) -> Epoch:
        """Return an epoch, counted from 0; the helpers then begin with the next one."""
        epoch = self._first if number == 0 and self._first is not None else self._prepared(number)
        self._first, self._begun = None, {}
        if self._helpers is not None and number + 1 < self._config.max_epochs:
            self._begun[number + 1] = self._begin(self._helpers, number + 1)
        return epoch

    def _held(self, number: int) -> Rows:
        return held_rows(self._epoch_config, number, self._shards.row_id, self.trainable, self._weights)[0]

    def _begin(self, helpers: _Helpers, number: int) -> list[Future[ShardRows]]:
        return [helpers.ask(path, number) for path in self._paths]

    def _prepared(self, number: int) -> Epoch:
        if self._helpers is None:
            return self._planned(number, self._held(number), _NONE, 0)
        asked = self._begun.pop(number, None) or self._begin(self._helpers, number)
        answers = [future.result() for future in asked]
        rows, first, next_made = [], 0, len(self._shards)
        for answer, size in zip(answers, self._sizes, strict=True):
            own = answer.rows < size
            rows.append(np.where(own, first + answer.rows, next_made + answer.rows - size))
            first, next_made = first + size, next_made + len(answer.made)
        made = joined([answer.made for answer in answers])
        return self._planned(number, np.concatenate(rows), made, sum(answer.stayed for answer in answers))

    def _planned(self, number: int, rows: Rows, made: ShardColumns, stayed: int) -> Epoch:
        made = one_sided(made, self._side)
        src_lengths = np.concatenate([self._shards.src_lengths(), made.src_lengths()])
        tgt_lengths = np.concatenate([self._shards.tgt_lengths(), made.tgt_lengths()])
        updates = plan_epoch(self._config, number, src_lengths, tgt_lengths, rows)
        return Epoch(self._shards, made, rows, stayed, src_lengths, tgt_lengths, updates)


class _Helpers:
    """Processes of `pipelines/epoch_rows.py`, started when first asked; a thread waits for each."""

    def __init__(self, config: EpochConfig, number: int) -> None:
        self._config, self._number = config, number
        self._threads = ThreadPoolExecutor(max_workers=number, thread_name_prefix="epoch-rows")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def ask(self, shard: Path, epoch: int) -> Future[ShardRows]:
        """Return the rows of a shard in an epoch, when they are there."""
        if not self._processes:
            self._start()
        return self._threads.submit(self._answer, shard, epoch)

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def _start(self) -> None:
        root = Path(__file__).parents[1]  # where the packages lie, also where nothing is installed
        for _ in range(self._number):
            command = [sys.executable, "-m", "pipelines.epoch_rows"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
            self._processes.append(process)
            self._write(process, self._config.model_dump_json())
            self._idle.put(process)

    def _answer(self, shard: Path, epoch: int) -> ShardRows:
        process = self._idle.get()
        try:
            self._write(process, json.dumps({"shard": str(shard.absolute()), "epoch": epoch}))
            assert process.stdout is not None
            return read_answer(process.stdout)
        finally:
            self._idle.put(process)

    def _write(self, process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


_NONE = columns_of(np.empty(0, dtype=np.int64), [], [])
