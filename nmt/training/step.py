"""One update, in plain torch: what training, tests and benchmarks call.

An update's gradient is the sum over its micro-batches, over all workers, divided by its target pieces. So the number of
workers decides who computes a micro-batch and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch

from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.model.embeddings import RowsNoise
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.objective import objective
from nmt.objectives.supervised import Loss
from nmt.precision import INITIAL_SCALE, autocast
from nmt.training.gradients import FlatGradients
from nmt.training.memory import Part, in_parts
from nmt.training.optim import Averages, pretrained_tables


class World(NamedTuple):
    """This worker's place among all: rank in [0, size), and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")


class UpdateFigures(NamedTuple):
    """Of all workers: loss and nll per target piece (nats), and the gradient's norm before clipping.

    An update is `skipped` where one of these is not finite. `num_split` micro-batches were computed in parts.
    """

    loss: float
    nll: float
    gradient_norm: float
    skipped: bool = False
    num_split: int = 0


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
    loss_scale: float = INITIAL_SCALE,
    compute: Callable[..., Loss] | None = None,
) -> UpdateFigures:
    """Return the figures of one update, done, or left out because its loss or its gradient is not finite.

    `microbatches` are this worker's share, with their numbers within the update; `target_tokens` counts the target
    pieces of all workers' micro-batches; `rate` is the learning rate; `loss_scale` is of float16 alone; `compute` is
    what computes `objective`, where that is more than a call.
    An update that is left out changes no weight, moment, average or running statistic. Raises as `in_parts` does where
    a micro-batch does not fit into memory.
    """
    flat.clock.begin()
    flat.zero()
    if isinstance(frozen := model.config.freeze_embeddings_updates, int) and frozen:
        flat.hold(pretrained_tables(model), update < frozen)
    # In float16 the gradient is that of the mean loss times the scale: of the sum it would be beyond its numbers.
    factor = loss_scale / target_tokens if config.precision == "float16" else 1.0
    add = adder(model, flat, microbatches, config, update=update, device=world.device, factor=factor, compute=compute)
    num_split = in_parts([len(batch.target) for _, batch in microbatches], add, flat.zero, flat.undivided())
    flat.clock.end_computing()
    num_split = flat.reduce(world.size, num_split)
    loss, nll = flat.divide(target_tokens, factor)
    norm = flat.clip(config.clip_norm, config.clip_value)
    if not (math.isfinite(loss) and math.isfinite(nll) and math.isfinite(norm)):
        return UpdateFigures(loss, nll, norm, True, num_split)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    for module in flat.collecting:
        module.move()
    if averages is not None:
        averages.update(update + 1)
    return UpdateFigures(loss, nll, norm, False, num_split)


def adder(
    model: Seq2Seq,
    flat: FlatGradients,
    microbatches: Sequence[tuple[int, MicroBatch]],
    config: TrainConfig,
    *,
    update: int,
    device: torch.device,
    factor: float = 1.0,
    compute: Callable[..., Loss] | None = None,
) -> Callable[[Part], None]:
    """Return what adds the gradients of a part of these micro-batches: of the summed loss times `factor`.

    A part has the noise that its rows have in the whole micro-batch.
    """
    generator = torch.Generator(device)

    def add(part: Part) -> None:
        number, batch = microbatches[part.place]
        generator.manual_seed(noise_seed(config.seed, update, number))
        noise = generator if part.is_whole() else RowsNoise(generator, part.start, part.end, part.total)
        # What draws the noise of some rows cannot be compiled; parts are the exception, and computed as they are.
        eager = nullcontext() if part.is_whole() else torch.compiler.set_stance("force_eager")
        with autocast(config.precision, device), eager:
            loss = (compute or objective)(model, part.of(batch).to(device), noise, config, update)
        loss.total.backward(loss.total.new_full((), factor))  # type: ignore[no-untyped-call]
        flat.add_losses(loss.total, loss.nll)

    return add
