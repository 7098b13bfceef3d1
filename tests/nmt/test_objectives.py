"""The loss against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nmt.objectives.supervised import smoothed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_and_gradient_are_those_of_torchs_cross_entropy(smoothing: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(9, 13, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (9,))
    total, nll = smoothed_cross_entropy(logits, targets, smoothing)
    (total * 3).backward()
    found, logits.grad = logits.grad, None
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (expected * 3).backward()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, logits.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-12, atol=1e-12)
    assert not nll.requires_grad
