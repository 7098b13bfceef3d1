"""Deferred weight gradients against autograd's own."""

from __future__ import annotations

import torch
from torch import Tensor

from nmt.model.deferred import DeferredWeight


def loop(x: Tensor, weight: Tensor, steps: int, *, deferred: bool) -> Tensor:
    held = DeferredWeight(weight)
    total = x.new_zeros(())
    for _ in range(steps):
        x = torch.tanh(held.linear(x) if deferred else x @ weight.t())
        total = total + x.sum()
    return total


def test_a_loops_gradients_are_autograds() -> None:
    torch.manual_seed(2)
    x, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4, 4)))
    found = torch.autograd.grad(loop(x, weight, 5, deferred=True), [x, weight])
    expected = torch.autograd.grad(loop(x, weight, 5, deferred=False), [x, weight])
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_weight_that_is_made_of_others_hands_its_gradient_on() -> None:
    torch.manual_seed(2)
    parts = [torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    x = torch.randn(3, 4, dtype=torch.float64)
    found = torch.autograd.grad(loop(x, torch.cat(parts, 1), 3, deferred=True), parts)
    expected = torch.autograd.grad(loop(x, torch.cat(parts, 1), 3, deferred=False), parts)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_weight_that_no_step_used_has_no_gradient() -> None:
    weight = torch.randn(2, 2, requires_grad=True)
    DeferredWeight(weight)
    assert weight.grad is None


def test_a_fixed_weight_and_evaluation_keep_nothing() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    fixed = torch.randn(4, 4)
    held = DeferredWeight(fixed)
    held.linear(x).sum().backward()
    torch.testing.assert_close(x.grad, fixed.sum(0).expand(3, 4))
    assert held.inputs == []
    with torch.inference_mode():
        held = DeferredWeight(fixed.clone().requires_grad_())
        torch.testing.assert_close(held.linear(x), x @ fixed.t())
    assert held.inputs == []


def test_under_autocast_steps_are_summed_in_the_products_accumulator() -> None:
    torch.manual_seed(3)
    weight = torch.randn(8, 8, requires_grad=True)
    xs = [torch.randn(4, 8).bfloat16() for _ in range(64)]
    with torch.autocast("cpu", torch.bfloat16):
        held = DeferredWeight(weight)
        total = sum(held.linear(x).float().sum() for x in xs)
    total.backward()
    exact = torch.cat(xs).float().sum(0).expand(8, 8)
    assert weight.grad.dtype == torch.float32
    # One rounding to 8 bits; 64 additions in bfloat16 would be off by several.
    assert ((weight.grad - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
