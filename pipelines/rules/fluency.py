"""Rules on how a text reads: repetition of characters, words and phrases."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.characters import Counts, Flags, running, utf8_sizes
from pipelines.pairs import Pairs, Rows, Side, mixed
from pipelines.rules.scores import Scores, scores_of

_MIN_REPETITION_WORDS = 12
# Words of rows up to these lengths are compared with all others of their row at once; longer rows go one by one.
_BANDS = (16, 24, 40, 80, 160)
_MIN_RUN = 4
_RUN = re.compile(r"([^\d\s])\1{3,}")
_MIN_PHRASE, _MAX_PHRASE = 2, 8

Ids = npt.NDArray[np.uint64]


def repetition(pairs: Pairs) -> Scores:
    """Score: uses of a word on average, of the worse side; null where no side has 12 words.

    In languages without spaces a word is a letter of theirs.
    """
    worst = np.zeros(len(pairs), dtype=np.float64)
    for side in pairs.sides:
        rows, ids, first = _long_rows(side)
        uses = np.diff(first) / np.maximum(_distinct(ids, first), 1)
        worst[rows] = np.maximum(worst[rows], uses)
    return scores_of(worst, worst > 0)


def character_run(pairs: Pairs) -> Scores:
    """Score: the longest run of one character that is neither digit nor space, of the worse side; 0 below four.

    An ellipsis of three points is no such run, and neither are the zeros of a million.
    """
    worst = np.zeros(len(pairs), dtype=np.int64)
    for side in pairs.sides:
        rows = _rows_with_runs(side)
        texts = side.texts.take(pa.array(rows)).to_pylist()
        longest = [max((len(run.group()) for run in _RUN.finditer(text)), default=0) for text in texts]
        worst[rows] = np.maximum(worst[rows], longest)
    return scores_of(worst)


def _rows_with_runs(side: Side) -> Rows:
    """Return the rows with a run of one character, and a few others."""
    texts, signs = side.code_points, side.signs
    data = texts.data
    same = data[1:] == data[:-1]
    ends = np.flatnonzero(same[2:] & same[1:-1] & same[:-2])
    rows = np.searchsorted(texts.bounds, ends, side="right") - 1
    # Characters of several bytes: the same sign directly behind itself, three times.
    high = np.flatnonzero(signs.points >= 0x80)
    points, places = signs.points[high], signs.places[high]
    again = (points[1:] == points[:-1]) & (np.diff(places) == utf8_sizes(points[1:]))
    more = signs.rows_of(high[:-3][again[2:] & again[1:-1] & again[:-2]]) if len(high) >= _MIN_RUN else high[:0]
    return np.union1d(rows, more)


def phrase_repetition(pairs: Pairs) -> Scores:
    """Score: share of words in phrases of 2 to 8 words that stand directly behind themselves, of the worse side.

    Both occurrences count. Null where no side has 12 words. In languages without spaces a word is a letter of theirs.
    """
    worst = np.zeros(len(pairs), dtype=np.float64)
    applies = np.zeros(len(pairs), dtype=np.bool_)
    for side in pairs.sides:
        rows, ids, first = _long_rows(side)
        covered = _in_repeated_phrases(ids)
        shares = np.diff(running(covered)[first]) / np.maximum(np.diff(first), 1)
        worst[rows] = np.maximum(worst[rows], shares)
        applies[rows] = True
    return scores_of(worst, applies)


def _in_repeated_phrases(ids: Ids) -> Flags:
    covered = np.zeros(len(ids), dtype=np.bool_)
    for length in range(_MIN_PHRASE, min(_MAX_PHRASE, len(ids) // 2) + 1):
        # A phrase repeats itself where `length` words in a row are those that stand `length` words further on.
        again = np.flatnonzero(ids[length:] == ids[:-length])
        if len(again) < length:
            continue
        heads = np.flatnonzero(np.concatenate([[True], np.diff(again) != 1]))
        sizes = np.diff(np.append(heads, len(again)))
        for start, size in zip(again[heads[sizes >= length]].tolist(), sizes[sizes >= length].tolist()):
            covered[start : start + size + length] = True
    return covered


def _long_rows(side: Side) -> tuple[Rows, Ids, Counts]:
    """Return the rows of 12 words or more, numbers for their words, and where each row's begin: [n], [words], [n + 1].

    Words of two rows have different numbers, so that what is compared is always of one row.
    """
    ids, first = side.word_ids
    counts = np.diff(first)
    rows = np.flatnonzero(counts >= _MIN_REPETITION_WORDS)
    counts = counts[rows]
    starts = running(counts)
    places = np.arange(starts[-1]) + np.repeat(first[:-1][rows] - starts[:-1], counts)
    return rows, mixed(ids[places] + np.repeat(mixed(rows.astype(np.uint64) + np.uint64(1)), counts)), starts


def _distinct(ids: Ids, first: Counts) -> Counts:
    """Return how many numbers of each row differ: [rows]."""
    counts = np.diff(first)
    distinct = np.zeros(len(counts), dtype=np.int64)
    shortest = 0
    for longest in _BANDS:
        rows = np.flatnonzero((counts > shortest) & (counts <= longest))
        shortest = longest
        sizes = counts[rows]
        starts = running(sizes)
        some = ids[np.arange(starts[-1]) + np.repeat(first[:-1][rows] - starts[:-1], sizes)]
        # A number is a repetition if it stands at any distance before itself; in another row it never does.
        again = np.zeros(len(some), dtype=np.bool_)
        for distance in range(1, int(sizes.max(initial=1))):
            again[distance:] |= some[distance:] == some[:-distance]
        distinct[rows] = sizes - np.diff(running(again)[starts])
    for row in np.flatnonzero(counts > shortest).tolist():
        distinct[row] = len(np.unique(ids[first[row] : first[row + 1]]))
    return distinct
