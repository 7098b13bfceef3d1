"""Masks of dropout: their rate, their scale, and what they depend on."""

from __future__ import annotations

import pytest
import torch

from nmt.model.embeddings import RowsNoise, dropout, keep_mask, uniform


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


@pytest.mark.parametrize("bounds", [(0, 5), (0, 2), (2, 5), (4, 5)])
def test_rows_noise_is_that_of_the_rows_in_the_whole_micro_batch_draw_after_draw(bounds: tuple[int, int]) -> None:
    whole, source = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    start, end = bounds
    rows = RowsNoise(source, start, end, 5)
    like = torch.zeros((), dtype=torch.float64)
    for shape in ((3, 7), (2, 3, 3), (1,)):  # numbers of bits that are no multiple of a draw's
        expected = keep_mask((5, *shape), 0.4, whole, like=like)
        found = keep_mask((end - start, *shape), 0.4, rows, like=like)
        assert torch.equal(found, expected[start:end])
        expected = uniform((5, *shape), whole, like.device)
        assert torch.equal(uniform((end - start, *shape), rows, like.device), expected[start:end])
    assert source.get_state().equal(whole.get_state())
    assert rows.device == source.device


def test_noise_of_something_else_than_the_rows_is_an_error() -> None:
    rows = RowsNoise(torch.Generator(), 1, 3, 5)
    with pytest.raises(ValueError, match=r"noise of shape \(4, 2\) for 2 rows"):
        dropout(torch.ones(4, 2), 0.5, rows)
