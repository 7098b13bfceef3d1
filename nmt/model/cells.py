"""Recurrent cells: one layer over a whole sequence, and step by step.

Shapes: B batch, T steps, I input units, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.embeddings import wide

RecurrentLayer = nn.LSTM | nn.GRU


class CellState(NamedTuple):
    """The state of one recurrent layer: hidden [B, H]; cell [B, H] of an LSTM, [B, 0] of a GRU."""

    hidden: Tensor
    cell: Tensor


def make_layer(cell: str, input_dim: int, hidden_dim: int) -> RecurrentLayer:
    """Return one recurrent layer, batch first: orthogonal recurrent weights, Xavier inputs, an LSTM's forget bias 1.

    Source: Saxe et al. 2014 (orthogonal); Glorot and Bengio 2010; Jozefowicz et al. 2015 (forget bias).
    """
    is_lstm = cell == "lstm"
    layer: RecurrentLayer = (nn.LSTM if is_lstm else nn.GRU)(input_dim, hidden_dim, batch_first=True)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.all_weights[0]
    for block in weight_ih.chunk(4 if is_lstm else 3):
        nn.init.xavier_uniform_(block)
    for block in weight_hh.chunk(4 if is_lstm else 3):
        nn.init.orthogonal_(block)
    nn.init.zeros_(bias_ih)
    nn.init.zeros_(bias_hh)
    if is_lstm:
        with torch.no_grad():
            bias_ih[hidden_dim : 2 * hidden_dim].fill_(1.0)
    return layer


def run_layer(layer: RecurrentLayer, inputs: Tensor, start: CellState | None) -> tuple[Tensor, CellState]:
    """Return the outputs [B, T, H] of torch's fused layer over inputs [B, T, *], and its state after the last of them.

    A start of None is zeros.
    """
    if isinstance(layer, nn.LSTM):
        given = None if start is None else (start.hidden[None].to(inputs.dtype), start.cell[None].to(inputs.dtype))
        outputs, (hidden, cell) = layer(inputs, given)
        return outputs, CellState(hidden[0], wide(cell[0]))
    outputs, hidden = layer(inputs, None if start is None else start.hidden[None].to(inputs.dtype))
    return outputs, CellState(hidden[0], hidden.new_empty(hidden.shape[1], 0))


def lstm_step(gates: Tensor, cell: Tensor) -> CellState:
    """Return the state after one step from the summed gates [B, 4H], in torch's order i, f, g, o, and the cell [B, H].

    Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000. The cell is float32 or wider.
    """
    inputs, forget, candidate, output = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(inputs) * torch.tanh(candidate)
    return CellState(torch.sigmoid(output) * torch.tanh(cell).to(gates.dtype), cell)


def gru_step(from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> Tensor:
    """Return the hidden state [B, H] after one step from both projections [B, 3H], in torch's order r, z, n.

    Source: Cho et al. 2014, in the form of torch.nn.GRU (the reset gate acts after the product with the hidden state).
    """
    reset_x, update_x, new_x = from_input.chunk(3, dim=-1)
    reset_h, update_h, new_h = from_hidden.chunk(3, dim=-1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


class StepCell:
    """One layer, step by step, over the weights of torch's fused layer.

    The product with what is known before the first step (the embeddings) is done once for all steps by `project`;
    what is left of the input is side by side with the hidden state, so that a step is one product for an LSTM.
    """

    def __init__(self, layer: RecurrentLayer, known: int) -> None:
        self.is_lstm = isinstance(layer, nn.LSTM)
        weight_ih, self.hidden, self.bias_ih, self.bias_hh = cast(list[Tensor], layer.all_weights[0])
        self.known, self.step = weight_ih[:, :known], weight_ih[:, known:]
        if torch.is_autocast_enabled(weight_ih.device.type):
            # Cast once here: autocast would cast what is no parameter again at each step.
            dtype = torch.get_autocast_dtype(weight_ih.device.type)
            self.step, self.hidden = self.step.to(dtype), self.hidden.to(dtype)
        if self.is_lstm:
            self.both = torch.cat([self.step, self.hidden], dim=1)

    def project(self, embedded: Tensor) -> Tensor:
        bias = self.bias_ih + self.bias_hh if self.is_lstm else self.bias_ih
        return F.linear(embedded, self.known, bias)

    def __call__(self, projected: Tensor | None, inputs: Tensor, state: CellState) -> CellState:
        if self.is_lstm:
            inputs = torch.cat([inputs.to(self.both.dtype), state.hidden.to(self.both.dtype)], dim=-1)
            gates = F.linear(inputs, self.both)
            gates = gates + (self.bias_ih + self.bias_hh if projected is None else projected)
            return lstm_step(gates, state.cell)
        from_input = F.linear(inputs, self.step)
        from_input = from_input + (self.bias_ih if projected is None else projected)
        from_hidden = F.linear(state.hidden, self.hidden) + self.bias_hh
        return CellState(gru_step(from_input, from_hidden, state.hidden), state.cell)
