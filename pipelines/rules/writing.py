"""Rules on how a text is written: markup, encoding, characters that do not belong, script, punctuation."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import (
    CONTROL,
    IDEOGRAPH,
    LETTER,
    PRIVATE,
    PUNCTUATION,
    SYMBOL,
    UPPER,
    CodePoints,
    Counts,
    Flags,
    script_table,
    utf8_sizes,
)
from pipelines.mojibake import broken_places
from pipelines.pairs import LETTERS_PER_IDEOGRAPH, Pairs, Rows, Side
from pipelines.rules.scores import Scores, scores_of, worst_share

# Languages that are not written in Latin letters; all others are.
_LANGUAGES_OF_SCRIPTS = {
    ("CYRILLIC",): ("be", "bg", "kk", "ky", "mk", "mn", "ru", "tg", "tt", "uk"),
    ("CYRILLIC", "LATIN"): ("az", "bs", "sh", "sr", "uz"),
    ("ARABIC",): ("ar", "ckb", "fa", "ps", "sd", "ug", "ur"),
    ("GURMUKHI", "ARABIC"): ("pa",),
    ("HEBREW",): ("he", "yi"),
    ("DEVANAGARI",): ("hi", "mr", "ne", "sa"),
    ("BENGALI",): ("as", "bn"),
    ("ETHIOPIC",): ("am", "ti"),
    ("TIBETAN",): ("bo", "dz"),
    ("HAN", "BOPOMOFO"): ("wuu", "yue", "zh"),
    ("HAN", "HIRAGANA", "KATAKANA"): ("ja",),
    ("HANGUL", "HAN"): ("ko",),
    ("ARMENIAN",): ("hy",),
    ("GEORGIAN",): ("ka",),
    ("GREEK",): ("el",),
    ("GUJARATI",): ("gu",),
    ("KANNADA",): ("kn",),
    ("KHMER",): ("km",),
    ("LAO",): ("lo",),
    ("MALAYALAM",): ("ml",),
    ("MYANMAR",): ("my",),
    ("ORIYA",): ("or",),
    ("SINHALA",): ("si",),
    ("TAMIL",): ("ta",),
    ("TELUGU",): ("te",),
    ("THAANA",): ("dv",),
    ("THAI",): ("th",),
}
_SCRIPTS = {language: scripts for scripts, languages in _LANGUAGES_OF_SCRIPTS.items() for language in languages}

_OPENING, _CLOSING = "([{（［｛【《「『", ")]}）］｝】》」』"
# Between the steps of a path through a site, and between the links of a menu; each stands by itself.
_SEPARATORS = "|>»·•→/-–—›"
_MIN_TITLE_WORDS = 4
_CLOSERS = "\"'”’“»«)]）」』 "
_ENDINGS = {".": 1, "。": 1, "…": 1, "।": 1, "?": 2, "？": 2, "؟": 2, "!": 3, "！": 3}
_ASKS = 2


def broken_encoding(pairs: Pairs) -> Scores:
    """Score: places that look like UTF-8 read as Windows-1252, and replacement characters.

    Counted in the lines as they were read, without those that normalisation repaired, both sides together.
    """
    counts = [broken_places(side.texts, side.signs) + _broken_unseen(side) for side in pairs.sides]
    return scores_of(np.sum(counts, axis=0))


def _broken_unseen(side: Side) -> Counts:
    """Return the places that are in the lines only, since normalisation takes unseen characters out: [rows]."""
    more = np.zeros(len(side), dtype=np.int64)
    rows = _other_lines(side)
    if len(rows):
        lines, texts = (array.take(pa.array(rows)) for array in (side.lines, side.texts))
        found = broken_places(lines, CodePoints(lines).signs) - broken_places(texts, CodePoints(texts).signs)
        more[rows] = np.maximum(found, 0)
    return more


def control(pairs: Pairs) -> Scores:
    """Score: control characters other than white space in the lines as they were read, both sides together.

    Those of a wrong decoding that normalisation repaired do not count.
    """
    counts = np.zeros(len(pairs), dtype=np.int64)
    for side in pairs.sides:
        rows = _other_lines(side)
        counts[rows] += CodePoints(side.lines.take(pa.array(rows))).count_flag(CONTROL)
    return scores_of(counts)


def _other_lines(side: Side) -> Rows:
    """Return the rows that normalisation changed: only their lines can hold what it takes out."""
    if side.raw is side.texts:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.asarray(pc.not_equal(side.raw, side.texts)))


def private_use(pairs: Pairs) -> Scores:
    """Score: characters of Unicode's private use areas, which only one font shows, both sides together."""
    return scores_of(np.sum([side.code_points.count_flag(PRIVATE) for side in pairs.sides], axis=0))


def script(pairs: Pairs) -> Scores:
    """Score: share of letters outside of the scripts of the language, of the worse side; null without letters.

    An ideograph counts for three letters, so that a Chinese sentence may name a person in Latin letters.
    """
    return worst_share([_foreign_volume(side) for side in pairs.sides], [side.letter_volume for side in pairs.sides])


def _foreign_volume(side: Side) -> Counts:
    table = _foreign_table(side.language)
    plain = side.code_points.plain if table[ord("a")] else np.zeros(len(side), dtype=np.int64)
    foreign = np.flatnonzero(table.take(side.signs.points, mode="clip"))
    if not len(foreign):
        return plain
    volume = np.where(side.signs.flags[foreign] & IDEOGRAPH, LETTERS_PER_IDEOGRAPH, 1)
    rows = side.signs.rows_of(foreign)
    return plain + np.bincount(rows, weights=volume, minlength=len(side)).astype(np.int64)


@cache
def _foreign_table(language: str) -> npt.NDArray[np.bool_]:
    table, numbers = script_table()
    expected = [numbers[name] for name in _SCRIPTS.get(language, ("LATIN",))]
    foreign: npt.NDArray[np.bool_] = (table > 0) & ~np.isin(table, expected)
    return foreign


def alphabetic_ratio(pairs: Pairs) -> Scores:
    """Score: share of letters among the characters that are no space, of the worse side; null at an empty side.

    Lower is worse. An ideograph counts for three letters: "2019年5月" has as many as a date in English.
    """
    # (What is no letter counts once in both.)
    wholes = [side.printed + side.letter_volume - side.letters for side in pairs.sides]
    shares = [side.letter_volume / np.maximum(whole, 1) for side, whole in zip(pairs.sides, wholes)]
    return scores_of(np.min(shares, axis=0), np.min(wholes, axis=0) > 0)


def punctuation(pairs: Pairs) -> Scores:
    """Score: share of punctuation and symbols among the characters that are no space, of the worse side.

    Null where there are no such characters.
    """
    parts = [side.code_points.count_flag(PUNCTUATION | SYMBOL) for side in pairs.sides]
    return worst_share(parts, [side.printed for side in pairs.sides])


def brackets(pairs: Pairs) -> Scores:
    """Score: brackets without their other one and odd quotation marks, of the worse side; or how many brackets more
    one side has than the other, where that is more.

    Only how many there are counts, not where they stand.
    """
    imbalance, totals = [], []
    for side in pairs.sides:
        depth = np.zeros(len(side), dtype=np.int64)
        total = np.zeros(len(side), dtype=np.int64)
        signs = side.signs
        some = np.flatnonzero(signs.among(_OPENING + _CLOSING + '"'))
        points, rows = signs.points[some], signs.rows_of(some)
        for kind in _bracket_kinds():
            opening, closing = (np.bincount(rows[points == point], minlength=len(side)) for point in kind)
            depth += np.abs(opening - closing)
            total += opening + closing
        depth += np.bincount(rows[points == ord('"')], minlength=len(side)) % 2
        imbalance.append(depth)
        totals.append(total)
    apart = np.abs(totals[0] - totals[-1])
    return scores_of(np.maximum(np.max(imbalance, axis=0), apart))


def breadcrumbs(pairs: Pairs) -> Scores:
    """Score: share of separators that stand by themselves (`Home > News | Sport`) among the words, of the worse side.

    Null below two of them: a single dash or bar is no menu.
    """
    shares = np.zeros(len(pairs), dtype=np.float64)
    for side in pairs.sides:
        signs, data, bounds = side.signs, side.code_points.data, side.code_points.bounds
        some = np.flatnonzero(signs.among(_SEPARATORS + ":"))
        rows, starts = signs.rows_of(some), signs.places[some]
        # Of colons two: "::".
        doubled = signs.points[some] == ord(":")
        ends = starts + utf8_sizes(signs.points[some]) + doubled
        inside = (starts > bounds[rows]) & (ends < bounds[rows + 1])
        rows, starts, ends, doubled = rows[inside], starts[inside], ends[inside], doubled[inside]
        alone = (data[starts - 1] == ord(" ")) & (data[ends] == ord(" ")) & (~doubled | (data[ends - 1] == ord(":")))
        counts = np.bincount(rows[alone], minlength=len(side))
        shares = np.maximum(shares, np.where(counts > 1, counts / (side.spaces + 1), 0.0))
    return scores_of(shares, shares > 0)


def title_case(pairs: Pairs) -> Scores:
    """Score: share of words that begin with a capital, among those that begin with a letter, of the less titled side.

    Of sides in scripts that have no capitals nothing is asked. Null where no side has four words.
    """
    shares = np.full(len(pairs), np.inf)
    for side in pairs.sides:
        if side.is_unspaced:
            continue
        capitals, letters = _initials(side)
        long = letters >= _MIN_TITLE_WORDS
        shares[long] = np.minimum(shares[long], capitals[long] / letters[long])
    return scores_of(np.where(np.isfinite(shares), shares, 0.0), np.isfinite(shares))


def _initials(side: Side) -> tuple[Counts, Counts]:
    """Return the words that begin with a capital, and those that begin with a letter: [rows] each."""
    words, signs, data = side.spaced, side.signs, side.code_points.data
    # (A word may be empty in a text that was not normalised.)
    initials = np.where(words.starts < words.ends, np.append(data, np.uint8(0))[words.starts], np.uint8(0))
    letter = _plain_letters().take(initials)
    capital = (initials >= ord("A")) & (initials <= ord("Z"))
    high = np.flatnonzero(initials >= 0x80)
    if len(high):
        flags = signs.flags[np.searchsorted(signs.places, words.starts[high])]
        letter[high], capital[high] = (flags & LETTER) != 0, (flags & UPPER) != 0
    counts = [np.diff(np.concatenate([[0], np.cumsum(which)])[words.first]) for which in (capital, letter)]
    return counts[0], counts[1]


def terminal_punctuation(pairs: Pairs) -> Scores:
    """Score: 0 where both sides end alike (full stop, question, exclamation, none), 1 where one asks and the other
    does not, 0.5 otherwise; null at an empty side."""
    src, tgt = (_ending(side) for side in pairs.both)
    asks = (src == _ASKS) != (tgt == _ASKS)
    values = np.where(src == tgt, 0.0, np.where(asks, 1.0, 0.5))
    return scores_of(values, np.min([side.lengths for side in pairs.both], axis=0) > 0)


def _ending(side: Side) -> npt.NDArray[np.int8]:
    """Return how each text ends, quotation marks and brackets that close behind it apart: [rows], 0 for no sign."""
    signs = side.signs
    kinds = _endings().take(signs.points, mode="clip")
    last = signs.starts[1:] - 1  # the number of the row's last sign
    end = side.code_points.bounds[1:].copy()
    result = np.zeros(len(side), dtype=np.int8)
    rows = np.flatnonzero(last >= signs.starts[:-1])
    while len(rows):
        number = last[rows]
        at_end = signs.places[number] + utf8_sizes(signs.points[number]) == end[rows]
        rows, number = rows[at_end], number[at_end]
        result[rows] = np.maximum(kinds[number], 0)
        closes = kinds[number] < 0
        rows, number = rows[closes], number[closes]
        end[rows], last[rows] = signs.places[number], number - 1
        rows = rows[last[rows] >= signs.starts[:-1][rows]]
    return result


@cache
def _endings() -> npt.NDArray[np.int8]:
    """Return the kind of ending of each code point below U+10000, -1 for what may close behind it; else 0."""
    table = np.zeros(0x10001, dtype=np.int8)
    for character, kind in _ENDINGS.items():
        table[ord(character)] = kind
    table[[ord(character) for character in _CLOSERS]] = -1
    table.flags.writeable = False
    return table


@cache
def _bracket_kinds() -> tuple[tuple[int, int], ...]:
    return tuple((ord(opening), ord(closing)) for opening, closing in zip(_OPENING, _CLOSING))


@cache
def _plain_letters() -> Flags:
    return np.array([byte < 0x80 and chr(byte).isalpha() for byte in range(256)])
