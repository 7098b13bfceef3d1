"""Stage 5: shards -> checkpoints. The loop, and the thin Ray Train carrier beside it.

    train-<key>/
    ├── best/                        the checkpoint that is translated with and published
    ├── checkpoints/update-<n>/      what a killed run continues from, bit for bit at the same number of workers on CPU
    ├── metrics.jsonl  tensorboard/  the record of the run
    └── manifest.json

The loop is the same in one process without Ray and in any number of Ray's workers: see `batches.py` and `step.py`.
Typical: 29,000 caption pairs, 20 epochs, 2 CPU cores: half an hour.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from nmt.allocation import keep_freed_memory
from nmt.architectures import ModelConfig, build_model
from nmt.batches import Rows, collate, one_sided, target_tokens
from nmt.checkpoint import (
    CheckpointConfig,
    TrainState,
    load_config,
    load_model,
    load_training,
    save_model,
    save_training,
    training_checkpoints,
)
from nmt.config import VECTOR_KEYS, ModelTable, RayConfig, TrainConfig, check_stopping
from nmt.epochs import Epoch, Epochs
from nmt.evaluate import corpus_bleu
from nmt.metrics import METRICS_FILE, MetricsWriter, progress_logged
from nmt.model.batch_norm import collectors
from nmt.model.flops import described, without_weights
from nmt.model.seq2seq import Seq2Seq
from nmt.optim import Averages, learning_rate, make_optimizer, trained_parameters
from nmt.pretrained import COVERAGE_FILE, ROWS_FILE, begin_with_vectors, prepare, read_coverage
from nmt.ray_session import ray_session
from nmt.step import FlatGradients, UpdateFigures, World, train_step
from nmt.validation import describe_dev, score_rows
from pipelines.config import AugmentConfig
from pipelines.files import sha256_of
from pipelines.shards import ShardColumns, read_shards
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.tokenizer import Tokenizer

STAGE_VERSION = 1
_NUM_SAMPLES = 3

log = logging.getLogger(__name__)


class TrainJob(BaseModel):
    """What crosses the border to a worker: configs and folders, JSON values only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    train: TrainConfig
    folder: str
    shards: str
    references: str
    tokenizer: str
    bleu_tokenize: str
    threads: int
    augment: AugmentConfig
    weights: dict[str, float]


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
        "train": config.model_dump(mode="json"),
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
    with _epochs(job, shards) as epochs:
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


def _epochs(job: TrainJob, shards: ShardColumns) -> Epochs:
    folder, tokenizer = Path(job.shards) / "train", Path(job.tokenizer)
    side = job.model.only_side()
    return Epochs(job.train, job.augment, job.weights, folder, shards, tokenizer, helpers=job.threads, side=side)


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


# The loop


@dataclass
class _Run:
    """All that a worker holds while it trains."""

    job: TrainJob
    world: World
    tokenizer: Tokenizer
    train: ShardColumns
    dev: ShardColumns
    references: list[str]
    model: Seq2Seq
    optimizer: torch.optim.Optimizer
    flat: FlatGradients
    averages: Averages | None
    state: TrainState
    metrics: MetricsWriter | None

    @property
    def checkpoints(self) -> Path:
        return Path(self.job.folder) / "checkpoints"


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
    run = _start(job, world)
    with _epochs(job, run.train) as epochs:
        _train(run, epochs)
    if run.metrics is not None:
        run.metrics.close()


def _train(run: _Run, epochs: Epochs) -> None:
    config, started = run.job.train, time.monotonic() - run.state.seconds
    total = epochs.total_updates()
    total = min(total, config.max_updates or total)
    window = _Window()

    while run.state.stopped is None:
        epoch = epochs.epoch(run.state.epoch)
        window.restart()
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
            window.add(epoch, update, tokens, figures)
            if run.state.update % config.log_updates == 0:
                _write(run, window.record(run.state, rate, total, epoch))
            if run.state.update % config.checkpoint_updates == 0:
                _save(run)
        ended = run.state.updates_of_epoch == len(epoch.updates)
        out_of_updates = run.state.update == config.max_updates
        last = out_of_updates or run.state.epoch + 1 == config.max_epochs
        if last or (run.state.epoch + 1) % config.validate_epochs == 0:
            _validate(run)
        changes: dict[str, Any] = {"seconds": round(time.monotonic() - started, 3)}
        if ended:
            changes |= {"epoch": run.state.epoch + 1, "updates_of_epoch": 0}
        if run.state.validations_since_best >= config.patience:
            changes["stopped"] = "patience"
        elif last:
            changes["stopped"] = "max_updates" if out_of_updates else "max_epochs"
        run.state = run.state.model_copy(update=changes)
        _save(run)


def _start(job: TrainJob, world: World) -> _Run:
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    folder, shards = Path(job.folder), Path(job.shards)
    model = build_model(job.model, tokenizer.source_size, tokenizer.target_size, seed=job.train.seed)
    newest = training_checkpoints(folder / "checkpoints")[-1:]
    if job.model.vectors() and not newest:
        begin_with_vectors(model, folder)
    trained = trained_parameters(model.to(world.device))
    optimizer = make_optimizer(job.train, trained)
    averages = Averages(trained, job.train.ema_decay) if job.train.ema_decay > 0.0 else None
    state = TrainState()
    for checkpoint in newest:
        state = load_training(checkpoint, model, optimizer, averages, tokenizer.digest)
        log.info("continuing from %s", checkpoint)
    dev = one_sided(read_shards(shards / "dev", tokenizer.digest), job.model.only_side())
    # Only the checkpoint behind a validation is at the start of an epoch, or the last.
    validated = state.updates_of_epoch == 0 or state.stopped is not None
    return _Run(
        job=job,
        world=world,
        tokenizer=tokenizer,
        train=read_shards(shards / "train", tokenizer.digest),
        dev=dev,
        references=_references(Path(job.references), dev) if job.model.has_source else [],
        model=model,
        optimizer=optimizer,
        flat=FlatGradients(trained, collectors(model)),
        averages=averages,
        state=state,
        metrics=MetricsWriter(folder, state.update, validated=validated) if world.rank == 0 else None,
    )


def _references(folder: Path, dev: ShardColumns) -> list[str]:
    tables = [pq.read_table(path, columns=["row_id", "tgt_raw"]) for path in sorted(folder.glob("part-*.parquet"))]
    row_ids = np.concatenate([table["row_id"].to_numpy() for table in tables])
    if not np.array_equal(row_ids, dev.row_id):
        raise RuntimeError(f"the rows of {folder} are not those of the dev shards")
    return [text for table in tables for text in table["tgt_raw"].to_pylist()]


def _one_update(run: _Run, epoch: Epoch, update: list[Rows], tokens: int, total: int) -> tuple[UpdateFigures, float]:
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


class _Window:
    """The figures since the last line of metrics."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.started = time.monotonic()
        self.loss = 0.0
        self.tokens = self.padded = self.real = self.updates = 0
        self.gradient_norm = 0.0

    def add(self, epoch: Epoch, update: list[Rows], tokens: int, figures: UpdateFigures) -> None:
        self.loss += figures.loss * tokens
        self.tokens += tokens
        self.updates += 1
        self.gradient_norm = figures.gradient_norm
        for rows in update:
            src, tgt = epoch.src_lengths[rows], epoch.tgt_lengths[rows]
            self.real += int(src.sum() + tgt.sum())
            self.padded += len(rows) * int(src.max() + tgt.max())

    def record(self, state: TrainState, rate: float, total: int, epoch: Epoch) -> dict[str, Any]:
        record = {
            "kind": "train",
            "update": state.update,
            "epoch": state.epoch,
            "loss": self.loss / self.tokens,
            "learning_rate": rate,
            "gradient_norm": self.gradient_norm,
            "target_tokens_per_s": self.tokens / (time.monotonic() - self.started),
            "target_tokens_per_update": self.tokens / self.updates,
            "padding": 1.0 - self.real / self.padded,
            "total_updates": total,
            "epoch_rows": len(epoch.rows),
            "augmented_rows": len(epoch.made),
            "seconds": state.seconds,
        }
        self.restart()
        return record


def _write(run: _Run, record: dict[str, Any]) -> None:
    if run.metrics is not None:
        run.metrics.write(record)


def _checkpoint_config(run: _Run) -> CheckpointConfig:
    return CheckpointConfig(
        model=run.job.model.without_vectors(),
        source_size=run.tokenizer.source_size,
        target_size=run.tokenizer.target_size,
        tokenizer=run.tokenizer.digest,
        update=run.state.update,
        dev=run.state.best_dev if run.state.best_update == run.state.update else {},
    )


def _save(run: _Run) -> None:
    if run.world.rank != 0:
        return
    for left_over in run.checkpoints.glob(".tmp-*"):  # of a worker that was killed while it wrote
        shutil.rmtree(left_over)
    save_training(run.checkpoints, run.model, run.optimizer, run.averages, _checkpoint_config(run), run.state)
    for old in training_checkpoints(run.checkpoints)[: -run.job.train.keep_checkpoints]:
        shutil.rmtree(old)
    for old in run.checkpoints.glob("best-*"):
        if old != _best_folder(run.checkpoints, run.state.best_update):
            shutil.rmtree(old)


def _best_folder(checkpoints: Path, update: int) -> Path:
    return checkpoints / f"best-{update:08d}"


# Validation


def _validate(run: _Run) -> None:
    """Score the (averaged) weights on dev by loss and by BLEU of real translations; keep them if they are the best.

    Of a language model there is the loss alone.
    """
    started = time.monotonic()
    with _averaged(run):
        loss, translations = score_rows(run.model, run.dev, run.tokenizer, run.job.train, run.world)
        bleu = {}
        if run.model.config.has_source:
            bleu = {"bleu": corpus_bleu(translations, run.references, run.job.bleu_tokenize)}
        dev = {"loss": loss, **bleu}
        metric = dev["bleu"] if run.job.train.early_stopping_metric == "bleu" else -loss
        best = run.state.best_metric is None or metric > run.state.best_metric
        if best:
            run.state = run.state.model_copy(
                update={
                    "best_update": run.state.update,
                    "best_metric": metric,
                    "best_dev": dev,
                    "validations_since_best": 0,
                }
            )
            if run.world.rank == 0:
                save_model(_best_folder(run.checkpoints, run.state.update), run.model, _checkpoint_config(run))
        else:
            since = run.state.validations_since_best + 1
            run.state = run.state.model_copy(update={"validations_since_best": since})
    spread = np.linspace(0, len(translations) - 1, num=min(_NUM_SAMPLES, len(translations))).astype(int)
    sources = [run.dev.src[run.dev.src_offsets[i] : run.dev.src_offsets[i + 1]].tolist() for i in spread]
    record = {
        "kind": "validation",
        "update": run.state.update,
        "epoch": run.state.epoch,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        **bleu,
        "best": best,
        "seconds": round(time.monotonic() - started, 3),
        "samples": [
            {"source": source, "reference": run.references[i], "hypothesis": translations[i]}
            for source, i in zip(run.tokenizer.decode_source(sources), spread)
        ],
    }
    _write(run, record)


@contextlib.contextmanager
def _averaged(run: _Run) -> Iterator[None]:
    if run.averages is None:
        yield
        return
    run.averages.swap()
    try:
        yield
    finally:
        run.averages.swap()


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
    shutil.copytree(_best_folder(folder / "checkpoints", state.best_update), best)
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
