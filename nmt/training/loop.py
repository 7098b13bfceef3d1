"""The loop over updates: the same in one process without Ray and in any number of Ray's workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmt.batches import MicroBatch, Rows, collate, target_tokens
from nmt.training.ahead import Ahead
from nmt.training.epochs import Epochs, Window
from nmt.training.gradients import Flags
from nmt.training.job import TrainJob
from nmt.training.ledger import attempt
from nmt.training.memory import RowTooLarge
from nmt.training.probe import idle_microbatch, probe
from nmt.training.process import set_up_process
from nmt.training.record import Record
from nmt.training.run import Run, open_epochs, start
from nmt.training.saver import is_due, save
from nmt.training.schedules import learning_rate
from nmt.training.skipped import counted, failure, log_split, save_batch
from nmt.training.step import UpdateFigures, World, train_step
from nmt.training.validator import settle, waits


def train_loop(job: TrainJob, world: World, leaving: Callable[[], bool] | None = None) -> None:
    """Train as one worker of `world`, from the newest checkpoint or from the start, until a limit or early stopping.

    Where any worker asks for it, all save and return behind the same update, within an epoch too: by a signal, by the
    file of a stop request, or where `leaving` says so, which is asked about once a second.
    With more than one worker torch.distributed must be set up. The worker of rank 0 writes.
    Raises FloatingPointError when `max_skipped_updates` in a row had a loss or gradient that is not finite, and what
    `in_parts` raises where memory does not do.
    """
    started = time.time()
    set_up_process(job, world.device)
    run = start(job, world, leaving)
    try:
        with attempt(run, started), run.saver or nullcontext(), open_epochs(job) as epochs:
            planned = run.state.total_updates or epochs.total_updates()
            run.state = run.state.model_copy(update={"total_updates": planned})
            record = Record(run.world, job.train.microbatches_per_update, run.state.spent, run.state.unrecorded)
            total = min(planned, job.train.max_updates or planned)
            _Training(run, epochs, record, total, time.monotonic() - run.state.seconds).go_on()
    finally:
        if run.beside is not None:
            run.beside.close()
        if run.metrics is not None:
            run.metrics.close(finished=run.state.stopped is not None)


@dataclass
class _Training:
    """A worker's way through the updates. Schedules count on `total`; an unbroken run would have begun at `started`."""

    run: Run
    epochs: Epochs
    record: Record
    total: int
    started: float

    def go_on(self) -> None:
        """Train until the run has stopped, or all workers leave."""
        before = self.run.state
        settle(self.run)  # a validation that a run was killed before
        if self.run.state is not before:
            save(self.run)
        # Where the model is dealt out a trial would be one of all workers, and nothing is computed in parts.
        untried = self.run.world.device.type == "cuda" and self.run.sharding is None
        while self.run.state.stopped is None:
            with self.record.spending("data"):
                window = self.epochs.window(self.run.state.epoch, self.run.state.window)
            if untried:
                self._probe()
                untried = False
            if not self._train_on(window):
                return
            self._close(window)

    def _probe(self) -> None:
        run = self.run
        probe(run.model, run.flat, run.optimizer, run.job.train, run.world.device, self.epochs.longest())

    def _train_on(self, window: Window) -> bool:
        """Do the updates of a window that are left; return whether training goes on, which it does not if all leave."""
        run = self.run
        updates = window.updates[run.state.updates_of_window :]
        with Ahead(partial(_collated, run, window), updates) as ahead:
            for update, mine in zip(updates, ahead):
                if run.state.update == run.job.train.max_updates:
                    break
                self.record.spend("data", ahead.waited)
                self._update(window, update, mine)
                flags = run.flat.raised()
                if flags.leave:  # a validation that is due now is the first thing that is done when training continues
                    self._save()
                    return False
                self._settle()
                if run.state.stopped is not None:
                    break
                every = run.job.train.checkpoint_updates
                if flags.save or (every is not None and run.state.update % every == 0):
                    self._save()
        return True

    def _update(self, window: Window, update: list[Rows], mine: list[tuple[int, MicroBatch]]) -> None:
        """Do one update, count it in the state, and write a line of the record where one is due."""
        run, tokens = self.run, target_tokens(update, window.tgt_lengths)
        run.flat.asked = Flags(save=is_due(run), leave=run.leaving.asks())
        figures, rate = _one_update(run, window, update, mine, tokens, self.total)
        run.state = run.state.model_copy(
            update={
                "update": run.state.update + 1,
                "updates_of_epoch": run.state.updates_of_epoch + 1,
                "updates_of_window": run.state.updates_of_window + 1,
                "target_tokens": run.state.target_tokens + tokens,
                **self._times(),
            }
        )
        self.record.add(window, update, tokens, figures, run.flat.clock)
        if run.state.update % run.job.train.log_updates == 0:
            line = self.record.line(run.state, rate, self.total, window)  # by all workers: they tell each other theirs
            if run.metrics is not None:
                run.metrics.write(line)

    def _close(self, window: Window) -> None:
        """Move on to the next window, or behind an epoch's last one, and wherever training stops, validate and save."""
        run, config = self.run, self.run.job.train
        ended = run.state.updates_of_window == len(window.updates)
        if ended and not window.last and run.state.stopped is None:
            run.state = run.state.model_copy(update={"window": run.state.window + 1, "updates_of_window": 0})
            if config.checkpoint_updates is None and config.checkpoint_minutes is None:  # else an epoch would have none
                self._save()
            return
        if ended and window.last:
            begun = {"epoch": run.state.epoch + 1, "updates_of_epoch": 0, "window": 0, "updates_of_window": 0}
            run.state = run.state.model_copy(update=begun)
        self._settle()
        self._save()

    def _settle(self) -> None:
        """Do what is due of validations. Where training waits for it, what is learned is saved before."""
        if waits(self.run):
            self._save()
        with self.record.spending("validation"):
            settle(self.run)

    def _save(self) -> None:
        with self.record.spending("checkpoints"):
            unrecorded = self.record.unrecorded()
            self.run.state = self.run.state.model_copy(update={**self._times(), "unrecorded": unrecorded})
            save(self.run)

    def _times(self) -> dict[str, Any]:
        return {"seconds": round(time.monotonic() - self.started, 3), "spent": dict(self.record.spent)}


def _collated(run: Run, window: Window, update: list[Rows]) -> list[tuple[int, MicroBatch]]:
    """Return this worker's micro-batches of an update, with their numbers; with alignments where there are any.

    Where the model is dealt out an idle one fills the place that a worker has none for.
    """
    world, alignments = run.world, run.alignments
    mine = [(i, rows) for i, rows in enumerate(update) if i % world.size == world.rank]
    batches = [(i, collate(window, rows)) for i, rows in mine]
    if alignments is not None:
        batches = [(i, alignments.aligned(batch, window, rows)) for (i, batch), (_, rows) in zip(batches, mine)]
    if run.sharding is not None and len(mine) * world.size < len(update):
        batches.append((len(update), idle_microbatch(run.job.train, has_source=run.model.config.has_source)))
    return batches


def _one_update(
    run: Run, window: Window, update: list[Rows], mine: list[tuple[int, MicroBatch]], tokens: int, total: int
) -> tuple[UpdateFigures, float]:
    world, config, before = run.world, run.job.train, run.state
    rate = learning_rate(
        config,
        before.update,
        total,
        embedding_dim=run.job.model.embedding_dim,
        epoch=before.epoch,
        plateau_rate=before.plateau_rate,
    )
    try:
        figures = train_step(
            run.model,
            run.optimizer,
            run.flat,
            run.averages,
            mine,
            config,
            update=before.update,
            target_tokens=tokens,
            rate=rate,
            world=world,
            loss_scale=before.loss_scale,
            compute=None if run.sharding is None else run.sharding.objective,
        )
    except RowTooLarge as error:
        row = update[mine[error.place][0]][error.row]
        lengths = f"{window.src_lengths[row]} source and {window.tgt_lengths[row]} target pieces"
        name = f"row {_row_ids(window, [row])[0]} ({lengths})"
        raise RowTooLarge(error.place, error.row, name) from error
    run.state = counted(before, config, figures)
    if world.rank == 0:
        log_split(before, run.state)
    if run.state.skipped_in_a_row == config.max_skipped_updates and figures.skipped:
        planned = [(number, batch) for number, batch in mine if number < len(update)]  # all but an idle one
        row_ids = [_row_ids(window, update[number]) for number, _ in planned]
        where = save_batch(Path(run.job.folder), world.rank, config, before, figures, planned, row_ids)
        raise failure(config, before, figures, where)
    return figures, rate


def _row_ids(window: Window, rows: npt.ArrayLike) -> Rows:
    row_ids: Rows = np.concatenate([window.shards.row_id, window.made.row_id])[np.asarray(rows)]
    return row_ids
