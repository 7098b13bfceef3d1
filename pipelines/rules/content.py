"""Rules on what a text says, on one side and on the other: copies, numbers, sites, words of a list."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from pipelines.characters import DIGIT, Counts, Flags, Folded, folded_letters
from pipelines.numerals import chinese_numerals, scaled
from pipelines.pairs import Pairs, Rows, Side
from pipelines.resources import WordList
from pipelines.rules.scores import Scores, scored_rows, scores_of

# Numbers up to twelve are often spelled out on one side.
_SPELLED_OUT = 12
# What fits into 64 bits for certain.
_MAX_DIGITS = 18
_POWERS_OF_TEN = 10 ** np.arange(_MAX_DIGITS, dtype=np.int64)
# Thousands apart by spaces or apostrophes, and a decimal part; or digits with points and commas between them.
_NUMBER = re.compile(r"\d{1,3}(?:[ '’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*")
_SEPARATOR = re.compile(r"[., '’]")
_SEPARATORS = ".,’' "
_CHINESE = frozenset({"wuu", "yue", "zh"})
_SITE = re.compile(r"(?:https?://|www\.)(?:www\.)?([\w.-]+)|(?<![\w.+-])[\w.+-]++@([\w-]+\.[\w.-]+)", re.IGNORECASE)
# Below it two sides are taken for unlike, and their score is 0.
_MIN_SIMILARITY = 0.5
_WORDS_OF_A_NAME = 2
# Words in one pattern: the engine's memory for a pattern is bounded.
_WORDS_OF_A_PATTERN = 500


def identical(pairs: Pairs) -> Scores:
    """Score: words of the text that stands on both sides, case, punctuation and white space apart; 0 where they differ.

    Null where both are empty.
    """
    src, tgt = pairs.both
    same = src.keys.keys == tgt.keys.keys
    return scores_of(np.where(same, np.maximum(src.words, tgt.words), 0), (src.lengths > 0) | (tgt.lengths > 0))


def similar(pairs: Pairs) -> Scores:
    """Score: 1 - edit distance / length of the longer side, in small letters alone, and 0 where that is below 0.5.

    Null where a side has no letters, and where neither has more than two words: names are alike in many languages.
    Source: Levenshtein 1966; SimilarityFilter of OpusFilter (Aulamo et al. 2020, doi:10.18653/v1/2020.acl-demos.20).
    """
    letters = [folded_letters(side.code_points) for side in pairs.both]
    shorter, longer = _shorter_and_longer(letters)
    applies = (shorter > 0) & (np.max([side.words for side in pairs.both], axis=0) > _WORDS_OF_A_NAME)
    # Texts of very different length are never alike.
    rows = np.flatnonzero(applies & (shorter >= _MIN_SIMILARITY * longer))
    values = np.zeros(len(pairs), dtype=np.float64)
    src, tgt = (side.to_arrow().take(pa.array(rows)).to_pylist() for side in letters)
    values[rows] = cpdist(src, tgt, scorer=Levenshtein.normalized_similarity, score_cutoff=_MIN_SIMILARITY)
    return scores_of(values, applies)


def common_substring(pairs: Pairs) -> Scores:
    """Score: longest common substring / length of the shorter side, in small letters alone.

    Null where a side has no letters, and where neither has more than two words: names are alike in many languages.
    Source: LongestCommonSubstringFilter of OpusFilter (Aulamo et al. 2020, doi:10.18653/v1/2020.acl-demos.20).
    """
    letters = [folded_letters(side.code_points) for side in pairs.both]
    shorter, _ = _shorter_and_longer(letters)
    applies = (shorter > 0) & (np.max([side.words for side in pairs.both], axis=0) > _WORDS_OF_A_NAME)
    rows = np.flatnonzero(applies)
    values = np.zeros(len(pairs), dtype=np.float64)
    src, tgt = (side.to_arrow().take(pa.array(rows)).to_pylist() for side in letters)
    values[rows] = [_common_substring(ours, theirs) for ours, theirs in zip(src, tgt)] / shorter[rows]
    return scores_of(values, applies)


def _shorter_and_longer(texts: list[Folded]) -> tuple[Counts, Counts]:
    return np.minimum(texts[0].lengths, texts[1].lengths), np.maximum(texts[0].lengths, texts[1].lengths)


def _common_substring(src: str, tgt: str) -> int:
    """Return the length of the longest text that stands in both."""
    src, tgt = sorted((src, tgt), key=len)
    best = 0
    # A longer one than the best so far begins somewhere: at each place it is enough to look for one that is longer.
    for start in range(len(src)):
        while start + best < len(src) and src[start : start + best + 1] in tgt:
            best += 1
    return best


def numbers(pairs: Pairs) -> Scores:
    """Score: 1 - Jaccard index of the numbers of both sides, as multisets; null where neither side has a digit.

    "3.50" and "3,50" are the same number, and so are "2.00" and "2", and "1,000", "1.000", "1 000" and "1000"; a date
    counts as its parts. A number up to twelve that only one side has does not count: the other may spell it out. Where
    one side is Chinese, "十九" is 19, and "850 million" and "8.5亿" are the same.
    """
    values = np.zeros(len(pairs), dtype=np.float64)
    has_digits, is_hard = (np.any(masks, axis=0) for masks in zip(*(_digit_rows(side) for side in pairs.both)))
    (src_row, src_value), (tgt_row, tgt_value) = (_plain_numbers(side, ~is_hard) for side in pairs.both)
    # Every number of a row with how often each side has it.
    row, value = np.concatenate([src_row, tgt_row]), np.concatenate([src_value, tgt_value])
    order = np.lexsort((value, row))
    row, value = row[order], value[order]
    ours = (order < len(src_row)).astype(np.int64)
    heads = np.flatnonzero(np.concatenate([[True], (row[1:] != row[:-1]) | (value[1:] != value[:-1])])[: len(row)])
    if len(heads):
        src, every = np.add.reduceat(ours, heads), np.diff(np.append(heads, len(row)))
        row, counted = row[heads], value[heads] > _SPELLED_OUT
        both = np.bincount(row, weights=np.minimum(src, every - src), minlength=len(pairs))
        apart = np.bincount(row, weights=np.abs(2 * src - every) * counted, minlength=len(pairs))
        values = apart / np.maximum(both + apart, 1)
    hard = np.flatnonzero(is_hard)
    src_parts, tgt_parts = (_numbers_of(side, hard) for side in pairs.both)
    values[hard] = [_difference(ours, theirs) for ours, theirs in zip(src_parts, tgt_parts)]
    if any(side.language in _CHINESE for side in pairs.both):
        rows = np.flatnonzero(values > 0)
        texts = [side.texts.take(pa.array(rows)).to_pylist() for side in pairs.both]
        values[rows] = [_difference_in_words(src, tgt, pairs.both) for src, tgt in zip(*texts)]
    return scores_of(values, has_digits)


def _digit_rows(side: Side) -> tuple[Flags, Flags]:
    """Return which rows have digits, and which have numbers that are more than ASCII digits in a row: [rows] each."""
    has_digits = side.digits > 0
    hard = np.zeros(len(side), dtype=np.bool_)
    signs = side.signs
    digits = np.flatnonzero(signs.flags & DIGIT)
    places, points = signs.places[digits], signs.points[digits]
    other = points >= 0x80
    hard[signs.rows_of(digits[other])] = True
    # Two digits with one separator between them: that is the next sign but one, and directly behind.
    next_sign = np.minimum(digits + 1, len(signs.points) - 1)
    parted = np.concatenate([np.diff(digits) == 2, [False]])[: len(digits)] & signs.among(_SEPARATORS)[next_sign]
    parted[:-1] &= np.diff(places) <= 4
    hard[signs.rows_of(digits[parted])] = True
    # More digits in a row than fit.
    if len(digits) > _MAX_DIGITS:
        long = places[_MAX_DIGITS:] - places[:-_MAX_DIGITS] == _MAX_DIGITS
        hard[signs.rows_of(digits[_MAX_DIGITS:][long])] = True
    return has_digits, hard


def _plain_numbers(side: Side, rows: Flags) -> tuple[Rows, Counts]:
    """Return the numbers of some rows, each a run of ASCII digits: row and value, [numbers] each."""
    signs = side.signs
    digits = np.flatnonzero(signs.flags & DIGIT)
    row = signs.rows_of(digits)
    digits, row = digits[rows[row]], row[rows[row]]
    if not len(digits):
        return row, row
    places = signs.places[digits]
    heads = np.flatnonzero(np.concatenate([[True], (np.diff(places) != 1) | (row[1:] != row[:-1])]))
    ends = np.append(heads[1:], len(digits))
    exponents = np.repeat(ends, ends - heads) - 1 - np.arange(len(digits))
    values = (signs.points[digits].astype(np.int64) - ord("0")) * _POWERS_OF_TEN[exponents]
    return row[heads], np.add.reduceat(values, heads)


def _numbers_of(side: Side, rows: Rows) -> Iterator[list[str]]:
    for text in side.texts.take(pa.array(rows)).to_pylist():
        yield _all_parts(text)


def _all_parts(text: str) -> list[str]:
    return [part for number in _NUMBER.findall(text) for part in _parts(number)]


def _parts(number: str) -> list[str]:
    """Return a number's digits without separators and zeros that say nothing; a date or a version in its parts."""
    if number.isascii() and number.isdigit():
        return [number.lstrip("0") or "0"]
    number = "".join(str(unicodedata.decimal(c, c)) for c in number)
    parts = _SEPARATOR.split(number)
    if len(parts) == 2 and parts[1] in ("0", "00"):
        del parts[1]
    if len(parts) <= 2 or (len(parts[0]) <= 3 and all(len(part) == 3 for part in parts[1:-1])):
        parts = ["".join(parts)]
    return [part.lstrip("0") or "0" for part in parts]


def _difference(src: list[str], tgt: list[str]) -> float:
    if src == tgt:
        return 0.0
    both, alone = 0, src or tgt
    if src and tgt:
        ours, theirs = Counter(src), Counter(tgt)
        both = (ours & theirs).total()
        alone = list(((ours - theirs) + (theirs - ours)).elements())
    apart = sum(1 for number in alone if len(number) > 2 or int(number) > _SPELLED_OUT)
    return apart / (both + apart) if apart else 0.0


def _difference_in_words(src: str, tgt: str, sides: tuple[Side, Side]) -> float:
    """Return the difference with scales multiplied out, and with the numerals in characters that the other side needs.

    Those that it does not need do not count: 一 and 三 are parts of many words.
    """
    texts = [scaled(text, side.language) for text, side in zip((src, tgt), sides)]
    ours, theirs = (_all_parts(text) for text in texts)
    for mine, other, text, side in ((ours, theirs, texts[0], sides[0]), (theirs, ours, texts[1], sides[1])):
        if side.language in _CHINESE:
            missing = Counter(other) - Counter(mine)
            mine.extend((missing & Counter(chinese_numerals(text))).elements())
    return _difference(sorted(ours), sorted(theirs))


def url(pairs: Pairs) -> Scores:
    """Score: 1 - Jaccard index of the sites that both sides name (in addresses and e-mail), without their last label.

    So "example.com" and "example.de" are the same site. Null where neither side names one.
    """
    rows = np.union1d(*(_rows_with_sites(side) for side in pairs.both))
    sides = [side.texts.take(pa.array(rows)).to_pylist() for side in pairs.both]
    scores: list[float | None] = []
    for src, tgt in zip(*sides):
        ours, theirs = Counter(_sites(src)), Counter(_sites(tgt))
        every = (ours | theirs).total()
        scores.append(1 - (ours & theirs).total() / every if every else None)
    return scored_rows(scores, rows, len(pairs))


def _rows_with_sites(side: Side) -> Rows:
    """Return the rows that hold an `@`, a colon before a slash, or a point behind two w: all that may name a site."""
    signs, data = side.signs, side.code_points.data
    found = signs.points == ord("@")
    colons = np.flatnonzero(signs.points == ord(":"))
    found[colons] = data[np.minimum(signs.places[colons] + 1, len(data) - 1)] == ord("/")
    points = np.flatnonzero(signs.points == ord("."))
    # (In front of the first row there is the last one: one row more to look at, at most.)
    found[points] = np.all([data[signs.places[points] - back] | 0x20 == ord("w") for back in (1, 2)], axis=0)
    return signs.rows_with(found)


def _sites(text: str) -> list[str]:
    return [
        (host or domain).lower().strip(".-").removeprefix("www.").rpartition(".")[0] or (host or domain).lower()
        for host, domain in _SITE.findall(text)
    ]


def profanity(pairs: Pairs) -> Scores:
    """Score: matches of the words and phrases of the user's lists, of the worse side; null where no side has a list.

    A match is of whole words, whatever their case; in languages without spaces it is of any characters in a row. Of two
    that begin at the same place the longer one counts.
    """
    lists = {"src": pairs.resources.source_profanity, "tgt": pairs.resources.target_profanity}
    worst = np.zeros(len(pairs), dtype=np.int64)
    found = [(side, words) for side in pairs.sides if (words := lists[side.name]) is not None]
    for side, words in found:
        rows = _rows_to_search(side, words)
        pattern = _whole_words(words.words, side.is_unspaced)
        texts = side.texts.take(pa.array(rows)).to_pylist()
        matches = [len(pattern.findall(text.casefold())) for text in texts]
        worst[rows] = np.maximum(worst[rows], matches)
    return scores_of(worst, np.full(len(pairs), bool(found)))


def _rows_to_search(side: Side, words: WordList) -> Rows:
    """Return all rows that hold a word of a list anywhere, and a few others."""
    found = np.zeros(len(side), dtype=np.bool_)
    for pattern in _search_patterns(words.words):
        found |= np.asarray(pc.match_substring_regex(side.texts, pattern, ignore_case=True))
    # Of characters that fold into several ("ß"), the search knows nothing.
    found[side.signs.rows_with(side.signs.among(_folding_into_several()))] = True
    return np.flatnonzero(found)


@lru_cache(maxsize=8)
def _search_patterns(words: tuple[str, ...]) -> list[str]:
    escaped = [re.sub(r"([^\w\s])", r"\\\1", word) for word in words]
    return ["|".join(escaped[at : at + _WORDS_OF_A_PATTERN]) for at in range(0, len(words), _WORDS_OF_A_PATTERN)]


@lru_cache(maxsize=8)
def _whole_words(words: tuple[str, ...], anywhere: bool) -> re.Pattern[str]:
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(either if anywhere else rf"(?<!\w)(?:{either})(?!\w)")


@lru_cache(maxsize=1)
def _folding_into_several() -> str:
    return "".join(chr(point) for point in range(0x80, 0x10000) if len(chr(point).casefold()) > 1)
