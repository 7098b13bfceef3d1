"""Validation beside training: Ray tasks score the weights of an update while training goes on.

The training worker of rank 0 writes the weights into a folder and asks for their scores; it holds the tasks, so
that they end with it, and asks again when it is started again. Their places are a placement group that the launcher
reserves.

Ray Train has a validation beside training of its own (`ValidationConfig`, alpha in Ray 2.60), which does not fit: it
goes on without scores where a validation fails, hands them to no worker unasked, runs one at a time, and remembers what
is open in its own copy of the checkpoints, beside which ours would be a second truth.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nmt.checkpoint import load_model
from nmt.config import RayConfig
from nmt.training.job import BesideConfig, TrainJob
from nmt.training.process import own_device, set_up_process
from nmt.training.saver import asked_folder, best_folder
from nmt.training.step import World
from nmt.training.validation import Scores, read_dev, score_model
from pipelines.errors import InputError
from pipelines.tokenizer import Tokenizer

_PLACES_TIMEOUT_S = 600.0  # an autoscaler may have to start a machine

log = logging.getLogger(__name__)


def weights_folder(checkpoints: Path, update: int) -> Path:
    """Return where the weights of a validation lie that is open: in a run that was killed they may be a best model's.

    Raises InputError where they are gone.
    """
    folders = [asked_folder(checkpoints, update), best_folder(checkpoints, update)]
    for folder in folders:
        if folder.exists():
            return folder
    raise InputError(
        "the weights of a validation that is still to be done are gone",
        where=str(folders[0]),
        remedy="Remove the newest folder update-* beside it to continue from the checkpoint before",
    )


class RayValidations:
    """The validations that the training worker of rank 0 has asked for."""

    def __init__(self, job: TrainJob, beside: BesideConfig) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._job, self._ray = job, ray
        self._task = ray.remote(_score).options(
            num_cpus=job.threads,
            num_gpus=1 if beside.use_gpu else 0,
            max_retries=beside.max_retries,  # of a process or a node that is lost; an error is one at once
            scheduling_strategy=PlacementGroupSchedulingStrategy(ray.util.get_placement_group(beside.places)),
        )
        self._asked: dict[int, Any] = {}

    def ask(self, update: int) -> None:
        """Have the weights of an update scored. Raises InputError where they are gone."""
        self._asked[update] = self._begun(weights_folder(self._job.checkpoints, update))

    def score(self, folder: Path) -> Scores:
        """Return the scores of the model in a folder, having waited for them."""
        scores: Scores = self._ray.get(self._begun(folder))
        return scores

    def finished(self, updates: Sequence[int], seconds: float) -> list[Scores]:
        """Return the scores of the first of these updates, as many as are there, having waited so long for one.

        Raises what a validation has raised.
        """
        found: list[Scores] = []
        for update in updates:
            reference = self._asked.get(update)  # None: its weights are still being written
            if reference is None or not self._ray.wait([reference], timeout=0.0 if found else seconds)[0]:
                break
            found.append(self._ray.get(reference))
            del self._asked[update]
        return found

    def _begun(self, folder: Path) -> Any:
        return self._task.remote(self._job.model_dump(mode="json"), str(folder))

    def close(self) -> None:
        """Give up what is still open: its scores decide nothing any more."""
        for reference in self._asked.values():
            self._ray.cancel(reference, force=True)
        self._asked = {}


@contextlib.contextmanager
def reserved(config: RayConfig) -> Iterator[BesideConfig | None]:
    """Reserve the places of validation beside training in the Ray that is connected; None where none is asked for.

    Raises InputError when the cluster has not had them for ten minutes.
    """
    if not config.validation_workers:
        yield None
        return
    import ray

    place = config.worker_resources()
    name = f"validation-{uuid.uuid4().hex}"
    places = ray.util.placement_group([place] * config.validation_workers, strategy="PACK", name=name)
    try:
        if not places.wait(_PLACES_TIMEOUT_S):
            raise InputError(
                f"the cluster has no place for {config.validation_workers} validation workers of {place}",
                where="ray.validation_workers",
                remedy="Lower it, or give the cluster as much beside the training workers",
            )
        yield BesideConfig(
            workers=config.validation_workers, places=name, use_gpu=config.use_gpu, max_retries=config.max_failures
        )
    finally:
        ray.util.remove_placement_group(places)


def _score(job_json: dict[str, Any], folder: str) -> Scores:
    job = TrainJob.model_validate(job_json)
    device = own_device(use_gpu=job.beside is not None and job.beside.use_gpu)
    set_up_process(job, device)
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    model, _ = load_model(Path(folder), tokenizer=tokenizer.digest)
    dev, references = read_dev(job, tokenizer)
    return score_model(model.to(device), dev, references, tokenizer, job, World(0, 1, device))
