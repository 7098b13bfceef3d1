"""Draws are a pure function of a key, and spread as they should."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.draws import Draws, derived, row_keys, uniform

MASK = 2**64 - 1


def mixed(value: int) -> int:
    """The output function of SplitMix64 with the constants of variant 13, in plain integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@given(st.integers(0, 2**31 - 1), st.integers(0, 1000), st.integers(0, 2**60), st.integers(0, 999))
def test_keys_are_those_of_the_plain_formula(seed: int, epoch: int, row: int, copy: int) -> None:
    key = mixed((mixed(row ^ digest(f"{seed}/{epoch}")) + copy * 0x9E3779B97F4A7C15) & MASK)
    keys = row_keys(seed, epoch, np.asarray([7, row]), np.asarray([0, copy]))
    assert int(keys[1]) == key
    assert int(derived(keys, "typos")[1]) == mixed(key ^ digest("typos"))
    assert float(uniform(keys)[1]) == (key >> 11) / 2**53


def test_a_sequence_of_draws_is_that_of_splitmix64() -> None:
    # The first numbers of SplitMix64 from the seed 1234567, as its authors' reference program prints them.
    draws = Draws(1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [draws.below(2**64) for _ in expected] == expected


def test_seed_epoch_row_and_copy_all_count() -> None:
    rows = np.arange(50)
    every = np.concatenate(
        [row_keys(seed, epoch, rows, copy) for seed in (1, 2) for epoch in (0, 1) for copy in (0, 1, 2)]
    )
    assert len(np.unique(every)) == len(every) == 600


def test_draws_are_even() -> None:
    numbers = uniform(row_keys(1, 0, np.arange(100_000)))
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations are 474


def test_of_some_items_each_is_picked_once_in_their_order() -> None:
    found = [tuple(Draws(key).some_of("abcd", 2)) for key in range(200)]
    assert set(found) == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")}
    assert Draws(3).some_of("ab", 5) == ["a", "b"]
    assert Draws(3).some_of("", 1) == []
