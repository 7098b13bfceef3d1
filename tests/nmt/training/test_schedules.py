"""Learning-rate schedules: tables of their formulas, and torch's own schedulers where it has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from nmt.checkpoint import TrainState
from nmt.config import TrainConfig
from nmt.training.schedules import learning_rate, on_validation

TOTAL = 50


def config_of(schedule: str, **keys: Any) -> TrainConfig:
    return TrainConfig.model_validate({"schedule": schedule, "learning_rate": 0.5, "warmup_updates": 4, **keys})


def rates(config: TrainConfig, **position: Any) -> list[float]:
    where = {"embedding_dim": 64, "epoch": 0, "plateau_rate": 1.0, **position}
    return [learning_rate(config, update, TOTAL, **where) for update in range(TOTAL + 3)]


def torch_rates(make: Any, base: float = 0.5) -> list[float]:
    """Return the rates that a scheduler of torch gives to the first updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler, found = make(optimizer), []
    for _ in range(TOTAL + 3):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warmed(optimizer: torch.optim.Optimizer, after: Any) -> Any:
    """Return torch's linear warm-up in 4 updates, and the scheduler behind it."""
    schedulers = torch.optim.lr_scheduler
    warmup = schedulers.LinearLR(optimizer, start_factor=0.25, end_factor=1.0, total_iters=3)
    return schedulers.SequentialLR(optimizer, [warmup, after], milestones=[4])


def test_constant_warms_up_and_stays() -> None:
    assert rates(config_of("constant"))[:6] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    assert rates(config_of("constant", warmup_updates=0)) == [0.5] * (TOTAL + 3)


def test_cosine_and_linear_are_torchs_behind_torchs_warm_up() -> None:
    schedulers = torch.optim.lr_scheduler
    expected = torch_rates(lambda o: warmed(o, schedulers.CosineAnnealingLR(o, T_max=TOTAL - 4)))
    assert rates(config_of("cosine"))[: TOTAL + 1] == pytest.approx(expected[: TOTAL + 1], abs=1e-12)
    expected = torch_rates(
        lambda o: warmed(o, schedulers.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=TOTAL - 4))
    )
    assert rates(config_of("linear")) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_ends_is_at_zero_at_the_total_and_stays_there(schedule: str) -> None:
    found = rates(config_of(schedule))
    assert found[TOTAL - 1] > 0.0
    assert found[TOTAL:] == pytest.approx([0.0, 0.0, 0.0], abs=1e-15)


def test_inverse_sqrt_falls_from_the_peak_as_the_root_of_the_updates() -> None:
    found = rates(config_of("inverse_sqrt"))
    assert found[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert [found[15], found[35]] == pytest.approx([0.25, 0.5 / 3.0])


def test_noam_is_equation_3_of_vaswani_et_al() -> None:
    # The base model's own numbers: 512 units, 4000 updates of warm-up, a peak of 7.0e-4.
    config = config_of("noam", learning_rate=1.0, warmup_updates=4000)
    found = [
        learning_rate(config, step - 1, 100_000, embedding_dim=512, epoch=0, plateau_rate=1.0)
        for step in (1, 2000, 4000, 16000, 100_000)
    ]
    table = [1.746928107421711e-07, 3.493856214843422e-04, 6.987712429686844e-04, 3.493856214843422e-04]
    assert found[:4] == pytest.approx(table, rel=1e-12)
    assert found[4] == pytest.approx(math.exp(-0.5 * math.log(512 * 100_000)), rel=1e-12)
    assert rates(config_of("noam", learning_rate=2.0)) == pytest.approx(
        [2.0 * rate for rate in rates(config_of("noam", learning_rate=1.0))]
    )


def test_halving_halves_in_each_epoch_after_the_first_ones() -> None:
    config = config_of("halving", halving_after_epochs=5, warmup_updates=0)
    found = [learning_rate(config, 30, TOTAL, embedding_dim=64, epoch=epoch, plateau_rate=1.0) for epoch in range(8)]
    assert found == [0.5] * 5 + [0.25, 0.125, 0.0625]
    by_torch = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(by_torch, lambda epoch: 0.5 ** max(epoch - 4, 0))
    for epoch in range(8):
        assert found[epoch] == by_torch.param_groups[0]["lr"]
        by_torch.step()
        scheduler.step()
    assert rates(config_of("halving", halving_after_epochs=0))[:5] == pytest.approx([0.0625, 0.125, 0.1875, 0.25, 0.25])


SCORES = [1.0, 2.0, 1.5, 1.9, 1.0, 1.1, 1.2, 3.0, 2.0, 2.9, 2.9, 3.1, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_reduces_where_torchs_does(patience: int) -> None:
    config = config_of("plateau", plateau_patience=patience, plateau_factor=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    # torch's patience is how many validations are let pass; ours is at which the rate falls.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.3, patience=patience - 1, threshold=0.0
    )
    state, best, seen = TrainState(), -math.inf, set()
    for score in SCORES:
        state = on_validation(state, config, score > best)
        best = max(best, score)
        scheduler.step(score)
        rate = learning_rate(config, 20, TOTAL, embedding_dim=64, epoch=0, plateau_rate=state.plateau_rate)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        seen.add(rate)
    assert len(seen) > 2


def test_plateau_goes_on_from_a_stored_state_as_it_would_have_without_a_break() -> None:
    config = config_of("plateau", plateau_patience=2)
    state = resumed = TrainState()
    for better in (True, False, False, False, True, False, False):
        state = on_validation(state, config, better)
        resumed = on_validation(TrainState.model_validate_json(resumed.model_dump_json()), config, better)
    assert resumed == state
    assert (state.plateau_rate, state.plateau_validations) == (0.25, 0)


def test_only_the_schedule_plateau_looks_at_validations() -> None:
    state = TrainState(plateau_rate=0.5)
    for schedule in ("constant", "inverse_sqrt", "noam", "cosine", "linear", "halving"):
        config = config_of(schedule)
        assert on_validation(state, config, False) is state
        assert rates(config, plateau_rate=0.5) == rates(config)
    assert rates(config_of("plateau"), plateau_rate=0.5)[2:6] == pytest.approx([0.1875, 0.25, 0.25, 0.25])


def test_a_schedule_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="noam needs a learning_rate: there it is a factor"):
        TrainConfig(schedule="noam")
    assert TrainConfig.model_validate(TrainConfig(schedule="noam", learning_rate=1.0).model_dump()).schedule == "noam"
    with pytest.raises(ValidationError, match="plateau_patience 3 training would end, at patience 3, before the rate"):
        TrainConfig(schedule="plateau", plateau_patience=3, patience=3)
