"""The batch plan: a pure function of (seed, epoch, lengths), the same for every number of workers.

Rows of like length share a micro-batch; micro-batches come in a random order; an update is a run of
`microbatches_per_update` of them, of which worker r computes those with i % world == r.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """

    src: Tensor
    src_lengths: Tensor
    previous: Tensor
    target: Tensor
    target_lengths: Tensor

    def target_mask(self) -> Tensor:
        """Return [B, T], True at real target pieces. By length, as a target may hold any id."""
        positions = torch.arange(self.target.shape[1], device=self.target.device)
        return positions[None, :] < self.target_lengths[:, None]

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch on a device."""
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def plan_epoch(
    config: TrainConfig, epoch: int, src_lengths: Lengths, tgt_lengths: Lengths, rows: Rows
) -> list[list[Rows]]:
    """Return the updates of an epoch, each a list of micro-batches, each an array of row numbers.

    Every row stands in as many micro-batches' places as in `rows`; a micro-batch's padded size, rows * longest side, is
    at most `microbatch_tokens` (a longer row is alone in its own). No rows give no updates.
    """
    if not len(rows):
        return []
    generator = np.random.default_rng([config.seed, epoch])
    shuffled = generator.permutation(rows)
    # Ties of both lengths stay in the shuffled order, so micro-batches differ from epoch to epoch.
    order = shuffled[np.lexsort((src_lengths[shuffled], tgt_lengths[shuffled]))]
    microbatches = packed(order, np.maximum(src_lengths, tgt_lengths)[order], config.microbatch_tokens)
    ordered = [microbatches[i] for i in generator.permutation(len(microbatches))]
    per_update = config.microbatches_per_update
    return [ordered[start : start + per_update] for start in range(0, len(ordered), per_update)]


def packed(order: Rows, lengths: Lengths, budget: int) -> list[Rows]:
    """Return the rows in this order, cut into runs of which number * longest stays within the budget.

    `lengths` are those of `order`, place by place; a row longer than the budget is a run of its own.
    """
    microbatches, start, longest = [], 0, 0
    for end, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if end > start and (end + 1 - start) * longest > budget:
            microbatches.append(order[start:end])
            start, longest = end, length
    microbatches.append(order[start:])
    return microbatches


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
