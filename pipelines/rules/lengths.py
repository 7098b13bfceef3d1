"""Rules on lengths: characters, words, and what they are on one side against the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.characters import SPACE, Counts, utf8_sizes
from pipelines.pairs import Pairs, Side
from pipelines.rules.scores import Scores, scores_of

# Added to both lengths, so that "Ja." against "Yes, sure." is no worse than it looks.
_LENGTH_SOFTENER = 10
_WORDS_SOFTENER = 3


def empty(pairs: Pairs) -> Scores:
    """Score: characters of the shorter side. Lower is worse."""
    return scores_of(np.min([side.lengths for side in pairs.sides], axis=0))


def characters(pairs: Pairs) -> Scores:
    """Score: characters of the longer side."""
    return scores_of(np.max([side.lengths for side in pairs.sides], axis=0))


def words(pairs: Pairs) -> Scores:
    """Score: words of the longer side; an ideograph counts for a word."""
    return scores_of(np.max([side.words for side in pairs.sides], axis=0))


def word_length(pairs: Pairs) -> Scores:
    """Score: characters of a word on average, of the worse side; null where no language is written with spaces.

    Source: AverageWordLengthFilter of OpusFilter (Aulamo et al. 2020, doi:10.18653/v1/2020.acl-demos.20).
    """
    sides = [side for side in pairs.sides if not side.is_unspaced]
    averages = [side.printed / np.maximum(side.spaces + 1, 1) for side in sides]
    return _worst(averages, len(pairs))


def length_ratio(pairs: Pairs) -> Scores:
    """Score: (longer + 10) / (shorter + 10) in letters, an ideograph counting for three, a syllable of Hangul for two.

    Null at an empty side.

    The constant softens the ratio of short texts, whose lengths vary most.
    """
    src, tgt = pairs.both
    return _ratio(src.volume, tgt.volume, _LENGTH_SOFTENER)


def word_ratio(pairs: Pairs) -> Scores:
    """Score: (longer + 3) / (shorter + 3) in words, an ideograph counting for a word; null at an empty side."""
    src, tgt = pairs.both
    return _ratio(src.words, tgt.words, _WORDS_SOFTENER)


def byte_ratio(pairs: Pairs) -> Scores:
    """Score: (longer + 10) / (shorter + 10) in bytes of UTF-8; null at an empty side.

    A Chinese text and its English translation are about as long in bytes, and a Russian one twice as long.
    """
    src, tgt = pairs.both
    return _ratio(src.code_points.sizes, tgt.code_points.sizes, _LENGTH_SOFTENER)


def long_word(pairs: Pairs) -> Scores:
    """Score: characters of the longest word; null where no language is written with spaces."""
    return _worst([_longest_word(side) for side in pairs.sides if not side.is_unspaced], len(pairs))


def _ratio(src: Counts, tgt: Counts, softener: int) -> Scores:
    longer, shorter = np.maximum(src, tgt), np.minimum(src, tgt)
    return scores_of((longer + softener) / (shorter + softener), shorter > 0)


def _worst(values: Sequence[npt.NDArray[np.generic]], rows: int) -> Scores:
    if not values:
        return scores_of(np.zeros(rows), np.zeros(rows, dtype=np.bool_))
    return scores_of(np.max(values, axis=0))


def _longest_word(side: Side) -> Counts:
    words, signs = side.spaced, side.signs
    sizes = words.ends - words.starts
    several = np.flatnonzero((signs.points >= 0x80) & ((signs.flags & SPACE) == 0))
    if len(several):
        # From bytes to characters: each of several bytes is one too many for each byte beyond its first.
        of_word = np.searchsorted(words.starts, signs.places[several], side="right") - 1
        surplus = utf8_sizes(signs.points[several]) - 1
        sizes -= np.bincount(of_word, weights=surplus, minlength=len(sizes)).astype(np.int64)
    longest = np.zeros(len(side), dtype=np.int64)
    filled = words.counts > 0
    if filled.any():
        longest[filled] = np.maximum.reduceat(sizes, words.first[:-1][filled])
    return longest
