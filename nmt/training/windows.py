"""Which shards an epoch reads and sorts together: its windows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.draws import derived, row_keys
from pipelines.epoch_rows import Share

_Numbers = npt.NDArray[np.int64]


def draw_windows(
    seed: int,
    epoch: int,
    sizes: Sequence[int],
    window_rows: int,
    weights: Sequence[float] | None = None,
    corpora: Sequence[Collection[str]] = (),
) -> list[list[int]]:
    """Return the windows of an epoch in their order, each the numbers of its shards in ascending order.

    `sizes` are the shards' rows, in the order of the corpora, which `corpora` names for each shard; `weights` say how
    often the epoch sees a shard's rows, at least 1, as all of them are read: 1 where there are none. There are as few
    windows as `window_rows` rows in each, read or seen, would need. Of each run of as many shards as there are windows
    every window has one, by a draw: so each has its part of every corpus, and of shards of one size none has more than
    one beyond another.
    A shard that is seen n times stands in the runs, and so in windows, n times: each has an n-th of what the epoch sees
    of it (`shares`), and reads no more for it than that. A small corpus that cannot be in every window so has all its
    shards in each.
    """
    rows, weight = np.asarray(sizes, dtype=np.int64), np.ones(len(sizes)) if weights is None else np.asarray(weights)
    # Rounded, as the powers of a temperature may differ in their last digit between machines.
    times, seen = weight.round(6).astype(np.int64), round(float((rows * weight).sum()))
    number, everywhere = 0, np.zeros(len(rows), dtype=np.bool_)
    while (needed := _fewest(seen, window_rows - int(rows[everywhere].sum()), int(times.sum()))) > number:
        number, everywhere = needed, _everywhere(rows, times, corpora, needed, window_rows // 4)
    everywhere |= times >= number
    standing = np.repeat(np.arange(len(rows)), np.where(everywhere, 0, times))
    runs = -(-len(standing) // number)
    draws = derived(row_keys(seed, epoch, np.arange(runs * number)), "window").reshape(runs, number)
    window = draws.argsort(axis=1, kind="stable").reshape(-1)[: len(standing)]
    in_all = np.flatnonzero(everywhere).tolist()
    return [sorted(in_all + standing[window == place].tolist()) for place in range(number)]


def shares(windows: Sequence[Sequence[int]]) -> list[dict[int, Share]]:
    """Return for each window its shards, and the share that it has of what the epoch sees of each.

    Where a shard stands n times in the windows, each time is an n-th of it, in their order.
    """
    times, done = Counter(itertools.chain(*windows)), Counter[int]()
    found: list[dict[int, Share]] = []
    for window in windows:
        here = Counter(window)
        bounds = {shard: (done[shard], done[shard] + number) for shard, number in here.items()}
        found.append({shard: (first / times[shard], end / times[shard]) for shard, (first, end) in bounds.items()})
        done.update(here)
    return found


def _fewest(seen: int, room: int, most: int) -> int:
    return min(max(1, -(-seen // room)), max(1, most))


def _everywhere(
    rows: _Numbers, times: _Numbers, corpora: Sequence[Collection[str]], number: int, most_rows: int
) -> npt.NDArray[np.bool_]:
    """Return which shards are of corpora that stand fewer than `number` times in the windows: [shards].

    Of the smallest of these corpora, and of so many rows at most: each window will read them all.
    """
    shards: dict[str, list[int]] = {}
    for shard, names in enumerate(corpora):
        for name in names:
            shards.setdefault(name, []).append(shard)
    found = np.zeros(len(rows), dtype=np.bool_)
    for of_corpus in sorted(shards.values(), key=lambda of_corpus: int(rows[of_corpus].sum())):
        if times[of_corpus].sum() < number:
            more = found.copy()
            more[of_corpus] = True
            found = more if rows[more].sum() <= most_rows else found
    return found
