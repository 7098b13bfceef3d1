"""Updates that are left out: how they are counted, and what a run that has too many of them leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nmt.training.step as step_module
from nmt.batches import MicroBatch
from nmt.checkpoint import TrainState, read_state, training_checkpoints
from nmt.config import TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.objectives.objective import objective
from nmt.objectives.supervised import Loss
from nmt.train import train
from nmt.training.metrics import read_metrics
from nmt.training.skipped import counted, failure, save_batch
from nmt.training.step import UpdateFigures, noise_seed
from pipelines.errors import InputError
from pipelines.shards import read_shards
from pipelines.stage import StageRun
from tests.nmt.conftest import ToyStages
from tests.nmt.toy_runs import broken_off_at

DONE = UpdateFigures(2.0, 1.9, 0.5)
WRONG_LOSS = UpdateFigures(float("nan"), 1.9, float("nan"), skipped=True)
WRONG_GRADIENT = UpdateFigures(2.0, 1.9, float("inf"), skipped=True)
SINGLE, HALF = TrainConfig(), TrainConfig(precision="float16")


def after(config: TrainConfig, *updates: UpdateFigures, **start: Any) -> TrainState:
    state = TrainState.model_validate(start)
    for figures in updates:
        state = counted(state, config, figures)
    return state


def test_updates_left_out_are_counted_in_all_and_in_a_row() -> None:
    state = after(SINGLE, DONE, WRONG_LOSS, WRONG_GRADIENT)
    assert (state.skipped_updates, state.skipped_in_a_row) == (2, 2)
    state = after(SINGLE, WRONG_LOSS, WRONG_GRADIENT, DONE, WRONG_LOSS)
    assert (state.skipped_updates, state.skipped_in_a_row) == (3, 1)
    assert state.loss_scale == TrainState().loss_scale


def test_an_overflow_of_float16_halves_the_scale_and_neither_makes_nor_ends_a_row() -> None:
    state = after(HALF, *[WRONG_GRADIENT] * 16)
    assert (state.skipped_updates, state.skipped_in_a_row, state.loss_scale) == (16, 0, 1.0)
    # Below that a smaller scale is of no use: the gradient itself is not finite.
    state = counted(state, HALF, WRONG_GRADIENT)
    assert (state.skipped_updates, state.skipped_in_a_row, state.loss_scale) == (17, 1, 0.5)
    # Nor is it where the loss is not, which is not multiplied.
    state = after(HALF, WRONG_LOSS, WRONG_GRADIENT, WRONG_LOSS)
    assert (state.skipped_updates, state.skipped_in_a_row) == (3, 2)
    assert counted(state, HALF, DONE).skipped_in_a_row == 0


def test_the_scale_goes_on_from_a_stored_state() -> None:
    updates = [DONE] * 3 + [WRONG_GRADIENT] + [DONE] * 2004
    straight, resumed = TrainState(), TrainState()
    for figures in updates:
        straight = counted(straight, HALF, figures)
        resumed = counted(TrainState.model_validate_json(resumed.model_dump_json()), HALF, figures)
    assert resumed == straight
    assert (straight.loss_scale, straight.updates_at_loss_scale) == (2.0**16, 4)


def test_split_micro_batches_are_counted() -> None:
    assert after(SINGLE, DONE._replace(num_split=2), DONE, DONE._replace(num_split=1)).split_microbatches == 3


@pytest.mark.parametrize("config", [SINGLE, HALF])
def test_a_run_that_ends_leaves_the_micro_batches_and_their_rows(tmp_path: Path, config: TrainConfig) -> None:
    draw = torch.Generator().manual_seed(1)

    def batch(rows: int) -> MicroBatch:
        src, target = (torch.randint(4, 19, (rows, width), generator=draw) for width in (5, 4))
        return MicroBatch(src, torch.full((rows,), 5), target, target, torch.full((rows,), 4))

    shares = [(1, batch(2)), (3, batch(3))]
    ids = [np.asarray([7, 2**40 + 3]), np.asarray([1, 2, 3])]
    state = TrainState(update=12, epoch=1, updates_of_epoch=4, skipped_in_a_row=4)
    error = failure(config, state, WRONG_LOSS, save_batch(tmp_path, 2, config, state, WRONG_LOSS, shares, ids))
    assert isinstance(error, FloatingPointError)
    folder = tmp_path / "failed-batch" / "update-00000012"
    assert f"{folder}/worker-2.json" in str(error)
    assert "5 updates in a row was not finite, at last that of update 12 (loss nan" in str(error)
    assert sorted(path.name for path in folder.iterdir()) == ["worker-2.json", "worker-2.safetensors"]
    described = json.loads((folder / "worker-2.json").read_text())
    assert described["microbatches"] == [
        {"number": 1, "noise_seed": noise_seed(config.seed, 12, 1), "row_ids": [7, 2**40 + 3]},
        {"number": 3, "noise_seed": noise_seed(config.seed, 12, 3), "row_ids": [1, 2, 3]},
    ]
    assert (described["update"], described["epoch"], described["loss"]) == (12, 1, "nan")
    assert described["loss_scale"] == (2.0**16 if config is HALF else None)
    tensors = load_file(folder / "worker-2.safetensors")
    assert len(tensors) == 10
    for number, expected in shares:
        assert torch.equal(tensors[f"{number}/src"], expected.src)
        assert torch.equal(tensors[f"{number}/target_lengths"], expected.target_lengths)


# In a run


CONFIG = TrainConfig(
    max_epochs=1, microbatch_tokens=80, microbatches_per_update=3, learning_rate=0.01, warmup_updates=2, ema_decay=0.5,
    checkpoint_updates=2, log_updates=1, early_stopping_metric="loss", max_skipped_updates=3,
)  # fmt: skip
MODEL = RecurrentConfig(embedding_dim=8, hidden_dim=8, dropout=0.1)


def run_train(toy: ToyStages, root: Path) -> StageRun:
    return train(MODEL, CONFIG, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, root, use_ray=False)


def spoiled_in(updates: set[int]) -> Callable[..., Loss]:
    """Return the objective, whose loss is not a number in these updates."""

    def spoiled(*arguments: Any) -> Loss:
        loss = objective(*arguments)
        return loss._replace(total=loss.total * float("nan")) if arguments[-1] in updates else loss

    return spoiled


def test_a_run_goes_on_behind_an_update_that_is_not_finite(
    toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "objective", spoiled_in({1, 2, 4}))
    run = run_train(toy, tmp_path)
    state = read_state(training_checkpoints(run.folder / "checkpoints")[-1])
    assert (state.skipped_updates, state.skipped_in_a_row, state.stopped) == (3, 0, "max_epochs")
    records = {r["update"]: r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "train"}
    assert [records[number]["skipped_updates"] for number in range(1, 7)] == [0, 1, 2, 2, 3, 3]
    assert records[2]["loss"] is None and records[4]["loss"] > 0.0
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()
    weights = load_file(run.folder / "best" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_a_run_that_broke_off_in_a_row_of_such_updates_continues_bit_for_bit(
    toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "objective", spoiled_in({2, 3, 6}))
    whole = run_train(toy, tmp_path / "whole")
    with broken_off_at(5):
        run_train(toy, tmp_path / "broken")
    (left,) = (tmp_path / "broken").glob("train-*/checkpoints/update-*4")
    assert read_state(left).skipped_in_a_row == 2
    found = run_train(toy, tmp_path / "broken")
    newest = [training_checkpoints(run.folder / "checkpoints")[-1] for run in (found, whole)]
    for name in ("model", "optimizer", "averages"):
        tensors, expected = (load_file(path / f"{name}.safetensors") for path in newest)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in expected.items())
    assert read_state(newest[0]).skipped_updates == read_state(newest[1]).skipped_updates == 3


def test_too_many_in_a_row_end_the_run_and_leave_its_rows(
    toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "objective", spoiled_in({1, 3, 4, 5}))
    with pytest.raises(
        FloatingPointError, match="3 updates in a row was not finite, at last that of update 5"
    ) as error:
        run_train(toy, tmp_path)
    (described,) = tmp_path.glob("train-*/failed-batch/update-00000005/worker-0.json")
    assert str(described) in str(error.value)
    found = json.loads(described.read_text())
    assert [microbatch["number"] for microbatch in found["microbatches"]] == [0, 1, 2]
    tensors = load_file(described.with_suffix(".safetensors"))
    shards = read_shards(toy.encoded.folder / "shards" / "train")
    place = {row_id: place for place, row_id in enumerate(shards.row_id.tolist())}
    for microbatch in found["microbatches"]:
        for row, row_id in enumerate(microbatch["row_ids"]):
            length = int(tensors[f"{microbatch['number']}/target_lengths"][row])
            (ids,) = shards.targets(np.asarray([place[row_id]]))
            assert tensors[f"{microbatch['number']}/target"][row, :length].tolist() == ids.tolist()


def test_a_micro_batch_that_was_split_is_counted_told_once_and_changes_nothing(
    toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def small_memory(*arguments: Any) -> Loss:
        if len(arguments[1].target) > 8:
            raise torch.OutOfMemoryError
        return objective(*arguments)

    whole = run_train(toy, tmp_path / "whole")
    monkeypatch.setattr(step_module, "objective", small_memory)
    found = run_train(toy, tmp_path / "found")
    states = [read_state(training_checkpoints(run.folder / "checkpoints")[-1]) for run in (found, whole)]
    assert states[0].split_microbatches > 1 and states[1].split_microbatches == 0
    assert sum("was computed in parts" in record.getMessage() for record in caplog.records) == 1
    weights, expected = (load_file(run.folder / "best" / "model.safetensors") for run in (found, whole))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_row_that_does_not_fit_is_named_by_its_id(
    toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = read_shards(toy.encoded.folder / "shards" / "train")
    longest = int(shards.tgt_lengths().argmax())

    def small_memory(*arguments: Any) -> Loss:
        if int(arguments[1].target_lengths.max()) == int(shards.tgt_lengths()[longest]):
            raise torch.OutOfMemoryError
        return objective(*arguments)

    monkeypatch.setattr(step_module, "objective", small_memory)
    with pytest.raises(InputError, match=r"train\.max_pieces: row \d+ \(\d+ source and \d+ target pieces\)") as error:
        run_train(toy, tmp_path)
    row_id = int(str(error.value).split("row ")[1].split(" ")[0])
    (row,) = np.flatnonzero(shards.row_id == row_id)
    assert shards.tgt_lengths()[row] == shards.tgt_lengths()[longest]
    assert f"{shards.src_lengths()[row]} source and {shards.tgt_lengths()[row]} target pieces" in str(error.value)


def test_float16_on_a_cpu_is_refused_before_anything_is_written(toy: ToyStages, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"precision": "float16"})
    with pytest.raises(InputError, match="float16 is computed on a GPU"):
        train(MODEL, config, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, tmp_path)
    assert not list(tmp_path.iterdir())
