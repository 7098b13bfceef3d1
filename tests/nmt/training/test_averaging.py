"""The mean of the best checkpoints: against numpy in float64, and what a run publishes of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nmt.architectures import build_model
from nmt.checkpoint import CheckpointConfig, TrainState, load_model, read_state, save_model, training_checkpoints
from nmt.config import TrainConfig
from nmt.model.batch_norm import BatchNorm
from nmt.model.recurrent_config import RecurrentConfig
from nmt.train import train
from nmt.training import averaging
from nmt.training.averaging import averaging_counters, chosen, mean_model
from nmt.training.metrics import read_metrics
from nmt.training.saver import best_folder
from nmt.training.step import World
from nmt.training.validation import read_dev, score_rows
from pipelines.stage import StageRun
from pipelines.tokenizer import Tokenizer
from tests.nmt.conftest import ToyStages
from tests.nmt.training.test_validation import job_of

MODEL = RecurrentConfig(embedding_dim=12, hidden_dim=16, dropout=0.1, batch_norm=True, attention="none")
TRAIN = TrainConfig(
    max_epochs=6, patience=20, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.004, warmup_updates=4,
    checkpoint_updates=3, log_updates=2, early_stopping_metric="loss", average_checkpoints=3, keep_checkpoints=1,
)  # fmt: skip


def run_train(toy: ToyStages, root: Path, **changes: Any) -> StageRun:
    config = TrainConfig.model_validate(TRAIN.model_dump() | changes)
    return train(MODEL, config, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, root, use_ray=False)


def state_of(run: StageRun) -> TrainState:
    return read_state(training_checkpoints(run.folder / "checkpoints")[-1])


def test_the_mean_is_that_of_numpy_running_statistics_and_tied_weights_too(tmp_path: Path) -> None:
    config = CheckpointConfig(model=MODEL, source_size=20, target_size=20, tokenizer="t", update=0)
    folders = [tmp_path / name for name in "abc"]
    stored = []
    for seed, folder in enumerate(folders):
        model = build_model(MODEL, 20, 20, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.state_dict().values():
            tensor.copy_(1e4 + torch.randn(tensor.shape, generator=generator))
        save_model(folder, model, config)
        stored.append(load_file(folder / "model.safetensors"))
    mean = mean_model(folders)
    found = mean.state_dict()
    assert any(isinstance(module, BatchNorm) for module in mean.modules())
    assert any(name.endswith("running_var") for name in stored[0])
    for name in stored[0]:
        expected = np.mean([weights[name].double().numpy() for weights in stored], axis=0).astype(np.float32)
        np.testing.assert_array_equal(found[name].numpy(), expected)
    assert mean.source_embedding.table.weight is mean.target_embedding.table.weight


@pytest.fixture(scope="module")
def averaged(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("averaged"))


def test_the_n_best_models_are_kept_and_no_other(averaged: StageRun) -> None:
    validations = [r for r in read_metrics(averaged.folder / "metrics.jsonl") if r["kind"] == "validation"]
    assert len(validations) == 6
    best = sorted(validations, key=lambda record: record["loss"])[:3]
    assert state_of(averaged).best_models == tuple((record["update"], -record["loss"]) for record in best)
    kept = {folder.name for folder in (averaged.folder / "checkpoints").glob("best-*")}
    assert kept == {f"best-{record['update']:08d}" for record in best}


def test_the_mean_is_scored_on_dev_and_the_better_one_published(averaged: StageRun, toy: ToyStages) -> None:
    checkpoints, state = averaged.folder / "checkpoints", state_of(averaged)
    updates = sorted(update for update, _ in state.best_models)
    mean = mean_model([best_folder(checkpoints, update) for update in updates])
    tokenizer = Tokenizer.load(toy.tokenizer.folder)
    dev, _ = read_dev(job_of(toy, averaged.folder), tokenizer)
    loss = score_rows(mean, dev, tokenizer, TRAIN, World()).loss
    counters = averaged.manifest.counters
    assert counters["averaging"]["updates"] == updates
    assert counters["averaging"]["mean"]["loss"] == loss
    assert counters["averaging"]["best"]["loss"] == -max(metric for _, metric in state.best_models)
    published = load_model(averaged.folder / "best")[0].state_dict()
    single = load_model(best_folder(checkpoints, state.best_update))[0].state_dict()
    is_mean = loss < counters["averaging"]["best"]["loss"]
    assert counters["averaging"]["published"] == ("mean" if is_mean else "best")
    assert all(torch.equal(published[name], (mean.state_dict() if is_mean else single)[name]) for name in published)
    assert not all(torch.equal(mean.state_dict()[name], single[name]) for name in published)
    assert counters["best_loss"] == min(loss, counters["averaging"]["best"]["loss"])
    written = json.loads((averaged.folder / "best" / "config.json").read_text(encoding="utf-8"))
    assert written["dev"]["loss"] == counters["best_loss"]


@pytest.mark.parametrize(("mean", "published"), [(1.4, "mean"), (1.5, "best"), (1.6, "best")])
def test_the_mean_is_published_where_it_is_better_than_the_best_of_them(
    mean: float, published: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = TrainState(
        best_update=20, best_metric=-1.5, best_dev={"loss": 1.5, "bleu": 30.0},
        best_models=((20, -1.5), (10, -1.7)), mean_dev={"loss": mean, "bleu": 29.0},
    )  # fmt: skip
    folder, dev = chosen(Path("checkpoints"), TRAIN, state)
    assert folder == Path("checkpoints") / ("mean" if published == "mean" else "best-00000020")
    assert dev["loss"] == min(mean, 1.5)
    caplog.set_level(logging.INFO, logger="nmt.training.averaging")
    counters = averaging_counters(TRAIN, state)["averaging"]
    assert (counters["published"], counters["updates"]) == (published, [10, 20])
    assert f"{mean:.4f} of the mean" in caplog.text
    assert "1.5000 of the best" in caplog.text


def test_without_a_second_model_there_is_no_mean(toy: ToyStages, tmp_path: Path) -> None:
    run = run_train(toy, tmp_path, average_checkpoints=1, max_epochs=2)
    assert "averaging" not in run.manifest.counters
    assert not (run.folder / "checkpoints" / "mean").exists()
    assert len(list((run.folder / "checkpoints").glob("best-*"))) == 1


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_run_that_broke_off_while_it_averaged_publishes_the_same(
    toy: ToyStages, averaged: StageRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    steps = iter(range(3))

    def failing(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(steps) == at:
                raise RuntimeError("the machine is gone")
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("nmt.training.averaging.mean_model", failing(mean_model))
        patch.setattr("nmt.training.averaging.score_model", failing(averaging.score_model))
        patch.setattr("nmt.training.averaging.model_content", failing(averaging.model_content))
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run_train(toy, tmp_path)
    found = run_train(toy, tmp_path)
    weights = load_file(averaged.folder / "best" / "model.safetensors")
    again = load_file(found.folder / "best" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert found.manifest.counters["averaging"] == averaged.manifest.counters["averaging"]
