"""The words of texts as numbers: cut, hashed, counted by row; and each word of a row with each of the other side.

Words are runs of letters and digits, without case, cut to their first letters: "translated" and "translation" are one
word, and so are most forms of a word in languages with many endings. In scripts without spaces a word is a character.
Source of the cut: Fraser & Marcu 2005, "ISI's participation in the Romanian-English alignment task".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.characters import (
    DIGIT,
    LETTER,
    CodePoints,
    Counts,
    Flags,
    flag_table,
    fold_table,
    running,
    script_table,
)
from pipelines.pairs import mixed

Values: TypeAlias = npt.NDArray[np.float64]
Hashes: TypeAlias = npt.NDArray[np.uint64]

# Letters of a word that count. Of 4, 5, 6, 7 and all, 4 and 5 tell good pairs of a crawl from bad ones best.
PREFIX = 5
MAX_WORDS = 200  # of a text, from its begin: what a pair costs grows with the square
ENTRIES = 2**18  # words of one side times words of the other, that are gone through in one go
_POSITION = np.uint64(0x9E3779B97F4A7C15)
_CHARACTER_SCRIPTS = ("HAN", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
_SINGLE, _MARK = 2, 3


@dataclass(frozen=True)
class Tokens:
    """The words of some texts, in order.

    hashes [words]; first [rows + 1]: row i has the words first[i] to first[i + 1]; points [code points], folded: word j
    is points[starts[j]:ends[j]].
    """

    hashes: Hashes
    first: Counts
    points: npt.NDArray[np.uint32]
    starts: Counts
    ends: Counts

    def text(self, word: int) -> str:
        """Return a word, by its number."""
        return self.points[self.starts[word] : self.ends[word]].tobytes().decode("utf-32-le")


def tokens_of(texts: pa.StringArray) -> Tokens:
    """Return the words of each text."""
    content = CodePoints(texts)
    points, offsets = content.points, content.offsets
    kinds = _kinds()[np.minimum(points, len(_kinds()) - 1)]
    in_word, single, joins = kinds > 0, kinds == _SINGLE, kinds == _MARK
    filled = content.lengths > 0
    # A word begins behind what is none, and on either side of a character that is a word; a row's end ends it too.
    starts, ends = np.zeros(len(points), dtype=np.bool_), in_word.copy()
    starts[1:] = in_word[1:] & (~in_word[:-1] | ((single[1:] | single[:-1]) & ~joins[1:]))
    starts[offsets[:-1][filled]] = in_word[offsets[:-1][filled]]
    ends[:-1] &= ~in_word[1:] | starts[1:]
    ends[offsets[1:][filled] - 1] = in_word[offsets[1:][filled] - 1]
    begins, behind = np.flatnonzero(starts), np.flatnonzero(ends) + 1
    first = np.searchsorted(begins, offsets)
    place = np.arange(len(begins)) - np.repeat(first[:-1], np.diff(first))
    if len(place) and place.max() >= MAX_WORDS:
        kept = np.flatnonzero(place < MAX_WORDS)
        begins, behind, first = begins[kept], behind[kept], np.searchsorted(kept, first)
    folds = fold_table()
    low = np.where(points < len(folds), folds[np.minimum(points, len(folds) - 1)], points)
    behind = np.minimum(behind, begins + PREFIX)
    return Tokens(word_hashes(low, begins, behind), first, low, begins, behind)


def word_hashes(points: npt.NDArray[np.uint32], starts: Counts, ends: Counts) -> Hashes:
    """Return a hash of points[start:end], of PREFIX code points at most, of each word: [words].

    Two of a hundred thousand different words share theirs with probability 3e-10.
    """
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for letter in range(PREFIX):
        inside = starts + letter < ends
        there = points[np.minimum(starts + letter, len(points) - 1)] if len(starts) else points[:0]
        hashes = np.where(inside, mixed((hashes ^ there.astype(np.uint64)) + _POSITION), hashes)
    return hashes


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Return of each code point below U+20000: 0 no part of a word, 1 part of one, 2 one by itself, 3 joins any."""
    scripts, numbers = script_table()
    kinds: npt.NDArray[np.uint8] = ((flag_table() & (LETTER | DIGIT)) != 0).astype(np.uint8)
    letters = (flag_table() & LETTER) != 0
    kinds[letters & (scripts == 0)] = _MARK
    kinds[np.isin(scripts, [numbers[name] for name in _CHARACTER_SCRIPTS])] = _SINGLE
    kinds.flags.writeable = False
    return kinds


def row_keys(tokens: Tokens) -> Hashes:
    """Return a key of each row's words in their order: [rows]."""
    place = np.arange(len(tokens.hashes)) - np.repeat(tokens.first[:-1], np.diff(tokens.first))
    values = mixed(tokens.hashes + _POSITION * (place + 1).astype(np.uint64))
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values, out=sums[1:])
    keys: Hashes = sums[tokens.first[1:]] - sums[tokens.first[:-1]]
    return keys


@dataclass(frozen=True)
class Bags:
    """The different words of each row, in no order of sense; row i has first[i] to first[i + 1] of them.

    ids [words] int32: 1 and up, 0 where the vocabulary lacks it; counts [words] float32: uses in the row.
    """

    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.float32]
    first: Counts

    @property
    def sizes(self) -> Counts:
        """Different words of each row: [rows]."""
        return np.diff(self.first)

    def rows(self, start: int, stop: int) -> Bags:
        """Return some of the rows."""
        words = slice(self.first[start], self.first[stop])
        return Bags(self.ids[words], self.counts[words], self.first[start : stop + 1] - self.first[start])

    def where(self, wanted: Flags) -> Bags:
        """Return all rows with some of their words: `wanted` [words]."""
        return Bags(self.ids[wanted], self.counts[wanted], running(wanted)[self.first])

    def sums(self, values: npt.NDArray[Any]) -> Values:
        """Return the sum of the words' values over each row: [words] -> [rows]."""
        rows = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.bincount(rows, weights=values, minlength=len(self.sizes)).astype(np.float64)


def bags_of(hashes: Hashes, first: Counts, vocabulary: Hashes) -> tuple[Bags, Hashes]:
    """Return the different words of each row and their hashes, `vocabulary` being in ascending order."""
    row = np.repeat(np.arange(len(first) - 1, dtype=np.uint64), np.diff(first))
    # 44 bits of the hash beside the row's number: two words of one row share them with probability 2^-44.
    keys = (row << np.uint64(44)) | (hashes >> np.uint64(20))
    order = np.argsort(keys, kind="stable")
    heads = np.ones(len(order), dtype=np.bool_)
    heads[1:] = keys[order[1:]] != keys[order[:-1]]
    places = np.flatnonzero(heads)
    different = hashes[order[places]]
    counts = np.diff(np.append(places, len(order))).astype(np.float32)
    return Bags(numbers_of(vocabulary, different), counts, np.searchsorted(places, first)), different


def numbers_of(vocabulary: Hashes, hashes: Hashes) -> npt.NDArray[np.int32]:
    """Return the number of each word, from 1; 0 where the vocabulary lacks it: [words]."""
    if not len(vocabulary):
        return np.zeros(len(hashes), dtype=np.int32)
    places = np.minimum(np.searchsorted(vocabulary, hashes), len(vocabulary) - 1)
    return np.where(vocabulary[places] == hashes, places + 1, 0).astype(np.int32)


@dataclass(frozen=True)
class Entries:
    """Each word of one side of a row with each of the other: src, tgt [entries], places among the words of `Bags`.

    In the order of the target's words: those of target word j are entries starts[j] to starts[j + 1] ([words + 1]).
    """

    src: Counts
    tgt: Counts
    starts: Counts


def entries_of(src: Bags, tgt: Bags) -> Entries:
    """Return the entries of all rows."""
    row = np.repeat(np.arange(len(tgt.sizes)), tgt.sizes)
    partners = src.sizes[row]
    starts = running(partners)
    places = np.arange(starts[-1]) - np.repeat(starts[:-1] - src.first[row], partners)
    return Entries(places, np.repeat(np.arange(len(row)), partners), starts)


def turned_places(src: Bags, tgt: Bags) -> Counts:
    """Return where the entries of `entries_of(tgt, src)` stand among those of `entries_of(src, tgt)`: [entries]."""
    sizes, others = src.sizes, tgt.sizes
    begins = running(sizes * others)[:-1]
    row = np.repeat(np.arange(len(sizes)), sizes)  # of each source word
    place = np.arange(len(row)) - src.first[row]
    partners = others[row]
    starts = running(partners)[:-1]
    step = np.arange(partners.sum()) - np.repeat(starts, partners)
    turned: Counts = np.repeat(begins[row] + place, partners) + step * np.repeat(sizes[row], partners)
    return turned


def blocks(src: Bags, tgt: Bags) -> Iterator[tuple[Bags, Bags, slice]]:
    """Yield the rows, some at a time: so many that they have ENTRIES entries at most, or one."""
    ends = np.cumsum(src.sizes * tgt.sizes)
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + ENTRIES, side="right")), start + 1)
        yield src.rows(start, stop), tgt.rows(start, stop), slice(start, stop)
        start = stop


class KeyIndex:
    """Finds keys among many, in an open-addressed table: for millions of keys faster than a search in sorted ones.

    keys [n] int64, different and not negative.
    """

    def __init__(self, keys: npt.NDArray[np.int64]) -> None:
        self.keys = keys
        self._bits = max(4, int(2 * len(keys)).bit_length())
        self._slots = np.full(1 << self._bits, -1, dtype=np.int32)
        left = np.arange(len(keys))
        slots = self._first(keys)
        while len(left):
            free = self._slots[slots] < 0
            self._slots[slots[free]] = left[free]
            lost = self._slots[slots] != left
            left, slots = left[lost], self._next(slots[lost])

    def _first(self, keys: npt.NDArray[np.int64]) -> Counts:
        hashes = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (hashes >> np.uint64(64 - self._bits)).astype(np.int64)

    def _next(self, slots: Counts) -> Counts:
        return (slots + 1) & ((1 << self._bits) - 1)

    def find(self, keys: npt.NDArray[np.int64]) -> Counts:
        """Return where each key stands, -1 where it is not among them: [n]."""
        slots = self._first(keys)
        found = self._slots[slots].astype(np.int64)
        left = np.flatnonzero(found >= 0)
        left = left[self.keys[found[left]] != keys[left]]
        slots = slots[left]
        while len(left):
            slots = self._next(slots)
            there = self._slots[slots].astype(np.int64)
            found[left] = there
            wrong = np.flatnonzero(there >= 0)
            wrong = wrong[self.keys[there[wrong]] != keys[left[wrong]]]
            left, slots = left[wrong], slots[wrong]
        return found
