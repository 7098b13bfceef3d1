"""The windows of an epoch: each shard in one or dealt over several, each with its part of every corpus."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.training.windows import draw_windows, shares
from pipelines.epoch_rows import Share


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


# Corpora that are seen more than once, and those of few shards


@dataclass(frozen=True)
class Shards:
    """Shards of whole corpora, one after the other, each corpus seen `weights` times: by name shards, rows of each."""

    corpora: dict[str, tuple[int, int]]
    weights: dict[str, float]
    window_rows: int = 2_000_000

    def windows(self, epoch: int = 0) -> list[dict[int, Share]]:
        names = self.names()
        weights = [max(1.0, self.weights.get(name, 1.0)) for name in names]
        sizes = [self.corpora[name][1] for name in names]
        drawn = draw_windows(3, epoch, sizes, self.window_rows, weights, [[name] for name in names])
        return shares(drawn)

    def names(self) -> list[str]:
        return [name for name, (number, _) in self.corpora.items() for _ in range(number)]

    def seen(self, window: dict[int, Share]) -> dict[str, float]:
        """The rows of each corpus that a window sees, on average."""
        names, found = self.names(), dict.fromkeys(self.corpora, 0.0)
        for shard, (first, end) in window.items():
            name = names[shard]
            found[name] += self.corpora[name][1] * self.weights.get(name, 1.0) * (end - first)
        return found

    def read(self, window: dict[int, Share]) -> int:
        names = self.names()
        return sum(self.corpora[names[shard]][1] for shard in window)


def assert_each_shard_is_dealt_once(windows: list[dict[int, Share]], number: int) -> None:
    bounds: dict[int, list[Share]] = {shard: [] for shard in range(number)}
    for window in windows:
        assert [*window] == sorted(window)
        for shard, share in window.items():
            bounds[shard].append(share)
    for found in bounds.values():
        starts, ends = zip(*found)
        assert [0.0, *ends] == [*starts, 1.0]


CRAWL = {"crawl": (1000, 100_000)}


@pytest.mark.parametrize(
    ("corpora", "weights"),
    [
        (CRAWL | {"captions": (1, 50_000)}, {}),
        (CRAWL | {"captions": (1, 50_000)}, {"captions": 20.0}),
        (CRAWL | {"captions": (1, 50_000)}, {"captions": 359.0, "crawl": 0.82}),
        (CRAWL | {"captions": (1, 50_000), "news": (4, 100_000)}, {"captions": 0.3, "news": 7.4}),
        (CRAWL | {"parliament": (100, 100_000)}, {"parliament": 20.0}),
        (CRAWL | {"parliament": (300, 100_000)}, {"crawl": 2.0, "parliament": 3.9}),
        ({"captions": (1, 50_000)}, {"captions": 100.0}),
    ],
    ids=["small", "repeated", "tempered", "two small", "repeated, larger", "all repeated", "alone"],
)
def test_a_window_has_its_share_of_each_corpus_and_no_more_rows_than_asked_for(
    corpora: dict[str, tuple[int, int]], weights: dict[str, float]
) -> None:
    shards = Shards(corpora, weights)
    for epoch in range(3):
        windows = shards.windows(epoch)
        assert_each_shard_is_dealt_once(windows, len(shards.names()))
        seen = [shards.seen(window) for window in windows]
        for name, (number, rows) in corpora.items():
            share = number * rows * weights.get(name, 1.0) / len(windows)
            # Up to what one more of its shards gives, but where it has fewer than there are windows: exactly.
            least = 1e-6 * share if number < len(windows) and rows * number <= 500_000 else 200_000.0
            assert [found[name] for found in seen] == pytest.approx([share] * len(windows), abs=least)
            assert all(found[name] > 0.0 for found in seen)
        assert max(sum(found.values()) for found in seen) <= 1.2 * shards.window_rows
        assert max(map(shards.read, windows)) <= 1.2 * shards.window_rows


def test_a_large_corpus_of_weight_2_is_read_twice_in_all_and_not_in_each_window() -> None:
    shards = Shards({"crawl": (1000, 100_000)}, {"crawl": 2.0})
    windows = shards.windows()
    assert len(windows) == 100
    assert sum(map(shards.read, windows)) <= 2 * 100_000_000
    assert {sum(found.values()) for found in map(shards.seen, windows)} == {2_000_000.0}


def test_many_small_corpora_are_read_in_windows_that_stay_small() -> None:
    corpora = CRAWL | {f"pair{number}": (1, 20_000 + 1000 * number) for number in range(100)}
    shards = Shards(corpora, {name: 30.0 for name in corpora if name != "crawl"})
    windows = shards.windows()
    assert_each_shard_is_dealt_once(windows, 1100)
    assert max(sum(shards.seen(window).values()) for window in windows) <= 1.2 * shards.window_rows
    assert max(map(shards.read, windows)) <= 1.2 * shards.window_rows
    # The smallest ones are in every window.
    assert all(1000 in window and 1009 in window for window in windows)


def test_corpora_that_have_shards_enough_are_drawn_as_without_weights() -> None:
    names = [["a"]] * 12 + [["b"]] * 30 + [["c"]] * 18
    for epoch in range(5):
        plain = draw_windows(3, epoch, [100] * 60, 1000)
        assert draw_windows(3, epoch, [100] * 60, 1000, [1.0] * 60, names) == plain
        assert {share for window in shares(plain) for share in window.values()} == {(0.0, 1.0)}


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 50), st.floats(1.0, 60.0)), min_size=1, max_size=5))
def test_whatever_the_weights_each_shard_is_dealt_once_and_windows_are_no_larger(
    corpora: list[tuple[int, int, float]],
) -> None:
    named = {str(place): (number, rows) for place, (number, rows, _) in enumerate(corpora)}
    shards = Shards(named, {str(place): weight for place, (_, _, weight) in enumerate(corpora)}, 1000)
    windows = shards.windows()
    assert_each_shard_is_dealt_once(windows, len(shards.names()))
    # What is drawn for each corpus's ends is at most two rows for one that is stored, of shards of at most 50.
    assert max(sum(shards.seen(window).values()) for window in windows) <= 1000 + 100 * (len(corpora) + 1)
    assert max(map(shards.read, windows)) <= 1000 + 100 * (len(corpora) + 1)
