"""The precision that a model computes with, and the loss scale that float16 needs."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

from pipelines.errors import InputError

INITIAL_SCALE = 2.0**16
GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0, 0.5, 2000


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a model computes with this precision; weights stay float32."""
    match precision:
        case "bfloat16":
            return torch.autocast(device.type, torch.bfloat16)
        case "float16":
            return torch.autocast(device.type, torch.float16)
    return contextlib.nullcontext()


def check_precision(precision: str, *, use_gpu: bool) -> None:
    """Raise InputError where training would compute in float16 on a CPU."""
    if precision == "float16" and not use_gpu:
        raise InputError(
            "float16 is computed on a GPU, and the profile has none (ray.use_gpu: false)",
            where="train.precision",
            remedy="Set train.precision: bfloat16 or float32, or ray.use_gpu: true in the profile",
        )


class LossScale(NamedTuple):
    """What the mean loss of float16 is multiplied by, so that small gradients are not lost, and how long it has been.

    `updates` counts those done since the scale was last changed.
    """

    scale: float = INITIAL_SCALE
    updates: int = 0

    def after(self, *, overflow: bool) -> LossScale:
        """Return the scale after an update: half of it after one whose gradient was too large for float16.

        It is doubled after GROWTH_INTERVAL updates without one. As torch.amp.GradScaler does, with its defaults.
        Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.
        """
        if overflow:
            return LossScale(self.scale * BACKOFF, 0)
        if self.updates + 1 == GROWTH_INTERVAL:
            return LossScale(self.scale * GROWTH, 0)
        return LossScale(self.scale, self.updates + 1)
