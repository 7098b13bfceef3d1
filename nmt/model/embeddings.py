"""Embeddings and the dropout that every part of a model uses.

Shapes: B batch, S source length, T target length, E embedding_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Return `x` with entries zeroed with probability `rate` and the rest scaled by 1 / (1 - rate): the shape of `x`.

    The generator is the switch: None means evaluation. It is given, and not torch's global one, because an update's
    noise has to be a function of (seed, update, micro-batch) for any number of workers.
    Source: Srivastava et al. 2014, "Dropout", in its inverted form.
    """
    mask = dropout_mask(x.shape, rate, generator, like=x)
    return x if mask is None else x * mask


def dropout_mask(
    shape: torch.Size | tuple[int, ...], rate: float, generator: torch.Generator | None, *, like: Tensor
) -> Tensor | None:
    """Return the mask of `keep_mask` that dropout multiplies by; None where nothing is dropped."""
    if generator is None or rate == 0.0:
        return None
    return keep_mask(shape, rate, generator, like=like)


class RowsNoise(torch.Generator):
    """The noise that rows `start` to `end` of a micro-batch of `total` rows have where it is computed at once.

    It is drawn from `source` for all rows, and then that of the others is left out: see `whole` and `rows`.
    """

    source: torch.Generator

    def __new__(cls, source: torch.Generator, start: int, end: int, total: int) -> RowsNoise:
        """Return an object that stands where a generator does, on its device."""
        return super().__new__(cls, source.device)  # type: ignore[call-arg]

    def __init__(self, source: torch.Generator, start: int, end: int, total: int) -> None:
        self.source, self.start, self.end, self.total = source, start, end, total

    def whole(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        """Return the shape of the whole micro-batch's noise; the first dimension of `shape` is these rows'."""
        if shape[0] != self.end - self.start:
            raise ValueError(f"noise of shape {tuple(shape)} for {self.end - self.start} rows of a micro-batch")
        return torch.Size((self.total, *shape[1:]))

    def rows(self, noise: Tensor) -> Tensor:
        """Return these rows of the whole micro-batch's noise."""
        return noise[self.start : self.end]


def uniform(shape: torch.Size | tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Return numbers drawn from [0, 1), of `shape`, float32. From `RowsNoise` come the rows that it is of."""
    if isinstance(generator, RowsNoise):
        return generator.rows(torch.rand(generator.whole(shape), generator=generator.source, device=device))
    return torch.rand(shape, generator=generator, device=device)


_LANES = 2**16  # values of a 16-bit number


def keep_mask(shape: torch.Size | tuple[int, ...], rate: float, generator: torch.Generator, *, like: Tensor) -> Tensor:
    """Return a mask of 0 and 1 / (1 - rate), of `shape`, with the dtype and device of `like`.

    An entry is 0 where a number of 16 random bits is below the rate, so that the rate is exact to 2^-17, and the other
    value is of the rate as it then is. Four numbers of one draw cost a fourth of as many uniform floats on a CPU. The
    noise of a generator's seed is the same in every precision. From `RowsNoise` come the rows that it is of.
    """
    if isinstance(generator, RowsNoise):
        shape, source = generator.whole(shape), generator.source
    else:
        source = generator
    number = torch.Size(shape).numel()
    dropped = min(round(rate * _LANES), _LANES - 1)
    draws = torch.empty((number + 3) // 4, dtype=torch.int64, device=like.device)
    lanes = draws.random_(-(2**63), None, generator=source).view(torch.int16)[:number].view(shape)
    if isinstance(generator, RowsNoise):
        lanes = generator.rows(lanes)
    return lanes.ge_(dropped - _LANES // 2).to(like.dtype).mul_(_LANES / (_LANES - dropped))


def wide(x: Tensor) -> Tensor:
    """Return `x` in float32 at least: what sums of many terms and exponentials need."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Embedding(nn.Module):
    """A table of piece vectors, initialised from N(0, 1/E), the padding's row held at zero."""

    def __init__(self, num_pieces: int, embedding_dim: int, pad_id: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_pieces, embedding_dim, padding_idx=pad_id)
        nn.init.normal_(self.table.weight, std=embedding_dim**-0.5)
        with torch.no_grad():
            self.table.weight[pad_id].zero_()

    def forward(self, ids: Tensor, word_rate: float, generator: torch.Generator | None) -> Tensor:
        """Return the vectors [B, S, E] of ids [B, S], whole pieces dropped at `word_rate`.

        Source: whole-word dropout of Gal and Ghahramani 2016, "A Theoretically Grounded Application of Dropout in
        RNNs", here by position, not by type.
        """
        vectors: Tensor = self.table(ids)
        if generator is not None and word_rate > 0.0:
            vectors = vectors * keep_mask((*ids.shape, 1), word_rate, generator, like=vectors)
        return vectors
