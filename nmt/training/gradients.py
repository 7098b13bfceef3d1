"""The gradients of all parameters in one buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nmt.model.batch_norm import BatchNorm


class FlatGradients:
    """All gradients in one buffer, of which each parameter's `.grad` is a view: one sum over the workers is one call.

    The numbers behind the gradients carry the loss, the nll and what batch norms collect, so that they cost no call of
    their own.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], collecting: Sequence[BatchNorm] = ()) -> None:
        first = parameters[0]
        size = sum(parameter.numel() for parameter in parameters)
        collected = sum(module.collected.numel() for module in collecting)
        self.buffer = torch.zeros(size + 2 + collected, dtype=first.dtype, device=first.device)
        self.gradients, self.figures = self.buffer[:size], self.buffer[size : size + 2]
        self.collecting = collecting
        offset = 0
        for parameter in parameters:
            parameter.grad = self.gradients[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        offset = size + 2
        for module in collecting:
            module.collected = self.buffer[offset : offset + module.collected.numel()]
            offset += module.collected.numel()
        self._views = {id(parameter): parameter.grad for parameter in parameters}

    def hold(self, parameters: Sequence[nn.Parameter], held: bool) -> None:
        """Take the gradient of some parameters away, so that their part stays zero and no optimiser sees them; or back.

        An optimiser keeps neither moments nor a count of updates for a parameter that has never had a gradient.
        """
        for parameter in parameters:
            parameter.requires_grad_(not held)
            parameter.grad = None if held else self._views[id(parameter)]
