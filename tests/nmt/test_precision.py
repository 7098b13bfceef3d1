"""Precision: the loss scale moves as torch's does, and float16 on a CPU is refused."""

from __future__ import annotations

import pytest
import torch

from nmt.precision import GROWTH_INTERVAL, INITIAL_SCALE, LossScale, autocast, check_precision
from pipelines.errors import InputError


def test_the_loss_scale_moves_as_that_of_torchs_grad_scaler() -> None:
    # In torch's the interval is a key, so that a short one shows all there is; ours is asked at the same places.
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu")
    assert scaler.get_scale() == INITIAL_SCALE
    scale, pattern = LossScale(), [True, True, False, True] + [False] * (GROWTH_INTERVAL + 2) + [True] + [False] * 5
    seen = set()
    for overflow in pattern:
        weight.grad = torch.tensor([float("inf") if overflow else 1.0])
        scaler.scale(torch.zeros(()))  # which makes torch's scale, at first use
        scaler.step(optimizer)
        scaler.update()
        scale = scale.after(overflow=overflow)
        assert scale.scale == scaler.get_scale()
        seen.add(scale.scale)
    assert seen == {2.0**15, 2.0**14, 2.0**13}
    assert scale == LossScale(2.0**13, 5)


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="float16 is computed on a GPU") as caught:
        check_precision("float16", use_gpu=False)
    assert caught.value.where == "train.precision"
    check_precision("float16", use_gpu=True)
    check_precision("bfloat16", use_gpu=False)
    check_precision("float32", use_gpu=False)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_products_are_computed_in_the_precision_that_is_asked_for(precision: str, expected: torch.dtype) -> None:
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with autocast(precision, torch.device("cpu")):
        assert (left @ right).dtype == expected
    assert (left @ right).dtype == torch.float32
