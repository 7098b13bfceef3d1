"""Cells against torch's own layers, and against plain loops written from the papers' equations."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from nmt.model.cells import (
    GATES,
    CellState,
    LoopLayer,
    Norm,
    RecurrentLayer,
    StepCell,
    elman_step,
    gru_step,
    has_cell,
    lstm_step,
    make_layer,
    run_layer,
)

INPUTS, UNITS, ROWS, STEPS = 5, 4, 3, 6
EXACT = {"rtol": 1e-11, "atol": 1e-12}
KINDS = list(GATES)
every_kind = pytest.mark.parametrize("kind", KINDS)
with_and_without_norm = pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "norm"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def layer_of(kind: str, *, layer_norm: bool = False) -> RecurrentLayer:
    """Return a layer in float64 of which every weight, gains and peepholes too, is drawn at random."""
    layer = make_layer(kind, INPUTS, UNITS, layer_norm=layer_norm).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return layer


def state_of(kind: str) -> CellState:
    return CellState(random(ROWS, UNITS), random(ROWS, UNITS if has_cell(kind) else 0))


def dropped() -> Tensor:
    """Return a mask of recurrent dropout at 1/2 that is not the same for all rows."""
    return torch.tensor([[0, 2, 2, 0], [2, 2, 0, 2], [2, 0, 0, 0]], dtype=torch.float64)


# torch's own cells and layers


def test_lstm_step_is_torchs_lstm_cell() -> None:
    cell = nn.LSTMCell(INPUTS, UNITS).double()
    x, (h, c) = random(ROWS, INPUTS), state_of("lstm")
    state = lstm_step(x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh, c)
    hidden, memory = cell(x, (h, c))
    torch.testing.assert_close(state.hidden, hidden, **EXACT)
    torch.testing.assert_close(state.cell, memory, **EXACT)


def test_gru_step_is_torchs_gru_cell() -> None:
    cell = nn.GRUCell(INPUTS, UNITS).double()
    x, h = random(ROWS, INPUTS), random(ROWS, UNITS)
    found = gru_step(x @ cell.weight_ih.T + cell.bias_ih, h @ cell.weight_hh.T + cell.bias_hh, h)
    torch.testing.assert_close(found, cell(x, h), **EXACT)


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_elman_step_is_torchs_rnn_cell(kind: str) -> None:
    cell = nn.RNNCell(INPUTS, UNITS, nonlinearity=kind).double()
    x, h = random(ROWS, INPUTS), random(ROWS, UNITS)
    found = elman_step(x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh, kind)
    torch.testing.assert_close(found, cell(x, h), **EXACT)


def torchs_layer(kind: str) -> nn.RNN | nn.GRU | nn.LSTM:
    match kind:
        case "lstm":
            return nn.LSTM(INPUTS, UNITS, batch_first=True).double()
        case "gru":
            return nn.GRU(INPUTS, UNITS, batch_first=True).double()
        case _:
            return nn.RNN(INPUTS, UNITS, nonlinearity=kind, batch_first=True).double()


@pytest.mark.parametrize("kind", ["tanh", "relu", "gru", "lstm"])
def test_the_loop_is_torchs_layer_with_the_same_weights(kind: str) -> None:
    theirs, ours = torchs_layer(kind), LoopLayer(kind, INPUTS, UNITS).double()
    with torch.no_grad():
        for mine, name in zip(ours.parameters(), ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")):
            mine.copy_(getattr(theirs, name))
    inputs, start = random(ROWS, STEPS, INPUTS), state_of(kind)
    outputs, state = run_layer(ours, inputs, start)
    hidden = start.hidden[None]
    expected, after = theirs(inputs, (hidden, start.cell[None]) if kind == "lstm" else hidden)
    torch.testing.assert_close(outputs, expected, **EXACT)
    torch.testing.assert_close(state.hidden, (after[0] if kind == "lstm" else after)[0], **EXACT)
    if kind == "lstm":
        torch.testing.assert_close(state.cell, after[1][0], **EXACT)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_lstm_and_gru_are_torchs_fused_layers_and_the_loop_is_the_same_function(kind: str) -> None:
    layer, inputs = layer_of(kind), random(ROWS, STEPS, INPUTS)
    assert isinstance(layer, nn.LSTM if kind == "lstm" else nn.GRU)
    for start in (None, state_of(kind)):
        fused, after_fused = run_layer(layer, inputs, start)
        looped, after_looped = run_layer(layer, inputs, start, torch.ones(ROWS, UNITS).double())
        torch.testing.assert_close(looped, fused, **EXACT)
        torch.testing.assert_close(after_looped, after_fused, **EXACT)
    assert torch.equal(run_layer(layer, inputs, None)[0], layer(inputs)[0])


# The papers' equations


def sigmoid(x: Tensor) -> Tensor:
    return 1.0 / (1.0 + torch.exp(-x))


def normalised(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return the layer norm of a vector: Ba et al. 2016."""
    spread = ((x - x.mean()) ** 2).mean()
    return (x - x.mean()) / torch.sqrt(spread + 1e-5) * gain + bias


def by_the_book(layer: RecurrentLayer, inputs: Tensor, start: CellState, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the outputs [T, H] and the last cell of one row, one gate at a time."""
    own = isinstance(layer, LoopLayer)
    kind = layer.cell if own else ("lstm" if isinstance(layer, nn.LSTM) else "gru")
    weight_ih, weight_hh, bias_ih, bias_hh = list(layer.parameters())[:4] if not own else (
        layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh
    )  # fmt: skip
    normed = own and layer.gain_ih is not None
    hidden, cell = start.hidden[0], start.cell[0]
    outputs = []
    for x in inputs[0]:
        # One mask for all steps, on the state that the products see.
        seen = hidden if mask is None else hidden * mask[0]
        a, u = weight_ih @ x, weight_hh @ seen
        if not normed:
            a, u = a + bias_ih, u + bias_hh
        elif kind == "gru":
            gates, new = slice(0, 2 * UNITS), slice(2 * UNITS, 3 * UNITS)
            a = torch.cat([normalised(a[part], layer.gain_ih[part], bias_ih[part]) for part in (gates, new)])
            u = torch.cat([normalised(u[part], layer.gain_hh[part], bias_hh[part]) for part in (gates, new)])
        else:
            a, u = normalised(a, layer.gain_ih, bias_ih), normalised(u, layer.gain_hh, bias_hh)
        a_gates, u_gates = a.split(UNITS), u.split(UNITS)
        match kind:
            case "tanh":
                hidden = torch.tanh(a + u)
            case "relu":
                hidden = (a + u).clamp(min=0.0)
            case "leaky_relu":
                hidden = torch.where(a + u > 0, a + u, 0.01 * (a + u))
            case "gru":
                reset, update = sigmoid(a_gates[0] + u_gates[0]), sigmoid(a_gates[1] + u_gates[1])
                hidden = update * hidden + (1.0 - update) * torch.tanh(a_gates[2] + reset * u_gates[2])
            case _:
                i, f, g, o = (given + fed for given, fed in zip(a_gates, u_gates))
                if kind == "peephole_lstm":
                    i, f = i + layer.peepholes[0] * cell, f + layer.peepholes[1] * cell
                cell = sigmoid(f) * cell + sigmoid(i) * torch.tanh(g)
                if kind == "peephole_lstm":
                    o = o + layer.peepholes[2] * cell
                hidden = sigmoid(o) * torch.tanh(normalised(cell, layer.gain_c, layer.bias_c) if normed else cell)
        outputs.append(hidden)
    return torch.stack(outputs), cell


@every_kind
@with_and_without_norm
@pytest.mark.parametrize("recurrent_dropout", [False, True], ids=["whole", "dropped"])
def test_a_layer_is_the_papers_equations_for_each_row_alone(
    kind: str, layer_norm: bool, recurrent_dropout: bool
) -> None:
    layer, inputs, start = layer_of(kind, layer_norm=layer_norm), random(ROWS, STEPS, INPUTS), state_of(kind)
    mask = dropped() if recurrent_dropout else None
    outputs, state = run_layer(layer, inputs, start, mask)
    gradients = torch.autograd.grad(outputs.square().sum(), list(layer.parameters()))
    total = torch.zeros((), dtype=torch.float64)
    for row in range(ROWS):
        alone = CellState(start.hidden[row : row + 1], start.cell[row : row + 1])
        row_mask = None if mask is None else mask[row : row + 1]
        expected, cell = by_the_book(layer, inputs[row : row + 1], alone, row_mask)
        torch.testing.assert_close(outputs[row], expected, **EXACT)
        torch.testing.assert_close(state.hidden[row], expected[-1], **EXACT)
        torch.testing.assert_close(state.cell[row], cell, **EXACT)
        total = total + expected.square().sum()
    for found, expected in zip(gradients, torch.autograd.grad(total, list(layer.parameters()))):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@every_kind
def test_a_steps_gradient_is_that_of_finite_differences(kind: str) -> None:
    def drawn(*shape: int) -> Tensor:
        return random(*shape).requires_grad_()

    gates, hidden = GATES[kind] * UNITS, drawn(2, UNITS)
    if kind == "gru":
        assert torch.autograd.gradcheck(gru_step, (drawn(2, gates), drawn(2, gates), hidden))
    elif not has_cell(kind):
        assert torch.autograd.gradcheck(lambda summed: elman_step(summed, kind), (drawn(2, gates),))
    else:
        peepholes = drawn(3, UNITS) if kind == "peephole_lstm" else None
        for norm in (None, Norm(drawn(UNITS), drawn(UNITS))):
            assert torch.autograd.gradcheck(
                lambda summed, cell, peepholes, *norm: lstm_step(
                    summed, cell, peepholes, Norm(*norm) if norm else None
                ),
                (drawn(2, gates), drawn(2, UNITS), peepholes, *(norm or ())),
            )


# Step by step, and lengths


@every_kind
@with_and_without_norm
@pytest.mark.parametrize("known", [0, 2, INPUTS])
def test_step_by_step_is_the_whole_sequence_however_much_of_the_input_is_known(
    kind: str, layer_norm: bool, known: int
) -> None:
    layer, inputs, start = layer_of(kind, layer_norm=layer_norm), random(ROWS, STEPS, INPUTS), state_of(kind)
    for mask in (None, dropped()):
        expected, after = run_layer(layer, inputs, start, mask)
        step, state = StepCell(layer, known), start
        projected = step.project(inputs[:, :, :known]) if known else None
        for t in range(STEPS):
            rest = inputs[:, t, known:] if known < INPUTS else None
            state = step(None if projected is None else projected[:, t], rest, state, hidden_mask=mask)
            torch.testing.assert_close(state.hidden, expected[:, t], **EXACT)
        torch.testing.assert_close(state, after, **EXACT)


@every_kind
@with_and_without_norm
@pytest.mark.parametrize("recurrent_dropout", [False, True], ids=["whole", "dropped"])
def test_with_lengths_the_state_of_a_row_is_the_one_after_its_own_length(
    kind: str, layer_norm: bool, recurrent_dropout: bool
) -> None:
    layer, inputs, lengths = layer_of(kind, layer_norm=layer_norm), random(ROWS, STEPS, INPUTS), [2, 6, 1]
    for start in (None, state_of(kind)):
        mask = dropped() if recurrent_dropout else None
        noisy = inputs.clone()
        for row, length in enumerate(lengths):
            noisy[row, length:] = 50.0 * random(STEPS - length, INPUTS)
        noisy.requires_grad_()
        outputs, state = run_layer(layer, noisy, start, mask, lengths=torch.tensor(lengths))
        (state.hidden.sum() + state.cell.square().sum()).backward()
        for row, length in enumerate(lengths):
            one = slice(row, row + 1)
            alone = None if start is None else CellState(start.hidden[one], start.cell[one])
            row_inputs = inputs[one, :length].clone().requires_grad_()
            expected, after = run_layer(layer, row_inputs, alone, None if mask is None else mask[one])
            torch.testing.assert_close(outputs[row, :length], expected[0], **EXACT)
            torch.testing.assert_close(CellState(state.hidden[one], state.cell[one]), after, **EXACT)
            (after.hidden.sum() + after.cell.square().sum()).backward()
            torch.testing.assert_close(noisy.grad[row, :length], row_inputs.grad[0], rtol=1e-9, atol=1e-11)
            assert not noisy.grad[row, length:].any()


# First weights and lower precision


@every_kind
@with_and_without_norm
def test_first_weights_are_those_of_the_book(kind: str, layer_norm: bool) -> None:
    layer = make_layer(kind, 3, 6, layer_norm=layer_norm)
    assert isinstance(layer, LoopLayer) == (layer_norm or kind not in ("lstm", "gru"))
    weight_ih, weight_hh, bias_ih, bias_hh = (
        (layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh)
        if isinstance(layer, LoopLayer)
        else layer.all_weights[0]
    )
    for block in weight_ih.chunk(GATES[kind]):
        assert 0.3 < float(block.detach().abs().max()) <= (6 / (3 + 6)) ** 0.5
    for block in weight_hh.chunk(GATES[kind]):
        torch.testing.assert_close(block @ block.T, torch.eye(6), rtol=0, atol=1e-5)
        assert torch.equal(block, torch.eye(6)) == (kind in ("relu", "leaky_relu"))
    assert bias_ih.tolist() == ([0.0] * 6 + [1.0] * 6 + [0.0] * 12 if has_cell(kind) else [0.0] * len(bias_ih))
    assert not bias_hh.any()
    if isinstance(layer, LoopLayer):
        assert all(
            bool((gain == 1.0).all()) for gain in (layer.gain_ih, layer.gain_hh, layer.gain_c) if gain is not None
        )
        assert layer.peepholes is None or not layer.peepholes.any()


@pytest.mark.parametrize(("kind", "layer_norm", "masked"), itertools.product(KINDS, [False, True], [False, True]))
def test_bfloat16_is_near_and_what_sums_up_over_time_stays_wide(kind: str, layer_norm: bool, masked: bool) -> None:
    layer, inputs = make_layer(kind, 8, 8, layer_norm=layer_norm), torch.randn(4, 12, 8)
    lengths, mask = torch.tensor([12, 3, 7, 1]), torch.ones(4, 8) if masked else None
    expected, after = run_layer(layer, inputs, None, mask, lengths=lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found, state = run_layer(layer, inputs, None, mask, lengths=lengths)
    assert state.cell.dtype == torch.float32 or not has_cell(kind)
    looped = layer_norm or masked or kind not in ("lstm", "gru")
    assert not looped or found.dtype == torch.bfloat16
    assert not (looped and kind == "gru") or state.hidden.dtype == torch.float32
    for low, high in ((found, expected), (state.hidden, after.hidden), (state.cell, after.cell)):
        # Sixteen roundings (2^-9) in the mean: each step's follow those of the steps before it.
        assert float((low - high).detach().norm()) <= 16 * 2**-9 * float(high.detach().norm())
    found.float().square().sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in layer.parameters())
