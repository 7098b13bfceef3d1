"""Batch norm over the valid positions of a batch, with running statistics that any number of workers agree on.

Shapes: B batch, T steps, F units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmt.model.embeddings import wide

MOMENTUM = 0.1  # an update's share in the running statistics
EPSILON = 1e-5  # added to a variance


class BatchNorm(nn.Module):
    """Batch norm of units over all valid positions, steps and rows alike: the sequence-wise form.

    It has a gain, initialised at 1, and no bias: the layer whose product it normalises adds its own. Training
    normalises with the statistics of the batch that a worker computes at once, evaluation with `running_mean` and
    `running_var` [F], which move after each update by MOMENTUM towards mean and variance over the positions of all its
    batches. `collected` [2F + 1] sums up, over an update, x - running_mean, its square, and the positions: like a
    gradient it is zeroed before an update and summed over the workers.
    Source: Ioffe and Szegedy 2015, "Batch Normalization"; Laurent et al. 2016, "Batch Normalized Recurrent Neural
    Networks" (sequence-wise, of the input products only).
    """

    running_mean: Tensor
    running_var: Tensor
    collected: Tensor

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(num_units))
        self.register_buffer("running_mean", torch.zeros(num_units))
        self.register_buffer("running_var", torch.ones(num_units))
        self.register_buffer("collected", torch.zeros(2 * num_units + 1), persistent=False)

    def forward(self, x: Tensor, mask: Tensor, *, training: bool) -> Tensor:
        """Return `x` [B, T, F] normalised, in its own dtype; `mask` [B, T] is True at the valid positions.

        What stands at the others decides nothing, and comes out normalised too. In training the statistics have a
        gradient, and are added to `collected`; a batch norm whose gain is frozen is one of evaluation in training too.
        """
        values, mean, variance = wide(x), self.running_mean, self.running_var
        if training and self.gain.requires_grad:
            valid = mask[:, :, None].to(values.dtype)
            count = valid.sum()
            mean = (values * valid).sum(dim=(0, 1)) / count
            variance = ((values - mean).square() * valid).sum(dim=(0, 1)) / count
            self._collect(mean.detach(), variance.detach(), count)
        scale = self.gain * torch.rsqrt(variance + EPSILON)
        return ((values - mean) * scale).to(x.dtype)

    @torch.no_grad()
    def _collect(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        # About the running mean, since a variance from the squares of large numbers would lose its digits.
        shift = mean - self.running_mean
        sums = torch.cat([shift * count, (variance + shift.square()) * count, count[None]])
        self.collected += sums.to(self.collected.dtype)

    @torch.no_grad()
    def move(self) -> None:
        """Move the running statistics towards those of `collected`, which any factor may have scaled.

        The variance is the mean squared deviation: without the factor n / (n - 1), as n is not known any more.
        """
        sums, squares, count = torch.split(self.collected, [len(self.gain), len(self.gain), 1])
        shift = sums / count
        variance = (squares / count - shift.square()).clamp_min(0.0)
        self.running_mean += MOMENTUM * shift
        self.running_var.lerp_(variance, MOMENTUM)


def collectors(model: nn.Module) -> list[BatchNorm]:
    """Return the modules of a model that collect statistics over an update, in its order: none that is frozen."""
    return [module for module in model.modules() if isinstance(module, BatchNorm) and module.gain.requires_grad]
