"""Pairs of texts as the rules see them: each side with what several rules want to know of it, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipelines.characters import (
    DIGIT,
    IDEOGRAPH,
    LETTER,
    SPACE,
    SYLLABLE,
    CodePoints,
    Counts,
    Signs,
    running,
    utf8_sizes,
)
from pipelines.config import UNSPACED_LANGUAGES, LanguagesConfig
from pipelines.dedup import FoldedKeys, folded_keys
from pipelines.mojibake import mended_lines
from pipelines.resources import Resources

# Of alphabets, that say the same: Chinese texts are a third as long as English ones, Korean texts half as long.
LETTERS_PER_IDEOGRAPH = 3
LETTERS_PER_SYLLABLE = 2

# Beyond that, a word is no word, and there are few of them.
_EIGHTS_OF_A_WORD = 8

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Words:
    """What stands between white space, of all rows, in order.

    starts, ends [words]: bytes; first [rows + 1]: row i has the words first[i] to first[i + 1].
    """

    starts: Counts
    ends: Counts
    first: Counts

    @property
    def counts(self) -> Counts:
        """The words of each row: [rows]."""
        return np.diff(self.first)


class Side:
    """One side of some pairs, with what several rules want to know of it, each computed once."""

    def __init__(self, name: Literal["src", "tgt"], texts: pa.Array, raw: pa.Array, language: str) -> None:
        self.name = name
        self.texts, self.raw = texts, raw
        self.tag = language  # with region or script
        self.language = language.partition("-")[0]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def is_unspaced(self) -> bool:
        """Whether the language is written without spaces between words."""
        return self.language in UNSPACED_LANGUAGES

    @cached_property
    def code_points(self) -> CodePoints:
        """The characters of the texts."""
        return CodePoints(self.texts)

    @property
    def signs(self) -> Signs:
        """The characters that are no ASCII letters."""
        return self.code_points.signs

    @property
    def lengths(self) -> Counts:
        """Characters: [rows]."""
        return self.code_points.lengths

    @cached_property
    def letters(self) -> Counts:
        """Letters and marks: [rows]."""
        return self.code_points.count_flag(LETTER)

    @cached_property
    def ideographs(self) -> Counts:
        """Letters that are about a word each: [rows]."""
        return self.code_points.count_flag(IDEOGRAPH)

    @cached_property
    def digits(self) -> Counts:
        """Decimal digits: [rows]."""
        return self.code_points.count_flag(DIGIT)

    @cached_property
    def spaces(self) -> Counts:
        """White space: [rows]."""
        return self.code_points.count_flag(SPACE)

    @cached_property
    def printed(self) -> Counts:
        """Characters that are no white space: [rows]."""
        return self.lengths - self.spaces

    @cached_property
    def words(self) -> Counts:
        """Words between spaces, and each ideograph beyond the first for one more: [rows]."""
        words = self.spaces + 1 + np.maximum(self.ideographs - 1, 0)
        return np.where(self.lengths > 0, words, 0)

    @cached_property
    def volume(self) -> Counts:
        """Characters, ideographs and Hangul counted for as many letters as say the same: [rows]."""
        syllables = self.code_points.count_flag(SYLLABLE)
        return self.lengths + (LETTERS_PER_IDEOGRAPH - 1) * self.ideographs + (LETTERS_PER_SYLLABLE - 1) * syllables

    @cached_property
    def letter_volume(self) -> Counts:
        """Letters, an ideograph counted for three: [rows]."""
        return self.letters + (LETTERS_PER_IDEOGRAPH - 1) * self.ideographs

    @cached_property
    def spaced(self) -> Words:
        """The words between white space."""
        bounds, signs = self.code_points.bounds, self.signs
        spaces = np.flatnonzero(signs.flags & SPACE)
        filled = self.lengths > 0
        first = running(self.spaces + filled)
        starts, ends = np.empty(first[-1], dtype=np.int64), np.empty(first[-1], dtype=np.int64)
        # A word begins where its row does or behind a space, and ends at the next space or where the row ends.
        starts[first[:-1][filled]], ends[first[1:][filled] - 1] = bounds[:-1][filled], bounds[1:][filled]
        # Each row before a space has one word more than spaces.
        before = np.arange(len(spaces)) + np.repeat(running(filled)[:-1], self.spaces)
        ends[before] = signs.places[spaces]
        starts[before + 1] = signs.places[spaces] + utf8_sizes(signs.points[spaces])
        return Words(starts, ends, first)

    @cached_property
    def word_ids(self) -> tuple[npt.NDArray[np.uint64], Counts]:
        """A number for each word, the same for the same word, and where rows begin: [words], [rows + 1].

        In languages without spaces a word is a letter of theirs; names and code in ASCII letters, of which there are
        few, are left out. Two different words of one text share a number with probability 2^-64.
        """
        if self.is_unspaced:
            letters = ((self.signs.flags & LETTER) != 0) & (self.signs.points >= 0x80)
            return self.signs.points[letters].astype(np.uint64), running(self.signs.count(letters))
        return _word_ids(self.code_points.content, self.spaced), self.spaced.first

    @cached_property
    def keys(self) -> FoldedKeys:
        """The keys of the folded texts."""
        return folded_keys(self.code_points)

    @cached_property
    def lines(self) -> pa.Array:
        """The lines as they were read, but repaired where normalisation repaired a wrong decoding: [rows]."""
        return mended_lines(self.raw, self.texts)

    def take(self, rows: Rows) -> Side:
        """Return some of the rows."""
        return Side(self.name, self.texts.take(rows), self.raw.take(rows), self.tag)


def _word_ids(content: bytes, words: Words) -> npt.NDArray[np.uint64]:
    """Return a hash of each word: its bytes, eight at a time, through a multiplicative mix; of long ones XXH3."""
    eights = np.ndarray((len(content) + 1,), dtype="<u8", buffer=content + bytes(8), strides=(1,))
    sizes = words.ends - words.starts
    ids = sizes.astype(np.uint64)
    alive = np.arange(len(ids))
    places, left = words.starts, sizes
    for _ in range(_EIGHTS_OF_A_WORD):
        if not len(alive):
            break
        # What of the eight bytes lies behind the word's end is shifted out.
        spare = (8 * (8 - np.minimum(left, 8))).astype(np.uint64)
        chunk = np.where(left > 0, eights[places] << np.minimum(spare, np.uint64(63)), np.uint64(0))
        ids[alive] = mixed((ids[alive] ^ chunk) + np.uint64(0x9E3779B97F4A7C15))
        longer = np.flatnonzero(left > 8)
        alive, places, left = alive[longer], places[longer] + 8, left[longer] - 8
    for word in alive.tolist():
        ids[word] = xxhash.xxh3_64_intdigest(content[words.starts[word] : words.ends[word]])
    return ids


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return each number spread over all bits: [n].

    Source of the constants: the finalizer of Mulvey's xmx.
    """
    values = (values ^ (values >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return values ^ (values >> np.uint64(32))


@dataclass(frozen=True)
class Pairs:
    """Pairs of normalised texts, neither null; or texts of one side alone, the other being None."""

    src: Side | None
    tgt: Side | None
    resources: Resources

    @classmethod
    def of(
        cls,
        src: pa.Array | None,
        tgt: pa.Array | None,
        languages: LanguagesConfig,
        *,
        src_raw: pa.Array | None = None,
        tgt_raw: pa.Array | None = None,
        resources: Resources | None = None,
    ) -> Pairs:
        """Return pairs of two string arrays of equal length; without raw lines the texts count as such.

        Of a monolingual corpus one of the two is None. Raises ValueError where both are.
        """
        if src is None and tgt is None:
            raise ValueError("neither side has texts")
        return cls(
            None if src is None else Side("src", src, src if src_raw is None else src_raw, languages.source),
            None if tgt is None else Side("tgt", tgt, tgt if tgt_raw is None else tgt_raw, languages.target),
            resources or Resources(),
        )

    def __len__(self) -> int:
        return len(self.sides[0])

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that there are, source first: two, or one of a monolingual corpus."""
        return tuple(side for side in (self.src, self.tgt) if side is not None)

    @property
    def both(self) -> tuple[Side, Side]:
        """Source and target. Raises ValueError for texts of one side alone."""
        if self.src is None or self.tgt is None:
            raise ValueError("these are texts of one side alone, which have no pairs")
        return self.src, self.tgt

    def take(self, rows: Rows) -> Pairs:
        """Return some of the pairs."""
        src, tgt = (None if side is None else side.take(rows) for side in (self.src, self.tgt))
        return Pairs(src, tgt, self.resources)
