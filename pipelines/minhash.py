"""Near duplicates: MinHash signatures of texts, bands of them, and which rows repeat a better one. Pure functions.

    signature = pair_signatures(src, tgt, shingle=5)            # 256 bytes a row: written somewhere by the caller
    keys = band_keys(signature, similarity=0.8)                 # near duplicates share one of these, most likely
    found = near_duplicates(keys, row_id, ...)                  # for any part of the keys: all rows of a key, or none
    repeats = union([found, ...])                               # of all parts

The share of places in which two signatures agree estimates the Jaccard index of the texts' sets of shingles. Rows that
share a band's key are compared by their signatures, so a key that is shared by chance drops no row.

Whether a row goes depends on pairs of rows alone, not on what became of the others: it goes when a better row is like
it, though that one may itself go for the sake of a third. So the answer is the same for every order of the rows and
every partition of the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Self

import numpy as np
import numpy.typing as npt

from pipelines.characters import CodePoints, Counts, Flags
from pipelines.shingles import Hashes, Shingles, mixed, shingles

Signatures = npt.NDArray[np.uint32]  # [rows, SIGNATURE_SIZE]
Lookup = Callable[[Counts], Signatures]  # places -> their signatures [places, SIGNATURE_SIZE]

SIGNATURE_SIZE = 64
FOUND_AT_THRESHOLD = 0.95

_BIN_SHIFT = np.uint64(64 - 6)  # the highest bits choose one of 64 bins, the lowest 32 are the value
_VALUE = np.uint64(0xFFFFFFFF)
_EMPTY = np.uint32(0xFFFFFFFF)
_SOURCE, _TARGET = 0x5851F42D4C957F2D, 0x14057B7EF767814F  # any two constants
# Rows of a bucket that the others are compared with: the best ones. A bucket of a million copies of one text then costs
# a million comparisons, not 10^12.
_LEADERS = 32
# Comparisons in one go: two signatures each, 16 MiB together.
_COMPARISONS = 1 << 15
# Rows that are signed in one go: what is computed on the way stays in a core's cache.
_ROWS = 1 << 10


def signatures(texts: CodePoints, shingle: int) -> Signatures:
    """Return the MinHash signatures of texts, by windows of `shingle` code points of the folded text: [rows, 64].

    One hash for each shingle: it falls into one of 64 bins, of which each keeps its least value; a bin without any
    borrows that of one with some.

    Source: Li, Owen, Zhang: One Permutation Hashing, NeurIPS 2012, arXiv:1208.1259; Shrivastava: Optimal Densification
    for Fast and Accurate Minwise Hashing, ICML 2017, arXiv:1703.04664.
    """
    return _signed(shingles(texts, shingle))


def pair_signatures(src: CodePoints, tgt: CodePoints, shingle: int) -> Signatures:
    """Return signatures of pairs: of one set that holds the shingles of both sides, told apart: [rows, 64]."""
    return _signed(shingles(src, shingle, salt=_SOURCE), shingles(tgt, shingle, salt=_TARGET))


def similarity(one: Signatures, other: Signatures) -> npt.NDArray[np.float32]:
    """Return the estimated Jaccard index of each row of one with the same row of the other: [rows], in [0, 1].

    The standard error is at most sqrt(J (1 - J) / 64), 0.05 at 0.8, when texts have some hundred shingles or more.
    """
    agreeing = np.count_nonzero(one == other, axis=1).astype(np.float32)
    share: npt.NDArray[np.float32] = agreeing / np.float32(SIGNATURE_SIZE)
    return share


@cache
def band_shape(similarity: float) -> tuple[int, int]:
    """Return how many bands, of how many places each, two rows of this similarity share one of with probability 0.95.

    The longest bands that a signature allows, since these are shared by chance least often; of such as few as will do.
    Two rows of similarity s share one of b bands of r places with probability 1 - (1 - s^r)^b.

    Raises ValueError for a similarity that no number of bands finds: 0.05 and less.
    Source: Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4.
    """
    for places in range(SIGNATURE_SIZE, 0, -1):
        for bands in range(1, SIGNATURE_SIZE // places + 1):
            if 1.0 - (1.0 - similarity**places) ** bands >= FOUND_AT_THRESHOLD:
                return bands, places
    raise ValueError(f"no bands of {SIGNATURE_SIZE} places find rows of similarity {similarity}")


def band_keys(signatures: Signatures, similarity: float) -> Hashes:
    """Return the keys by which near duplicates of this similarity are found, see `band_shape`: [rows, bands].

    Keys of different bands differ, so that they can be put together and partitioned in any way.
    """
    bands, places = band_shape(similarity)
    values = signatures[:, : bands * places].reshape(len(signatures), bands, places)
    keys = np.broadcast_to(mixed(np.arange(1, bands + 1, dtype=np.uint64)), (len(signatures), bands))
    for place in range(places):
        keys = mixed(keys ^ values[:, :, place])
    return keys


@dataclass(frozen=True)
class Repeats:
    """Rows that go, and the best of the better rows that each is like: columns [repeats], by ascending row_id."""

    row_id: npt.NDArray[np.int64]
    better: npt.NDArray[np.int64]  # the row_id of the better row
    better_priority: npt.NDArray[np.float32]
    similarity: npt.NDArray[np.float32]  # estimated, of the two

    def __len__(self) -> int:
        return len(self.row_id)

    def _take(self, rows: Counts | Flags) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def near_duplicates(
    band_key: Hashes,
    row_id: npt.NDArray[np.int64],
    priority: npt.NDArray[np.float32],
    place: Counts,
    lookup: Lookup,
    similarity: float,
) -> Repeats:
    """Return the rows to which a better row, with which they share a key, is at least so similar.

    Better is the row of the higher priority, of equal ones that of the smaller row_id. Columns [entries], one entry for
    each key of each row, in any order; all entries of a key must be among them. `lookup` gives the signatures at some
    places. Of the rows that share a key, only the best 32 count as better rows.

    Raises ValueError when a priority is not a number.
    """
    if np.isnan(priority).any():
        raise ValueError("a priority is NaN: give rows without a score the lowest one")
    entries = _shared(band_key)
    entries = entries[np.lexsort((row_id[entries], -priority[entries], band_key[entries]))]
    parts = [
        Repeats(row_id[worse], row_id[better], priority[better], similar)
        for worse, better, similar in _compared(band_key[entries], entries, place, lookup, similarity)
    ]
    return union(parts)


def union(parts: Iterable[Repeats]) -> Repeats:
    """Return what several parts of the keys have found: each row once, with the best of the better rows."""
    parts = list(parts)
    no_rows, no_scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    none = Repeats(no_rows, no_rows, no_scores, no_scores)
    columns = {field.name: [getattr(part, field.name) for part in [none, *parts]] for field in fields(Repeats)}
    found = Repeats(**{name: np.concatenate(arrays) for name, arrays in columns.items()})
    found = found._take(np.lexsort((found.better, -found.better_priority, found.row_id)))
    first = np.ones(len(found), dtype=np.bool_)
    first[1:] = found.row_id[1:] != found.row_id[:-1]
    return found._take(first)


def _shared(band_key: Hashes) -> Counts:
    """Return the entries whose key others have too."""
    order = np.argsort(band_key)
    ordered = band_key[order]
    same = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(order), dtype=np.bool_)
    shared[1:] = same
    shared[:-1] |= same
    return order[shared]


def _compared(
    keys: Hashes, entries: Counts, place: Counts, lookup: Lookup, threshold: float
) -> Iterator[tuple[Counts, Counts, npt.NDArray[np.float32]]]:
    """Yield entries that go, for each a better one, and how similar they are; `keys` and `entries` best rows first."""
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(first)
    start = np.repeat(starts, np.diff(np.append(starts, len(keys))))
    rank = np.arange(len(keys)) - start
    left = np.arange(len(keys))
    for leader in range(_LEADERS):
        left = left[rank[left] > leader]
        alike = np.zeros(len(left), dtype=np.float32)
        for begin in range(0, len(left), _COMPARISONS):
            worse = left[begin : begin + _COMPARISONS]
            signed = lookup(place[entries[worse]]), lookup(place[entries[start[worse] + leader]])
            alike[begin : begin + len(worse)] = similarity(*signed)
        goes = alike >= threshold
        gone = left[goes]
        yield entries[gone], entries[start[gone] + leader], alike[goes]
        # The first leader that a row is like is the best one.
        left = left[~goes]


def _signed(*sides: Shingles) -> Signatures:
    """Return the signatures of the union of the sides' shingles: [rows, 64]."""
    result = np.empty((len(sides[0]), SIGNATURE_SIZE), dtype=np.uint32)
    for start in range(0, len(result), _ROWS):
        stop = min(start + _ROWS, len(result))
        bins = _bins(sides[0], start, stop)
        for side in sides[1:]:
            np.minimum(bins, _bins(side, start, stop), out=bins)
        result[start:stop] = _densified(bins)
    return result


def _bins(shingles: Shingles, start: int, stop: int) -> Signatures:
    """Return the least value of each bin of some rows, _EMPTY where no shingle falls into it: [stop - start, 64]."""
    bins = np.full((stop - start) * SIGNATURE_SIZE, _EMPTY, dtype=np.uint32)
    hashes = shingles.hashes[shingles.offsets[start] : shingles.offsets[stop]]
    first = np.repeat(np.arange(stop - start) * SIGNATURE_SIZE, shingles.counts[start:stop])
    np.minimum.at(bins, first + (hashes >> _BIN_SHIFT).astype(np.int64), (hashes & _VALUE).astype(np.uint32))
    return bins.reshape(-1, SIGNATURE_SIZE)


def _densified(bins: Signatures) -> Signatures:
    """Return the bins, the empty ones filled with the value of the first bin of their own order that has one."""
    donors = _donors()
    row, empty = np.nonzero(bins == _EMPTY)
    result = bins.copy()
    for attempt in range(SIGNATURE_SIZE - 1):
        value = bins[row, donors[empty, attempt]]
        result[row, empty] = value
        still = value == _EMPTY
        row, empty = row[still], empty[still]
        if not len(row):
            break
    return result


@cache
def _donors() -> Counts:
    """Return for each bin all other bins, in an order of its own that is the same everywhere: [64, 63]."""
    bins = np.arange(SIGNATURE_SIZE, dtype=np.uint64)
    chance = mixed(mixed(bins + np.uint64(1))[:, None] + bins)
    # A bin comes last in its own order, where it is cut off.
    np.fill_diagonal(chance, np.iinfo(np.uint64).max)
    return np.argsort(chance, axis=1)[:, :-1]
