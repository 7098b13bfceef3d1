"""Which shards an epoch reads and sorts together: its windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.draws import derived, row_keys


def draw_windows(seed: int, epoch: int, sizes: Sequence[int], window_rows: int) -> list[list[int]]:
    """Return the windows of an epoch in their order, each the numbers of its shards in ascending order.

    `sizes` are the shards' rows, in the order of the corpora. There are as few windows as `window_rows` rows in each
    would need. Of each run of as many shards as there are windows every window has one, by a draw: so each has its part
    of every corpus, and of shards of one size none has more than one beyond another.
    """
    number = min(max(1, -(-sum(sizes) // window_rows)), max(1, len(sizes)))
    runs = -(-len(sizes) // number)
    draws = derived(row_keys(seed, epoch, np.arange(runs * number)), "window").reshape(runs, number)
    window = draws.argsort(axis=1, kind="stable").reshape(-1)[: len(sizes)]
    return [np.flatnonzero(window == place).tolist() for place in range(number)]
