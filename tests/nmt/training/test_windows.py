"""The windows of an epoch: each shard in one, each with its part of every corpus."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.training.windows import draw_windows


@settings(max_examples=100)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 400), st.integers(0, 5))
def test_each_shard_is_in_one_window(sizes: list[int], window_rows: int, epoch: int) -> None:
    windows = draw_windows(1, epoch, sizes, window_rows)
    assert sorted(itertools.chain(*windows)) == [*range(len(sizes))]
    assert all(window == sorted(window) for window in windows)
    assert len(windows) == min(len(sizes), -(-sum(sizes) // window_rows))
    assert all(windows)


def test_windows_of_like_shards_have_like_many_rows_and_all_corpora() -> None:
    # 60 shards of 100 rows; the first 12 are of one corpus, the next 30 of another, the rest of a third.
    for epoch in range(20):
        windows = draw_windows(3, epoch, [100] * 60, 1000)
        assert [len(window) for window in windows] == [10] * 6
        for window in windows:
            assert np.histogram(window, bins=[0, 12, 42, 60])[0].tolist() == [2, 5, 3]


def test_what_is_left_over_is_spread_over_the_windows() -> None:
    windows = draw_windows(3, 0, [100] * 64, 1000)
    assert sorted(len(window) for window in windows) == [9, 9, 9, 9, 9, 9, 10]
    longest = {
        max(range(7), key=lambda number: len(draw_windows(3, epoch, [100] * 64, 1000)[number])) for epoch in range(60)
    }
    assert longest == {*range(7)}


def test_a_window_is_about_as_large_as_asked_for_where_shards_differ() -> None:
    sizes = [1_000] * 300 + [100_000] * 40 + [37] * 80
    windows = draw_windows(7, 2, sizes, 1_000_000)
    rows = [sum(sizes[shard] for shard in window) for window in windows]
    assert len(windows) == 5
    assert max(rows) <= 1_000_000


def test_windows_are_a_function_of_seed_and_epoch() -> None:
    drawn = {(seed, epoch): str(draw_windows(seed, epoch, [10] * 36, 40)) for seed in range(3) for epoch in range(20)}
    assert len(set(drawn.values())) == 60
    assert drawn[1, 7] == str(draw_windows(1, 7, [10] * 36, 40))
    # Stored: a run that was begun with an older version continues with the same windows.
    assert draw_windows(1, 0, [10] * 12, 40) == [[0, 4, 8, 11], [2, 5, 7, 10], [1, 3, 6, 9]]


def test_every_window_is_equally_likely_for_a_shard() -> None:
    places = np.zeros((6, 3))
    for epoch in range(3000):
        for number, window in enumerate(draw_windows(5, epoch, [1] * 6, 2)):
            places[window, number] += 1
    assert places.sum(axis=1).tolist() == [3000] * 6
    assert places / 3000 == pytest.approx(np.full((6, 3), 1 / 3), abs=0.03)
