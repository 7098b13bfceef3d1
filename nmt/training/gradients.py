"""The gradients of all parameters in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nmt.model.batch_norm import BatchNorm
from nmt.training.clock import UpdateClock
from nmt.training.optim import clip


class Flags(NamedTuple):
    """What workers may ask of each other: a checkpoint behind this update, and to leave behind it."""

    save: bool = False
    leave: bool = False


class FlatGradients:
    """All gradients in one buffer, of which each parameter's `.grad` is a view: one sum over the workers is one call.

    The numbers behind the gradients carry the loss, the nll, the flags and what batch norms collect, so that they cost
    no call of their own. A flag is what any worker may ask of all: each sets its own, and all see the sum. The last
    number counts micro-batches that were computed in parts.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], collecting: Sequence[BatchNorm] = ()) -> None:
        first = parameters[0]
        size = sum(parameter.numel() for parameter in parameters)
        collected = sum(module.collected.numel() for module in collecting)
        numbers = size + 2 + len(Flags._fields) + collected + 1
        self.buffer = torch.zeros(numbers, dtype=first.dtype, device=first.device)
        self.gradients, self.figures = self.buffer[:size], self.buffer[size : size + 2]
        self.flags = self.buffer[size + 2 : size + 2 + len(Flags._fields)]
        self.asked = Flags()  # by this worker, in each update from now on
        self.collecting = collecting
        self.clock = UpdateClock(first.device)  # of the update that is computed, for the record
        offset = 0
        for parameter in parameters:
            parameter.grad = self.gradients[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        offset = size + 2 + len(Flags._fields)
        for module in collecting:
            module.collected = self.buffer[offset : offset + module.collected.numel()]
            offset += module.collected.numel()
        self._split = self.buffer[-1:]
        self._views = {id(parameter): parameter.grad for parameter in parameters}

    def zero(self) -> None:
        """Forget what has been added: an update begins, or this worker's share of it is computed anew."""
        self.buffer.zero_()

    def undivided(self) -> str | None:
        """Return why no micro-batch may be computed in parts; None where it may."""
        return "batch norm's statistics are of whole micro-batches" if self.collecting else None

    def add_losses(self, total: Tensor, nll: Tensor) -> None:
        """Add the summed loss and nll of a micro-batch, or of a part of one, whose gradients have been added."""
        self.figures += torch.stack([total.detach(), nll]).to(self.figures.dtype)

    def reduce(self, num_workers: int, num_split: int) -> int:
        """Sum all of it over the workers; return how many micro-batches they all split, given this worker's number."""
        self._split.fill_(num_split)
        self.raise_flags()
        if num_workers > 1:
            with self.clock.sum_over_workers():
                self._sum_over_workers()
        return round(self._split.item())

    def _sum_over_workers(self) -> None:
        dist.all_reduce(self.buffer)

    def divide(self, target_tokens: int, loss_factor: float) -> tuple[float, float]:
        """Divide the sums by the target pieces, the gradients also by what losses were multiplied by before.

        Return the loss and the nll per target piece.
        """
        self.buffer.div_(target_tokens)
        if loss_factor != 1.0:
            self.gradients.div_(loss_factor)
        loss, nll = self.figures.tolist()
        return loss, nll

    def clip(self, max_norm: float | None, max_value: float | None) -> float:
        """Return the norm of the gradients as they were, having clipped them; see `optim.clip`."""
        return clip(self.gradients, max_norm, max_value)

    def raise_flags(self) -> None:
        """Put what this worker asks for into the buffer; to be called before the sum over the workers."""
        if any(self.asked):
            self.flags.copy_(torch.tensor(self.asked, dtype=self.flags.dtype))

    def raised(self) -> Flags:
        """Return what any worker has asked for, the same on each of them, once the buffer has been summed."""
        return Flags(*(value > 0.0 for value in self.flags.tolist()))

    def hold(self, parameters: Sequence[nn.Parameter], held: bool) -> None:
        """Take the gradient of some parameters away, so that their part stays zero and no optimiser sees them; or back.

        An optimiser keeps neither moments nor a count of updates for a parameter that has never had a gradient.
        """
        for parameter in parameters:
            parameter.requires_grad_(not held)
            parameter.grad = None if held else self._views[id(parameter)]
