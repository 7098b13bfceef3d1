"""The trial before the first update says what is too large, and changes nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import nmt.training.step as step_module
from nmt.architectures import build_model
from nmt.config import TrainConfig
from nmt.model.batch_norm import collectors
from nmt.objectives.objective import objective
from nmt.training.gradients import FlatGradients
from nmt.training.optim import make_optimizer
from nmt.training.probe import Trial, judge, largest_shapes, probe, trial_batch, trial_of, trials
from pipelines.errors import InputError
from tests.nmt.training.test_memory import NOISE, OBJECTIVES, SIZE, table_of


def test_the_largest_shapes_fill_the_budget_at_each_length() -> None:
    shapes = largest_shapes(2048, 200)
    assert shapes == [(10, 200), (20, 100), (40, 50), (81, 25), (170, 12), (341, 6)]
    assert all(rows * pieces <= 2048 for rows, pieces in shapes)
    assert largest_shapes(100, 300)[:2] == [(1, 300), (1, 150)]


def fake_trials(budget: int, shapes: list[tuple[int, int]]) -> list[Trial]:
    """Return the trials on a device on which rows * pieces^2 bytes must be within the budget."""
    last = 0

    def compute(rows: int, pieces: int) -> None:
        nonlocal last
        last = rows * pieces**2
        if last > budget:
            raise torch.OutOfMemoryError

    return list(trials(shapes, compute, lambda: last))


def test_what_fits_is_tried_and_its_peak_is_known(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = fake_trials(2**30, [(10, 200), (20, 100)])
    assert found == [Trial(10, 200, 400_000), Trial(20, 100, 200_000)]
    assert judge(found, 2**30, None) == 400_000
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_micro_batch_that_is_too_large_is_told_of_early(caplog: pytest.LogCaptureFixture) -> None:
    found = fake_trials(250_000, [(10, 200), (20, 100)])
    assert found == [Trial(10, 200, None), Trial(1, 200, 40_000), Trial(20, 100, 200_000)]
    assert judge(found, 250_000, None) == 200_000
    assert "micro-batches of 10 x 200 pieces do not fit into memory" in caplog.text
    with pytest.raises(InputError, match=r"10 x 200 pieces does not fit .*whole micro-batches") as caught:
        judge(found, 250_000, "statistics are of whole micro-batches")
    assert caught.value.where == "train.microbatch_tokens"


def test_a_row_that_is_too_large_is_refused_before_the_first_update() -> None:
    found = fake_trials(30_000, [(10, 200), (20, 100)])
    with pytest.raises(InputError, match="1 x 200 pieces does not fit") as caught:
        judge(found, 30_000, None)
    assert caught.value.where == "train.max_pieces"


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.parametrize("objective_name", OBJECTIVES)
def test_the_trial_computes_what_an_update_does_and_leaves_nothing_behind(name: str, objective_name: str) -> None:
    config = TrainConfig.model_validate({"microbatch_tokens": 40, **OBJECTIVES[objective_name]})
    model = build_model(table_of(name), SIZE, SIZE, seed=3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    flat = FlatGradients(list(model.parameters()), collectors(model))
    seen = []

    def noted(*arguments: Any) -> Any:
        seen.append(tuple(arguments[1].target.shape))
        assert bool(torch.isfinite(flat.buffer).all())
        return objective(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "objective", noted)
        compute = trial_of(model, flat, config, torch.device("cpu"))
        for rows, pieces in largest_shapes(config.microbatch_tokens, 10):
            compute(rows, pieces)
            assert flat.buffer.any()
    flat.zero()
    assert seen == [(4, 10), (8, 5)]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_trial_batch_is_as_wide_as_it_says() -> None:
    batch = trial_batch(3, 7, TrainConfig(guided_alignment_weight=0.1), has_source=True)
    assert (batch.src.shape, batch.target.shape, batch.src_lengths.tolist()) == ((3, 7), (3, 7), [7, 7, 7])
    assert batch.alignment is not None and batch.alignment.shape == (3, 7, 7)
    assert trial_batch(3, 7, TrainConfig(), has_source=False).src.shape == (3, 0)


class FakeGpu:
    """What torch says of the memory of a GPU of 10 GB, on which a micro-batch takes 1 MB for each row and piece."""

    def __init__(self, patch: pytest.MonkeyPatch, capacity: int) -> None:
        self.capacity, self.peak, self.emptied = capacity, 0, 0
        patch.setattr(step_module, "objective", self.objective)
        for name in ("max_memory_allocated", "reset_peak_memory_stats", "mem_get_info", "memory_reserved"):
            patch.setattr(torch.cuda, name, getattr(self, name))

    def objective(self, *arguments: Any) -> Any:
        self.peak = max(self.peak, arguments[1].target.numel() * 10**6)
        if self.peak > self.capacity:
            raise torch.OutOfMemoryError
        return objective(*arguments)

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.peak

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = 0

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.capacity // 2, 2 * self.capacity

    def memory_reserved(self, device: torch.device) -> int:
        return self.capacity - self.capacity // 2


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "sgd"])
def test_the_whole_trial_tells_the_peak_and_leaves_weights_and_moments_alone(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = TrainConfig.model_validate({"microbatch_tokens": 40, "optimizer": optimizer})
    model = build_model(table_of("transformer"), SIZE, SIZE, seed=3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    flat, made = FlatGradients(list(model.parameters())), make_optimizer(config, model.parameters())
    FakeGpu(monkeypatch, 10**10)
    assert probe(model, flat, made, config, torch.device("cpu"), 10) == 40 * 10**6
    assert not made.state and not flat.buffer.any()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_whole_trial_refuses_a_row_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(microbatch_tokens=40)
    model = build_model(table_of("transformer"), SIZE, SIZE, seed=3)
    flat, made = FlatGradients(list(model.parameters())), make_optimizer(config, model.parameters())
    FakeGpu(monkeypatch, 9 * 10**6)
    with pytest.raises(InputError, match=r"1 x 10 pieces does not fit into 0\.0 GiB"):
        probe(model, flat, made, config, torch.device("cpu"), 10)
