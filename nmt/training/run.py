"""All that a worker holds while it trains, put together at the start or from the newest checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from nmt.alignments import Alignments
from nmt.architectures import build_model
from nmt.checkpoint import CheckpointConfig, TrainState, load_training, training_checkpoints
from nmt.compilation import compile_model
from nmt.model.batch_norm import collectors
from nmt.model.seq2seq import Seq2Seq
from nmt.pretrained import begin_with_vectors
from nmt.training.beginnings import begin_with_model, freeze
from nmt.training.beside import RayValidations
from nmt.training.epochs import Epochs
from nmt.training.gradients import FlatGradients
from nmt.training.job import TrainJob
from nmt.training.lease import taken_by_workers
from nmt.training.metrics import MetricsWriter, metrics_writer
from nmt.training.optim import Averages, make_optimizer, trained_parameters
from nmt.training.saver import Saver
from nmt.training.step import World
from nmt.training.stopping import LeaveWatch
from nmt.training.validation import read_dev
from nmt.training.workers import write_workers
from pipelines.shards import ShardColumns
from pipelines.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nmt.training.sharding import Sharding

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A worker's run. `state` is replaced after each update; `metrics` is there in the worker of rank 0."""

    job: TrainJob
    world: World
    tokenizer: Tokenizer
    dev: ShardColumns
    references: list[str]
    model: Seq2Seq
    optimizer: torch.optim.Optimizer
    flat: FlatGradients
    averages: Averages | None
    state: TrainState
    metrics: MetricsWriter | None
    leaving: LeaveWatch
    saver: Saver | None  # as `metrics`
    saved_at: float = field(default_factory=time.monotonic)  # or started
    saved_update: int | None = None  # the last whose tensors this start has saved
    beside: RayValidations | None = None  # in the worker of rank 0, where validation goes on beside training
    sharding: Sharding | None = None  # where the model is dealt out over the workers
    alignments: Alignments | None = None  # where attention is guided

    def whole(self, *, computes: bool) -> AbstractContextManager[Seq2Seq]:
        """Return a `with` block that has the model with whole weights, to compute with on all workers, or to write.

        All workers enter it; see `Sharding.whole`.
        """
        return nullcontext(self.model) if self.sharding is None else self.sharding.whole(computes=computes)

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


def start(job: TrainJob, world: World, leaving: Callable[[], bool] | None = None) -> Run:
    """Return the run of a worker, where the newest checkpoint says, else at the start.

    Raises InputError, and LeaseLost where the folder is a newer run's.
    """
    lease = taken_by_workers(Path(job.folder), job.lease) if job.lease and world.rank == 0 else None
    saver = Saver(job.checkpoints, job.train.keep_checkpoints, lease) if world.rank == 0 else None
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    model = build_model(job.model, tokenizer.source_size, tokenizer.target_size, seed=job.train.seed)
    newest = _agreed(training_checkpoints(job.checkpoints)[-1:], world)
    if job.model.vectors() and not newest:
        begin_with_vectors(model, Path(job.folder))
    if job.train.start_from is not None and not newest:
        begin_with_model(model, tokenizer, Path(job.train.start_from))
    freeze(model, job.train.freeze)
    sharding = _dealt_out(model, world) if job.shard_model and world.size > 1 else None
    trained = trained_parameters(model.to(world.device)) if sharding is None else sharding.trained
    if job.train.compile:
        compile_model(model)
    optimizer = make_optimizer(job.train, trained)
    averages = Averages(trained, job.train.ema_decay) if job.train.ema_decay > 0.0 else None
    state = TrainState()
    for checkpoint in newest:
        if sharding is None:
            state = load_training(checkpoint, model, optimizer, averages, tokenizer.digest)
        else:
            state = sharding.load_training(checkpoint, optimizer, averages, tokenizer.digest)
        log.info("continuing from %s", checkpoint)
    state = _with_validations(state)
    write_workers(Path(job.folder), world, state.update)
    dev, references = read_dev(job, tokenizer)
    beside = RayValidations(job, job.beside) if job.beside is not None and world.rank == 0 else None
    if beside is not None:
        for update, _ in state.pending_validations:
            beside.ask(update)
    return Run(
        job=job,
        world=world,
        tokenizer=tokenizer,
        dev=dev,
        references=references,
        model=model,
        optimizer=optimizer,
        flat=FlatGradients(trained, collectors(model)) if sharding is None else sharding.gradients(),
        averages=averages,
        state=state,
        metrics=metrics_writer(job, state) if world.rank == 0 else None,
        leaving=LeaveWatch(Path(job.folder), lease, leaving),
        saver=saver,
        beside=beside,
        sharding=sharding,
        # A window may read the rows of small corpora, which are in all of them, beyond its own.
        alignments=None if job.alignments is None else Alignments(Path(job.alignments), job.train.window_rows * 3 // 2),
    )


def _dealt_out(model: Seq2Seq, world: World) -> Sharding:
    from nmt.training.sharding import Sharding  # only here: what it needs of torch takes a second to import

    return Sharding(model, world)


def _agreed(newest: list[Path], world: World) -> list[Path]:
    """Return what the worker of rank 0 sees: on a shared storage another may see a checkpoint later."""
    if world.size == 1:
        return newest
    found = [newest]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def open_epochs(job: TrainJob) -> Epochs:
    """Return the epochs of a job. Raises InputError as `Epochs` does."""
    folder, tokenizer = Path(job.shards) / "train", Path(job.tokenizer)
    return Epochs(
        job.train, job.augment, job.weights, folder, tokenizer,
        curriculum=job.curriculum, helpers=job.threads, side=job.model.only_side(),
    )  # fmt: skip


def _with_validations(state: TrainState) -> TrainState:
    """Return a state that may be of a checkpoint from before validations had fields of their own."""
    if "validated_update" in state.model_fields_set or not state.update:
        return state
    # Then only the checkpoint behind a validation was at the start of an epoch, or the last.
    validated = state.updates_of_epoch == 0 or state.stopped is not None
    best = () if state.best_metric is None else ((state.best_update, state.best_metric),)
    changes = {"validated_update": state.update if validated else state.update - 1, "best_models": best}
    return state.model_copy(update=changes)
