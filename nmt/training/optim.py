"""Optimisers, clipping, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq


def pretrained_tables(model: Seq2Seq) -> list[nn.Parameter]:
    """Return the embedding tables that began with vectors of words, a shared one once."""
    sides = {"source_vectors": "source_embedding", "target_vectors": "target_embedding"}
    tables: list[nn.Parameter] = [getattr(model, sides[key]).table.weight for key in model.config.vectors()]
    return list(dict.fromkeys(tables))


def trained_parameters(model: Seq2Seq) -> list[nn.Parameter]:
    """Return the parameters that training changes: all but tables that `freeze_embeddings_updates` keeps for always.

    From now on those have no gradient.
    """
    if model.config.freeze_embeddings_updates == "always":
        for table in pretrained_tables(model):
            table.requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of the config; its learning rate is set before each update by `learning_rate`.

    Adam: Kingma and Ba 2015. AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization". SGD with
    momentum: Sutskever et al. 2013, as torch writes it (v = momentum * v + g, then w -= rate * v). Adafactor: Shazeer
    and Stern 2018, algorithms 4 and 5; the rate that it is given bounds its relative step, min(rate, 1 / sqrt(t)),
    which is multiplied by the root mean square of the weights.
    """
    trained = list(parameters)
    fused = all(parameter.dtype in (torch.float32, torch.float64) for parameter in trained)
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(trained, rate, betas=config.adam_betas, weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(trained, rate, betas=config.adam_betas, weight_decay=decay, fused=fused)
        case "sgd":
            # torch's fused SGD fails where a parameter gets its first gradient after others have their momentum.
            fused = fused and config.momentum == 0.0
            return torch.optim.SGD(trained, rate, momentum=config.momentum, weight_decay=decay, fused=fused)
        case "adafactor":
            return torch.optim.Adafactor(trained, rate, weight_decay=decay)


def state_numbers(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> int:
    """Return how many numbers of the weights' dtype an optimiser keeps for parameters: what takes memory after a start.

    Adam keeps two moments of each weight, SGD one with momentum, Adafactor the sums of rows and columns of a matrix.
    """
    shapes = [tuple(parameter.shape) for parameter in parameters]
    match config.optimizer:
        case "adam" | "adamw":
            return 2 * sum(math.prod(shape) for shape in shapes)
        case "sgd":
            return sum(math.prod(shape) for shape in shapes) if config.momentum else 0
        case "adafactor":
            return sum(
                math.prod(shape[:-2]) * (shape[-2] + shape[-1]) if len(shape) > 1 else math.prod(shape)
                for shape in shapes
            )


class Averages:
    """Exponential moving averages of the weights, which validation and the published model use.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.
    Source: Polyak and Juditsky 1992 for averaging; the warm-up of the decay is that of TensorFlow's
    ExponentialMovingAverage(num_updates).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.trained = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in self.trained]

    @torch.no_grad()
    def update(self, updates_done: int) -> None:
        """Move the averages towards the weights, after `updates_done` updates."""
        decay = min(self.decay, (1 + updates_done) / (10 + updates_done))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.trained], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the weights; a second call undoes it."""
        for average, parameter in zip(self.averages, self.trained):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)


def norm(gradients: Tensor) -> float:
    """Return the L2 norm of flat gradients."""
    return float(torch.linalg.vector_norm(gradients))


def clip(
    gradients: Tensor,
    max_norm: float | None,
    max_value: float | None,
    norm_of: Callable[[Tensor], float] = norm,
) -> float:
    """Return the L2 norm of the flat gradients as they were, having clipped them in place; None is no bound.

    First each number is held within +-`max_value`, then all are scaled down together to a norm of at most `max_norm`.
    Gradients of a norm that is not finite stay as they are. `norm_of` is what tells the norm of all of them, where
    these are a share.
    Source: Pascanu et al. 2013, "On the Difficulty of Training Recurrent Neural Networks", algorithm 1 (the norm).
    """
    found = clipped = norm_of(gradients)
    if not math.isfinite(found):
        return found
    if max_value is not None:
        gradients.clamp_(-max_value, max_value)
        clipped = norm_of(gradients)
    if max_norm is not None and clipped > max_norm:
        gradients.mul_(max_norm / clipped)
    return found
