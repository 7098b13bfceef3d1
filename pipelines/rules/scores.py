"""Arrays of scores: float32, null where a rule does not apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.characters import Flags
from pipelines.pairs import Rows

Scores: TypeAlias = pa.FloatArray
Values = npt.NDArray[np.float64]


def scores_of(values: npt.NDArray[np.generic], applies: Flags | None = None) -> Scores:
    """Return values as scores [rows], null where they do not apply."""
    mask = None if applies is None else ~applies
    return pa.array(np.asarray(values, dtype=np.float32), mask=mask)


def scattered(scores: Scores, rows: Rows, total: int) -> Scores:
    """Return the scores of some rows as scores of all: [rows] -> [total], null for the others."""
    places = np.full(total, -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return scores.take(pa.array(places, mask=places < 0))


def scored_rows(scores: Sequence[float | None], rows: Rows, total: int) -> Scores:
    """Return the scores of some rows as scores of all, where a score of None is null too: [rows] -> [total]."""
    return scattered(pa.array(scores, type=pa.float32()), rows, total)


def worst_share(parts: Sequence[npt.NDArray[np.generic]], wholes: Sequence[npt.NDArray[np.generic]]) -> Scores:
    """Return the largest share of a part in its whole over the sides, null where every whole is 0: [rows]."""
    shares = [part / np.maximum(whole, 1) for part, whole in zip(parts, wholes)]
    return scores_of(np.max(shares, axis=0), np.max(wholes, axis=0) > 0)
