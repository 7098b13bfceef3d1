"""Learning-rate schedules: pure functions of the update and of what validations said."""

from __future__ import annotations

import math

from nmt.config import TrainConfig


def learning_rate(config: TrainConfig, update: int, total_updates: int) -> float:
    """Return the learning rate of an update, counted from 0: linear warm-up to the peak, then the schedule.

    inverse_sqrt: peak * sqrt(warmup / update), Vaswani et al. 2017, section 5.3, with the peak as the free constant.
    cosine: half a cosine from the peak to 0 at `total_updates`, Loshchilov and Hutter 2017, eq. 5 without restarts.
    """
    warmup = config.warmup_updates
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "inverse_sqrt":
            return config.learning_rate * math.sqrt(max(warmup, 1) / (update + 1))
        case "cosine":
            progress = (update - warmup) / max(1, total_updates - warmup)
            return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
