"""All that a worker holds while it trains, put together at the start or from the newest checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from nmt.architectures import build_model
from nmt.batches import one_sided
from nmt.checkpoint import CheckpointConfig, TrainState, load_training, training_checkpoints
from nmt.model.batch_norm import collectors
from nmt.model.seq2seq import Seq2Seq
from nmt.pretrained import begin_with_vectors
from nmt.training.epochs import Epochs
from nmt.training.gradients import FlatGradients
from nmt.training.job import TrainJob
from nmt.training.metrics import MetricsWriter
from nmt.training.optim import Averages, make_optimizer, trained_parameters
from nmt.training.step import World
from pipelines.shards import ShardColumns, read_shards
from pipelines.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A worker's run. `state` is replaced after each update; `metrics` is there in the worker of rank 0."""

    job: TrainJob
    world: World
    tokenizer: Tokenizer
    train: ShardColumns
    dev: ShardColumns
    references: list[str]
    model: Seq2Seq
    optimizer: torch.optim.Optimizer
    flat: FlatGradients
    averages: Averages | None
    state: TrainState
    metrics: MetricsWriter | None

    def checkpoint_config(self) -> CheckpointConfig:
        """Return what makes the weights usable, with the scores of dev where they have just been found."""
        return CheckpointConfig(
            model=self.job.model.without_vectors(),
            source_size=self.tokenizer.source_size,
            target_size=self.tokenizer.target_size,
            tokenizer=self.tokenizer.digest,
            update=self.state.update,
            dev=self.state.best_dev if self.state.best_update == self.state.update else {},
        )


def start(job: TrainJob, world: World) -> Run:
    """Return the run of a worker, where the newest checkpoint says, else at the start. Raises InputError."""
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    shards = Path(job.shards)
    model = build_model(job.model, tokenizer.source_size, tokenizer.target_size, seed=job.train.seed)
    newest = training_checkpoints(job.checkpoints)[-1:]
    if job.model.vectors() and not newest:
        begin_with_vectors(model, Path(job.folder))
    trained = trained_parameters(model.to(world.device))
    optimizer = make_optimizer(job.train, trained)
    averages = Averages(trained, job.train.ema_decay) if job.train.ema_decay > 0.0 else None
    state = TrainState()
    for checkpoint in newest:
        state = load_training(checkpoint, model, optimizer, averages, tokenizer.digest)
        log.info("continuing from %s", checkpoint)
    dev = one_sided(read_shards(shards / "dev", tokenizer.digest), job.model.only_side())
    # Only the checkpoint behind a validation is at the start of an epoch, or the last.
    validated = state.updates_of_epoch == 0 or state.stopped is not None
    return Run(
        job=job,
        world=world,
        tokenizer=tokenizer,
        train=read_shards(shards / "train", tokenizer.digest),
        dev=dev,
        references=_references(Path(job.references), dev) if job.model.has_source else [],
        model=model,
        optimizer=optimizer,
        flat=FlatGradients(trained, collectors(model)),
        averages=averages,
        state=state,
        metrics=MetricsWriter(Path(job.folder), state.update, validated=validated) if world.rank == 0 else None,
    )


def open_epochs(job: TrainJob, shards: ShardColumns) -> Epochs:
    """Return the epochs of a job, on its rows of train. Raises InputError as `Epochs` does."""
    folder, tokenizer = Path(job.shards) / "train", Path(job.tokenizer)
    side = job.model.only_side()
    return Epochs(job.train, job.augment, job.weights, folder, shards, tokenizer, helpers=job.threads, side=side)


def _references(folder: Path, dev: ShardColumns) -> list[str]:
    tables = [pq.read_table(path, columns=["row_id", "tgt_raw"]) for path in sorted(folder.glob("part-*.parquet"))]
    row_ids = np.concatenate([table["row_id"].to_numpy() for table in tables])
    if not np.array_equal(row_ids, dev.row_id):
        raise RuntimeError(f"the rows of {folder} are not those of the dev shards")
    return [text for table in tables for text in table["tgt_raw"].to_pylist()]
