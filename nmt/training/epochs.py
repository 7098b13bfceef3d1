"""The windows of epochs: which rows each holds, what they are, and its updates.

An epoch goes window by window, each some shards or shares of shards (`windows.py`), so that memory is that of two
windows, whatever the corpus: the one that is trained on, and the next one, which is read and planned meanwhile. All of
it is a pure function of (seed, epoch, window) and of the shards, the same on every worker and after any restart.
Where augmentation changes rows, processes of their own change and encode them before the plan, so that it knows their
lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from nmt.batches import Lengths, Rows, one_sided, plan_epoch
from nmt.config import Side, TrainConfig
from nmt.training.mixing import Curriculum, Mixing
from nmt.training.row_processes import RowProcesses
from nmt.training.windows import draw_windows, shares
from pipelines.config import AugmentConfig
from pipelines.epoch_rows import WHOLE, EpochConfig, ShardRows, Share, held_rows, tag_ids, trainable_rows
from pipelines.errors import InputError
from pipelines.shards import Shard, ShardColumns, check_texts, columns_of, joined, read_rows, scan_shards
from pipelines.tokenizer import Tokenizer

_Read = Callable[[Rows], list[npt.NDArray[np.int32]]]
_PerCorpus = npt.NDArray[np.float64]
_Shares = Mapping[int, Share]  # of shards, by their numbers


@dataclass(frozen=True)
class Window:
    """A window's rows and updates. Row number len(shards) + i is the i-th of the rows that were `made` for its epoch.

    `epoch` and `number` count from 0; `last` is whether its epoch ends with it. `rows` are the numbers that the window
    holds, one of them several times or not at all where a corpus's weight says so; `stayed` of them could not become
    what was drawn for them. src_lengths and tgt_lengths are of all numbers.
    """

    epoch: int
    number: int
    last: bool
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


class RowCounts(NamedTuple):
    """The rows of train that are short enough, and those that are too long; `exact`, or estimated."""

    trainable: int
    too_long: int
    exact: bool


class _Stored(NamedTuple):
    """The rows of some shards: of each the place of its corpus, and which are short enough."""

    shards: tuple[int, ...]
    columns: ShardColumns
    corpus: npt.NDArray[np.int32]
    trainable: Rows


class _Sample(NamedTuple):
    """What was looked at of each corpus: rows, those that are short enough, and the pieces of their longer sides."""

    rows: _PerCorpus
    trainable: _PerCorpus
    pieces: _PerCorpus


class Epochs:
    """Prepares windows, each the same whenever and wherever it is prepared. Closed at the end of a `with` block.

    `folder` holds the shards of train; `weights` are those of corpora, 1 where not named, and `curriculum` the epochs
    that they take part in, all where not named; `helpers` is how many processes change rows, where any are to be
    changed; with a `side` windows hold that one alone, see `one_sided`.
    Raises InputError when a shard is not of this tokeniser, when an epoch has no corpus, when a tag is not one piece of
    the tokeniser, or when there is no text for `augment` to change.
    """

    def __init__(
        self,
        config: TrainConfig,
        augment: AugmentConfig,
        weights: Mapping[str, float],
        folder: Path,
        tokenizer: Path,
        *,
        curriculum: Curriculum | None = None,
        helpers: int = 1,
        side: Side | None = None,
    ) -> None:
        self._config, self._side = config, side
        loaded = Tokenizer.load(tokenizer)
        self._shards = scan_shards(folder, loaded.digest)
        self._names = sorted({name for shard in self._shards for name in shard.corpora})
        self._rows = self._rows_of(dict.fromkeys(range(len(self._shards)), WHOLE))
        self._whole = int(self._rows.sum()) <= config.window_rows
        rows = {name: int(number) for name, number in zip(self._names, self._rows)}
        self._mixing = Mixing(rows, weights, curriculum or {}, config.temperature)
        self._check_curriculum()
        if augment.active:
            for tag in augment.tags:
                tag_ids(tag.tag, loaded)
            if augment.changes_text:
                check_texts(folder)
        self._epoch_config = EpochConfig(
            seed=config.seed, max_pieces=config.max_pieces, augment=augment, tokenizer=str(tokenizer.absolute())
        )
        self._processes = RowProcesses(self._epoch_config, helpers) if augment.active else None
        # One window after the other, all that reads shards included: so memory is bounded, and nothing is shared.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="windows")
        self._begun: dict[tuple[int, int], Future[Window]] = {}
        self._last_read: _Stored | None = None
        self._windows = lru_cache(maxsize=4)(self._drawn_windows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._processes is not None:
            self._processes.close()
        self._thread.shutdown(cancel_futures=True)
        self._begun, self._last_read = {}, None  # windows, which are large

    # Windows

    def window(self, epoch: int, number: int = 0) -> Window:
        """Return a window of an epoch, both counted from 0; the one after it is then begun."""
        future = self._begin(epoch, number)
        self._begun = {}
        found = future.result()
        if not found.last:
            self._begun[epoch, number + 1] = self._begin(epoch, number + 1)
        elif epoch + 1 < self._config.max_epochs:
            self._begun[epoch + 1, 0] = self._begin(epoch + 1, 0)
        return found

    def num_windows(self, epoch: int) -> int:
        """Return how many windows an epoch has."""
        return len(self._windows(epoch))

    def _begin(self, epoch: int, number: int) -> Future[Window]:
        return self._begun.get((epoch, number)) or self._thread.submit(self._prepared, epoch, number)

    def _drawn_windows(self, epoch: int) -> list[dict[int, Share]]:
        weights = dict(zip(self._names, self._weights(epoch).tolist()))
        corpora = [[name for name in shard.corpora if weights[name] > 0.0] for shard in self._shards]
        held = [number for number, names in enumerate(corpora) if names]
        sizes = [self._shards[number].rows for number in held]
        drawn = draw_windows(
            self._config.seed, epoch, sizes, self._config.window_rows,
            [_weight(self._shards[number], weights) for number in held], [corpora[number] for number in held],
        )  # fmt: skip
        return shares([[held[place] for place in window] for window in drawn])

    def _prepared(self, epoch: int, number: int) -> Window:
        window = self._windows(epoch)[number]
        shards = tuple(window)
        if self._processes is None:
            stored = self._read(shards)
            return self._planned(epoch, number, stored.columns, self._held(stored, epoch, window), _NONE, 0)
        weights, processes = self._mixing.epoch_weights(epoch), self._processes
        asked = [processes.ask(self._shards[shard].path, epoch, weights, share) for shard, share in window.items()]
        columns = self._read(shards).columns
        answers = [future.result() for future in asked]
        rows = self._numbered(answers, shards, len(columns))
        made = joined([answer.made for answer in answers])
        return self._planned(epoch, number, columns, rows, made, sum(answer.stayed for answer in answers))

    def _numbered(self, answers: Sequence[ShardRows], shards: Sequence[int], stored_rows: int) -> Rows:
        """Return the numbers within the window of the rows that its shards give, which are numbered by shard."""
        rows, first, next_made = [], 0, stored_rows
        for answer, shard in zip(answers, shards, strict=True):
            size = self._shards[shard].rows
            rows.append(np.where(answer.rows < size, first + answer.rows, next_made + answer.rows - size))
            first, next_made = first + size, next_made + len(answer.made)
        return np.concatenate(rows)

    def _planned(
        self, epoch: int, number: int, shards: ShardColumns, rows: Rows, made: ShardColumns, stayed: int
    ) -> Window:
        made = one_sided(made, self._side)
        src_lengths = np.concatenate([shards.src_lengths(), made.src_lengths()])
        tgt_lengths = np.concatenate([shards.tgt_lengths(), made.tgt_lengths()])
        updates = plan_epoch(self._config, epoch, src_lengths, tgt_lengths, rows, window=number)
        last = number + 1 == self.num_windows(epoch)
        return Window(epoch, number, last, shards, made, rows, stayed, src_lengths, tgt_lengths, updates)

    def _read(self, shards: tuple[int, ...]) -> _Stored:
        """Return the rows of these shards, in their order; read anew where they are others than the last ones."""
        if self._last_read is not None and self._last_read.shards == shards:
            return self._last_read
        self._last_read = None
        columns, corpus = read_rows([self._shards[shard] for shard in shards], self._names)
        trainable = trainable_rows(columns.src_lengths(), columns.tgt_lengths(), self._config.max_pieces)
        self._last_read = _Stored(shards, one_sided(columns, self._side), corpus, trainable)
        return self._last_read

    def _held(self, stored: _Stored, epoch: int, window: _Shares) -> Rows:
        weights = self._mixing.epoch_weights(epoch)
        of_rows = None
        if weights is not None:
            of_rows = np.asarray([weights[name] for name in self._names], dtype=np.float64)[stored.corpus]
        of_window = None
        if any(share != WHOLE for share in window.values()):
            of_window = np.repeat([*window.values()], [self._shards[shard].rows for shard in window], axis=0)
        return held_rows(self._epoch_config, epoch, stored.columns.row_id, stored.trainable, of_rows, of_window)[0]

    # What is known of all epochs before the first one

    def counts(self) -> RowCounts:
        """Return how many rows there are to train on: exact where there are no more than a window may have.

        Else each corpus's share of rows that are too long is taken from the first window, or the first ones where it
        takes them to find a row that is short enough, and of a corpus that has no row in them from its own first shard.
        Raises InputError when no row is short enough, or when the weights leave an epoch without a row.
        """
        sample = self._thread.submit(self._sampled).result()
        if not sample.trainable.any():
            raise InputError(
                f"no row of train has at most {self._config.max_pieces} pieces on both sides",
                where="train.max_pieces",
                remedy="Raise it, or look at the corpus",
            )
        trainable = self._rows * _ratio(sample.trainable, sample.rows)
        self._check_weights(trainable)
        kept = round(float(trainable.sum()))
        return RowCounts(kept, int(self._rows.sum()) - kept, self._whole)

    def total_updates(self) -> int:
        """Return what the learning rate's schedule counts on: the updates of all epochs.

        They are estimated by the first window's updates, and by how many pieces an epoch has for one of that window:
        the rows of each corpus, its weight, and the mean of its longer sides in the shards that `counts` looks at. So
        of one window and weights that stay the same it is the first epoch's updates times the epochs. Where the first
        window has no update it is the windows up to the first that has one. Where there are more updates than this in
        the end, the last ones have the schedule's last learning rate.
        """
        updates = number = 0
        while not updates and number < self.num_windows(0):
            self._begun = {(0, number): self._begin(0, number)}
            updates = len(self._begun[0, number].result().updates)
            number += 1
        if not updates:
            return 1
        sample = self._thread.submit(self._sampled, number).result()
        pieces = _ratio(sample.pieces, sample.rows)
        rows = sum(map(self._rows_of, self._windows(0)[:number]))
        of_these = float((rows * pieces * self._weights(0)).sum())
        of_epochs = (
            float((self._rows * pieces * self._weights(epoch)).sum()) for epoch in range(self._config.max_epochs)
        )
        return max(1, sum(round(updates * of_epoch / of_these) for of_epoch in of_epochs))

    def longest(self) -> int:
        """Return how many pieces a side of a row may have in any window.

        Those of the longest row where there are no more rows than a window may have and they stay as they are, else
        `max_pieces`.
        """
        if not self._whole or self._processes is not None:
            return self._config.max_pieces
        stored = self._thread.submit(self._read, tuple(range(len(self._shards)))).result()
        lengths = np.maximum(stored.columns.src_lengths(), stored.columns.tgt_lengths())
        return int(lengths[stored.trainable].max(initial=1))

    def _sampled(self, number: int = 1) -> _Sample:
        """Return what was looked at: the shards of so many windows, or of one for each corpus that they have none of.

        Where no row of them is short enough it is more windows, up to the first that has one.
        """
        samples: list[_Sample] = []
        looked: set[int] = set()
        for place, window in enumerate(self._windows(0)):
            if place >= number and any(sample.trainable.any() for sample in samples):
                break
            samples.append(self._looked_at(self._read(tuple(shard for shard in window if shard not in looked))))
            looked |= window.keys()
        if self._whole:
            others = sorted(set(range(len(self._shards))) - looked)
        else:
            missing = set(self._names) - {name for shard in looked for name in self._shards[shard].corpora}
            others = sorted(
                {next(n for n, shard in enumerate(self._shards) if name in shard.corpora) for name in missing}
            )
        samples += [self._looked_at(self._read((shard,))) for shard in others]
        return _Sample(*(sum(arrays) for arrays in zip(*samples)))

    def _looked_at(self, stored: _Stored) -> _Sample:
        columns, trainable = stored.columns, stored.trainable
        longest = np.maximum(columns.src_lengths(), columns.tgt_lengths())[trainable]
        number, corpus = len(self._names), stored.corpus[trainable]
        return _Sample(
            np.bincount(stored.corpus, minlength=number).astype(np.float64),
            np.bincount(corpus, minlength=number).astype(np.float64),
            np.bincount(corpus, weights=longest, minlength=number).astype(np.float64),
        )

    def _check_curriculum(self) -> None:
        for epoch in range(self._config.max_epochs):
            if not self._weights(epoch).any() and self._rows.any():
                raise InputError(
                    f"no corpus of train takes part in epoch {epoch + 1}",
                    where="corpora.train: from_epoch, until_epoch",
                    remedy=f"Let one take part in it, or set train.max_epochs: {epoch}"
                    if epoch
                    else "Let one take part in it",
                )

    def _check_weights(self, trainable: _PerCorpus) -> None:
        for epoch in range(self._config.max_epochs):
            # With so many rows expected there is no chance of none; with fewer it is looked which ones are drawn.
            if float((trainable * self._weights(epoch)).sum()) < _SURELY_SOME and not self._has_rows(epoch):
                raise InputError(
                    f"the weights of the corpora leave epoch {epoch + 1} without a row",
                    where="corpora.train: weight, from_epoch, until_epoch",
                    remedy="Raise the weights, or let other corpora take part in it",
                )

    def _has_rows(self, epoch: int) -> bool:
        windows = self._windows(epoch)
        read = ((self._thread.submit(self._read, tuple(window)).result(), window) for window in windows)
        return any(len(self._held(stored, epoch, window)) for stored, window in read)

    def _weights(self, epoch: int) -> _PerCorpus:
        """Return the weight of each corpus in an epoch: [corpora]."""
        weights = self._mixing.epoch_weights(epoch)
        return np.asarray([1.0 if weights is None else weights[name] for name in self._names])

    def _rows_of(self, window: _Shares) -> _PerCorpus:
        """Return the rows of each corpus in these shares of shards: [corpora]."""
        found = dict.fromkeys(self._names, 0.0)
        for shard, (start, end) in window.items():
            for name, rows in self._shards[shard].corpora.items():
                found[name] += rows * (end - start)
        return np.asarray([*found.values()], dtype=np.float64)


def _weight(shard: Shard, weights: Mapping[str, float]) -> float:
    """Return how often an epoch sees a row of a shard, on average, where one that it reads counts for once at least."""
    return sum(rows * max(1.0, weights[name]) for name, rows in shard.corpora.items()) / shard.rows


def _ratio(numbers: _PerCorpus, of: _PerCorpus) -> _PerCorpus:
    return np.divide(numbers, of, out=np.zeros_like(numbers), where=of > 0.0)


_NONE = columns_of(np.empty(0, dtype=np.int64), [], [])
_SURELY_SOME = 64.0  # rows: that none of them comes has a chance of e^-64 at most
