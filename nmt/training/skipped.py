"""Updates that are left out because they are not finite: counted, and the end of a run that has too many in a row.

<folder>/failed-batch/update-<n>/
├── worker-<rank>.safetensors    the micro-batches of a worker's share: `<number>/src`, `<number>/target`, ...
└── worker-<rank>.json           the figures of the update, and the rows of each micro-batch
"""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import save_file

from nmt.batches import MicroBatch
from nmt.checkpoint import TrainState
from nmt.config import TrainConfig
from nmt.precision import LossScale
from nmt.training.step import UpdateFigures, noise_seed

log = logging.getLogger(__name__)

FAILED_FOLDER = "failed-batch"
_LEAST_HOPEFUL_SCALE = 1.0


def counted(state: TrainState, config: TrainConfig, figures: UpdateFigures) -> TrainState:
    """Return the state with what an update was: left out or not, how many micro-batches were split, the loss scale.

    A gradient of float16 that is not finite may be too large because of the loss scale, and then is finite with a
    smaller one: as long as that is above 1 such updates do not count among those in a row, nor do they end the row.
    """
    changes: dict[str, Any] = {"split_microbatches": state.split_microbatches + figures.num_split}
    scaled = config.precision == "float16"
    hopeful = scaled and math.isfinite(figures.loss) and state.loss_scale > _LEAST_HOPEFUL_SCALE
    if scaled:
        before = LossScale(state.loss_scale, state.updates_at_loss_scale)
        scale, updates = before.after(overflow=figures.skipped)
        changes |= {"loss_scale": scale, "updates_at_loss_scale": updates}
    if not figures.skipped:
        changes["skipped_in_a_row"] = 0
    else:
        changes["skipped_updates"] = state.skipped_updates + 1
        changes["skipped_in_a_row"] = state.skipped_in_a_row + (0 if hopeful else 1)
    return state.model_copy(update=changes)


def log_split(before: TrainState, after: TrainState) -> None:
    """Say, the first time in a run, that micro-batches are computed in parts."""
    if after.split_microbatches > before.split_microbatches == 0:
        log.warning(
            "update %d: a micro-batch did not fit into memory and was computed in parts, which takes longer and "
            "changes nothing else; with a lower train.microbatch_tokens and more microbatches_per_update it would fit",
            before.update,
        )


def failure(config: TrainConfig, state: TrainState, figures: UpdateFigures, where: Path) -> FloatingPointError:
    """Return the error that ends a run; `state` is that before the update, and `where` describes its micro-batches."""
    return FloatingPointError(
        f"the loss or the gradient of {config.max_skipped_updates} updates in a row was not finite, at last that of "
        f"update {state.update} (loss {figures.loss}, gradient norm {figures.gradient_norm}). Its micro-batches of "
        f"this worker are in {where}. Lower train.learning_rate or train.clip_norm, or lengthen train.warmup_updates"
    )


def save_batch(
    folder: Path,
    rank: int,
    config: TrainConfig,
    state: TrainState,
    figures: UpdateFigures,
    microbatches: Sequence[tuple[int, MicroBatch]],
    row_ids: Sequence[npt.NDArray[np.int64]],
) -> Path:
    """Return the JSON file that describes an update, having written it behind the tensors of its micro-batches.

    `state` is that before the update, and `row_ids` are of the rows of each micro-batch.
    """
    path = folder / FAILED_FOLDER / f"update-{state.update:08d}"
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}/{name}": tensor.cpu().clone()
        for number, batch in microbatches
        for name, tensor in batch._asdict().items()
        if tensor is not None
    }
    described = {
        "update": state.update,
        "epoch": state.epoch,
        "updates_of_epoch": state.updates_of_epoch,
        "loss": str(figures.loss),
        "gradient_norm": str(figures.gradient_norm),
        "loss_scale": state.loss_scale if config.precision == "float16" else None,
        "microbatches": [
            {"number": number, "noise_seed": noise_seed(config.seed, state.update, number), "row_ids": ids.tolist()}
            for (number, _), ids in zip(microbatches, row_ids, strict=True)
        ],
    }
    temporary = path / f".tmp-{uuid.uuid4().hex}"
    save_file(tensors, temporary)
    temporary.rename(path / f"worker-{rank}.safetensors")
    temporary.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return temporary.rename(path / f"worker-{rank}.json")
