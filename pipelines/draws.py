"""Random numbers that are a pure function of a key: the same on every worker, in any order, after any restart.

A row's key is a hash of seed, epoch, row and copy; each purpose draws from a hash of the key and its own name.
Source of the hash: the output function of SplitMix64, Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number
Generators", with the constants of Stafford's variant 13.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
T = TypeVar("T")

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the step of SplitMix64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


def row_keys(seed: int, epoch: int, row_ids: npt.NDArray[np.int64], copies: npt.NDArray[np.int64] | int = 0) -> Keys:
    """Return a key for each row: [rows]. `copies` tells rows apart that stand several times in an epoch."""
    first = _mixed(np.asarray(row_ids).astype(np.uint64) ^ np.uint64(_digest(f"{seed}/{epoch}")))
    return numbered(first, copies)


def numbered(keys: Keys, numbers: npt.NDArray[np.int64] | int) -> Keys:
    """Return other keys that depend on these and on a number beside each, or on one for all."""
    return _mixed(keys + np.asarray(numbers).astype(np.uint64) * np.uint64(_GOLDEN))


def derived(keys: Keys, purpose: str) -> Keys:
    """Return other keys that depend on these and on a purpose's name: [rows]."""
    return _mixed(keys ^ np.uint64(_digest(purpose)))


def uniform(keys: Keys) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each key: [rows]."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Draws:
    """A sequence of draws from one key: SplitMix64 itself, as many as are asked for."""

    def __init__(self, key: int) -> None:
        self._state = key

    def below(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        self._state = (self._state + _GOLDEN) & _MASK
        value = self._state
        value = ((value ^ (value >> 30)) * _FIRST) & _MASK
        value = ((value ^ (value >> 27)) * _SECOND) & _MASK
        return ((value ^ (value >> 31)) * bound) >> 64

    def one_of(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def some_of(self, items: Sequence[T], number: int) -> list[T]:
        """Return that many different items, at most all, in the order in which they stand."""
        left, picked = list(range(len(items))), []
        for _ in range(min(number, len(items))):
            picked.append(left.pop(self.below(len(left))))
        return [items[place] for place in sorted(picked)]


def _mixed(keys: Keys) -> Keys:
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(_FIRST)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(_SECOND)
    return keys ^ (keys >> np.uint64(31))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
