"""Masks of dropout: their rate, their scale, and what they depend on."""

from __future__ import annotations

import pytest
import torch

from nmt.model.embeddings import dropout, keep_mask


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.999])
def test_a_mask_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    number = 400_000
    mask = keep_mask((400, 1000), rate, torch.Generator().manual_seed(3), like=torch.zeros((), dtype=torch.float64))
    kept = mask > 0
    # Five standard deviations of a mean of so many draws, and the rounding of the rate.
    bound = 5 * (rate * (1 - rate) / number) ** 0.5 + 2**-17
    assert 1.0 - kept.double().mean().item() == pytest.approx(rate, abs=bound)
    assert mask[kept].unique().tolist() == pytest.approx([1.0 / (1.0 - rate)], rel=2**-17 / (1.0 - rate) + 1e-12)


def test_neighbours_of_one_draw_and_rows_have_nothing_in_common() -> None:
    mask = keep_mask((200_000, 4), 0.5, torch.Generator().manual_seed(5), like=torch.zeros(())) > 0
    together = torch.corrcoef(mask.T.double()) - torch.eye(4)
    assert together.abs().max() < 5 / 200_000**0.5


def test_noise_is_a_function_of_the_seed_alone_and_the_same_in_every_precision() -> None:
    def drawn(seed: int, dtype: torch.dtype) -> torch.Tensor:
        return keep_mask((5, 7), 0.3, torch.Generator().manual_seed(seed), like=torch.zeros((), dtype=dtype)) > 0

    assert torch.equal(drawn(1, torch.float32), drawn(1, torch.bfloat16))
    assert torch.equal(drawn(1, torch.float32), drawn(1, torch.float64))
    assert not torch.equal(drawn(1, torch.float32), drawn(2, torch.float32))


def test_without_a_generator_nothing_is_dropped() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.5, None) is x
