"""Teacher forcing: cross-entropy with label smoothing over the real target pieces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.batches import MicroBatch
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import linear_cross_entropy
from nmt.objectives.guidance import guidance


class Loss(NamedTuple):
    """A micro-batch's summed loss (a scalar with a graph), weight (target pieces) and summed nll."""

    total: Tensor
    weight: int
    nll: Tensor


class Forced(NamedTuple):
    """A pass of teacher forcing: vectors [N, D] and target ids [N] of the N real positions, and the loss of guided
    attention, times its weight."""

    vectors: Tensor
    targets: Tensor
    guidance: Tensor | float


def forced(
    model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None, *, alignment_weight: float = 0.0
) -> Forced:
    """Return what a pass over a micro-batch gives. Only real positions are left for the output layer.

    With an `alignment_weight` attention is guided by the micro-batch's alignment.
    """
    guided = alignment_weight > 0.0
    decoded = model(batch.src, batch.src_lengths, batch.previous, generator, need_weights=guided)
    real = batch.target_mask()
    added = alignment_weight * guidance(decoded.weights, batch.alignment) if guided else 0.0
    return Forced(decoded.vectors[real], batch.target[real], added)


def supervised(
    model: Seq2Seq,
    batch: MicroBatch,
    generator: torch.Generator | None,
    *,
    label_smoothing: float,
    alignment_weight: float = 0.0,
) -> Loss:
    """Return the loss of teacher forcing on a micro-batch, guided as `forced` says."""
    passed = forced(model, batch, generator, alignment_weight=alignment_weight)
    total, nll = linear_cross_entropy(
        passed.vectors, model.output_matrix, model.output_bias, passed.targets, label_smoothing
    )
    return Loss(total + passed.guidance, len(passed.targets), nll)
