"""The checkpoints of a run: written, and removed when newer ones are there. The worker of rank 0 writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from nmt.checkpoint import save_training, training_checkpoints
from nmt.training.run import Run


def save(run: Run) -> None:
    """Write what training continues from, and keep the newest `keep_checkpoints`, and the best model."""
    if run.world.rank != 0:
        return
    folder = run.job.checkpoints
    for left_over in folder.glob(".tmp-*"):  # of a worker that was killed while it wrote
        shutil.rmtree(left_over)
    save_training(folder, run.model, run.optimizer, run.averages, run.checkpoint_config(), run.state)
    for old in training_checkpoints(folder)[: -run.job.train.keep_checkpoints]:
        shutil.rmtree(old)
    for old in folder.glob("best-*"):
        if old != best_folder(folder, run.state.best_update):
            shutil.rmtree(old)


def best_folder(checkpoints: Path, update: int) -> Path:
    """Return where the model of an update lies that was the best when it was validated."""
    return checkpoints / f"best-{update:08d}"
