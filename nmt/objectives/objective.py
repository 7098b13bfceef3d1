"""The objective that a training config asks for."""

from __future__ import annotations

import torch

from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.supervised import Loss, supervised


def objective(
    model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None, config: TrainConfig, update: int
) -> Loss:
    """Return the loss of a micro-batch in an update, counted from 0."""
    return supervised(model, batch, generator, label_smoothing=config.label_smoothing)
