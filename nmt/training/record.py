"""The figures of the updates since the last line of metrics."""

from __future__ import annotations

import time
from typing import Any

from nmt.batches import Rows
from nmt.checkpoint import TrainState
from nmt.training.epochs import Epoch
from nmt.training.step import UpdateFigures


class Record:
    """Adds up updates until a line of metrics is made of them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was added."""
        self.started = time.monotonic()
        self.loss = 0.0
        self.tokens = self.padded = self.real = self.updates = 0
        self.gradient_norm = 0.0

    def add(self, epoch: Epoch, update: list[Rows], tokens: int, figures: UpdateFigures) -> None:
        """Add an update of so many target pieces."""
        self.loss += figures.loss * tokens
        self.tokens += tokens
        self.updates += 1
        self.gradient_norm = figures.gradient_norm
        for rows in update:
            src, tgt = epoch.src_lengths[rows], epoch.tgt_lengths[rows]
            self.real += int(src.sum() + tgt.sum())
            self.padded += len(rows) * int(src.max() + tgt.max())

    def line(self, state: TrainState, rate: float, total: int, epoch: Epoch) -> dict[str, Any]:
        """Return the record of training at `state`, and start anew."""
        record = {
            "kind": "train",
            "update": state.update,
            "epoch": state.epoch,
            "loss": self.loss / self.tokens,
            "learning_rate": rate,
            "gradient_norm": self.gradient_norm,
            "target_tokens_per_s": self.tokens / (time.monotonic() - self.started),
            "target_tokens_per_update": self.tokens / self.updates,
            "padding": 1.0 - self.real / self.padded,
            "total_updates": total,
            "epoch_rows": len(epoch.rows),
            "augmented_rows": len(epoch.made),
            "seconds": state.seconds,
        }
        self.restart()
        return record
