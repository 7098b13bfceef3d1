"""Stage 5: shards -> checkpoints. The loop stands in `training/loop.py`, what carries it under Ray in `carrier.py`.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmt.alignments import alignments_folder, guiding_inputs
from nmt.architectures import build_model
from nmt.carrier import ending_by_signals, train_under_ray
from nmt.checkpoint import load_config, load_model, read_state, save_model, training_checkpoints
from nmt.compilation import check_arithmetic
from nmt.config import (
    RECORD_KEYS,
    VECTOR_KEYS,
    ModelTable,
    PricesConfig,
    RayConfig,
    TrackingConfig,
    TrainConfig,
    check_beside,
    check_guidance,
    check_sharding,
    check_stopping,
)
from nmt.model.flops import described, without_weights
from nmt.pretrained import COVERAGE_FILE, ROWS_FILE, prepare, read_coverage
from nmt.ray_session import check_gpus, gpus_of_training
from nmt.training.averaging import averaging_counters, chosen
from nmt.training.beginnings import (
    START_KEY,
    begun_counters,
    check_beginnings,
    digests,
    log_frozen,
    record_start,
    resolved,
)
from nmt.training.epochs import RowCounts
from nmt.training.job import TrainJob
from nmt.training.lease import taken_by_run
from nmt.training.ledger import ledger
from nmt.training.loop import train_loop
from nmt.training.metrics import METRICS_FILE
from nmt.training.mixing import Curriculum
from nmt.training.process import own_device
from nmt.training.progress import progress_shown
from nmt.training.run import open_epochs
from nmt.training.saver import checked_newest
from nmt.training.step import World
from nmt.training.tracking import check_tracking
from nmt.training.validation import check_dev, describe_dev, dev_rows
from nmt.training.workers import num_workers
from pipelines.config import AugmentConfig
from pipelines.files import sha256_of
from pipelines.shards import read_parts
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.tokenizer import Tokenizer

STAGE_VERSION = 4

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
    curriculum: Curriculum | None = None,
    tracking: TrackingConfig | None = None,
    prices: PricesConfig | None = None,
    continue_from_earlier: bool = False,
    aligned: StageRun | None = None,
) -> StageRun:
    """Return the finished training stage, continuing from its newest checkpoint where a run was interrupted.

    `weights` has how often an epoch sees a row of a corpus, by its name; 1 where it is not named. `curriculum` has the
    first and the last epoch that a corpus takes part in; all where it is not named. `tracking` is where figures go
    beside the folder, `prices` are for the ledger.
    `continue_from_earlier` leaves out checkpoints that cannot be read, and continues from the newest that can.
    A language model is trained on its side alone. Raises Stopped when a signal has ended it, and InputError when
    shards, checkpoint and tokeniser do not belong together, or as `Epochs` and the checks of the config do.
    """
    check_stopping(model, config)
    check_guidance(model, config)
    check_beginnings(model, config)
    check_arithmetic(model, config, use_gpu=ray.use_gpu)
    config = resolved(config)
    if use_ray:
        check_beside(config, ray)
        check_sharding(model, config, ray)
    augment = augment or AugmentConfig()
    weights = {name: weight for name, weight in (weights or {}).items() if weight != 1.0}
    curriculum = {name: epochs for name, epochs in (curriculum or {}).items() if epochs != (1, None)}
    inputs = {
        "encoded": encoded.manifest.digest(),
        "cleaned": cleaned.manifest.digest(),
        "tokenizer": tokenizer.manifest.digest(),
    } | {key: sha256_of(path) for key, path in model.vectors().items()}
    inputs |= digests(config) | guiding_inputs(config, aligned)

    tracking, prices = tracking or TrackingConfig(), prices or PricesConfig()

    def body(folder: Path) -> StageResult:
        check_tracking(tracking)
        check_gpus(ray, gpus_of_training(ray, use_ray=use_ray))
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
            curriculum=curriculum,
            tracking=tracking,
            alignments=alignments_folder(config, aligned),
            lease=taken_by_run(folder).run,
            shard_model=use_ray and ray.shard_model,
        )
        rows = _check(job, continue_from_earlier=continue_from_earlier)
        if use_ray and ray.num_workers > config.microbatches_per_update:
            log.warning(
                "%d workers for %d micro-batches an update: the others have nothing to do; set "
                "train.microbatches_per_update to a multiple of ray.num_workers, with smaller train.microbatch_tokens",
                ray.num_workers,
                config.microbatches_per_update,
            )
        _log_model(job)
        with progress_shown(folder / METRICS_FILE):
            if use_ray:
                train_under_ray(job, ray)
            else:
                with ending_by_signals(job):
                    train_loop(job, World(0, 1, own_device(use_gpu=ray.use_gpu)))
        return _finished(job, rows, num_workers(folder), prices)

    settings: dict[str, Any] = {
        # Where files of vectors lie decides nothing: what they hold is among the inputs.
        "model": model.model_dump(mode="json", exclude=set(VECTOR_KEYS)),
        "train": config.model_dump(mode="json", exclude={*RECORD_KEYS, START_KEY}),
        "bleu_tokenize": bleu_tokenize,
    }
    # Only where they say something, so that a run without them keeps the key that it has always had.
    if augment.active:
        settings["augment"] = augment.model_dump(mode="json")
    if weights:
        settings["weights"] = weights
    if curriculum:
        settings["curriculum"] = {name: list(epochs) for name, epochs in curriculum.items()}
    return run_stage("train", STAGE_VERSION, settings, inputs, root, body, keeps_partial_output=True)


def _check(job: TrainJob, *, continue_from_earlier: bool) -> RowCounts:
    """Return the rows to train on and those that are too long; raise what is the user's to mend before a start.

    Files of vectors are read here, once for all workers, where there is no checkpoint to continue from.
    """
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    with open_epochs(job) as epochs:
        rows = epochs.counts()
    check_dev(job, tokenizer)
    newest = checked_newest(job.checkpoints, continue_from_earlier=continue_from_earlier)
    if newest is not None:
        load_config(newest, tokenizer=tokenizer.digest)
    if job.model.vectors() and newest is None:
        prepare(job.model, tokenizer, read_parts(Path(job.shards) / "train"), Path(job.folder))
    return rows


def _log_model(job: TrainJob) -> None:
    """Log the number, names and shapes of the model's parameters, once for all workers."""
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    model = without_weights(lambda: build_model(job.model, tokenizer.source_size, tokenizer.target_size))
    log.info("%s: %s", job.model.architecture, described(model))
    log_frozen(model, job.train.freeze)
    if job.train.start_from is not None and not training_checkpoints(job.checkpoints):
        record_start(model, tokenizer, Path(job.train.start_from), Path(job.folder))


# The end


def _finished(job: TrainJob, rows: RowCounts, num_workers: int, prices: PricesConfig) -> StageResult:
    folder = Path(job.folder)
    state = read_state(training_checkpoints(job.checkpoints)[-1])
    if state.stopped is None:
        raise RuntimeError(f"training ended at update {state.update} without a reason to stop")
    if state.best_metric is None:
        raise RuntimeError(f"none of the validations up to update {state.update} had a finite score")
    source, dev = chosen(job.checkpoints, job.train, state)
    model, found = load_model(source)
    save_model(folder / "best", model, found.model_copy(update={"dev": dev}))
    shutil.rmtree(folder / "ray", ignore_errors=True)
    counters: dict[str, Any] = {
        "updates": state.update,
        "epochs": state.epoch,
        "best_update": state.best_update,
        **{f"best_{name}": dev[name] for name in ("bleu", "chrf", "loss") if name in dev},
        **averaging_counters(job.train, state),
        "parameters": model.num_parameters(),
        "train_rows": rows.trainable,
        "rows_too_long": rows.too_long,
        **({} if rows.exact else {"train_rows_estimated": True}),
        "target_tokens": state.target_tokens,
        "target_tokens_per_s": round(state.target_tokens / max(state.seconds, 1e-9), 1),
        "num_workers": num_workers,
        "checkpoint_seconds": state.spent.get("checkpoints", 0.0),
        "stopped": state.stopped,
    }
    if (side := job.model.only_side()) is not None:
        scored = dev_rows(Path(job.shards), side)
        counters |= describe_dev(dev["loss"], scored, Path(job.references), side)
    if (folder / COVERAGE_FILE).exists():
        counters["embedding_coverage"] = {table: found.model_dump() for table, found in read_coverage(folder).items()}
        (folder / ROWS_FILE).unlink(missing_ok=True)
    counters |= begun_counters(model, job.train, folder)
    counters["ledger"] = ledger(folder, state, prices)
    return StageResult(["best/config.json", "best/model.safetensors", METRICS_FILE], counters)
