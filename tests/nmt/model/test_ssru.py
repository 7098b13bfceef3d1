"""The SSRU against its paper's equations, one step at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nmt.model.ssru import Ssru, scan


def plain_scan(forget: Tensor, new: Tensor, cell: Tensor) -> Tensor:
    cells = []
    for t in range(forget.shape[1]):
        cell = forget[:, t] * cell + (1 - forget[:, t]) * new[:, t]
        cells.append(cell)
    return torch.stack(cells, dim=1)


def parts(steps: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    forget, new = torch.randn(2, 3, steps, 4, dtype=torch.float64, generator=generator)
    cell = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    return forget.sigmoid().requires_grad_(), new.requires_grad_(), cell.requires_grad_()


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_scan_is_the_recurrence_and_has_its_gradients(steps: int) -> None:
    inputs = parts(steps)
    found, expected = scan(*inputs), plain_scan(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(3, steps, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pairs = zip(torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream))
    for gradient, reference in pairs:
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


def test_the_scans_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(scan, parts(3))


def test_gradients_of_a_part_of_the_cells_are_right_too() -> None:
    inputs = parts(5)
    found = torch.autograd.grad(scan(*inputs)[:, 2].sum(), inputs)
    for gradient, reference in zip(found, torch.autograd.grad(plain_scan(*inputs)[:, 2].sum(), inputs)):
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


def test_the_unit_is_the_papers_equations() -> None:
    torch.manual_seed(3)
    unit = Ssru(4).double()
    torch.nn.init.normal_(unit.gate_bias)
    gate_weight, new_weight = unit.gate_and_input.weight.chunk(2)
    x, cell = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    outputs, last = unit(x, cell)
    for t in range(5):
        forget = torch.sigmoid(x[:, t] @ gate_weight.T + unit.gate_bias)
        cell = forget * cell + (1 - forget) * (x[:, t] @ new_weight.T)
        torch.testing.assert_close(outputs[:, t], cell.clamp(min=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, cell, rtol=1e-12, atol=1e-12)


def test_the_cells_handed_on_continue_where_they_ended() -> None:
    torch.manual_seed(4)
    unit, x = Ssru(4).double(), torch.randn(2, 7, 4, dtype=torch.float64)
    together, last = unit(x, unit.start(2, x))
    cell, outputs = unit.start(2, x), []
    for chunk in x.split([1, 3, 2, 1], dim=1):
        output, cell = unit(chunk, cell)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell, last, rtol=1e-12, atol=1e-12)


def test_cells_are_float32_where_the_products_are_bfloat16() -> None:
    torch.manual_seed(5)
    unit, x = Ssru(16), torch.randn(2, 6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, cell = unit(x, unit.start(2, x.bfloat16()))
    assert cell.dtype == torch.float32
    exact, _ = unit(x, unit.start(2, x))
    torch.testing.assert_close(outputs.float(), exact, rtol=0.05, atol=0.02)
