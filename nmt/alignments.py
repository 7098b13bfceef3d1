"""The word alignments of training rows, looked up for micro-batches: what guides attention.

Shapes: B rows, T target pieces, S source pieces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from nmt.batches import MicroBatch, Rows
from nmt.config import TrainConfig
from pipelines.alignments import PartLinks, alignment_ranges, read_alignments
from pipelines.errors import InputError
from pipelines.shards import ShardColumns
from pipelines.stage import StageRun

_Numbers = npt.NDArray[np.int64]


class NumberedRows(Protocol):
    """Rows of shards, with others behind them that were made from those."""

    @property
    def shards(self) -> ShardColumns:
        """Return the rows of the shards, whose numbers begin with 0."""


class Alignments:
    """Looks up links by row_id. Files are read when they are first asked of; `most_rows` are held, or one file.

    With as many as a window of training has, each file is read once in a window.
    Raises InputError as `alignment_ranges` does.
    """

    def __init__(self, folder: Path, most_rows: int) -> None:
        self._ranges, self._most_rows = alignment_ranges(folder), most_rows
        self._held: dict[Path, PartLinks] = {}  # the one that was asked of last stands last

    def aligned(self, batch: MicroBatch, window: NumberedRows, rows: Rows) -> MicroBatch:
        """Return the micro-batch of these rows of a window with its alignment.

        A row that was made for its epoch has no links, as its pieces are others.
        """
        alignment = torch.zeros(*batch.target.shape, batch.src.shape[1], dtype=torch.bool)
        own = np.flatnonzero(rows < len(window.shards))
        places, src, tgt = self.links(window.shards.row_id[rows[own]])
        alignment[torch.from_numpy(own[places]), torch.from_numpy(tgt), torch.from_numpy(src)] = True
        return batch._replace(alignment=alignment)

    def links(self, row_ids: _Numbers) -> tuple[_Numbers, _Numbers, _Numbers]:
        """Return the links of rows: their places in `row_ids`, and those of source and target pieces, [links] each.

        Raises InputError naming a row without an entry: the alignments are then of other shards.
        """
        left = np.ones(len(row_ids), dtype=np.bool_)
        found: list[tuple[_Numbers, _Numbers, _Numbers]] = [(_NONE, _NONE, _NONE)]
        for path, (lowest, highest) in self._ranges.items():
            asked = np.flatnonzero(left & (row_ids >= lowest) & (row_ids <= highest))
            if len(asked):
                part = self._part(path)
                at = np.searchsorted(part.row_id, row_ids[asked])
                there = part.row_id[np.minimum(at, len(part.row_id) - 1)] == row_ids[asked]
                left[asked[there]] = False
                found.append(_of_part(part, asked[there], at[there]))
        if left.any():
            raise InputError(
                f"there is no alignment of row {row_ids[left][0]}",
                where=str(next(iter(self._ranges), Path("alignments")).parent),
                remedy="Run the align stage again on these shards",
            )
        places, src, tgt = (np.concatenate(parts) for parts in zip(*found))
        return places, src, tgt

    def _part(self, path: Path) -> PartLinks:
        part = self._held.pop(path, None) or read_alignments(path)
        self._held[path] = part
        rows = sum(len(held.row_id) for held in self._held.values())
        while rows > self._most_rows and len(self._held) > 1:
            oldest = next(iter(self._held))
            rows -= len(self._held.pop(oldest).row_id)
        return part


def guiding_inputs(config: TrainConfig, aligned: StageRun | None) -> dict[str, str]:
    """Return what of the finished stage `align` decides training's updates: its digest, where attention is guided.

    Raises InputError where it is to be guided and there is no such stage.
    """
    if config.guided_alignment_weight == 0.0:
        return {}
    if aligned is None:
        raise InputError(
            "attention is to be guided, and there are no alignments of the rows of train",
            where="train.guided_alignment_weight",
            remedy="Run the stage align before, or set it to 0",
        )
    return {"aligned": aligned.manifest.digest()}


def alignments_folder(config: TrainConfig, aligned: StageRun | None) -> str | None:
    """Return where the alignments of the rows of train lie, None where attention is not guided."""
    if aligned is None or config.guided_alignment_weight == 0.0:
        return None
    return str(aligned.folder / "alignments" / "train")


_NONE = np.empty(0, dtype=np.int64)


def _of_part(part: PartLinks, places: _Numbers, at: _Numbers) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Return the links of rows `at` of a part, each with the place that its row is asked for at."""
    starts, counts = part.first[at], part.first[at + 1] - part.first[at]
    ends = np.cumsum(counts)
    wanted = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - ends + counts, counts)
    return np.repeat(places, counts), part.src[wanted].astype(np.int64), part.tgt[wanted].astype(np.int64)
