"""Batch norm over valid positions against torch's own over the same positions gathered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nmt.model.batch_norm import EPSILON, MOMENTUM, BatchNorm, collectors

UNITS = 5
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def batch(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return values [B, T, F] whose units differ in mean and spread, and a mask of these lengths."""
    steps = max(lengths)
    values = torch.randn(len(lengths), steps, UNITS).double() * torch.tensor([1.0, 2.0, 3.0, 0.1, 9.0]) + torch.arange(
        5
    )
    return values, torch.arange(steps)[None, :] < torch.tensor(lengths)[:, None]


def norms() -> tuple[BatchNorm, nn.BatchNorm1d]:
    """Return our norm and torch's, with the same gains in float64."""
    ours, theirs = BatchNorm(UNITS).double(), nn.BatchNorm1d(UNITS, eps=EPSILON, momentum=MOMENTUM).double()
    with torch.no_grad():
        ours.gain.copy_(torch.randn(UNITS))
        theirs.weight.copy_(ours.gain)
    return ours, theirs


def test_training_is_torchs_batch_norm_of_the_valid_positions_gathered() -> None:
    ours, theirs = norms()
    values, mask = batch(4, 1, 6)
    mine, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    found, expected = ours(mine, mask, training=True)[mask], theirs(other[mask])
    torch.testing.assert_close(found, expected, **EXACT)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, **EXACT)
    torch.testing.assert_close(ours.gain.grad, theirs.weight.grad, **EXACT)


def test_evaluation_is_torchs_with_the_running_statistics() -> None:
    ours, theirs = norms()
    with torch.no_grad():
        theirs.running_mean.copy_(torch.randn(UNITS))
        theirs.running_var.copy_(torch.rand(UNITS) + 0.5)
        ours.running_mean.copy_(theirs.running_mean)
        ours.running_var.copy_(theirs.running_var)
    values, mask = batch(4, 1, 6)
    found = ours(values, mask, training=False)[mask]
    torch.testing.assert_close(found, theirs.eval()(values[mask]), **EXACT)
    assert not ours.collected.any()


def test_its_gradient_is_that_of_finite_differences() -> None:
    norm, (values, mask) = BatchNorm(UNITS).double(), batch(2, 3)
    assert torch.autograd.gradcheck(lambda x: norm(x, mask, training=True)[mask], values.requires_grad_())


def test_what_stands_at_other_positions_changes_nothing() -> None:
    values, mask = batch(4, 1, 6)
    found = []
    for noise in (0.0, 100.0):
        norm = BatchNorm(UNITS).double()
        noisy = torch.where(mask[:, :, None], values, noise).requires_grad_()
        out = norm(noisy, mask, training=True)[mask]
        out.square().sum().backward()
        assert not noisy.grad[~mask].any()
        found.append((out, norm.collected, noisy.grad[mask]))
    torch.testing.assert_close(found[1], found[0], **EXACT)


def test_running_statistics_move_towards_those_of_all_positions_of_an_update() -> None:
    norm = BatchNorm(UNITS).double()
    mean, variance = torch.zeros(UNITS).double(), torch.ones(UNITS).double()
    for _ in range(3):
        norm.collected.zero_()
        batches = [batch(4, 1, 6), batch(2, 2)]
        for values, mask in batches:
            norm(values, mask, training=True)
        norm.collected.div_(17.0)  # as gradients are, by the target pieces
        norm.move()
        real = torch.cat([values[mask] for values, mask in batches])
        mean = 0.9 * mean + 0.1 * real.mean(0)
        variance = 0.9 * variance + 0.1 * real.var(0, unbiased=False)
        torch.testing.assert_close(norm.running_mean, mean, **EXACT)
        torch.testing.assert_close(norm.running_var, variance, **EXACT)


def test_workers_that_share_an_update_collect_what_one_worker_collects() -> None:
    batches = [batch(4, 1, 6), batch(2, 2), batch(5)]

    def collected(share: list[tuple[Tensor, Tensor]]) -> Tensor:
        norm = BatchNorm(UNITS).double()
        for values, mask in share:
            norm(values, mask, training=True)
        return norm.collected

    torch.testing.assert_close(collected(batches[:2]) + collected(batches[2:]), collected(batches), **EXACT)
    assert collected(batches)[-1] == 4 + 1 + 6 + 2 + 2 + 5


def test_the_spread_of_large_numbers_is_not_lost_in_float32() -> None:
    norm = BatchNorm(1)
    values, mask = 1000.0 + torch.randn(8, 500, 1), torch.ones(8, 500, dtype=torch.bool)
    for _ in range(100):
        norm.collected.zero_()
        found = norm(values, mask, training=True)
        norm.move()
    assert float(found.detach().std()) == pytest.approx(1.0, rel=1e-3)
    assert float(norm.running_var) == pytest.approx(float(values.double().var()), rel=1e-2)


def test_bfloat16_is_normalised_with_statistics_in_float32() -> None:
    norm, (values, mask) = BatchNorm(UNITS), batch(40, 10, 60)
    low = values.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(low, mask, training=True)
        evaluated = norm(low, mask, training=False)
    assert found.dtype == evaluated.dtype == torch.bfloat16
    exact = BatchNorm(UNITS)
    expected = exact(low.float(), mask, training=True)
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)
    assert norm.collected.dtype == torch.float32
    assert torch.equal(norm.collected, exact.collected)


def test_checkpoints_hold_the_running_statistics_and_not_what_is_collected() -> None:
    assert list(BatchNorm(UNITS).state_dict()) == ["gain", "running_mean", "running_var"]


def test_collectors_are_all_batch_norms_in_the_models_order() -> None:
    model = nn.Sequential(BatchNorm(1), nn.Linear(1, 1), nn.Sequential(BatchNorm(2)))
    assert [len(found.gain) for found in collectors(model)] == [1, 2]
    assert collectors(nn.Linear(1, 1)) == []
