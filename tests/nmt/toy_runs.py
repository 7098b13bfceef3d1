"""Training of the toy stages: run in this process or in one that can be killed, and held against another run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nmt.checkpoint import load_config, read_state, training_checkpoints
from nmt.config import RayConfig, TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.train import train
from nmt.training.metrics import read_metrics
from nmt.training.step import UpdateFigures, train_step
from pipelines.stage import StageRun, read_manifest
from tests.nmt.conftest import ToyStages

MODEL = RecurrentConfig(embedding_dim=16, hidden_dim=24, dropout=0.1)
CONFIG = TrainConfig(
    max_epochs=14, patience=14, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.004, warmup_updates=4,
    ema_decay=0.9, checkpoint_updates=3, log_updates=2,
)  # fmt: skip
PATIENCE_S = 300  # of tests that wait for another process: the machine may have much else to do

_DRIVER = """
import sys
from pathlib import Path
from nmt.config import RayConfig, TrainConfig
from nmt.training.stopping import Stopped
from pipelines.stage import StageRun, read_manifest
from tests.nmt.conftest import ToyStages
from tests.nmt.toy_runs import run_train
root, config, ray, no_ray = sys.argv[1:5]
runs = [StageRun(Path(f), read_manifest(Path(f)), True) for f in sys.argv[5:8]]
{before}
toy = ToyStages(*runs, RayConfig.model_validate_json(ray))
workers = None if no_ray == "True" else toy.ray.num_workers
try:
    run_train(toy, Path(root), workers=workers, config=TrainConfig.model_validate_json(config))
except Stopped as stopped:
    print(stopped)
    sys.exit(stopped.status)
"""


def run_train(
    toy: ToyStages,
    root: Path,
    *,
    workers: int | None = None,
    config: TrainConfig = CONFIG,
    continue_from_earlier: bool = False,
) -> StageRun:
    """Train on the toy stages: under Ray with that many workers, or in this process for None."""
    ray = toy.ray.model_copy(update={"num_workers": workers or 1})
    return train(
        MODEL, config, toy.encoded, toy.cleaned, toy.tokenizer, ray, root,
        use_ray=workers is not None, continue_from_earlier=continue_from_earlier,
    )  # fmt: skip


@contextlib.contextmanager
def broken_off_at(update: int) -> Iterator[None]:
    """Have what trains in a `with` block fail at an update, as it has to."""

    def failing(*arguments: Any, **options: Any) -> UpdateFigures:
        if options["update"] == update:
            raise RuntimeError("the machine is gone")
        return train_step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="the machine is gone"):
        patch.setattr("nmt.training.loop.train_step", failing)
        yield


class Driver:
    """`run_train` in a process of its own, which leads a group; `before` is Python that it runs first."""

    def __init__(
        self,
        toy: ToyStages,
        root: Path,
        *,
        workers: int | None = None,
        config: TrainConfig = CONFIG,
        ray: RayConfig | None = None,
        before: str = "",
    ) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        ray = ray or toy.ray.model_copy(update={"num_workers": workers or 1})
        folders = [str(run.folder) for run in (toy.cleaned, toy.tokenizer, toy.encoded)]
        arguments = [str(root), config.model_dump_json(), ray.model_dump_json(), str(workers is None), *folders]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER.format(before=before), *arguments],
            start_new_session=True, stdout=(root / "stdout").open("w"), stderr=(root / "stderr").open("w"),
        )  # fmt: skip

    def said(self) -> str:
        """Return what it has written to its standard output and error."""
        return (self.root / "stdout").read_text() + (self.root / "stderr").read_text()

    @property
    def folder(self) -> Path:
        """The stage's folder; it is there once training has begun."""
        return next(self.root.glob("train-*"))

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so, while the process lives."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, "the run ended too early"
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
            time.sleep(0.005)

    def until_checkpoint(self) -> None:
        """Wait until there is a checkpoint of training."""
        self.until(lambda: any(self.root.glob("train-*/checkpoints/update-*")))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        os.kill(self.process.pid, number)

    def kill_group(self) -> None:
        """Kill the process and all of its group, Ray included."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> int:
        """Return the exit status."""
        return self.process.wait(timeout=PATIENCE_S)

    def finished(self) -> StageRun:
        """Return the stage, when the process has ended well."""
        assert self.wait() == 0
        manifest = read_manifest(self.folder)
        assert manifest is not None
        return StageRun(self.folder, manifest, reused=False)

    def processes(self, name: str) -> list[int]:
        """Return the processes of Ray's actors of a class that descend from this one."""
        return descendants(self.process.pid, name)


def descendants(ancestor: int, name: str) -> list[int]:
    """Return the processes with a name in their command line that descend from a process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process that has just ended
            stat = (folder / "stat").read_text()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes()

    def descends(process: int) -> bool:
        while process in parents and process != ancestor:
            process = parents[process]
        return process == ancestor

    return sorted(process for process, found in names.items() if name.encode() in found and descends(process))


def final_weights(run: StageRun) -> dict[str, torch.Tensor]:
    """Return the weights that a run ended with, not those of its best model."""
    newest = training_checkpoints(run.folder / "checkpoints")[-1]
    return load_file(newest / "model.safetensors")


def assert_same_updates(found: StageRun, expected: StageRun) -> None:
    """Hold a run's weights against another's, of another number of workers: the same but for rounding in float32."""
    weights = final_weights(found)
    assert weights.keys() == final_weights(expected).keys()
    for name, tensor in final_weights(expected).items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


def assert_bit_for_bit(found: StageRun, expected: StageRun) -> None:
    """Hold all that a run has learned and recorded against a run that nothing disturbed, of as many workers.

    Not what time has measured.
    """
    folders = [training_checkpoints(run.folder / "checkpoints")[-1] for run in (found, expected)]
    for one, other in (folders, [run.folder / "best" for run in (found, expected)]):
        files = sorted(path.name for path in other.glob("*.safetensors"))
        assert sorted(path.name for path in one.glob("*.safetensors")) == files
        for file in files:
            tensors, expected_tensors = load_file(one / file), load_file(other / file)
            assert tensors.keys() == expected_tensors.keys()
            assert all(torch.equal(tensors[name], tensor) for name, tensor in expected_tensors.items()), file
        assert load_config(one) == load_config(other)
    states = [read_state(folder).model_dump(exclude={"seconds", "spent"}) for folder in folders]
    assert states[0] == states[1]
    assert untimed_records(found) == untimed_records(expected)


def untimed_records(run: StageRun) -> list[dict[str, Any]]:
    """Return the record of a run in its order, without what time has measured."""
    of_updates = ("kind", "update", "epoch", "learning_rate", "total_updates", "epoch_rows", "skipped_updates")
    of_update = (*of_updates, "loss", "perplexity", "gradient_norm", "padding")
    timed = ("time", "seconds", "loss_seconds", "search_seconds")
    return [
        {name: value for name, value in record.items() if name not in timed}
        if record["kind"] == "validation"
        else {name: record[name] for name in of_update}
        for record in read_metrics(run.folder / "metrics.jsonl")
    ]


def recorded_losses(run: StageRun) -> list[float]:
    """Return the loss of each line of training."""
    return [record["loss"] for record in read_metrics(run.folder / "metrics.jsonl") if record["kind"] == "train"]
