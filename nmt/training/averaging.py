"""The mean of the best checkpoints: made, scored and published where it is better than the best of them.

Source: Junczys-Dowmunt, Dwojak and Sennrich 2016, "The AMU-UEDIN Submission to the WMT16 News Translation Task",
section 3.2; Vaswani et al. 2017, section 6.1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nmt.checkpoint import TrainState, load_model, model_content
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.training.run import Run
from nmt.training.saver import best_folder
from nmt.training.validation import metric_of, score_model

log = logging.getLogger(__name__)


def mean_model(folders: Sequence[Path], *, tokenizer: str | None = None) -> Seq2Seq:
    """Return a model whose weights and running statistics are the mean of those of checkpoints, summed in float64.

    What is no floating number is that of the last one. Raises InputError as `load_model` does.
    """
    sums: dict[str, Tensor] = {}
    for folder in folders:
        model, _ = load_model(folder, tokenizer=tokenizer)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in sums:
                tensor.copy_(sums[name] / len(folders))
    return model


def average_best(run: Run) -> None:
    """Score the mean of the best models, once training has stopped, where there are several. All workers call it."""
    updates = sorted(update for update, _ in run.state.best_models)
    if len(updates) < 2:
        return
    folders, mean = [best_folder(run.job.checkpoints, update) for update in updates], mean_folder(run.job.checkpoints)
    if run.saver is not None:
        run.saver.wait()
        model = mean_model(folders, tokenizer=run.tokenizer.digest)
        config = run.checkpoint_config().model_copy(update={"update": updates[-1]})
        run.saver.save_model(mean, model_content(model, config))
        run.saver.wait()
    if run.world.size > 1:
        dist.barrier()  # until rank 0 has written it
    dev = _scored_beside(run, mean) if run.job.beside is not None else _scored(run, mean)
    if all(math.isfinite(score) for score in dev.values()):
        run.state = run.state.model_copy(update={"mean_dev": dev})


def _scored(run: Run, folder: Path) -> dict[str, float]:
    model, _ = load_model(folder, tokenizer=run.tokenizer.digest)
    return score_model(model.to(run.world.device), run.dev, run.references, run.tokenizer, run.job, run.world).dev


def _scored_beside(run: Run, folder: Path) -> dict[str, float]:
    """Return the scores by a validation worker: the training workers may have no place for a whole model."""
    found: list[Any] = [None if run.beside is None else run.beside.score(folder).dev]
    if run.world.size > 1:
        dist.broadcast_object_list(found, src=0)
    dev: dict[str, float] = found[0]
    return dev


def mean_folder(checkpoints: Path) -> Path:
    """Return where the mean of the best models lies."""
    return checkpoints / "mean"


def mean_is_better(config: TrainConfig, state: TrainState) -> bool:
    """Return whether the mean of the best models has been scored, and is better than the best of them."""
    if not state.mean_dev or state.best_metric is None:
        return False
    return metric_of(config, state.mean_dev) > state.best_metric


def chosen(checkpoints: Path, config: TrainConfig, state: TrainState) -> tuple[Path, dict[str, float]]:
    """Return the folder of what is published, and its scores on dev."""
    if mean_is_better(config, state):
        return mean_folder(checkpoints), state.mean_dev
    return best_folder(checkpoints, state.best_update), state.best_dev


def averaging_counters(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """Return what the manifest says of the mean, and of the best single model; nothing where no mean was made."""
    if not state.mean_dev:
        return {}
    updates = sorted(update for update, _ in state.best_models)
    published = "mean" if mean_is_better(config, state) else "best"
    metric = config.early_stopping_metric if config.early_stopping_metric in state.best_dev else "loss"
    log.info(
        "%s on dev: %.4f of the mean of the models of updates %s, %.4f of the best of them, of update %d: published is "
        "the %s",
        metric, state.mean_dev[metric], ", ".join(map(str, updates)), state.best_dev[metric], state.best_update,
        published,
    )  # fmt: skip
    return {"averaging": {"updates": updates, "mean": state.mean_dev, "best": state.best_dev, "published": published}}
