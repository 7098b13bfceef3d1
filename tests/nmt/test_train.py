"""The loop and its carrier: learning, any number of workers, and continuing after SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nmt.checkpoint import training_checkpoints
from nmt.config import ModelConfig, TrainConfig
from nmt.metrics import read_metrics
from nmt.train import train
from pipelines.errors import InputError
from pipelines.stage import StageRun, read_manifest
from tests.nmt.conftest import ToyStages

MODEL = ModelConfig(embedding_dim=16, hidden_dim=24, dropout=0.1)
CONFIG = TrainConfig(
    max_epochs=14, patience=14, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.01, warmup_updates=4,
    ema_decay=0.9, checkpoint_updates=3, log_updates=2,
)  # fmt: skip


def run_train(toy: ToyStages, root: Path, *, workers: int | None = None, config: TrainConfig = CONFIG) -> StageRun:
    """Train on the toy stages: under Ray with that many workers, or in this process for None."""
    ray = toy.ray.model_copy(update={"num_workers": workers or 1})
    return train(MODEL, config, toy.encoded, toy.cleaned, toy.tokenizer, ray, root, use_ray=workers is not None)


def final_weights(run: StageRun) -> dict[str, torch.Tensor]:
    newest = training_checkpoints(run.folder / "checkpoints")[-1]
    return load_file(newest / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("undisturbed"))


def test_training_lowers_the_dev_loss_and_keeps_the_best_checkpoint(undisturbed: StageRun) -> None:
    records = [r for r in read_metrics(undisturbed.folder / "metrics.jsonl") if r["kind"] == "validation"]
    losses = [record["loss"] for record in records]
    assert len(losses) == CONFIG.max_epochs
    assert losses[-1] < losses[0]
    best = max(records, key=lambda record: record["bleu"])
    counters = undisturbed.manifest.counters
    assert counters["best_update"] == best["update"]
    config = json.loads((undisturbed.folder / "best" / "config.json").read_text(encoding="utf-8"))
    assert config["update"] == best["update"]
    assert config["dev"]["bleu"] == best["bleu"]
    assert counters["stopped"] == "max_epochs"
    assert counters["train_rows"] == 240


def test_tensorboard_is_written(undisturbed: StageRun) -> None:
    assert list((undisturbed.folder / "tensorboard").glob("events.out.tfevents.*"))


def test_early_stopping_ends_after_patience_validations_without_a_better_one(toy: ToyStages, tmp_path: Path) -> None:
    # A learning rate that changes nothing: no later validation can be better than the first.
    config = CONFIG.model_copy(update={"learning_rate": 1e-30, "patience": 2})
    counters = run_train(toy, tmp_path, config=config).manifest.counters
    assert counters["stopped"] == "patience"
    assert counters["epochs"] == 3


@pytest.fixture(scope="module")
def undisturbed_pair(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("pair"), workers=2)


def assert_same_updates(found: StageRun, expected: StageRun) -> None:
    weights = final_weights(found)
    assert weights.keys() == final_weights(expected).keys()
    for name, tensor in final_weights(expected).items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


def test_one_ray_worker_computes_what_one_process_without_ray_does(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    found = final_weights(run_train(toy, tmp_path, workers=1))
    assert all(torch.equal(found[name], tensor) for name, tensor in final_weights(undisturbed).items())


def test_two_workers_compute_the_same_updates(undisturbed: StageRun, undisturbed_pair: StageRun) -> None:
    assert_same_updates(undisturbed_pair, undisturbed)
    assert undisturbed_pair.manifest.counters["num_workers"] == 2


def test_three_workers_compute_the_same_updates(toy: ToyStages, undisturbed: StageRun, tmp_path: Path) -> None:
    assert_same_updates(run_train(toy, tmp_path, workers=3), undisturbed)


_DRIVER = """
import sys
from pathlib import Path
from tests.nmt.test_train import CONFIG, run_train
from tests.nmt.conftest import ToyStages
from nmt.config import RayConfig
from pipelines.stage import StageRun, read_manifest
folders = [Path(f) for f in sys.argv[2:5]]
runs = [StageRun(f, read_manifest(f), True) for f in folders]
ray = RayConfig(object_store_memory_bytes=80 * 2**20)
run_train(ToyStages(*runs, ray), Path(sys.argv[1]), workers=int(sys.argv[5]) or None)
"""


def _start(toy: ToyStages, root: Path, workers: int) -> subprocess.Popen[bytes]:
    folders = [str(run.folder) for run in (toy.cleaned, toy.tokenizer, toy.encoded)]
    command = [sys.executable, "-c", _DRIVER, str(root), *folders, str(workers)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for_checkpoint(root: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(root.glob("train-*/checkpoints/update-*")):
            return
        time.sleep(0.01)
    pytest.fail("no checkpoint within two minutes")


def assert_bit_for_bit(found: StageRun, expected: StageRun) -> None:
    weights = final_weights(found)
    assert all(torch.equal(weights[name], tensor) for name, tensor in final_weights(expected).items())

    def updates(run: StageRun) -> list[tuple[str, int]]:
        return [(record["kind"], record["update"]) for record in read_metrics(run.folder / "metrics.jsonl")]

    assert updates(found) == updates(expected)


@pytest.mark.parametrize("workers", [None, 2])
def test_a_run_killed_whole_continues_to_the_same_weights_bit_for_bit(
    toy: ToyStages, undisturbed: StageRun, undisturbed_pair: StageRun, tmp_path: Path, workers: int | None
) -> None:
    process = _start(toy, tmp_path, workers or 0)
    _wait_for_checkpoint(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("train-*/manifest.json")), "the run ended before it could be killed"
    assert_bit_for_bit(run_train(toy, tmp_path, workers=workers), undisturbed_pair if workers else undisturbed)


def _train_workers(ancestor: int) -> list[int]:
    """Return the processes of Ray Train's workers that descend from a process."""
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

    return sorted(process for process, name in names.items() if b"RayTrainWorker" in name and descends(process))


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same_bit_for_bit(
    toy: ToyStages, undisturbed_pair: StageRun, tmp_path: Path
) -> None:
    process = _start(toy, tmp_path, 2)
    _wait_for_checkpoint(tmp_path)
    workers = _train_workers(process.pid)
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(timeout=180) == 0
    folder = next(tmp_path.glob("train-*"))
    manifest = read_manifest(folder)
    assert manifest is not None
    assert_bit_for_bit(StageRun(folder, manifest, reused=False), undisturbed_pair)
    # Each start of the worker that writes opens a file of its own: there was a second start.
    assert len(list((folder / "tensorboard").glob("events.out.tfevents.*"))) == 2


def test_shards_of_another_tokeniser_are_refused(toy: ToyStages, tmp_path: Path) -> None:
    from pipelines.config import TokenizerConfig
    from pipelines.fit_tokenizer import fit_tokenizer
    from tests.nmt.conftest import LANGUAGES

    other = fit_tokenizer(LANGUAGES, TokenizerConfig(vocab_size=44), toy.cleaned, tmp_path)
    with pytest.raises(InputError, match="tokeniser"):
        train(MODEL, CONFIG, toy.encoded, toy.cleaned, other, toy.ray, tmp_path, use_ray=False)


def test_a_corpus_of_which_every_row_is_too_long_is_refused(toy: ToyStages, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_pieces"):
        run_train(toy, tmp_path, config=CONFIG.model_copy(update={"max_pieces": 2}))
