"""The objective that a training config asks for."""

from __future__ import annotations

import torch

from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.rdrop import rdrop
from nmt.objectives.sampling import sampled, sampling_share
from nmt.objectives.supervised import Loss, supervised


def objective(
    model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None, config: TrainConfig, update: int
) -> Loss:
    """Return the loss of a micro-batch in an update, counted from 0.

    It is a sum over the real target pieces, whatever the objective, so that the sum over all micro-batches divided by
    their target pieces is the update's, however they are dealt out. Without a generator nothing is sampled.
    """
    if generator is not None and (share := sampling_share(config, update)) > 0.0:
        batch = sampled(model, batch, generator, share)
    smoothing, alignment_weight = config.label_smoothing, config.guided_alignment_weight
    if config.rdrop_weight > 0.0:
        return rdrop(
            model, batch, generator,
            label_smoothing=smoothing, alpha=config.rdrop_weight, alignment_weight=alignment_weight,
        )  # fmt: skip
    return supervised(model, batch, generator, label_smoothing=smoothing, alignment_weight=alignment_weight)
