"""The checkpoints of a run: copied at once, written in the background, removed when newer ones are there.

Training waits while the tensors are copied into buffers of the host's memory, which are used again each time. A thread
writes the copies. At most one checkpoint of each kind is on its way: what comes next waits for it. The worker of rank 0
writes; it holds the lease of the folder whenever it renames or removes (`nmt/training/lease.py`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from nmt.checkpoint import (
    CONFIG_JSON,
    STATE_JSON,
    CheckpointConfig,
    Content,
    TrainState,
    clear_left_over,
    model_content,
    place_checkpoint,
    read_state,
    remove_checkpoint,
    training_checkpoints,
    training_content,
    training_folder,
    verify_checkpoint,
    write_checkpoint,
    write_tables,
)
from nmt.training.lease import Lease
from pipelines.errors import InputError

if TYPE_CHECKING:
    from nmt.model.seq2seq import Seq2Seq
    from nmt.training.run import Run

log = logging.getLogger(__name__)


class HostCopies:
    """Copies of tensors in the host's memory, in buffers that are made at the first time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def take(self, content: Content) -> tuple[Content, Callable[[], None]]:
        """Return the content as it is now, and what waits until its tensors are there.

        From a GPU they are on their way when this returns: work that it is given later comes after them.
        """
        tensors = {
            file: {name: self._copied((file, name), tensor) for name, tensor in named.items()}
            for file, named in content.tensors.items()
        }
        devices = {tensor.device for named in content.tensors.values() for tensor in named.values() if tensor.is_cuda}
        events = [torch.cuda.current_stream(device).record_event() for device in devices]

        def wait() -> None:
            for event in events:
                event.synchronize()

        return Content(tensors, dict(content.tables)), wait

    def _copied(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(tensor, non_blocking=True)


class Saver:
    """Writes the checkpoints of a run in a thread of its own, in the order in which they are given.

    An error of the thread is raised by the next call, or at the end of the `with` block, which waits for all of it.
    """

    def __init__(self, folder: Path, keep: int, lease: Lease | None = None) -> None:
        self._folder, self._keep = folder, keep
        self._placing = nullcontext if lease is None else lease.held
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._copies: dict[str, HostCopies] = {}
        self._writing: dict[str, Future[None]] = {}
        with self._placing():
            clear_left_over(self._folder)

    def save(self, state: TrainState, content: Content) -> None:
        """Copy what training continues from at `state`, and have it written."""
        self._copy_and_write("training", training_folder(self._folder, state.update), content, self._remove_old)

    def restate(self, state: TrainState, config: CheckpointConfig) -> None:
        """Have the checkpoint that was saved last, of the same update, written with another state: no tensor is."""
        before, folder = self._writing["training"], training_folder(self._folder, state.update)

        def write() -> None:
            before.result()  # there is one thread: it is written, or has failed
            write_tables(folder, {CONFIG_JSON: config, STATE_JSON: state}, self._placing)
            self._remove_old()

        self._writing["training"] = self._thread.submit(write)

    def save_model(self, folder: Path, content: Content, then: Callable[[], None] = lambda: None) -> None:
        """Copy a model, and have it written to a folder, before what is saved after it; then have `then` called."""
        self._copy_and_write("model", folder, content, then)

    def rename_model(self, folder: Path, to: Path) -> None:
        """Have a model's folder renamed, where it is there, in place of an old one; in its order among the others."""
        if (renaming := self._writing.get("rename")) is not None:
            renaming.result()

        def rename() -> None:
            with self._placing():
                if folder.exists():
                    place_checkpoint(folder, to)

        self._writing["rename"] = self._thread.submit(rename)

    @property
    def idle(self) -> bool:
        """Return whether all that was given is written, or has failed."""
        return all(writing.done() for writing in self._writing.values())

    def wait(self) -> None:
        """Wait until all that was given is written, and raise what went wrong."""
        for writing in self._writing.values():
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        for writing in self._writing.values():
            writing.result()

    def _copy_and_write(self, kind: str, path: Path, content: Content, then: Callable[[], None]) -> None:
        self._wait_for(kind)
        copy, arrived = self._copies.setdefault(kind, HostCopies()).take(content)

        def write() -> None:
            arrived()
            write_checkpoint(path, copy, self._placing)
            then()

        self._writing[kind] = self._thread.submit(write)

    def _wait_for(self, kind: str) -> None:
        """Wait for the last writing of a kind, whose buffers are to be used again; raise any error that is known."""
        for other, writing in self._writing.items():
            if other == kind or writing.done():
                writing.result()

    def _remove_old(self) -> None:
        """Keep the newest checkpoints, and the models that any of them names.

        Training is ahead of what is written: models of the newest update and later ones are not looked at.
        """
        with self._placing():
            checkpoints = training_checkpoints(self._folder)
            for old in checkpoints[: -self._keep]:
                remove_checkpoint(old)
            states = [read_state(checkpoint) for checkpoint in checkpoints[-self._keep :]]
            named = {update for state in states for update in named_updates(state)}
            for model in [*self._folder.glob("best-*"), *self._folder.glob("validate-*")]:
                update = int(model.name.partition("-")[2])
                if update < states[-1].update and update not in named:
                    remove_checkpoint(model)


def checked_newest(checkpoints: Path, *, continue_from_earlier: bool) -> Path | None:
    """Return the newest checkpoint, which holds what was written, as do the models that it names; None where none is.

    One that does not is an InputError, or with `continue_from_earlier` gets another name, so that an earlier one is the
    newest. Where no earlier one is left, that is an InputError too.
    The caller has the lease of the folder: what a writer that was killed has left is put in order first.
    """
    clear_left_over(checkpoints)
    found = training_checkpoints(checkpoints)
    for checkpoint in reversed(found):
        try:
            verify_checkpoint(checkpoint)
            for update in named_updates(read_state(checkpoint)):
                _verify_model(checkpoints, update)
            return checkpoint
        except InputError as error:
            if checkpoint == found[0]:
                remedy = f"There is no earlier one: bring it back from a copy, or remove {checkpoints} to train anew"
                raise InputError(error.what, where=error.where, remedy=remedy) from error
            if not continue_from_earlier:
                raise
            log.warning("left out: %s", error)
            checkpoint.rename(checkpoint.with_name(f"unreadable-{uuid.uuid4().hex[:8]}-{checkpoint.name}"))
    return None


def _verify_model(checkpoints: Path, update: int) -> None:
    folders = [checkpoints / f"{kind}-{update:08d}" for kind in ("best", "validate")]
    there = [folder for folder in folders if folder.exists()]
    if not there:
        raise InputError(
            f"the model of update {update}, which the checkpoint names, is missing",
            where=str(folders[0]),
            remedy="Train with --continue-from-earlier to go on from the checkpoint before it",
        )
    for folder in there:
        verify_checkpoint(folder)


def save(run: Run) -> None:
    """Have what training continues from written, and keep the newest `keep_checkpoints`, and the best models.

    All workers call it at the same updates; it is the one of rank 0 that writes. At an update that was saved before a
    validation it is the state alone that is written again.
    """
    held = (run.optimizer, run.averages, run.checkpoint_config(), run.state)
    if run.state.update != run.saved_update:
        content = None if run.sharding is None else run.sharding.training_content(*held)  # by all workers
        if run.saver is not None:
            run.saver.save(run.state, content or training_content(run.model, *held))
    elif run.saver is not None:
        run.saver.restate(run.state, run.checkpoint_config())
    run.saved_at, run.saved_update = time.monotonic(), run.state.update


def is_due(run: Run) -> bool:
    """Return whether the clock asks for a checkpoint: that of the worker of rank 0 counts, and tells the others."""
    minutes = run.job.train.checkpoint_minutes
    return run.saver is not None and minutes is not None and time.monotonic() - run.saved_at >= 60.0 * minutes


def save_best(run: Run, model: Seq2Seq) -> None:
    """Have the weights of `model` written as the model of this update, where translations were the best."""
    if run.saver is not None:
        folder = best_folder(run.job.checkpoints, run.state.update)
        run.saver.save_model(folder, model_content(model, run.checkpoint_config()))


def best_folder(checkpoints: Path, update: int) -> Path:
    """Return where the model of an update lies that was the best when it was validated."""
    return checkpoints / f"best-{update:08d}"


def asked_folder(checkpoints: Path, update: int) -> Path:
    """Return where the model of an update lies that is to be scored beside training."""
    return checkpoints / f"validate-{update:08d}"


def named_updates(state: TrainState) -> set[int]:
    """Return the updates whose models a state needs: the best ones, and those whose scores are still to come."""
    best = {update for update, _ in state.best_models} | ({state.best_update} - {0})
    return best | {update for update, _ in state.pending_validations}
