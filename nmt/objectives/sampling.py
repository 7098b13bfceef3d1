"""Scheduled sampling in two passes: the decoder reads some of its own predictions in place of the reference's pieces.

Source: Bengio et al. 2015, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks", section 2.4
(the linear schedule); Mihaylova and Martins 2019, "Scheduled Sampling for Transformers", section 3 (two passes, so that
any architecture can do it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.model.embeddings import uniform
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import rows_at_once


def sampling_share(config: TrainConfig, update: int) -> float:
    """Return the share of pieces that are replaced in an update, counted from 0.

    It grows linearly from 0 to `scheduled_sampling`, which it has from update `scheduled_sampling_updates` on.
    """
    return config.scheduled_sampling * min(1.0, update / config.scheduled_sampling_updates)


def sampled(model: Seq2Seq, batch: MicroBatch, generator: torch.Generator, share: float) -> MicroBatch:
    """Return the micro-batch with a share of the real pieces of `previous` replaced by the model's predictions.

    What stands at a place is replaced with probability `share`, independently of all others, by what the model, reading
    the reference, finds most probable there; BOS stays, and so do padding and all that the loss is counted against.
    The first pass is one of evaluation, so that it draws no noise and leaves batch norms as they are.
    """
    # Drawn for all places, so that what the generator gives next does not depend on the model.
    drawn = uniform(batch.previous.shape, generator, batch.previous.device)
    # Piece t of `previous` is piece t - 1 of the target; as many of both are real, the first of `previous` being BOS.
    real = batch.target_mask()[:, 1:]
    previous = batch.previous.clone()
    previous[:, 1:] = torch.where(real & (drawn[:, 1:] < share), predicted(model, batch)[:, :-1], previous[:, 1:])
    return batch._replace(previous=previous)


@torch.no_grad()
def predicted(model: Seq2Seq, batch: MicroBatch) -> Tensor:
    """Return the most probable piece [B, T] at each real target position, given the reference before it; PAD behind."""
    vectors = model(batch.src, batch.src_lengths, batch.previous, None).vectors
    real = batch.target_mask()
    found = torch.zeros_like(batch.target)
    parts = vectors[real].split(rows_at_once(vectors, model.target_size))
    found[real] = torch.cat([model.logits(part).argmax(-1) for part in parts])
    return found
