"""What a code point is: letter, digit, white space, control; its script; its folded form. Tables for whole arrays.

A text is looked at as an array of code points, and one table look-up answers a question for all of them at once.
The tables come from Python's `unicodedata`.
"""

from __future__ import annotations

import unicodedata
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

LETTER = 1  # letters and the marks that belong to them
DIGIT = 2  # decimal digits of any script
SPACE = 4
IDEOGRAPH = 8  # a letter that is about a word by itself: Han, kana
CONTROL = 16  # C0 and C1 controls that are no white space, and U+FFFE, U+FFFF
SYLLABLE = 64  # a letter that is a syllable: Hangul
UNSETTLED = 32  # what normalisation might change: see `pipelines/normalize.py`

# Planes 0 and 1 are in the tables. Beyond them lie rare ideographs; they share the last entry.
_PLANES_END = 0x20000
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


class CodePoints:
    """The code points of an Arrow string array, flat; a null counts as an empty text.

    points [code points] uint32; offsets [rows + 1] int64, so that row i is points[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, texts: pa.Array) -> None:
        texts = texts.fill_null("") if texts.null_count else texts
        self.points = np.frombuffer(_utf8(texts).decode("utf-8").encode("utf-32-le"), dtype=np.uint32)
        self.offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False), out=self.offsets[1:])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Counts:
        """Return the code points of each row: [rows]."""
        return np.diff(self.offsets)

    @cached_property
    def index(self) -> npt.NDArray[np.uint32]:
        """Where each code point stands in the tables: [code points]."""
        return np.minimum(self.points, np.uint32(_PLANES_END))

    @cached_property
    def flags(self) -> npt.NDArray[np.uint8]:
        """The flags of each code point: [code points]."""
        return flag_table()[self.index]

    def count(self, which: Flags) -> Counts:
        """Return how many of the marked code points each row has: `which` [code points] -> [rows]."""
        return self.count_at(np.flatnonzero(which))

    def count_at(self, places: Counts) -> Counts:
        """Return how many of the places of code points, in ascending order, lie in each row: [places] -> [rows]."""
        return np.diff(np.searchsorted(places, self.offsets))

    def count_flag(self, flag: int) -> Counts:
        """Return how many code points with a flag each row has: [rows]."""
        return self.count((self.flags & flag) != 0)


def _utf8(texts: pa.Array) -> bytes:
    _, offsets, values = texts.buffers()
    if len(texts) == 0 or values is None:
        return b""
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return bytes(memoryview(values)[bounds[0] : bounds[-1]])


@cache
def flag_table() -> npt.NDArray[np.uint8]:
    """Return the flags of each code point below U+20000; the last entry stands for all others."""
    table = np.zeros(_PLANES_END + 1, dtype=np.uint8)
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
    elif category == "Nd":
        flags |= DIGIT
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
def fold_table() -> npt.NDArray[np.uint32]:
    """Return the folded form of each code point below U+20000: lower case, and 0 for what folding removes.

    Removed are punctuation, white space, controls and accents that stand alone; letters, marks, digits and symbols
    of currency and mathematics stay.
    """
    table = np.arange(_PLANES_END, dtype=np.uint32)
    for point in range(_PLANES_END):
        character = chr(point)
        category = unicodedata.category(character)
        if category[0] in "PZC" or category == "Sk" or character.isspace():
            table[point] = 0
        else:
            table[point] = ord(character.lower()[0])
    table.flags.writeable = False
    return table


def folded(code_points: CodePoints) -> tuple[npt.NDArray[np.uint32], Counts]:
    """Return the folded code points, flat, and their offsets [rows + 1]; a row of which nothing is left stays as is."""
    points = code_points.points
    table = fold_table()
    result = np.where(points < _PLANES_END, table[np.minimum(points, _PLANES_END - 1)], points)
    left = code_points.count(result != 0)
    bare = np.flatnonzero((left == 0) & (code_points.lengths > 0))
    for row in bare:
        start, stop = code_points.offsets[row], code_points.offsets[row + 1]
        result[start:stop] = points[start:stop]
    left[bare] = code_points.lengths[bare]
    offsets = np.zeros(len(code_points) + 1, dtype=np.int64)
    np.cumsum(left, out=offsets[1:])
    return result[result != 0], offsets
