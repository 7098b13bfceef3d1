"""The loop over updates: the same in one process without Ray and in any number of Ray's workers."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from nmt.allocation import keep_freed_memory
from nmt.batches import Rows, collate, target_tokens
from nmt.training.epochs import Epoch, Epochs
from nmt.training.job import TrainJob
from nmt.training.record import Record
from nmt.training.run import Run, open_epochs, start
from nmt.training.saver import save
from nmt.training.schedules import learning_rate
from nmt.training.step import UpdateFigures, World, train_step
from nmt.training.validator import validate


def train_loop(job: TrainJob, world: World) -> None:
    """Train as one worker of `world`, from the newest checkpoint or from the start, until a limit or early stopping.

    With more than one worker torch.distributed must be set up. The worker of rank 0 writes.
    Raises FloatingPointError when an update's loss or gradient is not finite.
    """
    # oneDNN keeps what it has made for each shape, of which length buckets give hundreds. Its bound is 1024: with 64
    # a worker had 1.5 GB in place of 2.3 GB after 200 updates on captions, at 98 % of the speed. Read at first use.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if world.device.type == "cpu":
        keep_freed_memory()
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)  # what collectives of Python objects go through
    torch.set_num_threads(job.threads)
    torch.set_float32_matmul_precision(job.train.matmul_precision)
    run = start(job, world)
    with open_epochs(job, run.train) as epochs:
        _train(run, epochs)
    if run.metrics is not None:
        run.metrics.close()


def _train(run: Run, epochs: Epochs) -> None:
    config, started = run.job.train, time.monotonic() - run.state.seconds
    total = epochs.total_updates()
    total = min(total, config.max_updates or total)
    record = Record()

    while run.state.stopped is None:
        epoch = epochs.epoch(run.state.epoch)
        record.restart()
        for update in epoch.updates[run.state.updates_of_epoch :]:
            if run.state.update == config.max_updates:
                break
            tokens = target_tokens(update, epoch.tgt_lengths)
            figures, rate = _one_update(run, epoch, update, tokens, total)
            run.state = run.state.model_copy(
                update={
                    "update": run.state.update + 1,
                    "updates_of_epoch": run.state.updates_of_epoch + 1,
                    "target_tokens": run.state.target_tokens + tokens,
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
            record.add(epoch, update, tokens, figures)
            if run.state.update % config.log_updates == 0 and run.metrics is not None:
                run.metrics.write(record.line(run.state, rate, total, epoch))
            if config.checkpoint_updates is not None and run.state.update % config.checkpoint_updates == 0:
                save(run)
        ended = run.state.updates_of_epoch == len(epoch.updates)
        out_of_updates = run.state.update == config.max_updates
        last = out_of_updates or run.state.epoch + 1 == config.max_epochs
        if last or (config.validate_epochs is not None and (run.state.epoch + 1) % config.validate_epochs == 0):
            validate(run)
        changes: dict[str, Any] = {"seconds": round(time.monotonic() - started, 3)}
        if ended:
            changes |= {"epoch": run.state.epoch + 1, "updates_of_epoch": 0}
        if run.state.validations_since_best >= config.patience:
            changes["stopped"] = "patience"
        elif last:
            changes["stopped"] = "max_updates" if out_of_updates else "max_epochs"
        run.state = run.state.model_copy(update=changes)
        save(run)


def _one_update(run: Run, epoch: Epoch, update: list[Rows], tokens: int, total: int) -> tuple[UpdateFigures, float]:
    world, config = run.world, run.job.train
    mine = [(i, collate(epoch, rows)) for i, rows in enumerate(update) if i % world.size == world.rank]
    rate = learning_rate(config, run.state.update, total)
    figures = train_step(
        run.model,
        run.optimizer,
        run.flat,
        run.averages,
        mine,
        config,
        update=run.state.update,
        target_tokens=tokens,
        rate=rate,
        world=world,
    )
    return figures, rate
