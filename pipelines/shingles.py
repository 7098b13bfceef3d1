"""Hashes of the character n-grams ("shingles") of folded texts: what minhash and leakage compare texts by.

A hash is 64 bits, and the same in every process and on every machine. It is a polynomial over the code points, modulo
2^64, whose bits are then mixed; so all windows of a flat array are hashed in a number of multiplications that grows
with the logarithm of their length, not with their length.

Source: Karp, Rabin: Efficient randomized pattern-matching algorithms, IBM J. Res. Dev. 31 (1987); Broder: On the
resemblance and containment of documents (1997) for shingles.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelines.characters import CodePoints, Counts, Flags, folded, running

Hashes = npt.NDArray[np.uint64]

# The polynomial's base: odd, from the golden ratio. The mixer's constant is that of `pipelines.dedup.pair_keys`.
_BASE = 0x9E3779B97F4A7C15
_MIXER = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_64_BITS = (1 << 64) - 1
# Code points that are hashed in one go: what is computed on the way stays in a core's cache.
_BLOCK = 1 << 15


@dataclass(frozen=True)
class Shingles:
    """The shingles of some texts: hashes [shingles], those of row i being hashes[offsets[i]:offsets[i + 1]].

    A row has at least one: a text shorter than a shingle is one shingle, an empty one too.
    """

    hashes: Hashes
    offsets: Counts

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Counts:
        """Return the shingles of each row, repeated ones counted each time: [rows]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Counts:
        """Return the row of each shingle: [shingles]."""
        return np.repeat(np.arange(len(self)), self.counts)


def shingles(texts: CodePoints, length: int, salt: int = 0) -> Shingles:
    """Return the windows of `length` code points of each folded text; another salt gives other hashes."""
    points, offsets = folded(texts)
    lengths = np.diff(offsets)
    if not lengths.all():
        # Folded texts hold no U+0000, so it may stand for "nothing".
        points = np.insert(points, offsets[:-1][lengths == 0], 0)
        lengths = np.maximum(lengths, 1)
        offsets = running(lengths)
    bounds = running(np.maximum(lengths - length + 1, 1))
    hashes = np.empty(int(bounds[-1]), dtype=np.uint64)
    for start, stop in pairwise(_blocks(offsets)):
        block = points[offsets[start] : offsets[stop]]
        windows = _row_windows(block, offsets[start : stop + 1] - offsets[start], length)
        hashes[bounds[start] : bounds[stop]] = mixed(windows ^ np.uint64(salt))
    return Shingles(hashes, bounds)


def _blocks(offsets: Counts) -> list[int]:
    """Return where blocks of rows start, and where the last one ends: of about _BLOCK code points, or one row."""
    starts = np.arange(0, int(offsets[-1]), _BLOCK)
    bounds: list[int] = np.unique(np.append(np.searchsorted(offsets, starts), len(offsets) - 1)).tolist()
    return bounds


def _row_windows(points: npt.NDArray[np.uint32], offsets: Counts, length: int) -> Hashes:
    """Return the windows of each row, one after the other: [shingles]."""
    windows = _window_hashes(points, length)
    _hash_short_rows(windows, points, offsets, length)
    return windows[_starts(offsets, length)]


def mixed(hashes: Hashes) -> Hashes:
    """Return hashes of which each bit depends on all bits of the given ones, one to one.

    Source: the finalizer of Mulvey's xmx, as in `pipelines.dedup.pair_keys`.
    """
    for _ in range(2):
        hashes = (hashes ^ (hashes >> _HALF)) * _MIXER
    return hashes ^ (hashes >> _HALF)


def _window_hashes(points: npt.NDArray[np.uint32], length: int) -> Hashes:
    """Return sum(points[i + j] * base^(length - 1 - j)) for each i: [points]; too short at the end, these are 0.

    Windows of a + b code points come from those of a and of b, so `length` is put together from its binary digits.
    """
    single = points.astype(np.uint64)
    hashes, span, power = single, 1, _BASE
    for digit in f"{length:b}"[1:]:
        hashes = hashes[:-span] * np.uint64(power) + hashes[span:]
        span, power = 2 * span, power * power & _64_BITS
        if digit == "1":
            hashes = hashes[:-1] * np.uint64(_BASE) + single[span:]
            span, power = span + 1, power * _BASE & _64_BITS
    padded = np.zeros(len(points), dtype=np.uint64)
    padded[: len(hashes)] = hashes
    return padded


def _hash_short_rows(windows: Hashes, points: npt.NDArray[np.uint32], offsets: Counts, length: int) -> None:
    """Put the hash of each whole text that is shorter than a window where the text starts, in place."""
    lengths = np.diff(offsets)
    short = np.flatnonzero(lengths < length)
    whole = np.zeros(len(short), dtype=np.uint64)
    for place in range(int(lengths[short].max(initial=0))):
        longer = lengths[short] > place
        whole[longer] = whole[longer] * np.uint64(_BASE) + points[offsets[short[longer]] + place]
    windows[offsets[short]] = whole


def _starts(offsets: Counts, length: int) -> Flags:
    """Return at which code points a shingle starts: [code points]."""
    starts = np.ones(int(offsets[-1]), dtype=np.bool_)
    # What lies this close to a row's end is no start; in a short row that reaches into the row before, into what
    # lies just as close to that one's end.
    ends = offsets[1:]
    for distance in range(1, length):
        starts[np.maximum(ends - distance, 0)] = False
    starts[offsets[:-1][np.diff(offsets) < length]] = True
    # The maximum above took the first code point as well; it always is a start.
    starts[:1] = True
    return starts
