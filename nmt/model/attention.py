"""Attention of a decoder over an encoder's states.

Shapes: B batch, S source length, T target steps, H hidden_dim (of encoder states and decoder states alike).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.embeddings import wide


class Memory(NamedTuple):
    """What a decoder attends to: states and keys [B, S, H], and a mask [B, S], True at real pieces."""

    states: Tensor
    keys: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of these rows of the batch, in this order."""
        return Memory(self.states[rows], self.keys[rows], self.mask[rows])


class Attention(nn.Module):
    """Additive, dot-product or general (bilinear) scores, a softmax over real pieces, and the weighted mean of states.

    Source: Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate", A.1.2
    (additive: v tanh(W q + U k)); Luong et al. 2015, "Effective Approaches to Attention-based NMT", eq. 8 (dot: q k;
    general: q W k).
    """

    def __init__(self, kind: str, hidden_dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "dot":
            self.key = nn.Linear(hidden_dim, hidden_dim, bias=kind == "additive")
        if kind == "additive":
            self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
            self.energy = nn.Linear(hidden_dim, 1, bias=False)

    def memory(self, states: Tensor, mask: Tensor) -> Memory:
        """Return the memory of encoder states [B, S, H], its keys computed once for all steps."""
        return Memory(states, states if self.kind == "dot" else self.key(states), mask)

    def forward(self, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return contexts [B, T, H] and weights [B, T, S], float32 at least, of decoder states `queries` [B, T, H]."""
        weights = wide(self._scores(queries, memory)).masked_fill(~memory.mask[:, None, :], float("-inf")).softmax(-1)
        return torch.bmm(weights.to(memory.states.dtype), memory.states), weights

    def _scores(self, queries: Tensor, memory: Memory) -> Tensor:
        if self.kind != "additive":
            return torch.bmm(queries.to(memory.keys.dtype), memory.keys.transpose(1, 2))
        projected = self.query(queries)
        # Step by step: all steps at once would hold [B, T, S, H].
        steps = [
            F.linear(torch.tanh(memory.keys + step[:, None, :]), self.energy.weight).squeeze(-1)
            for step in projected.unbind(1)
        ]
        return torch.stack(steps, dim=1)
