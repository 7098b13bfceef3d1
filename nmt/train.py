"""Stage 5: shards -> checkpoints: the stage, and the thin Ray Train carrier of the loop in `training/loop.py`.

    train-<key>/
    ├── best/                        the checkpoint that is translated with and published
    ├── checkpoints/update-<n>/      what a killed run continues from, bit for bit at the same number of workers on CPU
    ├── metrics.jsonl  tensorboard/  the record of the run
    └── manifest.json

The loop is the same in one process without Ray and in any number of Ray's workers.
Typical: 29,000 caption pairs, 20 epochs, 2 CPU cores: half an hour.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nmt.architectures import build_model
from nmt.batches import one_sided
from nmt.checkpoint import TrainState, load_config, load_model, training_checkpoints
from nmt.config import RECORD_KEYS, VECTOR_KEYS, ModelTable, RayConfig, TrainConfig, check_stopping
from nmt.model.flops import described, without_weights
from nmt.pretrained import COVERAGE_FILE, ROWS_FILE, prepare, read_coverage
from nmt.ray_session import ray_session
from nmt.training.job import TrainJob
from nmt.training.loop import train_loop
from nmt.training.metrics import METRICS_FILE, progress_logged
from nmt.training.run import open_epochs
from nmt.training.saver import best_folder
from nmt.training.step import World
from nmt.training.validation import describe_dev
from pipelines.config import AugmentConfig
from pipelines.files import sha256_of
from pipelines.shards import read_shards
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.tokenizer import Tokenizer

STAGE_VERSION = 2

log = logging.getLogger(__name__)


def train(
    model: ModelTable,
    config: TrainConfig,
    encoded: StageRun,
    cleaned: StageRun,
    tokenizer: StageRun,
    ray: RayConfig,
    root: Path,
    *,
    bleu_tokenize: str = "13a",
    use_ray: bool = True,
    augment: AugmentConfig | None = None,
    weights: Mapping[str, float] | None = None,
) -> StageRun:
    """Return the finished training stage, continuing from its newest checkpoint where a run was interrupted.

    `weights` has how often an epoch sees a row of a corpus, by its name; 1 where it is not named.
    A language model is trained on its side alone. Raises InputError when shards, checkpoint and tokeniser do not belong
    together, or as `Epochs` and `check_stopping` do.
    """
    check_stopping(model, config)
    augment = augment or AugmentConfig()
    weights = {name: weight for name, weight in (weights or {}).items() if weight != 1.0}
    inputs = {
        "encoded": encoded.manifest.digest(),
        "cleaned": cleaned.manifest.digest(),
        "tokenizer": tokenizer.manifest.digest(),
    } | {key: sha256_of(path) for key, path in model.vectors().items()}

    def body(folder: Path) -> StageResult:
        job = TrainJob(
            model=model,
            train=config,
            folder=str(folder),
            shards=str(encoded.folder / "shards"),
            references=str(cleaned.folder / "clean" / "dev"),
            tokenizer=str(tokenizer.folder),
            bleu_tokenize=bleu_tokenize,
            threads=ray.threads_per_worker,
            augment=augment,
            weights=weights,
        )
        num_rows, too_long = _check(job)
        _log_model(job)
        with progress_logged(folder / METRICS_FILE):
            if use_ray:
                _train_with_ray(job, ray)
            else:
                device = torch.device("cuda" if ray.use_gpu else "cpu")
                train_loop(job, World(0, 1, device))
        return _finished(job, num_rows, too_long, ray.num_workers if use_ray else 1)

    settings: dict[str, Any] = {
        # Where files of vectors lie decides nothing: what they hold is among the inputs.
        "model": model.model_dump(mode="json", exclude=set(VECTOR_KEYS)),
        "train": config.model_dump(mode="json", exclude=set(RECORD_KEYS)),
        "bleu_tokenize": bleu_tokenize,
    }
    # Only where they say something, so that a run without them keeps the key that it has always had.
    if augment.active:
        settings["augment"] = augment.model_dump(mode="json")
    if weights:
        settings["weights"] = weights
    return run_stage("train", STAGE_VERSION, settings, inputs, root, body, keeps_partial_output=True)


def _check(job: TrainJob) -> tuple[int, int]:
    """Return the rows to train on and those that are too long; raise what is the user's to mend before a start.

    Files of vectors are read here, once for all workers, where there is no checkpoint to continue from.
    """
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    shards = read_shards(Path(job.shards) / "train", tokenizer.digest)
    with open_epochs(job, shards) as epochs:
        num_rows = len(epochs.trainable)
    newest = training_checkpoints(Path(job.folder) / "checkpoints")[-1:]
    for checkpoint in newest:
        load_config(checkpoint, tokenizer=tokenizer.digest)
    if job.model.vectors() and not newest:
        prepare(job.model, tokenizer, shards, Path(job.folder))
    return num_rows, len(shards) - num_rows


def _log_model(job: TrainJob) -> None:
    """Log the number, names and shapes of the model's parameters, once for all workers."""
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    model = without_weights(lambda: build_model(job.model, tokenizer.source_size, tokenizer.target_size))
    log.info("%s: %s", job.model.architecture, described(model))


# The thin carrier


def _train_with_ray(job: TrainJob, config: RayConfig) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with ray_session(config, num_cpus=config.num_workers * config.threads_per_worker):
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config=job.model_dump(mode="json"),
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.use_gpu,
                resources_per_worker={"CPU": config.threads_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
            ),
            # A name of its own: Ray would silently take up an old run of the same name, where our checkpoints decide.
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(Path(job.folder) / "ray"),
                failure_config=FailureConfig(max_failures=config.max_failures),
            ),
        )
        trainer.fit()


def _ray_worker(job_json: dict[str, Any]) -> None:
    from ray.train import get_context
    from ray.train.torch import get_device

    context = get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    train_loop(TrainJob.model_validate(job_json), world)


# The end


def _finished(job: TrainJob, num_rows: int, too_long: int, num_workers: int) -> StageResult:
    folder = Path(job.folder)
    newest = training_checkpoints(folder / "checkpoints")[-1]
    state = TrainState.model_validate_json((newest / "state.json").read_text(encoding="utf-8"))
    if state.stopped is None:
        raise RuntimeError(f"training ended at update {state.update} without a reason to stop")
    best = folder / "best"
    if best.exists():
        shutil.rmtree(best)
    shutil.copytree(best_folder(job.checkpoints, state.best_update), best)
    shutil.rmtree(folder / "ray", ignore_errors=True)
    model, _ = load_model(best)
    counters = {
        "updates": state.update,
        "epochs": state.epoch,
        "best_update": state.best_update,
        **{f"best_{name}": state.best_dev[name] for name in ("bleu", "loss") if name in state.best_dev},
        "parameters": model.num_parameters(),
        "train_rows": num_rows,
        "rows_too_long": too_long,
        "target_tokens": state.target_tokens,
        "target_tokens_per_s": round(state.target_tokens / max(state.seconds, 1e-9), 1),
        "num_workers": num_workers,
        "stopped": state.stopped,
    }
    if (side := job.model.only_side()) is not None:
        dev = one_sided(read_shards(Path(job.shards) / "dev"), side)
        counters |= describe_dev(state.best_dev["loss"], dev, Path(job.references), side)
    if (folder / COVERAGE_FILE).exists():
        counters["embedding_coverage"] = {table: found.model_dump() for table, found in read_coverage(folder).items()}
        (folder / ROWS_FILE).unlink(missing_ok=True)
    return StageResult(["best/config.json", "best/model.safetensors", METRICS_FILE], counters)
