"""Products inside a loop over time whose weight gradients wait for the loop's end.

Autograd computes a weight's gradient at each step and adds the steps up, which for a step of few rows costs more than
the product, and under autocast adds in eight bits. Here a step hands on only the gradient of its input, which the step
before it needs; inputs and gradients are kept, and one product over all of them gives the weight's gradient.
Shapes: N rows of a step, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class DeferredWeight:
    """A weight [O, I] for the steps of one loop, cast to autocast's dtype once.

    Good for one forward and one backward pass.
    """

    def __init__(self, weight: Tensor) -> None:
        kind = weight.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self._tracked = torch.is_grad_enabled() and weight.requires_grad
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._weight: Tensor = _Gathered.apply(weight, self) if self._tracked else weight.to(self.dtype)  # type: ignore[no-untyped-call]

    def linear(self, x: Tensor) -> Tensor:
        """Return x @ weight.T [N, O] for a step's `x` [N, I]."""
        x = x.to(self.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if not self._tracked:
                return F.linear(x, self._weight)
            product: Tensor = _Step.apply(x, self._weight, self)  # type: ignore[no-untyped-call]
            return product


class _Gathered(torch.autograd.Function):
    """The weight as the steps see it: its node is reached when the gradients of all steps have been."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, deferred: DeferredWeight) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.deferred, ctx.dtype = deferred, weight.dtype
        return weight.to(deferred.dtype) if weight.dtype != deferred.dtype else weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, _nothing: None) -> tuple[Tensor | None, None]:
        deferred: DeferredWeight = ctx.deferred
        if not deferred.gradients:
            return None, None
        gradient = torch.cat(deferred.gradients).t() @ torch.cat(deferred.inputs)
        deferred.gradients.clear()
        deferred.inputs.clear()
        return gradient.to(ctx.dtype), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, deferred: DeferredWeight) -> Tensor:
        ctx.deferred = deferred
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        ctx.deferred.inputs.append(x)
        ctx.deferred.gradients.append(gradient)
        return gradient @ weight, None, None
