"""How often an epoch sees the rows of a corpus: weights, temperature, curriculum."""

from __future__ import annotations

import math

import pytest

from nmt.training.mixing import Mixing

ROWS = {"large": 900_000, "small": 10_000, "tiny": 100}


def test_without_keys_every_row_is_seen_once() -> None:
    mixing = Mixing(ROWS, {}, {})
    assert [mixing.epoch_weights(epoch) for epoch in range(3)] == [None] * 3
    assert Mixing(ROWS, {"small": 1.0}, {"tiny": (1, None)}).epoch_weights(0) is None


def test_weights_are_kept_exactly_at_temperature_1() -> None:
    assert Mixing(ROWS, {"small": 2.3}, {}).epoch_weights(5) == {"large": 1.0, "small": 2.3, "tiny": 1.0}


@pytest.mark.parametrize("temperature", [1.5, 2.0, 5.0, 100.0])
@pytest.mark.parametrize("weights", [{}, {"small": 3.0, "large": 0.25}])
def test_shares_are_powers_of_rows_times_weights_and_an_epoch_keeps_its_size(
    temperature: float, weights: dict[str, float]
) -> None:
    found = Mixing(ROWS, weights, {}, temperature).epoch_weights(0)
    assert found is not None
    sizes = {name: rows * weights.get(name, 1.0) for name, rows in ROWS.items()}
    seen = {name: ROWS[name] * found[name] for name in ROWS}
    assert sum(seen.values()) == pytest.approx(sum(sizes.values()), rel=1e-12)
    for name, other in (("small", "large"), ("tiny", "large")):
        assert seen[name] / seen[other] == pytest.approx((sizes[name] / sizes[other]) ** (1 / temperature), rel=1e-12)


def test_a_temperature_of_5_gives_the_shares_of_the_formula() -> None:
    # Worked out by hand: 32^(1/5) = 2 and 1^(1/5) = 1, so the shares of 33 rows are 2/3 and 1/3.
    found = Mixing({"a": 32, "b": 1}, {}, {}, 5.0).epoch_weights(0)
    assert found == {"a": pytest.approx(22 / 32), "b": pytest.approx(11.0)}


def test_a_high_temperature_makes_the_corpora_equal() -> None:
    found = Mixing(ROWS, {}, {}, 1e9).epoch_weights(0)
    assert found is not None
    assert [ROWS[name] * found[name] for name in ROWS] == pytest.approx([sum(ROWS.values()) / 3] * 3)


def test_a_corpus_takes_part_from_its_first_to_its_last_epoch_counted_from_1() -> None:
    mixing = Mixing({"a": 5, "b": 5}, {"b": 2.0}, {"a": (2, 3), "b": (1, None)})
    assert [mixing.epoch_weights(epoch) for epoch in range(4)] == [
        {"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, {"a": 0.0, "b": 2.0},
    ]  # fmt: skip


def test_temperature_shares_out_what_the_corpora_that_take_part_have() -> None:
    mixing = Mixing({"a": 64, "b": 4, "late": 1000}, {}, {"late": (2, None)}, 2.0)
    first = mixing.epoch_weights(0)
    # 8 and 2 parts of 68 rows.
    assert first == {"a": pytest.approx(0.8 * 68 / 64), "b": pytest.approx(0.2 * 68 / 4), "late": 0.0}
    second = mixing.epoch_weights(1)
    assert second is not None
    assert math.isclose(64 * second["a"] + 4 * second["b"] + 1000 * second["late"], 1068)


def test_no_corpus_at_all_is_no_error_here() -> None:
    assert Mixing({"a": 3}, {}, {"a": (2, None)}, 2.0).epoch_weights(0) == {"a": 0.0}
    assert Mixing({}, {}, {}).epoch_weights(0) is None
