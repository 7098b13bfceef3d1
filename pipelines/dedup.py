"""Keys of texts and pairs, and which rows repeat an earlier one. Pure functions over arrays.

Keys are 64 bits and the same in every process and on every machine. Two different texts share one with probability
2^-64: among a billion rows that is one row in some forty such corpora.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.characters import DIGIT, IDEOGRAPH, CodePoints, Counts, Flags, Folded, running, utf8_sizes

Keys = npt.NDArray[np.uint64]
# What is compared: a key, the row, how good it is (the highest stays), and a second key where one is needed.
ENTRIES = np.dtype([("key", "<u8"), ("row_id", "<i8"), ("priority", "<f4"), ("tag", "<u8")])

_LETTERS_PER_IDEOGRAPH = 3


@dataclass(frozen=True)
class FoldedKeys:
    """Keys of folded texts [rows], and the characters that are left of each, an ideograph counted for three."""

    keys: Keys
    lengths: Counts


def text_keys(texts: pa.StringArray) -> Keys:
    """Return the key of each text as it is: [rows]; a null counts as an empty text."""
    if not len(texts):
        return np.empty(0, dtype=np.uint64)
    texts = texts.fill_null("") if texts.null_count else texts
    # All in one, and apart again: many times as fast as to take each from Arrow. Normalised texts are single lines.
    whole = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts.cast(pa.binary()))
    lines = pc.binary_join(whole, b"\n")[0].as_py().split(b"\n")
    if len(lines) != len(texts):
        lines = texts.cast(pa.binary()).to_pylist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, lines), dtype=np.uint64, count=len(lines))


def folded_keys(texts: CodePoints) -> FoldedKeys:
    """Return the keys of the texts without case, punctuation and white space; digits count."""
    folded = texts.folded
    lengths = folded.lengths + (_LETTERS_PER_IDEOGRAPH - 1) * texts.count_flag(IDEOGRAPH)
    return FoldedKeys(text_keys(folded.to_arrow()), lengths)


def pair_keys(src: Keys, tgt: Keys) -> Keys:
    """Return one key for two, in which their order counts: [rows].

    Source of the constants: the golden ratio, and the finalizer of Mulvey's xmx.
    """
    # Arrays of unsigned integers wrap around, which is what a hash wants.
    mixed = src * np.uint64(0x9E3779B97F4A7C15) + tgt
    for _ in range(2):
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> np.uint64(32))


def digitless(texts: CodePoints) -> Keys:
    """Return the keys of the texts without case, punctuation, white space and digits: [rows]."""
    bare = CodePoints(texts.folded.to_arrow())
    signs = bare.signs
    digits = np.flatnonzero((signs.flags & DIGIT) != 0)
    keep = np.ones(len(bare.data), dtype=np.bool_)
    for place in range(4):  # bytes of a character in UTF-8
        longer = digits[utf8_sizes(signs.points[digits]) > place]
        keep[signs.places[longer] + place] = False
    return text_keys(Folded(bare.data[keep], running(keep)[bare.bounds], bare.lengths).to_arrow())


def repeats(entries: npt.NDArray[np.void]) -> tuple[Flags, Counts]:
    """Return which ENTRIES share their key with a better one, and the row_id of the best: [entries] each.

    Better is the higher priority, then the smaller row_id, so the order of the entries does not matter.
    """
    order, heads = _best_first(entries)
    repeated = np.ones(len(entries), dtype=np.bool_)
    repeated[order[heads]] = False
    return repeated, _heads_of(entries, order, heads)


def overused(entries: npt.NDArray[np.void], max_uses: int) -> tuple[Flags, Counts]:
    """Return which ENTRIES come behind `max_uses` better ones of their key that differ in their tags, and the best's.

    Entries of one key and one tag count once. Both [entries].
    """
    order, heads = _best_first(entries)
    group = np.cumsum(heads) - 1
    ordered = entries[order]
    # The first place of each tag within its group, in the order of the entries.
    by_tag = np.lexsort((np.arange(len(ordered)), ordered["tag"], group))
    new = np.ones(len(ordered), dtype=np.bool_)
    same_group, tags = group[by_tag], ordered["tag"][by_tag]
    new[1:] = (same_group[1:] != same_group[:-1]) | (tags[1:] != tags[:-1])
    first_of_tag = np.zeros(len(ordered), dtype=np.bool_)
    first_of_tag[by_tag[new]] = True
    # How many tags come before each place in its group; that of a repeated tag is the place of its first.
    running = np.cumsum(first_of_tag)
    rank = running - running[np.flatnonzero(heads)][group]
    first_place = by_tag[np.flatnonzero(new)][np.cumsum(new) - 1]
    over = np.zeros(len(ordered), dtype=np.bool_)
    over[by_tag] = rank[first_place] >= max_uses
    result = np.zeros(len(ordered), dtype=np.bool_)
    result[order] = over
    return result, _heads_of(entries, order, heads)


def _best_first(entries: npt.NDArray[np.void]) -> tuple[Counts, Flags]:
    """Return the order by key, then best first: [entries]; and which places of it start another key."""
    order = np.lexsort((entries["row_id"], -entries["priority"], entries["key"]))
    keys = entries["key"][order]
    heads = np.ones(len(entries), dtype=np.bool_)
    heads[1:] = keys[1:] != keys[:-1]
    return order, heads


def _heads_of(entries: npt.NDArray[np.void], order: Counts, heads: Flags) -> Counts:
    best = np.empty(len(entries), dtype=np.int64)
    if len(entries):
        best[order] = entries["row_id"][order[np.flatnonzero(heads)]][np.cumsum(heads) - 1]
    return best
