"""What train shares with dev or test: rows that would let a model be scored on what it was trained on.

    index = merged([held_out_index("test", row_id, src, tgt, languages, config), ...])  # of all parts of dev and test
    index.save(path)
    leaks = HeldOutIndex.load(path).leaks(src_keys, tgt_keys, (src, tgt))               # of some rows of train

A row leaks when a side of it, or the whole pair, is a held-out one but for case, punctuation and white space. Where
`overlap` is set, it leaks as well when a side says nearly the same as a held-out one: by the character n-grams that the
two share, as a share of those of the row's text or of the held-out text, whichever share is greater. The first finds
texts that are part of a held-out one, the second texts that hold one, both find variants of one.

Source: Broder: On the resemblance and containment of documents (1997) for containment by n-grams.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.characters import CodePoints, Counts, Flags, running
from pipelines.config import LanguagesConfig, LeakageConfig
from pipelines.dedup import Keys, folded_keys, pair_keys
from pipelines.shingles import Hashes, Shingles, shingles
from pipelines.stage import replacing

HELD_OUT_SPLITS = ("dev", "test")
EXACT, NEAR = "leakage", "near_leakage"
LEAKAGE_REASONS = tuple(f"{kind}_{split}" for kind in (EXACT, NEAR) for split in HELD_OUT_SPLITS)
NO_LEAK = -1
NO_MATCH = -1

# Code points of an n-gram, about three words: long enough that 1 in 20 to 100 of a text's n-grams occurs in two
# thousand sentences on the same subject, short enough that one other word in a sentence of eight leaves some. Five
# ideographs are as telling as fifteen letters (1 in 40), seven syllables of Hangul stand between.
_LETTERS = 15
_CODE_POINTS = {"ja": 5, "ko": 7, "lzh": 5, "wuu": 5, "yue": 5, "zh": 5}
# Of shorter texts (in letters), the few n-grams that they have tell nothing, whatever `min_characters` allows.
_MIN_NEAR_CHARACTERS = 20
# Bits of the filter that most n-grams of train fail: sixteen for each held-out n-gram, so 1 in 16 passes by chance,
# but no more than 2 MiB, which stay in a core's cache.
_FILTER_BITS_PER_GRAM = 16
_FILTER_BITS = (16, 24)
# Meetings of an n-gram of train with a held-out row that has it, counted in one go; and the counters.
_MEETINGS = 1 << 17
_SLOT_BITS = 19
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # any odd number of well mixed bits; this is the golden ratio
_SIDES = ("src", "tgt")
_ABOUT = b"seqloom.held_out"

_SCHEMA = pa.schema(
    [
        pa.field("split", pa.int8(), nullable=False),  # its place in HELD_OUT_SPLITS
        pa.field("row_id", pa.int64(), nullable=False),
        *(pa.field(f"{side}_key", pa.uint64(), nullable=False) for side in _SIDES),  # of the folded text
        *(pa.field(f"{side}_alone", pa.bool_(), nullable=False) for side in _SIDES),  # long enough to tell by itself
        # The side's n-grams, each once; none of a side that is too short, or where only equal texts are looked for.
        *(pa.field(f"{side}_grams", pa.list_(pa.uint64()), nullable=False) for side in _SIDES),
    ]
)


@dataclass(frozen=True)
class Leaks:
    """What some rows of train leak from: columns [rows].

    reason: place in LEAKAGE_REASONS of the first reason, else NO_LEAK; overlap: 1 where texts are equal, else the share
    of n-grams, 0 without a leak; match: the row_id of the held-out row, else NO_MATCH. Of several held-out rows it is
    that of the first reason, then of the greatest overlap, then of the smallest row_id.
    """

    reason: Counts
    overlap: npt.NDArray[np.float32]
    match: npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeldOutIndex:
    """Rows of dev and test, ready to be met again: a table after _SCHEMA, ordered by split and row_id.

    `lengths` are the code points of an n-gram of source and target; `overlap` is None where only equal texts count.
    """

    table: pa.Table
    overlap: float | None
    min_characters: int
    lengths: tuple[int, int]

    def save(self, path: Path) -> None:
        """Write the index to a file (Arrow IPC), under its name only when it is whole; equal ones give equal bytes."""
        about = {"overlap": self.overlap, "min_characters": self.min_characters, "lengths": self.lengths}
        table = self.table.combine_chunks().replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        with (
            replacing(path) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the index that `save` wrote."""
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        about = json.loads(table.schema.metadata[_ABOUT])
        about["lengths"] = tuple(about["lengths"])
        return cls(table.replace_schema_metadata(None), **about)

    def leaks(
        self, src: pa.UInt64Array | Keys, tgt: pa.UInt64Array | Keys, texts: tuple[CodePoints, CodePoints] | None = None
    ) -> Leaks:
        """Return what rows leak from, by the keys of their folded sides (a null: the row has no such side).

        The texts of the same rows are needed where the index has an overlap, and ignored where it has none.
        """
        rows = len(src)
        exact = self._equal(_with_nulls(src), _with_nulls(tgt))
        found = Leaks(
            np.full(rows, NO_LEAK, dtype=np.int64),
            np.zeros(rows, dtype=np.float32),
            np.full(rows, NO_MATCH, dtype=np.int64),
        )
        if self.overlap is not None:
            assert texts is not None, "the index has an overlap, so the texts are needed"
            self._put_near(found, texts, self.overlap)
        leaking = np.flatnonzero(exact < len(self.table))
        found.reason[leaking] = self._split[exact[leaking]]
        found.overlap[leaking] = 1.0
        found.match[leaking] = self._row_id[exact[leaking]]
        return found

    def _equal(self, source: tuple[Keys, Flags], target: tuple[Keys, Flags]) -> Counts:
        """Return the first held-out row that each row equals in a side or as a pair, else their number: [rows]."""
        (src, has_src), (tgt, has_tgt) = source, target
        of_src, of_tgt, of_pair = self._firsts
        missing = len(self.table)
        first = np.full(len(src), missing, dtype=np.int64)
        for firsts, keys, has in (
            (of_src, src, has_src),
            (of_tgt, tgt, has_tgt),
            (of_pair, pair_keys(src, tgt), has_src & has_tgt),
        ):
            np.minimum(first, firsts.find(keys, missing), out=first, where=has)
        return first

    def _put_near(self, found: Leaks, texts: tuple[CodePoints, CodePoints], threshold: float) -> None:
        parts = [
            part
            for grams, side, length in zip(self._grams, texts, self.lengths)
            if len(side) and len(grams.hashes)
            for part in grams.alike(shingles(side, length), _min_grams(self.min_characters, length), threshold)
        ]
        if not parts:
            return
        rows, held_out, overlap = (np.concatenate(column) for column in zip(*parts))
        # The best match of each row comes first: the table's rows are in the order of split and row_id.
        order = np.lexsort((held_out, -overlap, self._split[held_out], rows))
        rows, first = np.unique(rows[order], return_index=True)
        best = order[first]
        found.reason[rows] = len(HELD_OUT_SPLITS) + self._split[held_out[best]]
        found.overlap[rows] = overlap[best]
        found.match[rows] = self._row_id[held_out[best]]

    @cached_property
    def _split(self) -> npt.NDArray[np.int8]:
        split: npt.NDArray[np.int8] = self.table["split"].to_numpy()
        return split

    @cached_property
    def _row_id(self) -> npt.NDArray[np.int64]:
        row_id: npt.NDArray[np.int64] = self.table["row_id"].to_numpy()
        return row_id

    @cached_property
    def _firsts(self) -> tuple[_Firsts, _Firsts, _Firsts]:
        src, tgt = (self.table[f"{side}_key"].to_numpy() for side in _SIDES)
        alone = (np.flatnonzero(self.table[f"{side}_alone"].to_numpy()) for side in _SIDES)
        of_src, of_tgt = (_Firsts.of(keys[rows], rows) for keys, rows in zip((src, tgt), alone))
        return of_src, of_tgt, _Firsts.of(pair_keys(src, tgt), np.arange(len(src)))

    @cached_property
    def _grams(self) -> tuple[_Grams, _Grams]:
        src, tgt = (_Grams.of(self.table[f"{side}_grams"].combine_chunks()) for side in _SIDES)
        return src, tgt


def held_out_index(
    split: str,
    row_id: npt.NDArray[np.int64],
    src: CodePoints,
    tgt: CodePoints,
    languages: LanguagesConfig,
    config: LeakageConfig,
) -> HeldOutIndex:
    """Return the index of some rows of dev or test.

    A side counts by itself from `min_characters` letters and digits on: shorter ones recur by chance.
    """
    lengths = (_gram_length(languages.source), _gram_length(languages.target))
    columns = {
        "split": pa.array(np.full(len(row_id), HELD_OUT_SPLITS.index(split), dtype=np.int8)),
        "row_id": pa.array(row_id, type=pa.int64()),
    }
    for side, texts, length in zip(_SIDES, (src, tgt), lengths):
        keys = folded_keys(texts)
        columns[f"{side}_key"] = pa.array(keys.keys)
        columns[f"{side}_alone"] = pa.array(keys.lengths >= config.min_characters)
        columns[f"{side}_grams"] = _gram_lists(texts, length, config)
    table = pa.table(columns, schema=_SCHEMA)
    return merged([HeldOutIndex(table, config.overlap, config.min_characters, lengths)])


def merged(parts: Iterable[HeldOutIndex]) -> HeldOutIndex:
    """Return the union of parts of one recipe, the same for every order and size of them; of none, an empty one."""
    filled = [part for part in parts if len(part.table)]
    if not filled:
        return HeldOutIndex(_SCHEMA.empty_table(), None, 0, (_LETTERS, _LETTERS))
    assert len({(part.overlap, part.lengths) for part in filled}) == 1, "the parts are of different configs"
    table = pa.concat_tables([part.table for part in filled])
    order = np.lexsort((table["row_id"].to_numpy(), table["split"].to_numpy()))
    return HeldOutIndex(
        table.take(pa.array(order)).combine_chunks(),
        filled[0].overlap,
        max(part.min_characters for part in filled),
        filled[0].lengths,
    )


class _Alike(NamedTuple):
    """Rows of train, held-out rows that they are like, and the overlaps: [pairs] each."""

    rows: Counts
    held_out: Counts
    overlap: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Firsts:
    """Keys, sorted and unique, and the smallest row that has each."""

    keys: Keys
    rows: Counts

    @classmethod
    def of(cls, keys: Keys, rows: Counts) -> Self:
        unique, first = np.unique(keys, return_index=True)  # the first of equal ones, and `rows` ascend
        return cls(unique, rows[first])

    def find(self, keys: Keys, missing: int) -> Counts:
        """Return the row of each key, `missing` where there is none: [keys]."""
        places, known = _places(keys, self.keys)
        found = np.full(len(keys), missing, dtype=np.int64)
        found[known] = self.rows[places[known]]
        return found


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one side of all held-out rows, and who has them: an inverted index.

    hashes [n-grams], sorted and unique; rows[offsets[i]:offsets[i + 1]] have n-gram i; sizes: the n-grams of each row.
    """

    hashes: Hashes
    offsets: Counts
    rows: Counts
    sizes: Counts

    @classmethod
    def of(cls, lists: pa.ListArray) -> Self:
        """Return the index of the n-grams of each row."""
        sizes = lists.value_lengths().to_numpy().astype(np.int64)
        hashes = lists.flatten().to_numpy()
        order = np.argsort(hashes, kind="stable")
        unique, first = np.unique(hashes[order], return_index=True)
        return cls(unique, np.append(first, len(hashes)), np.repeat(np.arange(len(lists)), sizes)[order], sizes)

    def alike(self, texts: Shingles, min_grams: int, threshold: float) -> Iterator[_Alike]:
        """Yield which of the rows that have so many n-grams are how much like which held-out rows."""
        hits = self._may_have(texts.hashes)
        number = np.add.reduceat(hits, texts.offsets[:-1], dtype=np.int64)
        enough = (texts.counts >= min_grams) & self._enough(number, texts.counts, threshold)
        hit = np.flatnonzero(hits & np.repeat(enough, texts.counts))
        gram, known = self._find(texts.hashes[hit])
        row, gram = np.searchsorted(texts.offsets, hit[known], side="right") - 1, gram[known]
        enough = self._enough(np.bincount(row, minlength=len(texts)), texts.counts, threshold)[row]
        row, gram = row[enough], gram[enough]
        for part in self._parts(row, gram):
            yield self._overlaps(row[part], gram[part], texts.counts, threshold)

    def _enough(self, hits: Counts, counts: Counts, threshold: float) -> Flags:
        """Return which rows have as many n-grams that are held out as the overlap with any text needs: [rows]."""
        # Of its own, or of those of the shortest held-out text. Divided as overlaps are, so that both round alike.
        enough: Flags = (hits > 0) & (hits / np.minimum(counts, self.sizes[self.sizes > 0].min()) >= threshold)
        return enough

    def _parts(self, row: Counts, gram: Counts) -> Iterator[slice]:
        """Yield parts, of whole rows, of the n-grams of rows: in each these meet a bounded number of held-out rows."""
        met = np.append(0, np.cumsum(self.offsets[gram + 1] - self.offsets[gram]))
        bounds = np.append(np.flatnonzero(np.diff(row, prepend=NO_MATCH)), len(row))
        start = 0
        while start < len(row):
            # As many rows as fit, but one at least.
            fitting = np.searchsorted(met[bounds], met[start] + _MEETINGS, side="right") - 1
            stop = int(bounds[max(fitting, np.searchsorted(bounds, start) + 1)])
            yield slice(start, stop)
            start = stop

    def _overlaps(self, row: Counts, gram: Counts, counts: Counts, threshold: float) -> _Alike:
        # How often a row has an n-gram counts for the row's own share; that it has it at all, for the other's.
        bits = len(self.hashes).bit_length()
        ordered = np.sort((row << bits) | gram)
        new = np.diff(ordered, prepend=NO_MATCH) != 0
        row, gram = ordered >> bits, ordered & ((1 << bits) - 1)
        met = self.offsets[gram + 1] - self.offsets[gram]
        place = np.repeat(self.offsets[gram] - (np.cumsum(met) - met), met) + np.arange(int(met.sum()))
        # Plain numbers to sort: the row, the held-out row, and in the lowest bit whether the n-gram is new.
        bits = len(self.sizes).bit_length() + 1
        meetings = (np.repeat(row, met) << bits) | (self.rows[place] << 1) | np.repeat(new, met)
        meetings = np.sort(meetings[self._frequent(meetings >> 1, counts[np.repeat(row, met)], threshold)])
        first = np.flatnonzero(np.diff(meetings >> 1, prepend=NO_MATCH))
        row, held_out = meetings[first] >> bits, (meetings[first] & ((1 << bits) - 1)) >> 1
        used = np.diff(np.append(first, len(meetings)))
        shared = np.diff(running(meetings & 1)[np.append(first, len(meetings))])
        overlap = np.maximum(used / counts[row], shared / self.sizes[held_out])
        alike = overlap >= threshold
        return _Alike(row[alike], held_out[alike], overlap[alike])

    def _frequent(self, pairs: Counts, counts: Counts, threshold: float) -> Flags:
        """Return which of the meetings' pairs of rows may meet often enough: [meetings]. Most pairs meet once or twice.

        Pairs are counted by a hash of few bits, so that some count for more than they are, and none for less.
        """
        slot = ((pairs.astype(np.uint64) * _SPREAD) >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
        return self._enough(np.bincount(slot, minlength=1 << _SLOT_BITS)[slot], counts, threshold)

    @cached_property
    def _filter_shift(self) -> np.uint64:
        low, high = _FILTER_BITS
        return np.uint64(64 - min(max((_FILTER_BITS_PER_GRAM * len(self.hashes)).bit_length(), low), high))

    @cached_property
    def _filter(self) -> npt.NDArray[np.uint8]:
        """A bit for each value of the highest bits: set where a held-out n-gram has it; eight in a byte."""
        bits = np.zeros(1 << (64 - int(self._filter_shift)), dtype=np.bool_)
        bits[self.hashes >> self._filter_shift] = True
        return np.packbits(bits, bitorder="little")

    def _may_have(self, hashes: Hashes) -> Flags:
        """Return which hashes may be n-grams of held-out rows; the others are none: [hashes]."""
        bit = (hashes >> self._filter_shift).astype(np.uint32)
        passes: Flags = (self._filter[bit >> 3] >> (bit & 7).astype(np.uint8)) & 1 != 0
        return passes

    @cached_property
    def _bucket_shift(self) -> np.uint64:
        return np.uint64(63 - len(self.hashes).bit_length())

    @cached_property
    def _buckets(self) -> Counts:
        """Where the hashes of each value of the highest bits start, and where the last ones end; two or so in each."""
        values = np.arange((1 << (64 - int(self._bucket_shift))) + 1)
        return np.searchsorted((self.hashes >> self._bucket_shift).astype(np.int64), values)

    def _find(self, hashes: Hashes) -> tuple[Counts, Flags]:
        """Return the n-gram of each hash, and whether there is one: [hashes] each. Several times a binary search."""
        bucket = (hashes >> self._bucket_shift).astype(np.int64)
        gram, end = self._buckets[bucket], self._buckets[bucket + 1]
        left = np.flatnonzero(gram < end)
        known = np.zeros(len(hashes), dtype=np.bool_)
        while len(left):
            found = self.hashes[gram[left]] == hashes[left]
            known[left[found]] = True
            left = left[~found]
            gram[left] += 1
            left = left[gram[left] < end[left]]
        return gram, known


def _gram_length(language: str) -> int:
    return _CODE_POINTS.get(language.partition("-")[0], _LETTERS)


def _min_grams(min_characters: int, length: int) -> int:
    """Return the n-grams that a text needs before its overlap counts, by what `length` code points are in letters."""
    return math.ceil(max(min_characters, _MIN_NEAR_CHARACTERS) * length / _LETTERS) - length + 1


def _gram_lists(texts: CodePoints, length: int, config: LeakageConfig) -> pa.ListArray:
    """Return the n-grams of each text, each once, in ascending order: list<uint64> [rows]."""
    if config.overlap is None or not len(texts):
        return pa.array([[]] * len(texts), type=pa.list_(pa.uint64()))
    grams = shingles(texts, length)
    long_enough = grams.counts >= _min_grams(config.min_characters, length)
    rows, hashes = grams.rows, grams.hashes
    order = np.lexsort((hashes, rows))
    rows, hashes = rows[order], hashes[order]
    new = np.ones(len(rows), dtype=np.bool_)
    new[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    new &= long_enough[rows]
    offsets = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows[new], minlength=len(texts)), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(hashes[new]))


def _with_nulls(keys: pa.UInt64Array | Keys) -> tuple[Keys, Flags]:
    """Return the keys, 0 for nulls, and which are there: [rows] each."""
    if isinstance(keys, np.ndarray):
        return keys, np.ones(len(keys), dtype=np.bool_)
    return keys.fill_null(0).to_numpy(zero_copy_only=False), np.asarray(keys.is_valid())


def _places(keys: Keys, ordered: Keys) -> tuple[Counts, Flags]:
    """Return where each key stands among sorted ones, and whether it does: [keys] each."""
    places = np.searchsorted(ordered, keys)
    known = np.zeros(len(keys), dtype=np.bool_)
    inside = places < len(ordered)
    known[inside] = ordered[places[inside]] == keys[inside]
    return places, known
