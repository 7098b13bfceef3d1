"""The batch plan: a pure function of (seed, epoch, lengths), the same for every number of workers.

Rows of like length share a micro-batch; micro-batches come in a random order; an update is a run of
`microbatches_per_update` of them, of which worker r computes those with i % world == r.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nmt.config import Side, TrainConfig
from pipelines.shards import ShardColumns
from pipelines.tokenizer import BOS_ID, PAD_ID

Rows = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int64]


class EncodedRows(Protocol):
    """What a micro-batch is made of: rows of shards, or of an epoch."""

    def sources(self, rows: Rows) -> list[npt.NDArray[np.int32]]:
        """Return the source ids of each of these rows."""

    def targets(self, rows: Rows) -> list[npt.NDArray[np.int32]]:
        """Return the target ids of each of these rows."""


class MicroBatch(NamedTuple):
    """What a worker computes at once: src [B, S], src_lengths [B], previous and target [B, T]; int64, right-padded.

    `previous` is BOS and the target without its last piece; `target` ends with EOS.
    `alignment` [B, T, S] bool is True where a target piece is linked to a source piece; None where training has none.
    """

    src: Tensor
    src_lengths: Tensor
    previous: Tensor
    target: Tensor
    target_lengths: Tensor
    alignment: Tensor | None = None

    def target_mask(self) -> Tensor:
        """Return [B, T], True at real target pieces. By length, as a target may hold any id."""
        positions = torch.arange(self.target.shape[1], device=self.target.device)
        return positions[None, :] < self.target_lengths[:, None]

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch on a device."""
        src, src_lengths, previous, target, target_lengths = (x.to(device, non_blocking=True) for x in self[:5])
        alignment = None if self.alignment is None else self.alignment.to(device, non_blocking=True)
        return MicroBatch(src, src_lengths, previous, target, target_lengths, alignment)


def plan_epoch(
    config: TrainConfig, epoch: int, src_lengths: Lengths, tgt_lengths: Lengths, rows: Rows, *, window: int = 0
) -> list[list[Rows]]:
    """Return the updates of an epoch, or of one of its windows, each a list of micro-batches, each of row numbers.

    Every row stands in as many micro-batches' places as in `rows`; a micro-batch's padded size, rows * longest side, is
    at most `microbatch_tokens` (a longer row is alone in its own). No rows give no updates.
    """
    if not len(rows):
        return []
    # Zeros at its end add nothing to a seed: the first window is drawn as an epoch of one window has always been.
    generator = np.random.default_rng([config.seed, epoch, window])
    shuffled = generator.permutation(rows)
    # Ties of both lengths stay in the shuffled order, so micro-batches differ from epoch to epoch.
    by_source = shuffled[_ascending(src_lengths[shuffled])]
    order = by_source[_ascending(tgt_lengths[by_source])]
    microbatches = packed(order, np.maximum(src_lengths, tgt_lengths)[order], config.microbatch_tokens)
    ordered = [microbatches[i] for i in generator.permutation(len(microbatches))]
    per_update = config.microbatches_per_update
    return [ordered[start : start + per_update] for start in range(0, len(ordered), per_update)]


def _ascending(lengths: Lengths) -> Rows:
    """Return the places of the lengths in ascending order, of equal ones in the order in which they stand."""
    # Numbers of 16 bits are sorted by their digits: in a tenth of the time.
    short = not len(lengths) or int(lengths.max()) < 2**16
    return np.argsort(lengths.astype(np.uint16) if short else lengths, kind="stable")


def packed(order: Rows, lengths: Lengths, budget: int) -> list[Rows]:
    """Return the rows in this order, cut into runs of which number * longest stays within the budget.

    `lengths` are those of `order`, place by place; a row longer than the budget is a run of its own.
    """
    bounds = [0, *_cuts(lengths, budget), len(order)]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def _cuts(lengths: Lengths, budget: int) -> Iterator[int]:
    """Yield where `packed` cuts, in ascending order: run by run of equal lengths, of which sorted rows have few."""

    def fitting(longest: int) -> int:
        return max(1, budget // longest) if longest else len(lengths)

    changes = np.flatnonzero(np.diff(lengths)) + 1
    run_starts = [0, *changes.tolist()] if len(lengths) else []
    run_ends = [*changes.tolist(), len(lengths)]
    start = longest = 0
    for begin, end, length in zip(run_starts, run_ends, lengths[run_starts].tolist()):
        # What is open takes as much of the run as fits, at least the one row that it has.
        longest = max(longest, length)
        cut = max(begin, start + fitting(longest)) if start < begin else begin
        if cut >= end:
            continue
        if start < begin:
            yield cut
        # The rest of the run is cut evenly, and its end stays open.
        cuts = range(cut, end, fitting(length))
        yield from cuts[1:]
        start, longest = cuts[-1], length


def target_tokens(update: list[Rows], tgt_lengths: Lengths) -> int:
    """Return the target pieces, EOS counted, of all micro-batches of an update: what its loss is divided by."""
    return int(sum(tgt_lengths[rows].sum() for rows in update))


def collate(encoded: EncodedRows, rows: Rows) -> MicroBatch:
    """Return the padded micro-batch of these rows."""
    src, src_lengths = padded(encoded.sources(rows))
    target, target_lengths = padded(encoded.targets(rows))
    previous = torch.cat([torch.full((len(rows), 1), BOS_ID), target[:, :-1]], dim=1)
    return MicroBatch(src, src_lengths, previous, target, target_lengths)


def one_sided(columns: ShardColumns, side: Side | None) -> ShardColumns:
    """Return rows whose target is that side of these, and whose source has no piece: what a language model reads.

    So all else counts and pads that side only. For None the rows come back as they are.
    """
    if side is None:
        return columns
    if side == "source":
        pieces, offsets = columns.src, columns.src_offsets
    else:
        pieces, offsets = columns.tgt, columns.tgt_offsets
    return ShardColumns(columns.row_id, pieces[:0], np.zeros_like(offsets), pieces, offsets)


def padded(rows: Sequence[npt.NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Return ids [B, longest] int64, padded on the right with PAD_ID, and the lengths [B], of at least one row."""
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    real = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    ids = np.full(real.shape, PAD_ID, dtype=np.int64)
    ids[real] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(lengths)
