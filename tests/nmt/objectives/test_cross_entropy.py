"""The output layer and its loss in one, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.objectives import cross_entropy
from nmt.objectives.cross_entropy import linear_cross_entropy

ROWS, UNITS, PIECES = 9, 5, 13


def inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(1)
    shapes = ((ROWS, UNITS), (PIECES, UNITS), (PIECES,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes], torch.randint(0, PIECES, (ROWS,))


def gradients(total: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    # A factor, since what comes from above is not always one.
    return list(torch.autograd.grad(total * 3, tensors))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_loss_and_gradients_are_those_of_torchs_linear_and_cross_entropy(
    smoothing: float, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_CPU", rows_at_once * PIECES)
    (vectors, weight, bias), targets = inputs()
    total, nll = linear_cross_entropy(vectors, weight, bias, targets, smoothing)
    scores = F.linear(vectors, weight, bias)
    expected = F.cross_entropy(scores, targets, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nll, F.cross_entropy(scores, targets, reduction="sum"), rtol=1e-12, atol=1e-12)
    assert not nll.requires_grad
    for found, reference in zip(
        gradients(total, [vectors, weight, bias]), gradients(expected, [vectors, weight, bias])
    ):
        torch.testing.assert_close(found, reference, rtol=1e-11, atol=1e-12)


def test_a_score_far_above_all_others_neither_overflows_nor_loses_the_others_loss() -> None:
    vectors, weight, bias = torch.ones(2, 1), torch.zeros(3, 1), torch.tensor([400.0, 0.0, -400.0])
    total, nll = linear_cross_entropy(vectors, weight, bias, torch.tensor([0, 2]), 0.0)
    assert total.item() == nll.item() == 800.0


def test_under_autocast_loss_and_gradients_are_within_the_rounding_of_bfloat16() -> None:
    tensors, targets = inputs(torch.float32)
    exact, _ = linear_cross_entropy(*tensors, targets, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        total, nll = linear_cross_entropy(*tensors, targets, 0.1)
    assert total.dtype == nll.dtype == torch.float32
    # Rounding is to 8 bits: 2^-9 of each score, of which the largest is about 6, in each of the rows.
    assert total.item() == pytest.approx(exact.item(), abs=ROWS * 6 * 2**-9 * 2)
    for found, reference in zip(gradients(total, tensors), gradients(exact, tensors)):
        assert found.dtype == torch.float32
        assert (found - reference).norm() / reference.norm() < 0.02


def test_without_gradients_the_same_loss_comes_out() -> None:
    tensors, targets = inputs()
    total, _ = linear_cross_entropy(*tensors, targets, 0.1)
    with torch.inference_mode():
        again, _ = linear_cross_entropy(*tensors, targets, 0.1)
    assert again.item() == total.item()
