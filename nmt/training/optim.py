"""Optimisers, clipping, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable

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
    """Return the optimiser of the config; its learning rate is set before each update by `learning_rate`."""
    trained = list(parameters)
    fused = all(parameter.dtype in (torch.float32, torch.float64) for parameter in trained)
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(
                trained, config.learning_rate, betas=config.adam_betas, weight_decay=config.weight_decay, fused=fused
            )
        case "adamw":
            return torch.optim.AdamW(
                trained, config.learning_rate, betas=config.adam_betas, weight_decay=config.weight_decay, fused=fused
            )
        case "sgd":
            return torch.optim.SGD(trained, config.learning_rate, weight_decay=config.weight_decay, fused=fused)


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


def clip_by_norm(gradients: Tensor, max_norm: float) -> float:
    """Return the L2 norm of the flat gradients, scaled down in place to at most `max_norm`.

    Source: Pascanu et al. 2013, "On the Difficulty of Training Recurrent Neural Networks", algorithm 1.
    """
    norm = float(torch.linalg.vector_norm(gradients))
    if norm > max_norm:
        gradients.mul_(max_norm / norm)
    return norm
