"""One update, in plain torch: what training, tests and benchmarks call.

An update's gradient is the sum over its micro-batches, over all workers, divided by its target pieces. So the number of
workers decides who computes a micro-batch and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.objective import objective
from nmt.precision import autocast
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, clip_by_norm, pretrained_tables


class World(NamedTuple):
    """This worker's place among all: rank in [0, size), and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")


class UpdateFigures(NamedTuple):
    """Of all workers: loss and nll per target piece (nats), and the gradient's norm before clipping."""

    loss: float
    nll: float
    gradient_norm: float


def noise_seed(seed: int, update: int, microbatch: int) -> int:
    """Return the seed of a micro-batch's noise, in [0, 2^63): a hash, so that neighbours have nothing in common."""
    digest = hashlib.blake2b(f"{seed}/{update}/{microbatch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def train_step(
    model: Seq2Seq,
    optimizer: torch.optim.Optimizer,
    flat: FlatGradients,
    averages: Averages | None,
    microbatches: Sequence[tuple[int, MicroBatch]],
    config: TrainConfig,
    *,
    update: int,
    target_tokens: int,
    rate: float,
    world: World,
) -> UpdateFigures:
    """Return the figures of one update, done.

    `microbatches` are this worker's share, with their numbers within the update; `target_tokens` counts the target
    pieces of all workers' micro-batches; `rate` is the learning rate.
    Raises FloatingPointError when the loss or the gradient is not finite: the weights are then as they were.
    """
    flat.buffer.zero_()
    if isinstance(frozen := model.config.freeze_embeddings_updates, int) and frozen:
        flat.hold(pretrained_tables(model), update < frozen)
    generator = torch.Generator(world.device)
    for number, batch in microbatches:
        generator.manual_seed(noise_seed(config.seed, update, number))
        with autocast(config.precision, world.device):
            loss = objective(model, batch.to(world.device), generator, config, update)
        loss.total.backward()  # type: ignore[no-untyped-call]
        flat.figures += torch.stack([loss.total.detach(), loss.nll]).to(flat.figures.dtype)
    if world.size > 1:
        dist.all_reduce(flat.buffer)
    flat.buffer.div_(target_tokens)
    loss_value, nll_value = flat.figures.tolist()
    norm = clip_by_norm(flat.gradients, math.inf if config.clip_norm is None else config.clip_norm)
    if not torch.isfinite(torch.tensor([loss_value, norm])).all():
        raise FloatingPointError(f"update {update}: loss {loss_value}, gradient norm {norm}")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    for module in flat.collecting:
        module.move()
    if averages is not None:
        averages.update(update + 1)
    return UpdateFigures(loss_value, nll_value, norm)
