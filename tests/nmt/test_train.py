"""The loop and its carrier: learning, any number of workers, and continuing within an epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nmt.checkpoint import TrainState, training_checkpoints
from nmt.ray_session import ray_session
from nmt.train import train
from nmt.training.epochs import Epochs
from nmt.training.metrics import read_metrics
from pipelines.config import AugmentConfig, BeamConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.stage import StageRun
from tests.nmt.conftest import LANGUAGES, ToyStages
from tests.nmt.toy_runs import (
    CONFIG,
    MODEL,
    assert_bit_for_bit,
    assert_same_updates,
    broken_off_at,
    final_weights,
    recorded_losses,
    run_train,
)


@pytest.fixture(scope="module", autouse=True)
def one_ray(toy: ToyStages) -> Iterator[None]:
    """Have one Ray for all runs of this module: it takes longer to start than they do to train."""
    with ray_session(toy.ray, num_cpus=4):
        yield


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
    assert "train_rows_estimated" not in counters


def test_tensorboard_is_written(undisturbed: StageRun) -> None:
    assert list((undisturbed.folder / "tensorboard").glob("events.out.tfevents.*"))


def test_early_stopping_ends_after_patience_validations_without_a_better_one(toy: ToyStages, tmp_path: Path) -> None:
    # A learning rate that changes nothing: no later validation can be better than the first.
    config = CONFIG.model_copy(update={"learning_rate": 1e-30, "patience": 2})
    counters = run_train(toy, tmp_path, config=config).manifest.counters
    assert counters["stopped"] == "patience"
    assert counters["epochs"] == 3


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_the_clock_asks_for_checkpoints_too(toy: ToyStages, tmp_path: Path, workers: int | None) -> None:
    clock = {"checkpoint_updates": None, "checkpoint_minutes": 1e-9, "keep_checkpoints": 100, "max_epochs": 2}
    run = run_train(toy, tmp_path, workers=workers, config=CONFIG.model_copy(update=clock))
    updates = run.manifest.counters["updates"]
    found = [path.name for path in training_checkpoints(run.folder / "checkpoints")]
    assert found == [f"update-{update:08d}" for update in range(1, updates + 1)]
    assert 0.0 < run.manifest.counters["checkpoint_seconds"] < run.manifest.seconds
    records = [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "train"]
    assert all(0.0 < record["checkpoint"] < 1.0 for record in records[1:])


@pytest.fixture(scope="module")
def undisturbed_pair(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("pair"), workers=2)


def test_one_ray_worker_computes_what_one_process_without_ray_does(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    found = final_weights(run_train(toy, tmp_path, workers=1))
    assert all(torch.equal(found[name], tensor) for name, tensor in final_weights(undisturbed).items())


def test_two_workers_compute_the_same_updates(undisturbed: StageRun, undisturbed_pair: StageRun) -> None:
    assert_same_updates(undisturbed_pair, undisturbed)
    assert recorded_losses(undisturbed_pair) == pytest.approx(recorded_losses(undisturbed), rel=1e-5)
    assert undisturbed_pair.manifest.counters["num_workers"] == 2


@pytest.mark.parametrize("workers", [3, 4])
def test_more_workers_compute_the_same_updates(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path, workers: int
) -> None:
    found = run_train(toy, tmp_path, workers=workers)
    assert_same_updates(found, undisturbed)
    assert recorded_losses(found) == pytest.approx(recorded_losses(undisturbed), rel=1e-5)


# Augmentation, sampled pieces and weights: what rows become is decided on each worker by itself.

AUGMENT = AugmentConfig.model_validate(
    {
        "upper_case": 0.2, "title_case": 0.1, "typos": 0.2, "merge": 0.2, "noise_words": 0.2, "noise_rows": 0.1,
        "tags": [{"tag": "<toy>", "corpora": ["toy-train"], "rate": 0.5}], "sampling": {"source": 0.4, "target": 0.4},
    }
)  # fmt: skip
WEIGHTS = {"toy-train": 0.8}
CHANGING = CONFIG.model_copy(update={"max_epochs": 3, "checkpoint_updates": 2})


@pytest.fixture(scope="module")
def texted(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> ToyStages:
    """The toy stages with a tokeniser that knows all that augmentation may write, and with text in the shards."""
    root = tmp_path_factory.mktemp("texted")
    config = TokenizerConfig(vocab_size=305, byte_fallback=True, symbols=("<toy>",))
    tokenizer = fit_tokenizer(LANGUAGES, config, toy.cleaned, root)
    shards = ShardConfig(rows_per_shard=100)
    encoded = encode(shards, toy.cleaned, tokenizer, BeamConfig(), root, with_text=True)
    return ToyStages(toy.cleaned, tokenizer, encoded, toy.ray)


def train_augmented(texted: ToyStages, root: Path, *, workers: int | None = None) -> StageRun:
    ray = texted.ray.model_copy(update={"num_workers": workers or 1})
    return train(
        MODEL, CHANGING, texted.encoded, texted.cleaned, texted.tokenizer, ray, root,
        use_ray=workers is not None, augment=AUGMENT, weights=WEIGHTS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def augmented(texted: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return train_augmented(texted, tmp_path_factory.mktemp("augmented"))


def test_augmentation_and_weights_make_the_rows_of_each_epoch(augmented: StageRun, texted: ToyStages) -> None:
    records = [r for r in read_metrics(augmented.folder / "metrics.jsonl") if r["kind"] == "train"]
    found = {record["epoch"]: (record["epoch_rows"], record["augmented_rows"]) for record in records}
    folder = texted.encoded.folder / "shards" / "train"
    with Epochs(CHANGING, AUGMENT, WEIGHTS, folder, texted.tokenizer.folder) as epochs:
        prepared = [epochs.window(number) for number in range(3)]
    assert found == {number: (len(epoch.rows), len(epoch.made)) for number, epoch in enumerate(prepared)}
    assert all(rows < 240 + 40 and made > rows / 2 for rows, made in found.values())
    counters = augmented.manifest.counters
    assert counters["updates"] == sum(len(epoch.updates) for epoch in prepared)
    assert counters["target_tokens"] == sum(int(epoch.tgt_lengths[epoch.rows].sum()) for epoch in prepared)
    assert records[0]["total_updates"] == 3 * len(prepared[0].updates)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_workers_computes_the_same_updates_of_changed_rows(
    texted: ToyStages, augmented: StageRun, tmp_path: Path, workers: int
) -> None:
    found = train_augmented(texted, tmp_path, workers=workers)
    assert_same_updates(found, augmented)
    assert found.manifest.counters["target_tokens"] == augmented.manifest.counters["target_tokens"]


def test_a_run_of_changed_rows_that_broke_off_within_an_epoch_continues_bit_for_bit(
    texted: ToyStages, augmented: StageRun, tmp_path: Path
) -> None:
    first_epoch = next(
        record["update"]
        for record in read_metrics(augmented.folder / "metrics.jsonl")
        if record["kind"] == "validation"
    )
    with broken_off_at(first_epoch + 3):
        train_augmented(texted, tmp_path)
    checkpoint = training_checkpoints(next(tmp_path.glob("train-*")) / "checkpoints")[-1]
    state = TrainState.model_validate_json((checkpoint / "state.json").read_text(encoding="utf-8"))
    assert (state.epoch, state.updates_of_epoch > 0) == (1, True)
    assert_bit_for_bit(train_augmented(texted, tmp_path), augmented)


def test_the_key_names_augmentation_and_weights_only_where_there_are_any(
    augmented: StageRun, undisturbed: StageRun
) -> None:
    assert set(undisturbed.manifest.config) == {"model", "train", "bleu_tokenize"}
    assert augmented.manifest.config["weights"] == WEIGHTS
    assert augmented.manifest.config["augment"] == AUGMENT.model_dump(mode="json")


def test_a_failure_that_each_start_would_repeat_ends_the_run(toy: ToyStages, tmp_path: Path) -> None:
    # The weights are beyond float32 after the first update.
    config = CONFIG.model_copy(update={"learning_rate": 1e38, "warmup_updates": 0, "max_skipped_updates": 2})
    once_more = replace(toy, ray=toy.ray.model_copy(update={"max_failures": 1}))
    with pytest.raises(FloatingPointError, match="of 2 updates in a row was not finite"):
        run_train(once_more, tmp_path, workers=2, config=config)
    (failed,) = tmp_path.glob("train-*/failed-batch/*")
    assert sorted(path.name for path in failed.glob("*.json")) == ["worker-0.json", "worker-1.json"]
    (attempts,) = tmp_path.glob("train-*/attempts.jsonl")
    assert len(attempts.read_text().splitlines()) == 1


def test_shards_of_another_tokeniser_are_refused(toy: ToyStages, tmp_path: Path) -> None:
    other = fit_tokenizer(LANGUAGES, TokenizerConfig(vocab_size=44), toy.cleaned, tmp_path)
    with pytest.raises(InputError, match="tokeniser"):
        train(MODEL, CONFIG, toy.encoded, toy.cleaned, other, toy.ray, tmp_path, use_ray=False)


def test_a_corpus_of_which_every_row_is_too_long_is_refused(toy: ToyStages, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_pieces"):
        run_train(toy, tmp_path, config=CONFIG.model_copy(update={"max_pieces": 2}))
