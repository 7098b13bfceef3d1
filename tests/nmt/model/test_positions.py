"""Positions: the papers' formulas, one position and one pair of units at a time."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from nmt.model.positions import LearnedPositions, rotated, rotation, sinusoids

CPU = torch.device("cpu")


def test_sinusoids_are_the_papers_formula_with_sines_in_one_half_and_cosines_in_the_other() -> None:
    dim = 10
    found = sinusoids(40, dim, CPU, dtype=torch.float64)
    for position in range(40):
        for i in range(dim // 2):
            angle = position / 10_000 ** (2 * i / dim)
            assert found[position, i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert found[position, dim // 2 + i].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_sinusoids_in_float32_are_near_those_in_float64() -> None:
    exact = sinusoids(500, 64, CPU, dtype=torch.float64)
    torch.testing.assert_close(sinusoids(500, 64, CPU), exact.float(), rtol=0, atol=1e-4)


def test_sinusoids_from_a_later_position_on_are_the_rest_of_the_table() -> None:
    table = sinusoids(12, 6, CPU, dtype=torch.float64)
    torch.testing.assert_close(sinusoids(5, 6, CPU, first=7, dtype=torch.float64), table[7:], rtol=0, atol=1e-14)


def test_a_rotation_turns_each_pair_of_units_as_a_complex_number_by_the_papers_angle() -> None:
    dim, first = 6, 4
    x = torch.randn(2, 5, 3, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = rotated(x, rotation(5, dim, CPU, first=first, dtype=torch.float64))
    for batch, t, head, i in [(b, t, n, i) for b in range(2) for t in range(5) for n in range(3) for i in range(3)]:
        number = complex(x[batch, t, head, 2 * i], x[batch, t, head, 2 * i + 1])
        number *= cmath.exp(1j * (first + t) * 10_000 ** (-2 * i / dim))
        assert found[batch, t, head, 2 * i].item() == pytest.approx(number.real, abs=1e-12)
        assert found[batch, t, head, 2 * i + 1].item() == pytest.approx(number.imag, abs=1e-12)


def test_products_of_rotated_vectors_depend_on_the_difference_of_their_positions_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 8, dtype=torch.float64, generator=generator)

    def product(query_position: int, key_position: int) -> float:
        turned = [
            rotated(vector.view(1, 1, 1, 8), rotation(1, 8, CPU, first=position, dtype=torch.float64)).flatten()
            for vector, position in ((query, query_position), (key, key_position))
        ]
        return float(turned[0] @ turned[1])

    assert product(9, 3) == pytest.approx(product(106, 100), abs=1e-10)
    assert product(3, 9) == pytest.approx(product(100, 106), abs=1e-10)
    assert product(4, 4) == pytest.approx(float(query @ key), abs=1e-12)
    assert abs(product(9, 3) - product(9, 4)) > 1e-3


def test_learned_positions_are_the_rows_of_their_table() -> None:
    learned = LearnedPositions(7, 4)
    assert torch.equal(learned(3, 2), learned.table.weight[2:5])
    assert torch.equal(learned(7, 0), learned.table.weight)


@pytest.mark.parametrize("number, first", [(8, 0), (1, 7), (3, 5)])
def test_learned_positions_beyond_the_table_are_an_error_that_says_what_to_do(number: int, first: int) -> None:
    with pytest.raises(ValueError, match="8 positions, but the model has learned 7: train with a larger max_positions"):
        LearnedPositions(7, 4)(number, first)
