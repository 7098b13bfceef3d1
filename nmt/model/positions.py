"""Positions of pieces: as vectors that are added, and as rotations of queries and keys.

Shapes: B batch, T positions, N heads, D units of a head, E embedding_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nmt.model.embeddings import wide


def sinusoids(
    num_positions: int, dim: int, device: torch.device, *, first: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return sinusoidal positions [num_positions, dim] from `first` on: sines in one half, cosines in the other.

    Wavelengths form a geometric progression from 2 pi to 10000 * 2 pi. `dim` must be even.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5, with the halves side by side.
    """
    angles = _angles(num_positions, dim, device, first, dtype)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotation(num_positions: int, dim: int, device: torch.device, *, first: int, dtype: torch.dtype) -> Tensor:
    """Return the rotation of so many positions, from `first` on, for heads of `dim` units, which must be even.

    Complex numbers [T, 1, D / 2] of length 1, whose angles are the position times rates that fall as a geometric
    progression; `dtype`, of their parts, is float32 or float64.
    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.2.2.
    """
    angles = _angles(num_positions, dim, device, first, dtype)[:, None, :]
    return torch.polar(torch.ones_like(angles), angles)


def rotated(heads: Tensor, by: Tensor) -> Tensor:
    """Return queries or keys [B, T, N, D], each two neighbouring units turned by their position's angle.

    As complex numbers, in float32 at least: that is one product, where sines and cosines are four and two sums. The
    product of a query and a key depends on the difference of their positions alone.
    Source: Su et al. 2021, eq. 12 for a pair of units, and eq. 34.
    """
    pairs = torch.view_as_complex(wide(heads).unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]
    return torch.view_as_real(pairs * by).flatten(-2).to(heads.dtype)


class LearnedPositions(nn.Module):
    """A table of position vectors, initialised from N(0, 1/E).

    Source: Gehring et al. 2017, "Convolutional Sequence to Sequence Learning", section 3.1.
    """

    def __init__(self, max_positions: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_positions, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, num_positions: int, first: int) -> Tensor:
        """Return the vectors [num_positions, E] from position `first` on. Raises ValueError beyond max_positions."""
        end = first + num_positions
        if end > self.table.num_embeddings:
            raise ValueError(
                f"{end} positions, but the model has learned {self.table.num_embeddings}: "
                "train with a larger max_positions, or keep sentences and translations shorter"
            )
        vectors: Tensor = self.table(torch.arange(first, end, device=self.table.weight.device))
        return vectors


def _angles(num_positions: int, dim: int, device: torch.device, first: int, dtype: torch.dtype) -> Tensor:
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=device, dtype=dtype) * (-math.log(10_000.0) / half))
    return torch.arange(first, first + num_positions, device=device, dtype=dtype)[:, None] * rates[None, :]
