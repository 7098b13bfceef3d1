"""Keys of texts and pairs, and which rows repeat an earlier one. Pure functions over arrays.

Keys are 64 bits and the same in every process and on every machine. Two different texts share one with probability
2^-64: among a billion rows that is one row in some forty such corpora.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import xxhash

from pipelines.characters import IDEOGRAPH, CodePoints, Counts, Flags, folded

Keys = npt.NDArray[np.uint64]

_LETTERS_PER_IDEOGRAPH = 3


@dataclass(frozen=True)
class FoldedKeys:
    """Keys of folded texts [rows], and the characters that are left of each, an ideograph counted for three."""

    keys: Keys
    lengths: Counts


def text_keys(texts: CodePoints) -> Keys:
    """Return the key of each text as it is: [rows]."""
    return _row_keys(texts.points, texts.offsets)


def folded_keys(texts: CodePoints) -> FoldedKeys:
    """Return the keys of the texts without case, punctuation and white space; digits count."""
    points, offsets = folded(texts)
    lengths = np.diff(offsets) + (_LETTERS_PER_IDEOGRAPH - 1) * texts.count_flag(IDEOGRAPH)
    return FoldedKeys(_row_keys(points, offsets), lengths)


def pair_keys(src: Keys, tgt: Keys) -> Keys:
    """Return one key for two, in which their order counts: [rows].

    Source of the constants: the golden ratio, and the finalizer of Mulvey's xmx.
    """
    # Arrays of unsigned integers wrap around, which is what a hash wants.
    mixed = src * np.uint64(0x9E3779B97F4A7C15) + tgt
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> np.uint64(32))


def duplicates(row_id: npt.NDArray[np.int64], exact: Keys, near: Keys) -> tuple[Flags, Flags]:
    """Return which rows repeat the exact key of a smaller row_id, and which of the others its near key: [rows] each.

    Rows of one exact key must share their near key. The order of the rows does not matter.
    """
    repeated = _repeats(row_id, exact)
    return repeated, _repeats(row_id, near) & ~repeated


def _repeats(row_id: npt.NDArray[np.int64], keys: Keys) -> Flags:
    order = np.lexsort((row_id, keys))
    ordered = keys[order]
    repeats = np.zeros(len(keys), dtype=np.bool_)
    repeats[order[1:]] = ordered[1:] == ordered[:-1]
    return repeats


def _row_keys(points: npt.NDArray[np.uint32], offsets: Counts) -> Keys:
    data = memoryview(points.astype("<u4", copy=False).tobytes())
    bounds = (offsets * 4).tolist()
    digest = xxhash.xxh3_64_intdigest
    keys = (digest(data[start:stop]) for start, stop in pairwise(bounds))
    return np.fromiter(keys, dtype=np.uint64, count=len(bounds) - 1)
