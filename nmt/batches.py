"""The batch plan: a pure function of (seed, epoch, lengths), the same for every number of workers.

Rows of like length share a micro-batch; micro-batches come in a random order; an update is a run of
`microbatches_per_update` of them, of which worker r computes those with i % world == r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nmt.config import TrainConfig
from pipelines.shards import ShardColumns
from pipelines.tokenizer import BOS_ID, PAD_ID

Rows = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int64]


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


def trainable_rows(src_lengths: Lengths, tgt_lengths: Lengths, max_pieces: int) -> Rows:
    """Return the rows whose both sides have at most `max_pieces` pieces, in order."""
    return np.flatnonzero(np.maximum(src_lengths, tgt_lengths) <= max_pieces)


def plan_epoch(
    config: TrainConfig, epoch: int, src_lengths: Lengths, tgt_lengths: Lengths, rows: Rows
) -> list[list[Rows]]:
    """Return the updates of an epoch, each a list of micro-batches, each an array of row numbers.

    Every row of `rows` stands in exactly one micro-batch; a micro-batch's padded size, rows * longest side, is at
    most `microbatch_tokens` (a longer row is alone in its own).
    """
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


def collate(shards: ShardColumns, rows: Rows) -> MicroBatch:
    """Return the padded micro-batch of these rows."""
    src, src_lengths = padded(_slices(shards.src, shards.src_offsets, rows))
    target, target_lengths = padded(_slices(shards.tgt, shards.tgt_offsets, rows))
    previous = torch.cat([torch.full((len(rows), 1), BOS_ID), target[:, :-1]], dim=1)
    return MicroBatch(src, src_lengths, previous, target, target_lengths)


def padded(rows: Sequence[npt.NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Return ids [B, longest] int64, padded on the right with PAD_ID, and the lengths [B], of at least one row."""
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    real = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    ids = np.full(real.shape, PAD_ID, dtype=np.int64)
    ids[real] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def _slices(values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], rows: Rows) -> list[npt.NDArray[np.int32]]:
    return [values[offsets[row] : offsets[row + 1]] for row in rows.tolist()]
