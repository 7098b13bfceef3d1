"""The simpler simple recurrent unit: what reads the earlier target pieces in place of self-attention.

A step costs the same however long the translation is, and its state is one vector.
Source: Kim et al. 2019, "From Research to Production and Back: Ludicrously Fast Neural Machine Translation".
Shapes: B batch, T steps, E units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.embeddings import wide
from nmt.model.multi_head_attention import projection


class Ssru(nn.Module):
    """A recurrence whose gate does not see its own state, so that all products are done at once for all steps.

    f_t = sigmoid(W_f x_t + b_f), c_t = f_t * c_{t-1} + (1 - f_t) * W x_t, output relu(c_t). The cells are float32 or
    wider. Both matrices begin as all products of a transformer do, the bias is 0.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate_and_input = projection(dim, dim, blocks=2, bias=False)  # W_f above W: one product for both
        self.gate_bias = nn.Parameter(torch.zeros(dim))

    def start(self, batch: int, like: Tensor) -> Tensor:
        """Return the cells [B, E] before the first step, zeros."""
        return wide(like).new_zeros(batch, len(self.gate_bias))

    def forward(self, x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs [B, T, E] of x [B, T, E], and the cells [B, E] after the last step."""
        gate, new = wide(self.gate_and_input(x)).chunk(2, dim=-1)
        cells = scan(torch.sigmoid(gate + self.gate_bias), new, cell)
        return F.relu(cells), cells[:, -1]


def scan(forget: Tensor, new: Tensor, cell: Tensor) -> Tensor:
    """Return all cells [B, T, E] of c_t = f_t * c_{t-1} + (1 - f_t) * n_t, from `cell` [B, E] on.

    A step is one elementwise operation, forward and backward. Autograd over plain steps and a scan in log(T) steps both
    take ten times as long, autograd over steps of torch's lerp twice (one core, [64, 25, 256]).
    """
    cells: Tensor = _Scan.apply(forget, new, cell)  # type: ignore[no-untyped-call]
    return cells


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forget: Tensor, new: Tensor, cell: Tensor) -> Tensor:
        cells = new.new_empty(new.shape[0], new.shape[1] + 1, new.shape[2])
        cells[:, 0] = cell
        steps = cells.unbind(1)
        for forget_t, new_t, before, after in zip(forget.unbind(1), new.unbind(1), steps, steps[1:]):
            torch.lerp(new_t, before, forget_t, out=after)
        ctx.save_for_backward(forget, new, cells)
        return cells[:, 1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        forget, new, cells = ctx.saved_tensors
        # The whole gradient of a cell is its own and what the next cell hands back through its gate.
        whole = grad.clone(memory_format=torch.contiguous_format)
        steps, gates = whole.unbind(1), forget.unbind(1)
        for t in range(len(steps) - 2, -1, -1):
            steps[t].addcmul_(gates[t + 1], steps[t + 1])
        handed_back = whole * forget
        grad_forget = (cells[:, :-1] - new).mul_(whole)
        return grad_forget, whole.sub_(handed_back), handed_back[:, 0]
