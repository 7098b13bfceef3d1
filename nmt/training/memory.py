"""Micro-batches that do not fit into a worker's memory, computed in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from nmt.batches import MicroBatch
from pipelines.errors import InputError


class Part(NamedTuple):
    """Rows `start` to `end` of the micro-batch at `place` of a worker's share, of `total` rows."""

    place: int
    start: int
    end: int
    total: int

    def is_whole(self) -> bool:
        """Return whether it is all of the micro-batch."""
        return self.end - self.start == self.total

    def of(self, batch: MicroBatch) -> MicroBatch:
        """Return these rows of their micro-batch, as wide as that one is padded."""
        if self.is_whole():
            return batch
        tensors = {name: tensor for name, tensor in batch._asdict().items() if tensor is not None}
        return batch._replace(**{name: tensor[self.start : self.end] for name, tensor in tensors.items()})

    def halves(self) -> list[Part]:
        """Return the first and the second half of the rows."""
        middle = (self.start + self.end) // 2
        return [self._replace(end=middle), self._replace(start=middle)]


class RowTooLarge(InputError):
    """A row, of the micro-batch at `place` of a worker's share, that does not fit into memory by itself."""

    def __init__(self, place: int, row: int, name: str = "") -> None:
        super().__init__(
            f"{name or f'row {row} of micro-batch {place}'} does not fit into the memory of its worker by itself",
            where="train.max_pieces",
            remedy="Lower it, so that such rows are left out; or train a smaller model, or where there is more memory",
        )
        self.place, self.row = place, row


def in_parts(
    rows: Sequence[int], compute: Callable[[Part], None], forget: Callable[[], None], undivided: str | None
) -> int:
    """Compute micro-batches of so many rows each; return how many had to be split.

    One that does not fit into memory is computed in halves, and they in theirs. A computation that breaks off leaves
    something added, so that all is begun anew: `forget` takes back what `compute` has added. That costs time where
    something does not fit; to keep a copy would cost memory and time everywhere. `undivided` is why there may be no
    parts, if so.
    Raises RowTooLarge of a single row that does not fit, and InputError where there may be no parts.
    """
    parts, split, done = [Part(place, 0, number, number) for place, number in enumerate(rows)], set(), 0
    while done < len(parts):
        if fits(compute, parts[done]):
            done += 1
            continue
        part = parts[done]
        if undivided is not None:
            raise InputError(
                f"a micro-batch of {part.total} rows does not fit into memory, and is not split: {undivided}",
                where="train.microbatch_tokens",
                remedy="Lower it, and raise train.microbatches_per_update for updates of the same size",
            )
        if part.end - part.start == 1:
            raise RowTooLarge(part.place, part.start)
        parts[done : done + 1] = part.halves()
        split.add(part.place)
        forget()
        done = 0
    return len(split)


def fits(compute: Callable[..., None], *arguments: object) -> bool:
    """Return whether there was memory enough, with what was taken given back where there was not."""
    try:
        compute(*arguments)
        return True
    except torch.OutOfMemoryError:
        pass
    # Behind the `except`, since until its end the exception holds all that the computation had.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
