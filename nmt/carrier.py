"""Training under Ray: the workers of Ray Train carry the loop, and are started again until it has come to its end.

Ray Train replaces workers that fail, and with `min_workers` goes on with fewer. Here stands what it leaves to others:
its controller's death, workers that leave because their machine is to go, a change of their number, before which they
save, and failures that each start would only repeat. Each start continues from the newest checkpoint, so that none of
it changes an update.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nmt.checkpoint import TrainState, read_state, training_checkpoints
from nmt.config import RayConfig
from nmt.loopback import loopback_config, loopback_variables
from nmt.ray_session import is_on_the_loopback, ray_session
from nmt.training.background import beside_block
from nmt.training.beside import reserved
from nmt.training.job import TrainJob
from nmt.training.lease import LeaseLost
from nmt.training.loop import train_loop
from nmt.training.step import World
from nmt.training.stopping import Stopped, StopRequest, ask_to_leave, leave_at_sigterm, stopped_by_signals
from nmt.training.worker_log import log_told, log_written
from nmt.training.workers import read_workers, workers_logged
from pipelines.errors import InputError
from pipelines.stage import write_atomically

# Ray waits so long for the places of all workers (60 s unless told), before it looks again how many there are.
ELASTIC_START_TIMEOUT_S = 20
RESIZE_EVERY_S = 30.0  # how often it looks whether there is place for another number of workers
WAITING_TOLD_EVERY_S = 30.0
_LEAVE_TIMEOUT_S = 120.0  # for the checkpoint before a change of their number

log = logging.getLogger(__name__)


def train_under_ray(job: TrainJob, config: RayConfig) -> None:
    """Train to the end under Ray. Raises Stopped when a signal has asked for it, and what a worker has failed with.

    `max_failures` in a row are made good, of the controller as of the workers: those behind a new checkpoint begin a
    new row.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    if config.min_workers is not None:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ELASTIC_START_TIMEOUT_S))
    failures, is_callers = 0, ray.is_initialized()
    for told in Path(job.folder).glob("failed-*.json"):  # by earlier runs
        told.unlink()
    with workers_logged(Path(job.folder)), log_told(Path(job.folder)):
        while (state := newest_state(job)) is None or state.stopped is None:
            begun_at = _saved_update(state)
            try:
                _session(job, config)
            except (RayActorError, TrainingFailedError) as error:
                has_died, went_on = isinstance(error, RayActorError), _saved_update(newest_state(job)) > begun_at
                failures = 1 if went_on else failures + 1
                # Of its workers a session has made `max_failures` good by itself.
                is_enough = failures > config.max_failures or not (has_died or went_on)
                if is_enough or is_callers:  # whose Ray is not ours to start again
                    raise
                what = "Ray Train's controller died" if has_died else "workers died more than ray.max_failures times"
                log.warning("%s; training is started again from the newest checkpoint", what)


def _saved_update(state: TrainState | None) -> int:
    return 0 if state is None else state.update


def newest_state(job: TrainJob) -> TrainState | None:
    """Return the state of the newest checkpoint; None where there is none."""
    newest = training_checkpoints(job.checkpoints)[-1:]
    return read_state(newest[0]) if newest else None


@contextlib.contextmanager
def ending_by_signals(job: TrainJob, has_begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Let signals end the training of a `with` block: behind it Stopped is raised, unless training came to its end.

    Before it `has_begun` a signal ends the block at once. Where the block fails after a signal, that is what ended it,
    too.
    """
    with stopped_by_signals(Path(job.folder), has_begun) as request:
        try:
            yield
        except Exception:
            _raise_stopped(job, request)
            raise
        _raise_stopped(job, request)


def _raise_stopped(job: TrainJob, request: StopRequest) -> None:
    state = newest_state(job)
    if state is None or state.stopped is None:
        request.raise_stopped(_saved_update(state))


def _session(job: TrainJob, config: RayConfig) -> None:
    """Train in a session of Ray of its own, which takes everything with it that a dead controller has left."""
    num_cpus = (config.num_workers + config.validation_workers) * config.threads_per_worker
    folder = Path(job.folder)
    starts = len(read_workers(folder))

    def has_begun() -> bool:
        return len(read_workers(folder)) > starts

    try:
        # Ray's own handlers, which it sets as it starts, are replaced: they would end training without a checkpoint.
        with (
            ray_session(config, num_cpus=num_cpus),
            ending_by_signals(job, has_begun),
            waiting_told(config, has_begun),
            reserved(config) as beside,
        ):
            _in_thread(lambda: _fit(job.model_copy(update={"beside": beside}), config))
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        raise Stopped("stopped by SIGTERM while Ray started; the same command continues", signal.SIGTERM) from ended


@contextlib.contextmanager
def waiting_told(config: RayConfig, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Log every 30 s of a `with` block what the workers wait for and what there is, until training `has_begun`.

    It is a warning where there is not enough. Ray waits for their places as long as it takes: a cluster may grow.
    """
    import ray

    def tell(done: threading.Event) -> None:
        while not done.wait(WAITING_TOLD_EVERY_S) and not has_begun():
            number, each = config.min_workers or config.num_workers, config.worker_resources()
            there = {name: ray.cluster_resources().get(name, 0.0) for name in each}
            log.log(
                logging.WARNING if any(there[name] < number * each[name] for name in each) else logging.INFO,
                "training has not begun: %d workers need %s each, and all of Ray has %s, some of it perhaps in use",
                number,
                _resources_line(each),
                _resources_line(there),
            )

    with beside_block("waiting", tell):
        yield


def _resources_line(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{number:g} {name}" for name, number in resources.items())


def _in_thread(work: Callable[[], None]) -> None:
    """Do some work in a thread, so that signals come to the main one; raise what the work raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run, name="training", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _fit(job: TrainJob, config: RayConfig) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    num_workers = config.num_workers if config.min_workers is None else (config.min_workers, config.num_workers)
    threads = str(config.threads_per_worker)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    torch_config = None
    if is_on_the_loopback():
        torch_config = loopback_config()
        variables |= loopback_variables()
    trainer = TorchTrainer(
        _worker,
        torch_config=torch_config,
        train_loop_config=job.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker=config.worker_resources(),
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        # A name of its own: Ray would silently take up an old run of the same name, where our checkpoints decide.
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(Path(job.folder) / "ray"),
            failure_config=FailureConfig(max_failures=config.max_failures),
            callbacks=[_leaving_callback()],
            worker_runtime_env={"env_vars": variables},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if (cause := _cause(error)) is not None:
            raise cause from error
        raise


def _worker(job_json: dict[str, Any]) -> None:
    from ray.train import get_context
    from ray.train.torch import get_device

    context, job = get_context(), TrainJob.model_validate(job_json)
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    with failing_for_good(job), log_written(Path(job.folder)) if world.rank == 0 else contextlib.nullcontext():
        train_loop(job, world, _machine_is_to_go)


@contextlib.contextmanager
def failing_for_good(job: TrainJob) -> Iterator[None]:
    """Let a failure that comes again with each start end the run: later starts raise it at once.

    Ray Train starts workers again whatever they have raised, and knows no way to be told.
    """
    told = Path(job.folder) / f"failed-{job.lease}.json"
    if told.exists():
        raise _read_failure(told)
    try:
        yield
    except (InputError, FloatingPointError) as error:
        # By whoever is first: of a failure that only one worker has, the others see no more than a broken connection.
        write_atomically(told, json.dumps(_described(error)) + "\n")
        raise


def _described(error: InputError | FloatingPointError) -> dict[str, str]:
    if isinstance(error, InputError):
        return {"what": error.what, "where": error.where, "remedy": error.remedy}
    return {"message": str(error)}


def _read_failure(path: Path) -> InputError | FloatingPointError:
    found = json.loads(path.read_text(encoding="utf-8"))
    if "message" in found:
        return FloatingPointError(found["message"])
    return InputError(found["what"], where=found["where"], remedy=found["remedy"])


def _machine_is_to_go() -> bool:
    """Return whether a machine that a worker runs on is being drained, which Ray tells all of them."""
    # The public function is a barrier of all workers; each looks at what it has been told by itself.
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def _leaving_callback() -> Any:
    """Return what lets workers take notice of SIGTERM, and has them save before Ray changes their number."""
    import ray
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.controller.state import ResizingState

    class Leaving(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
        _group: Any = None

        def after_worker_group_start(self, worker_group: Any) -> None:
            self._group = worker_group
            worker_group.execute(leave_at_sigterm)  # in the main thread of each

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if not isinstance(current_state, ResizingState):
                return
            deadline = time.monotonic() + _LEAVE_TIMEOUT_S
            try:
                self._group.execute(ask_to_leave)
                while time.monotonic() < deadline and any(self._group.execute(_is_training)):
                    time.sleep(0.2)
            except ray.exceptions.RayActorError:
                # A worker has died meanwhile: the change that follows starts all of them from the newest checkpoint.
                logging.getLogger("ray.train").warning("a worker died before the number of workers was changed")

    return Leaving()


def _is_training() -> bool:
    from ray.train.v2._internal.execution.context import get_train_context

    running: bool = get_train_context().execution_context.training_thread_runner.is_running()
    return running


def _cause(error: Any) -> Exception | None:
    """Return what a person can mend, or what says that nothing is to be mended, among what the workers raised."""
    failures = getattr(error, "worker_failures", {}).values()
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]
    return next(
        (cause for cause in causes if isinstance(cause, (InputError, FloatingPointError, LeaseLost, OSError))), None
    )
