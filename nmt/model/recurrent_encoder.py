"""The recurrent encoder.

Shapes: B batch, S source length, E embedding_dim, H hidden_dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nmt.model.cells import RecurrentLayer, make_layer, run_layer
from nmt.model.embeddings import dropout
from nmt.model.recurrent_config import RecurrentConfig


class EncoderOutput(NamedTuple):
    """States [B, S, H], a mask [B, S], True at real pieces, and the last layer's final hidden state [B, H]."""

    states: Tensor
    mask: Tensor
    final: Tensor


class Encoder(nn.Module):
    """Layers of LSTM or GRU in one direction or both, H units in all.

    The backward direction reads each source reversed within its own length, so no padding is ever before a piece.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        directions = 2 if config.bidirectional else 1
        each = config.hidden_dim // directions
        self.dropout = config.dropout
        self.layers = nn.ModuleList(
            nn.ModuleList(
                make_layer(config.cell, config.embedding_dim if depth == 0 else config.hidden_dim, each)
                for _ in range(directions)
            )
            for depth in range(config.encoder_layers)
        )

    def forward(self, embedded: Tensor, lengths: Tensor, generator: torch.Generator | None) -> EncoderOutput:
        """Return the states of the last layer, both directions side by side.

        `embedded` [B, S, E]; `lengths` [B] counts the real pieces and is at least 1.
        """
        positions = torch.arange(embedded.shape[1], device=embedded.device)[None, :]
        mirrored = torch.where(positions < lengths[:, None], lengths[:, None] - 1 - positions, positions)
        last = (lengths - 1)[:, None, None]
        states = dropout(embedded, self.dropout, generator)
        final = states[:, 0]
        for depth, directions in enumerate(self.layers):
            if depth > 0:
                states = dropout(states, self.dropout, generator)
            outputs, finals = [], []
            for direction, layer in enumerate(cast(Iterable[RecurrentLayer], directions)):
                output, _ = run_layer(layer, states if direction == 0 else _reordered(states, mirrored), None)
                finals.append(output.gather(1, last.expand(-1, 1, output.shape[2])).squeeze(1))
                outputs.append(output if direction == 0 else _reordered(output, mirrored))
            states, final = torch.cat(outputs, dim=-1), torch.cat(finals, dim=-1)
        return EncoderOutput(states, positions < lengths[:, None], final)


def _reordered(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(1, order[:, :, None].expand_as(states))
