"""What a code point is: letter, digit, white space, control; its script; its folded form. Tables for whole arrays.

Most characters of most texts are ASCII letters, and of these there is nothing to ask. So an array of texts is gone
through once, as bytes, for all other characters: its signs. Their flags come from a table over the code points, and
every count is one over the signs of each row. The tables come from Python's `unicodedata`.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

LETTER = 1  # letters and the marks that belong to them
DIGIT = 2  # decimal digits of any script
SPACE = 4
IDEOGRAPH = 8  # a letter that is about a word by itself: Han, kana
CONTROL = 16  # C0 and C1 controls that are no white space, and U+FFFE, U+FFFF
UNSETTLED = 32  # what normalisation might change: see `pipelines/normalize.py`
SYLLABLE = 64  # a letter that is a syllable: Hangul
PUNCTUATION = 128  # all categories P
SYMBOL = 256  # all categories S
PRIVATE = 512  # private use: a font's own signs, which no other font shows
UPPER = 1024  # capitals and title case

# Planes 0 and 1 are in the tables. Beyond them lie rare ideographs; they share the last entry.
_PLANES_END = 0x20000
# Behind the planes of ideographs: unseen tags, then private use to the end.
_TAGS, _PRIVATE_PLANES = 0xE0000, 0xF0000
# In UTF-8, the bytes 80 to BF continue a character, C0 to FF begin one of several bytes: as signed bytes, from here.
_FIRST_LEAD = -0x40
# Conjoining vowels and final consonants of Hangul compose with what stands before them.
_HANGUL_JAMO = range(0x1161, 0x1200)
# First words of the names of signs that are letters by category only, as in "1º", "µm" and "x ∈ ℝ", and of letters that
# several scripts share.
_SHARED = frozenset(
    {"MODIFIER", "FEMININE", "MASCULINE", "MICRO", "OHM", "KELVIN", "ANGSTROM", "MATHEMATICAL", "IDEOGRAPHIC"}
    | {"DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "KATAKANA-HIRAGANA"}
)
_IDEOGRAPHIC = frozenset({"HAN", "HIRAGANA", "KATAKANA"})

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Points = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Signs:
    """The characters of some texts that are no ASCII letters, in their order.

    places [signs] int64: where they begin among the bytes; points [signs] uint32: their code points;
    flags [signs] uint16; starts [rows + 1] int64: row i has the signs starts[i] to starts[i + 1].
    """

    places: Counts
    points: Points
    flags: npt.NDArray[np.uint16]
    starts: Counts

    def count(self, which: Flags) -> Counts:
        """Return how many of the marked signs each row has: `which` [signs] -> [rows]."""
        return np.diff(running(which)[self.starts])

    def sum(self, values: npt.NDArray[np.generic]) -> Counts:
        """Return the sum of integers of the signs over each row: `values` [signs] -> [rows]."""
        return np.diff(running(values)[self.starts])

    def among(self, characters: str) -> Flags:
        """Return which signs are among some characters below U+10000: [signs]."""
        return character_table(characters).take(self.points, mode="clip")

    def rows_with(self, which: Flags) -> Counts:
        """Return the rows that have one of the marked signs at least, in ascending order: `which` [signs] -> [n]."""
        return self.rows_of(np.flatnonzero(which), distinct=True)

    def rows_of(self, numbers: Counts, *, distinct: bool = False) -> Counts:
        """Return the row of each of some signs, given by their numbers in ascending order: [n] -> [n], or fewer."""
        rows = np.searchsorted(self.starts, numbers, side="right") - 1
        if distinct and len(rows):
            rows = rows[np.concatenate([[True], rows[1:] != rows[:-1]])]
        return rows


@cache
def character_table(characters: str) -> Flags:
    """Return which code points are among some below U+10000; the last entry, for all others, is false."""
    table = np.zeros(0x10001, dtype=np.bool_)
    table[[ord(character) for character in characters]] = True
    table.flags.writeable = False
    return table


def running(values: npt.NDArray[np.generic]) -> Counts:
    """Return the sums of the values before each place, and of all: [n] -> [n + 1]."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


class CodePoints:
    """The characters of an Arrow string array; a null counts as an empty text.

    content: the UTF-8 of all texts; data [bytes] uint8: the same as an array; bounds [rows + 1] int64: row i is
    data[bounds[i]:bounds[i + 1]].
    """

    def __init__(self, texts: pa.Array) -> None:
        self.content, self.bounds = _utf8(texts.fill_null("") if texts.null_count else texts)
        self.data = np.frombuffer(self.content, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def lengths(self) -> Counts:
        """The code points of each row: [rows]."""
        signs = self.signs
        high = np.flatnonzero(signs.points >= 0x80)
        if not len(high):
            return self.sizes
        surplus = utf8_sizes(signs.points[high]) - 1
        return self.sizes - np.bincount(signs.rows_of(high), weights=surplus, minlength=len(self)).astype(np.int64)

    @cached_property
    def sizes(self) -> Counts:
        """The bytes of each row: [rows]."""
        return np.diff(self.bounds)

    @cached_property
    def points(self) -> Points:
        """All code points, flat: [code points] uint32; row i is points[offsets[i]:offsets[i + 1]]."""
        return np.frombuffer(self.content.decode("utf-8").encode("utf-32-le"), dtype=np.uint32)

    @cached_property
    def offsets(self) -> Counts:
        """Where each row begins among the code points: [rows + 1]."""
        return running(self.lengths)

    @cached_property
    def signs(self) -> Signs:
        """The characters that are no ASCII letters."""
        # In lower case letters lie from a to z; what is below as a signed byte continues a character in UTF-8.
        letter = ((self.data | np.uint8(0x20)) - np.uint8(ord("a"))) < 26
        places = np.flatnonzero(~letter & (self.data.view(np.int8) >= _FIRST_LEAD))
        points = self.data[places].astype(np.uint32)
        high = np.flatnonzero(points >= 0x80)
        if len(high):
            several = self.data[self.data >= 0x80].tobytes()
            points[high] = np.frombuffer(several.decode("utf-8").encode("utf-32-le"), dtype=np.uint32)
        # Points beyond the table are clipped to its last entry.
        flags = flag_table().take(points, mode="clip")
        if len(high) and points.max() >= _TAGS:
            flags[points >= _TAGS] = UNSETTLED
            flags[points >= _PRIVATE_PLANES] = PRIVATE | UNSETTLED
        return Signs(places, points, flags, np.searchsorted(places, self.bounds))

    @cached_property
    def plain(self) -> Counts:
        """ASCII letters: [rows]."""
        return self.lengths - np.diff(self.signs.starts)

    @cached_property
    def folded(self) -> Folded:
        """The texts without case, punctuation and white space; one of which nothing would be left stays as it is."""
        signs = self.signs
        folded = _folded(self, (fold_table().take(signs.points, mode="clip") == 0) & (signs.points < _PLANES_END))
        bare = np.flatnonzero((folded.lengths == 0) & (self.lengths > 0))
        if not len(bare):
            return folded
        sizes, lengths = np.diff(folded.bounds), folded.lengths.copy()
        sizes[bare], lengths[bare] = self.sizes[bare], self.lengths[bare]
        # Of these rows nothing stands in the folded texts, so they are put in between.
        whole = [self.data[self.bounds[row] : self.bounds[row + 1]] for row in bare.tolist()]
        before = np.repeat(folded.bounds[bare], self.sizes[bare])
        return Folded(np.insert(folded.data, before, np.concatenate(whole)), running(sizes), lengths)

    def count_flag(self, flag: int) -> Counts:
        """Return how many characters with a flag each row has: [rows]."""
        counts = self.signs.count((self.signs.flags & flag) != 0)
        return counts + self.plain if flag & LETTER else counts


def replaced(texts: pa.Array, rows: Counts, others: pa.Array) -> pa.Array:
    """Return texts in which some rows, in ascending order, are others: `rows` [n], `others` [n]."""
    places = np.arange(len(texts))
    places[rows] = len(texts) + np.arange(len(rows))
    return pa.concat_arrays([texts, others]).take(pa.array(places))


def _utf8(texts: pa.Array) -> tuple[bytes, Counts]:
    _, offsets, values = texts.buffers()
    if len(texts) == 0 or values is None:
        return b"", np.zeros(len(texts) + 1, dtype=np.int64)
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return values.slice(bounds[0], bounds[-1] - bounds[0]).to_pybytes(), bounds - bounds[0]


@cache
def flag_table() -> npt.NDArray[np.uint16]:
    """Return the flags of each code point below U+20000; the last entry stands for all others."""
    table = np.zeros(_PLANES_END + 1, dtype=np.uint16)
    for point in range(_PLANES_END):
        table[point] = _flags(chr(point))
    table[_PLANES_END] = LETTER | IDEOGRAPH | UNSETTLED
    table.flags.writeable = False
    return table


def _flags(character: str) -> int:
    category = unicodedata.category(character)
    flags = 0
    if category[0] in "LM":
        flags |= LETTER
        script = script_of(character)
        flags |= IDEOGRAPH if script in _IDEOGRAPHIC else SYLLABLE if script == "HANGUL" else 0
        flags |= UPPER if category in ("Lu", "Lt") else 0
    elif category == "Nd":
        flags |= DIGIT
    elif category[0] in "PS":
        flags |= PUNCTUATION if category[0] == "P" else SYMBOL
    elif category == "Co":
        flags |= PRIVATE
    if character.isspace():
        flags |= SPACE
    elif category == "Cc" or ord(character) & 0xFFFE == 0xFFFE:
        flags |= CONTROL
    if _unsettled(character, category):
        flags |= UNSETTLED
    return flags


def _unsettled(character: str, category: str) -> bool:
    if category in ("Cc", "Cf") or (character.isspace() and character != " "):
        return True
    # Marks may compose with the letter before them, or change places among themselves.
    if category[0] == "M" or ord(character) in _HANGUL_JAMO:
        return True
    return not unicodedata.is_normalized("NFC", character)


@cache
def script_table() -> tuple[npt.NDArray[np.uint16], dict[str, int]]:
    """Return the script's number of each code point below U+20000, and the numbers by name; 0 is "no script".

    The last entry of the table stands for the planes above, which hold Han.
    """
    numbers = {"": 0, "HAN": 1}
    table = np.zeros(_PLANES_END + 1, dtype=np.uint16)
    for point in range(_PLANES_END):
        script = script_of(chr(point))
        if script:
            table[point] = numbers.setdefault(script, len(numbers))
    table[_PLANES_END] = numbers["HAN"]
    table.flags.writeable = False
    return table, numbers


def script_of(character: str) -> str:
    """Return the script of a letter, in capitals ("LATIN", "HAN"); "" for all else and for letters of no script.

    Source: the first word of the character's Unicode name, which is its script for the living scripts.
    """
    if not unicodedata.category(character).startswith("L"):
        return ""
    words = unicodedata.name(character, "").split(" ", 2)
    if words[0] in ("HALFWIDTH", "FULLWIDTH"):
        words = words[1:]
    if words[0] == "CJK":
        return "HAN"
    return "" if words[0] in _SHARED else words[0]


@cache
def fold_table() -> Points:
    """Return the folded form of each code point below U+20000: lower case, and 0 for what folding removes.

    Removed are punctuation, white space, controls and accents that stand alone; letters, marks, digits and symbols
    of currency and mathematics stay. So do the two capitals whose small letters take more bytes in UTF-8.
    """
    table = np.arange(_PLANES_END, dtype=np.uint32)
    for point in range(_PLANES_END):
        character = chr(point)
        category = unicodedata.category(character)
        if category[0] in "PZC" or category == "Sk" or character.isspace():
            table[point] = 0
        elif _utf8_size(lower := ord(character.lower()[0])) <= _utf8_size(point):
            table[point] = lower
    table.flags.writeable = False
    return table


def _utf8_size(point: int) -> int:
    return 1 + (point >= 0x80) + (point >= 0x800) + (point >= 0x10000)


@dataclass(frozen=True)
class Folded:
    """Folded texts in UTF-8: data [bytes] uint8, bounds [rows + 1] int64; lengths [rows]: the characters of each."""

    data: npt.NDArray[np.uint8]
    bounds: Counts
    lengths: Counts

    def to_arrow(self) -> pa.StringArray:
        """Return them as an Arrow array: [rows]."""
        offsets = pa.py_buffer(self.bounds.astype(np.int32))
        return pa.StringArray.from_buffers(len(self.lengths), offsets, pa.py_buffer(self.data))


def folded_letters(texts: CodePoints) -> Folded:
    """Return the small letters of the texts and nothing else."""
    return _folded(texts, (texts.signs.flags & LETTER) == 0)


def _folded(texts: CodePoints, removed: Flags) -> Folded:
    """Return the texts in lower case without some of their signs: `removed` [signs]."""
    signs = texts.signs
    # Capital letters lie from A to Z, the small ones 20 (hexadecimal) further on.
    capital = (texts.data - np.uint8(ord("A"))) < 26
    data = texts.data | (capital.view(np.uint8) << np.uint8(5))
    kept = np.ones(len(data), dtype=np.bool_)
    kept[signs.places[removed]] = False
    gone = removed.astype(np.int64)  # bytes of each sign that fall away
    high = np.flatnonzero(signs.points >= 0x80)
    if len(high):
        points = signs.points[high]
        folds = np.where(points < _PLANES_END, fold_table().take(points, mode="clip"), points)
        folds[removed[high]] = 0
        changed = folds != points
        high, points, folds = high[changed], points[changed], folds[changed]
        gone[high] = _write(data, kept, signs.places[high], points, folds)
    sizes = texts.sizes - signs.sum(gone)
    return Folded(data[kept], running(sizes), texts.lengths - signs.count(removed))


def _write(
    data: npt.NDArray[np.uint8], kept: Flags, places: Counts, points: Points, folds: Points
) -> npt.NDArray[np.int64]:
    """Put folded characters, 0 for none, where others stand; return how many bytes each of them needs less."""
    old, new = (utf8_sizes(characters) for characters in (points, folds))
    new[folds == 0] = 0
    for size in range(1, 5):
        some = np.flatnonzero(new == size)
        rest = folds[some]
        for byte in range(size - 1, 0, -1):
            data[places[some] + byte] = 0x80 | (rest & 0x3F)
            rest = rest >> np.uint32(6)
        data[places[some]] = rest | (0, 0, 0xC0, 0xE0, 0xF0)[size]
    for byte in range(4):
        kept[places[(byte < old) & (byte >= new)] + byte] = False
    return old - new


def utf8_sizes(points: Points) -> Counts:
    """Return the bytes of each code point in UTF-8: [n]."""
    return 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)


def folded(texts: CodePoints) -> tuple[Points, Counts]:
    """Return the folded code points, flat, and their offsets [rows + 1]; a row of which nothing is left stays as is."""
    found = texts.folded
    points = np.frombuffer(found.data.tobytes().decode("utf-8").encode("utf-32-le"), dtype=np.uint32)
    return points, running(found.lengths)
