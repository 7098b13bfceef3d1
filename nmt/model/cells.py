"""Recurrent cells: one layer over a whole sequence, and step by step.

`make_layer` makes the weights of a layer, `run_layer` runs it over a whole sequence, `StepCell` one step at a time.
What a step computes is a pure function of the gates' pre-activations and the state: `elman_step`, `gru_step`,
`lstm_step`.
Shapes: B batch, T steps, I input units, H hidden units, G products a step for each hidden unit (see GATES).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.deferred import DeferredWeight
from nmt.model.embeddings import wide

CellKind = Literal["tanh", "relu", "leaky_relu", "gru", "lstm", "peephole_lstm"]
GATES = {"tanh": 1, "relu": 1, "leaky_relu": 1, "gru": 3, "lstm": 4, "peephole_lstm": 4}
LEAK = 0.01  # the slope of leaky_relu below 0, as of Maas et al. 2013
_CLOSED = 10_000.0  # a pre-activation at which a sigmoid is exactly 0 (minus it) or 1 in every precision


class CellState(NamedTuple):
    """The state of one recurrent layer: hidden [B, H]; cell [B, H] of an LSTM, [B, 0] of a kind without one."""

    hidden: Tensor
    cell: Tensor


class LoopLayer(nn.Module):
    """The weights of a layer that runs in a loop of ours: every kind of cell, with layer norm or without.

    weight_ih [G * H, I], weight_hh [G * H, H], bias_ih and bias_hh [G * H] are as of torch's layers, in their order of
    gates. With layer norm the biases are the shifts of the two products' norms, and gain_ih, gain_hh [G * H] their
    gains; gain_c and bias_c [H] are of the norm of an LSTM's cell. `peepholes` [3, H] are the diagonal weights from the
    cell to the gates i, f, o. What a kind does not have is None.
    """

    def __init__(self, cell: str, input_dim: int, hidden_dim: int, *, layer_norm: bool = False) -> None:
        super().__init__()
        self.cell, self.input_size, self.hidden_size = cell, input_dim, hidden_dim
        width = GATES[cell] * hidden_dim
        self.weight_ih = nn.Parameter(torch.empty(width, input_dim))
        self.weight_hh = nn.Parameter(torch.empty(width, hidden_dim))
        self.bias_ih, self.bias_hh = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.peepholes = nn.Parameter(torch.zeros(3, hidden_dim)) if cell == "peephole_lstm" else None
        norms_cell = layer_norm and has_cell(cell)
        self.gain_ih = nn.Parameter(torch.ones(width)) if layer_norm else None
        self.gain_hh = nn.Parameter(torch.ones(width)) if layer_norm else None
        self.gain_c = nn.Parameter(torch.ones(hidden_dim)) if norms_cell else None
        self.bias_c = nn.Parameter(torch.zeros(hidden_dim)) if norms_cell else None


RecurrentLayer = nn.LSTM | nn.GRU | LoopLayer


def has_cell(cell: str) -> bool:
    """Return whether the state of this kind has a cell beside the hidden state."""
    return cell in ("lstm", "peephole_lstm")


def make_layer(cell: str, input_dim: int, hidden_dim: int, *, layer_norm: bool = False) -> RecurrentLayer:
    """Return one recurrent layer, batch first: torch's own for lstm and gru without layer norm, or a LoopLayer.

    Recurrent weights are orthogonal, of relu and leaky_relu the identity; inputs Xavier; biases 0, the forget gate's 1;
    peepholes 0, so that a peephole LSTM starts as an LSTM; gains 1.
    Source: Saxe et al. 2014 (orthogonal); Le et al. 2015 (identity); Glorot and Bengio 2010; Jozefowicz et al. 2015
    (forget bias).
    """
    layer: RecurrentLayer
    if cell in ("lstm", "gru") and not layer_norm:
        layer = (nn.LSTM if cell == "lstm" else nn.GRU)(input_dim, hidden_dim, batch_first=True)
    else:
        layer = LoopLayer(cell, input_dim, hidden_dim, layer_norm=layer_norm)
    weight_ih, weight_hh, bias_ih, bias_hh = _weights(layer)
    for block in weight_ih.chunk(GATES[cell]):
        nn.init.xavier_uniform_(block)
    for block in weight_hh.chunk(GATES[cell]):
        (nn.init.eye_ if cell in ("relu", "leaky_relu") else nn.init.orthogonal_)(block)
    nn.init.zeros_(bias_ih)
    nn.init.zeros_(bias_hh)
    if has_cell(cell):
        with torch.no_grad():
            bias_ih[hidden_dim : 2 * hidden_dim].fill_(1.0)
    return layer


def _kind(layer: RecurrentLayer) -> str:
    if isinstance(layer, LoopLayer):
        return layer.cell
    return "lstm" if isinstance(layer, nn.LSTM) else "gru"


def _weights(layer: RecurrentLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if isinstance(layer, LoopLayer):
        return layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh
    weight_ih, weight_hh, bias_ih, bias_hh = cast(list[Tensor], layer.all_weights[0])
    return weight_ih, weight_hh, bias_ih, bias_hh


# What a step computes


class Norm(NamedTuple):
    """Gain and bias of a layer norm, each of the width of what it normalises."""

    gain: Tensor
    bias: Tensor


def layer_normed(x: Tensor, norm: Norm, widths: Sequence[int]) -> Tensor:
    """Return `x` [*, N], each run of `widths` (N in all) of its last dimension layer-normed, in its own dtype.

    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", eq. 3 and 4; epsilon is 1e-5.
    """
    parts = zip(*(torch.split(whole, list(widths), dim=-1) for whole in (wide(x), norm.gain, norm.bias)))
    normed = [F.layer_norm(part, part.shape[-1:], gain, bias) for part, gain, bias in parts]
    return torch.cat(normed, dim=-1).to(x.dtype)


def elman_step(summed: Tensor, kind: str) -> Tensor:
    """Return the hidden state [B, H] after one step from the summed products: the kind's nonlinearity of them.

    Source: Elman 1990, "Finding Structure in Time"; Le et al. 2015 (relu); Maas et al. 2013 (leaky_relu).
    """
    match kind:
        case "tanh":
            return torch.tanh(summed)
        case "relu":
            return torch.relu(summed)
        case _:
            return F.leaky_relu(summed, LEAK)


def lstm_step(gates: Tensor, cell: Tensor, peepholes: Tensor | None = None, norm: Norm | None = None) -> CellState:
    """Return the state after one step from the summed gates [B, 4H], in torch's order i, f, g, o, and the cell [B, H].

    With peepholes [3, H] the gates i and f see the cell before the step, o the cell after it. With a norm the hidden
    state is made of the layer-normed cell. The cell is float32 or wider.
    Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; Gers and Schmidhuber 2000,
    "Recurrent Nets that Time and Count" (peepholes); Ba et al. 2016, supplementary material (norm).
    """
    inputs, forget, candidate, output = gates.chunk(4, dim=-1)
    if peepholes is not None:
        inputs, forget = inputs + peepholes[0] * cell, forget + peepholes[1] * cell
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(inputs) * torch.tanh(candidate)
    if peepholes is not None:
        output = (output + peepholes[2] * cell).to(gates.dtype)
    seen = cell if norm is None else layer_normed(cell, norm, cell.shape[-1:])
    return CellState(torch.sigmoid(output) * torch.tanh(seen).to(gates.dtype), cell)


def gru_step(from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> Tensor:
    """Return the hidden state [B, H] after one step from both projections [B, 3H], in torch's order r, z, n.

    Source: Cho et al. 2014, in the form of torch.nn.GRU (the reset gate acts after the product with the hidden state).
    """
    reset_x, update_x, new_x = from_input.chunk(3, dim=-1)
    reset_h, update_h, new_h = from_hidden.chunk(3, dim=-1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


# Step by step


class StepCell:
    """One layer of any kind, step by step.

    The product with what is known before the first step (the first `known` units of the input, such as embeddings) is
    done once for all steps by `project`. What is left of the input is side by side with the hidden state, so that a
    step is one product, except for a GRU and with layer norm, which need the two products apart.
    """

    def __init__(self, layer: RecurrentLayer, known: int) -> None:
        self.kind = _kind(layer)
        weight_ih, weight_hh, self.bias_ih, self.bias_hh = _weights(layer)
        self.known, rest = weight_ih[:, :known], weight_ih[:, known:]
        self.peepholes = layer.peepholes if isinstance(layer, LoopLayer) else None
        self.norm_ih = self.norm_hh = self.norm_c = None
        if isinstance(layer, LoopLayer) and layer.gain_ih is not None and layer.gain_hh is not None:
            self.norm_ih, self.norm_hh = Norm(layer.gain_ih, layer.bias_ih), Norm(layer.gain_hh, layer.bias_hh)
            if layer.gain_c is not None and layer.bias_c is not None:
                self.norm_c = Norm(layer.gain_c, layer.bias_c)
        size = weight_hh.shape[1]
        # A GRU's candidate is normalised apart from its gates: Ba et al. 2016, supplementary material.
        self.widths = (2 * size, size) if self.kind == "gru" else (GATES[self.kind] * size,)
        self.is_one_product = self.kind != "gru" and self.norm_ih is None
        self.step = DeferredWeight(rest) if rest.shape[1] and not self.is_one_product else None
        self.hidden = DeferredWeight(torch.cat([rest, weight_hh], dim=1) if self.is_one_product else weight_hh)
        self.bias = self.bias_ih + self.bias_hh if self.is_one_product else self.bias_ih

    def project(self, embedded: Tensor, normed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the part [B, T, G * H] of the steps' products that `embedded` [B, T, known] decides.

        `normed` normalises the products before the bias is added: batch norm. It goes with a layer whose whole input is
        known, and that has no layer norm.
        """
        if self.norm_ih is not None:
            product = F.linear(embedded, self.known)
            # Layer norm is of the whole product: where more of the input is to come, it has to wait for that.
            return product if self.step is not None else layer_normed(product, self.norm_ih, self.widths)
        if normed is None:
            return F.linear(embedded, self.known, self.bias)
        product = normed(F.linear(embedded, self.known))
        return product + self.bias.to(product.dtype)

    def __call__(
        self, projected: Tensor | None, inputs: Tensor | None, state: CellState, hidden_mask: Tensor | None = None
    ) -> CellState:
        """Return the state after one step.

        `projected` [B, G * H] is the step's part of what `project` gave, None where nothing was known; `inputs` [B, *]
        is the rest of the input, None where all of it was known. `hidden_mask` [B, H] (0 or 1 / (1 - p)) is recurrent
        dropout: it multiplies the hidden state in the product, and nowhere else.
        Source: Gal and Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks",
        eq. 7, where one mask serves all steps.
        """
        hidden = state.hidden if hidden_mask is None else state.hidden * hidden_mask
        if self.is_one_product:
            if inputs is not None:
                hidden = torch.cat([inputs.to(self.hidden.dtype), hidden.to(self.hidden.dtype)], dim=-1)
            gates = self.hidden.linear(hidden)
            return self._after(gates + (self.bias if projected is None else projected), state)
        from_input = self._from_input(projected, inputs)
        from_hidden = self.hidden.linear(hidden)
        if self.norm_hh is None:
            from_hidden = from_hidden + self.bias_hh
        else:
            from_hidden = layer_normed(from_hidden, self.norm_hh, self.widths)
        if self.kind == "gru":
            # The hidden state is what a GRU sums up over time.
            return CellState(gru_step(from_input, from_hidden, wide(state.hidden)), state.cell)
        return self._after(from_input + from_hidden, state)

    def _from_input(self, projected: Tensor | None, inputs: Tensor | None) -> Tensor:
        if inputs is None or self.step is None:
            return cast(Tensor, projected)
        product = self.step.linear(inputs)
        if self.norm_ih is None:
            return product + (self.bias if projected is None else projected)
        return layer_normed(product if projected is None else product + projected, self.norm_ih, self.widths)

    def _after(self, gates: Tensor, state: CellState) -> CellState:
        if has_cell(self.kind):
            return lstm_step(gates, state.cell, self.peepholes, self.norm_c)
        return CellState(elman_step(gates, self.kind), state.cell)


# Over a whole sequence


def run_layer(
    layer: RecurrentLayer,
    inputs: Tensor,
    start: CellState | None,
    hidden_mask: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    normed: Callable[[Tensor], Tensor] | None = None,
    needs_cell: bool = True,
) -> tuple[Tensor, CellState]:
    """Return the outputs [B, T, H] of a layer over inputs [B, T, I], and its state after the last of them.

    A start of None is zeros. `hidden_mask` [B, H] is recurrent dropout, one mask for all steps, as of StepCell, and
    `normed` batch norm of the input products. With `lengths` [B], each in [1, T], the state of a row is the one after
    its own length, whose cell may be [B, 0] where nobody `needs_cell`. torch's fused layer runs where it can: lstm and
    gru without layer norm, mask and batch norm.
    """
    if isinstance(layer, LoopLayer) or hidden_mask is not None or normed is not None:
        return _run_loop(layer, inputs, start, hidden_mask, lengths, normed)
    if isinstance(layer, nn.LSTM):
        return _run_lstm(layer, inputs, start, lengths, needs_cell)
    outputs, hidden = layer(inputs, None if start is None else start.hidden[None].to(inputs.dtype))
    final = hidden[0] if lengths is None else at_ends(outputs, lengths)
    return outputs, CellState(final, final.new_empty(len(final), 0))


def at_ends(states: Tensor, lengths: Tensor) -> Tensor:
    """Return of states [B, T, H] those [B, H] at the last position of each row's length [B]."""
    last = (lengths - 1)[:, None, None]
    return states.gather(1, last.expand(-1, 1, states.shape[2])).squeeze(1)


def _run_loop(
    layer: RecurrentLayer,
    inputs: Tensor,
    start: CellState | None,
    hidden_mask: Tensor | None,
    lengths: Tensor | None,
    normed: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, CellState]:
    step = StepCell(layer, inputs.shape[-1])
    projected = step.project(inputs, normed)
    state = _zeros(layer, projected) if start is None else start
    hidden, cells = [], []
    for given in projected.unbind(1):
        state = step(given, None, state, hidden_mask)
        hidden.append(state.hidden)
        cells.append(state.cell)
    outputs = torch.stack(hidden, dim=1)
    if lengths is not None:
        state = CellState(at_ends(outputs, lengths), at_ends(torch.stack(cells, dim=1), lengths))
    return outputs.to(projected.dtype), state


def _zeros(layer: RecurrentLayer, like: Tensor) -> CellState:
    hidden = like.new_zeros(len(like), layer.hidden_size)
    return CellState(hidden, wide(hidden) if has_cell(_kind(layer)) else hidden.new_empty(len(like), 0))


def _run_lstm(
    layer: nn.LSTM, inputs: Tensor, start: CellState | None, lengths: Tensor | None, needs_cell: bool
) -> tuple[Tensor, CellState]:
    given = None if start is None else (start.hidden[None].to(inputs.dtype), start.cell[None].to(inputs.dtype))
    if lengths is None:
        outputs, (hidden, cell) = layer(inputs, given)
        return outputs, CellState(hidden[0], wide(cell[0]))
    if not needs_cell:
        outputs, _ = layer(inputs, given)
        return outputs, CellState(at_ends(outputs, lengths), outputs.new_empty(len(outputs), 0))
    if given is None:
        zeros = inputs.new_zeros(1, len(inputs), layer.hidden_size)
        given = zeros, zeros
    inputs, weights = _holding(layer, inputs, lengths)
    outputs, _, cell = torch.lstm(inputs, given, weights, True, 1, 0.0, layer.training, False, True)
    return outputs, CellState(at_ends(outputs, lengths), wide(cell[0]))


def _holding(layer: nn.LSTM, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return inputs and weights with which the fused layer holds each row's cell from its own end on.

    The fused layer hands out the cell after the last step only, and packed sequences need the lengths on the host. So
    one more unit of the input is 1 behind a row's end, and its weights close the input gate and open the forget gate:
    their sigmoids are exactly 0 and 1 there, and the cell stays as it is. Seven units of zeros keep the width a
    multiple of 8, which products on GPUs want.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _weights(layer)
    ended = torch.arange(inputs.shape[1], device=inputs.device)[None, :] >= lengths[:, None]
    inputs = torch.cat([inputs, F.pad(ended[:, :, None].to(inputs.dtype), (0, 7))], dim=-1)
    holds = weight_ih.new_zeros(4, layer.hidden_size, 8)
    holds[0, :, 0], holds[1, :, 0] = -_CLOSED, _CLOSED
    parts = [torch.cat([weight_ih, holds.flatten(0, 1)], dim=1), weight_hh, bias_ih, bias_hh]
    # One piece of memory, as the fused layers of GPUs want it.
    pieces = torch.split(torch.cat([part.flatten() for part in parts]), [part.numel() for part in parts])
    return inputs, [piece.view_as(part) for piece, part in zip(pieces, parts)]
