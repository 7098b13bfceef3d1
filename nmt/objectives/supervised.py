"""Teacher forcing: cross-entropy with label smoothing over the real target pieces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.batches import MicroBatch
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import linear_cross_entropy


class Loss(NamedTuple):
    """A micro-batch's summed loss (a scalar with a graph), weight (target pieces) and summed nll."""

    total: Tensor
    weight: int
    nll: Tensor


def supervised(model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None, *, label_smoothing: float) -> Loss:
    """Return the loss of teacher forcing on a micro-batch. Only real positions go through the output layer."""
    vectors = model(batch.src, batch.src_lengths, batch.previous, generator).vectors
    real = batch.target_mask()
    targets = batch.target[real]
    total, nll = linear_cross_entropy(vectors[real], model.output_matrix, model.output_bias, targets, label_smoothing)
    return Loss(total, len(targets), nll)
