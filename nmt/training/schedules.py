"""Learning-rate schedules: pure functions of the update and of what validations said."""

from __future__ import annotations

import math

from nmt.checkpoint import TrainState
from nmt.config import TrainConfig


def learning_rate(
    config: TrainConfig,
    update: int,
    total_updates: int,
    *,
    embedding_dim: int,
    epoch: int,
    plateau_rate: float,
) -> float:
    """Return the learning rate of an update, counted from 0: linear warm-up to the peak, then the schedule.

    With n = update + 1, w = warmup_updates and p how far the update is between the warm-up and `total_updates`, 0 to 1:

        constant      peak
        inverse_sqrt  peak * sqrt(w / n): Vaswani et al. 2017, section 5.3, with the peak as the free constant
        noam          factor * embedding_dim^-0.5 * min(n^-0.5, n * w^-1.5): the same, eq. 3, learning_rate the factor
        cosine        peak * (1 + cos(pi * p)) / 2: Loshchilov and Hutter 2017, eq. 5 without restarts
        linear        peak * (1 - p): Devlin et al. 2019, "BERT", A.2
        plateau       peak * `plateau_rate`, which `on_validation` sets
        halving       peak, and half of the rate before it in each epoch (counted from 0) after the first
                      `halving_after_epochs`: Luong et al. 2015, section 4.1
    """
    warmup, peak = config.warmup_updates, config.learning_rate
    if config.schedule == "noam":
        return peak / math.sqrt(embedding_dim) * min(1.0 / math.sqrt(update + 1), (update + 1) / math.pow(warmup, 1.5))
    warm = peak * (update + 1) / warmup if update < warmup else peak
    progress = min(1.0, max(0.0, (update - warmup) / max(1, total_updates - warmup)))
    match config.schedule:
        case "constant":
            return warm
        case "inverse_sqrt":
            return warm if update < warmup else peak * math.sqrt(max(warmup, 1) / (update + 1))
        case "cosine":
            return warm if update < warmup else peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            return warm if update < warmup else peak * (1.0 - progress)
        case "plateau":
            return warm * plateau_rate
        case "halving":
            return warm * 0.5 ** max(0, epoch + 1 - config.halving_after_epochs)


def on_validation(state: TrainState, config: TrainConfig, better: bool) -> TrainState:
    """Return the state after a validation that was better than all before it, or was not.

    The rate of the schedule plateau is multiplied by `plateau_factor` at each `plateau_patience`-th validation in a row
    without a better one; the count then begins again. Other schedules leave the state as it is.
    """
    if config.schedule != "plateau":
        return state
    without = 0 if better else state.plateau_validations + 1
    rate = state.plateau_rate
    if without == config.plateau_patience:
        without, rate = 0, rate * config.plateau_factor
    return state.model_copy(update={"plateau_validations": without, "plateau_rate": rate})
