"""Positions of pieces, as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(num_positions: int, dim: int, device: torch.device) -> Tensor:
    """Return sinusoidal positions [num_positions, dim] in float32: sines in the first half, cosines in the second.

    Wavelengths form a geometric progression from 2 pi to 10000 * 2 pi. `dim` must be even.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5, with the halves side by side.
    """
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10_000.0) / half))
    angles = torch.arange(num_positions, device=device)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
