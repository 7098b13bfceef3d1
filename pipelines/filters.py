"""The rules: each gives every pair a score; the thresholds stand in the config, so scoring and deciding are apart.

A score function takes `Pairs` and returns a float32 array [rows] that is null where the rule does not apply. RULES is
ordered: a pair that several rules would drop is dropped by the first of them. `language` comes last, since it costs
more than all others together; it looks only at the pairs that the others leave.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import (
    CONTROL,
    DIGIT,
    IDEOGRAPH,
    LETTER,
    SPACE,
    SYLLABLE,
    CodePoints,
    Counts,
    Flags,
    script_table,
)
from pipelines.config import LanguagesConfig, RulesConfig
from pipelines.dedup import FoldedKeys, folded_keys
from pipelines.language_id import language_scores

Scores: TypeAlias = pa.FloatArray
Values = npt.NDArray[np.float64]

# Of alphabets, that say the same: Chinese texts are a third as long as English ones, Korean texts half as long.
_LETTERS_PER_IDEOGRAPH = 3
_LETTERS_PER_SYLLABLE = 2
# Added to both lengths, so that "Ja." against "Yes, sure." is no worse than it looks.
_LENGTH_SOFTENER = 10
_MIN_REPETITION_WORDS = 12
_MIN_LANGUAGE_LETTERS = 15
# Numbers up to twelve are often spelled out on one side.
_SPELLED_OUT = 12

_UNSPACED = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"})
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

_MARKUP = (
    r"</?[A-Za-z][^<>]*>|<!--|-->|<[!?][A-Za-z]|&#?[A-Za-z0-9]{2,10};|\{\{|\}\}"
    r"|\[/?(?:b|i|u|url|img|quote|code)\]"
)
_MARKUP_SIGNS = "[<>&{}\\[]"
# UTF-8 that was read as Windows-1252 or Latin-1: a lead byte (Ã, Â, Ð ...), then what these make of bytes 80 to BF.
# (Without what closes a quotation, which may rightly follow such a capital.)
_TRAIL = r"\x{80}-\x{9f}¡-º¼-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ˜™š›œžŸ"
_BROKEN = rf"\x{{fffd}}|[ÃÂÄÅÐÑ][{_TRAIL}]|Ã\x{{a0}}|â[\x{{80}}-\x{{9f}}€‚„][{_TRAIL}“”•–—]|ðŸ|ï»¿"
# Thousands apart by spaces or apostrophes, and a decimal part; or digits with points and commas between them.
_NUMBER = re.compile(r"\d{1,3}(?:[ '’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*")
_SEPARATOR = re.compile(r"[., '’]")
_SITE = re.compile(r"(?:https?://|www\.)(?:www\.)?([\w.-]+)|[\w.+-]+@([\w-]+\.[\w.-]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Rule:
    """A score of pairs, and the side of the threshold on which a pair is dropped."""

    name: str
    score: Callable[[Pairs], Scores]
    worse: Literal["above", "below"] = "above"

    def drops(self, scores: Scores, threshold: float | None) -> Flags:
        """Return which rows go: [rows]; none where the threshold is None, and never a row without a score."""
        if threshold is None:
            return np.zeros(len(scores), dtype=np.bool_)
        bad = pc.greater(scores, threshold) if self.worse == "above" else pc.less(scores, threshold)
        return np.asarray(bad.fill_null(False))


class Side:
    """One side of some pairs, with what several rules want to know of it, each computed once."""

    def __init__(self, texts: pa.Array, raw: pa.Array, language: str) -> None:
        self.texts, self.raw = texts, raw
        self.language = language.partition("-")[0]
        self.code_points = CodePoints(texts)

    def __len__(self) -> int:
        return len(self.texts)

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
    def space_places(self) -> Counts:
        """Where there is white space among the code points, in ascending order: [white space]."""
        return np.flatnonzero(self.code_points.flags & SPACE)

    @cached_property
    def spaces(self) -> Counts:
        """White space: [rows]."""
        return self.code_points.count_at(self.space_places)

    @cached_property
    def words(self) -> Counts:
        """Words between spaces, and each ideograph beyond the first for one more: [rows]."""
        words = self.spaces + 1 + np.maximum(self.ideographs - 1, 0)
        return np.where(self.code_points.lengths > 0, words, 0)

    @cached_property
    def volume(self) -> Counts:
        """Characters, ideographs and Hangul counted for as many letters as say the same: [rows]."""
        syllables = self.code_points.count_flag(SYLLABLE)
        denser = (_LETTERS_PER_IDEOGRAPH - 1) * self.ideographs + (_LETTERS_PER_SYLLABLE - 1) * syllables
        return self.code_points.lengths + denser

    @cached_property
    def keys(self) -> FoldedKeys:
        """The keys of the folded texts."""
        return folded_keys(self.code_points)


@dataclass(frozen=True)
class Pairs:
    """Pairs of normalised texts, neither null."""

    src: Side
    tgt: Side

    @classmethod
    def of(
        cls,
        src: pa.Array,
        tgt: pa.Array,
        languages: LanguagesConfig,
        *,
        src_raw: pa.Array | None = None,
        tgt_raw: pa.Array | None = None,
    ) -> Pairs:
        """Return pairs of two string arrays of equal length; without raw lines the texts count as such."""
        return cls(
            Side(src, src if src_raw is None else src_raw, languages.source),
            Side(tgt, tgt if tgt_raw is None else tgt_raw, languages.target),
        )

    def __len__(self) -> int:
        return len(self.src)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both sides, source first."""
        return (self.src, self.tgt)

    def take(self, rows: npt.NDArray[np.int64]) -> Pairs:
        """Return some of the pairs."""
        src, tgt = (Side(side.texts.take(rows), side.raw.take(rows), side.language) for side in self.sides)
        return Pairs(src, tgt)


@dataclass(frozen=True)
class Verdict:
    """Scores of each rule [rows]; the first rule that drops a row, and its score there, null where none does."""

    scores: dict[str, Scores]
    rule: pa.StringArray
    score: Scores


def judge(pairs: Pairs, config: RulesConfig) -> Verdict:
    """Return the scores of all rules and the first that drops each pair.

    `language` is scored only where no other rule drops the pair, and not at all where it is switched off.
    """
    scores: dict[str, Scores] = {}
    first = np.full(len(pairs), -1, dtype=np.int64)
    for number, rule in enumerate(RULES):
        threshold: float | None = getattr(config, rule.name)
        if rule.name != "language":
            scores[rule.name] = rule.score(pairs)
        else:
            left = np.flatnonzero(first < 0) if threshold is not None else np.empty(0, dtype=np.int64)
            scores[rule.name] = _scattered(rule.score(pairs.take(left)), left, len(pairs))
        first[(first < 0) & rule.drops(scores[rule.name], threshold)] = number
    names = pa.array([rule.name for rule in RULES], type=pa.string())
    dropped = pa.array(first, mask=first < 0)
    return Verdict(scores, names.take(dropped), _score_of(first, scores))


def _score_of(first: Counts, scores: dict[str, Scores]) -> Scores:
    values = np.zeros(len(first), dtype=np.float32)
    for number, rule in enumerate(RULES):
        rows = np.flatnonzero(first == number)
        if len(rows):
            values[rows] = scores[rule.name].take(rows).to_numpy()
    return pa.array(values, mask=first < 0)


def _scattered(scores: Scores, rows: npt.NDArray[np.int64], total: int) -> Scores:
    places = np.full(total, -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return scores.take(pa.array(places, mask=places < 0))


def _scores(values: npt.NDArray[np.generic], applies: Flags | None = None) -> Scores:
    mask = None if applies is None else ~applies
    return pa.array(np.asarray(values, dtype=np.float32), mask=mask)


# --- The rules, in their order -------------------------------------------------------------------------------------


def empty(pairs: Pairs) -> Scores:
    """Score: characters of the shorter side. Lower is worse."""
    return _scores(np.minimum(*(side.code_points.lengths for side in pairs.sides)))


def characters(pairs: Pairs) -> Scores:
    """Score: characters of the longer side."""
    return _scores(np.maximum(*(side.code_points.lengths for side in pairs.sides)))


def words(pairs: Pairs) -> Scores:
    """Score: words of the longer side; an ideograph counts for a word."""
    return _scores(np.maximum(pairs.src.words, pairs.tgt.words))


def length_ratio(pairs: Pairs) -> Scores:
    """Score: (longer + 10) / (shorter + 10) in letters, an ideograph counting for three, a syllable of Hangul for two.

    Null at an empty side.

    The constant softens the ratio of short texts, whose lengths vary most.
    """
    longer = np.maximum(pairs.src.volume, pairs.tgt.volume)
    shorter = np.minimum(pairs.src.volume, pairs.tgt.volume)
    return _scores((longer + _LENGTH_SOFTENER) / (shorter + _LENGTH_SOFTENER), shorter > 0)


def long_word(pairs: Pairs) -> Scores:
    """Score: characters of the longest word; null where both languages are written without spaces."""
    sides = [side for side in pairs.sides if side.language not in _UNSPACED]
    longest = np.zeros(len(pairs), dtype=np.int64)
    for side in sides:
        longest = np.maximum(longest, _longest_word(side.code_points, side.space_places))
    return _scores(longest, np.full(len(pairs), bool(sides)))


def _longest_word(texts: CodePoints, spaces: Counts) -> Counts:
    longest = np.zeros(len(texts), dtype=np.int64)
    filled = np.flatnonzero(texts.lengths > 0)
    if not len(filled):
        return longest
    # A word begins at a row's begin or behind a space, and ends at the next space or where the row ends.
    begins = texts.offsets[filled]
    # (Two ascending runs: the stable sort merges them.)
    starts = np.sort(np.concatenate([begins, spaces + 1]), kind="stable")
    ends = np.sort(np.concatenate([texts.offsets[filled + 1], spaces]), kind="stable")
    longest[filled] = np.maximum.reduceat(ends - starts, np.searchsorted(starts, begins))
    return longest


def markup(pairs: Pairs) -> Scores:
    """Score: tags, unresolved entities, template marks and bits of scripts, both sides together."""
    counts = np.zeros(len(pairs), dtype=np.int64)
    for side in pairs.sides:
        # A look for single characters tells most rows apart before the pattern is tried.
        rows = np.flatnonzero(np.asarray(pc.match_substring_regex(side.texts, _MARKUP_SIGNS)))
        counts[rows] += _count(side.texts.take(rows), _MARKUP)
    return _scores(counts)


def broken_encoding(pairs: Pairs) -> Scores:
    """Score: places that look like UTF-8 read as Windows-1252, and replacement characters, in the raw lines."""
    counts = np.zeros(len(pairs), dtype=np.int64)
    for side in pairs.sides:
        rows = np.flatnonzero(~np.asarray(pc.string_is_ascii(side.raw)))
        counts[rows] += _count(side.raw.take(rows), _BROKEN)
    return _scores(counts)


def control(pairs: Pairs) -> Scores:
    """Score: control characters other than white space in the raw lines."""
    counts = np.zeros(len(pairs), dtype=np.int64)
    for side in pairs.sides:
        # Normalisation takes controls out, so a line that it left alone has none.
        rows = np.flatnonzero(np.asarray(pc.not_equal(side.raw, side.texts)))
        counts[rows] += CodePoints(side.raw.take(rows)).count_flag(CONTROL)
    return _scores(counts)


def script(pairs: Pairs) -> Scores:
    """Score: share of letters outside of the scripts of the language, of the worse side; null without letters.

    An ideograph counts for three letters, so that a Chinese sentence may name a person in Latin letters.
    """
    wholes = [_letter_volume(side) for side in pairs.sides]
    shares = [_foreign_volume(side) / np.maximum(whole, 1) for side, whole in zip(pairs.sides, wholes)]
    return _scores(np.maximum(*shares), (wholes[0] > 0) | (wholes[1] > 0))


def _letter_volume(side: Side) -> Counts:
    return side.letters + (_LETTERS_PER_IDEOGRAPH - 1) * side.ideographs


def _foreign_volume(side: Side) -> Counts:
    foreign = _foreign_table(side.language)[side.code_points.index]
    places = np.flatnonzero(foreign)
    ideographs = places[(side.code_points.flags[places] & IDEOGRAPH) != 0]
    return side.code_points.count_at(places) + (_LETTERS_PER_IDEOGRAPH - 1) * side.code_points.count_at(ideographs)


@cache
def _foreign_table(language: str) -> npt.NDArray[np.bool_]:
    table, numbers = script_table()
    expected = [numbers[name] for name in _SCRIPTS.get(language, ("LATIN",))]
    foreign: npt.NDArray[np.bool_] = (table > 0) & ~np.isin(table, expected)
    return foreign


def alphabetic_ratio(pairs: Pairs) -> Scores:
    """Score: share of letters among the characters that are no space, of the worse side; null at an empty side.

    Lower is worse.
    """
    printed = [side.code_points.lengths - side.spaces for side in pairs.sides]
    shares = [side.letters / np.maximum(whole, 1) for side, whole in zip(pairs.sides, printed)]
    return _scores(np.minimum(*shares), (printed[0] > 0) & (printed[1] > 0))


def identical(pairs: Pairs) -> Scores:
    """Score: words of the text that stands on both sides, case, punctuation and white space apart; 0 where they differ.

    Null where both are empty.
    """
    same = pairs.src.keys.keys == pairs.tgt.keys.keys
    filled = (pairs.src.code_points.lengths > 0) | (pairs.tgt.code_points.lengths > 0)
    return _scores(np.where(same, np.maximum(pairs.src.words, pairs.tgt.words), 0), filled)


def numbers(pairs: Pairs) -> Scores:
    """Score: 1 - Jaccard index of the numbers of both sides, as multisets; null where neither side has a digit.

    "3.50" and "3,50" are the same number, and so are "2.00" and "2", and "1,000", "1.000", "1 000" and "1000"; a date
    counts as its parts. A number up to twelve that only one side has does not count: the other may spell it out.
    """
    rows = np.flatnonzero((pairs.src.digits > 0) | (pairs.tgt.digits > 0))
    src, tgt = (_numbers_of(side, rows) for side in pairs.sides)
    return _scored_rows([_difference(ours, theirs) for ours, theirs in zip(src, tgt)], rows, len(pairs))


def _numbers_of(side: Side, rows: npt.NDArray[np.int64]) -> Iterator[list[str]]:
    for text, has_digits in zip(side.texts.take(rows).to_pylist(), (side.digits[rows] > 0).tolist()):
        yield [part for number in _NUMBER.findall(text) for part in _parts(number)] if has_digits else []


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


def url(pairs: Pairs) -> Scores:
    """Score: 1 - Jaccard index of the sites that both sides name (in addresses and e-mail), without their last label.

    So "example.com" and "example.de" are the same site. Null where neither side names one.
    """
    named = pc.or_(*(pc.match_substring_regex(side.texts, r"://|@|[wW][wW][wW]\.") for side in pairs.sides))
    rows = np.flatnonzero(np.asarray(named))
    sides = [side.texts.take(rows).to_pylist() for side in pairs.sides]
    scores: list[float | None] = []
    for src, tgt in zip(*sides):
        ours, theirs = Counter(_sites(src)), Counter(_sites(tgt))
        every = (ours | theirs).total()
        scores.append(1 - (ours & theirs).total() / every if every else None)
    return _scored_rows(scores, rows, len(pairs))


def _sites(text: str) -> list[str]:
    return [
        (host or domain).lower().strip(".-").removeprefix("www.").rpartition(".")[0] or (host or domain).lower()
        for host, domain in _SITE.findall(text)
    ]


def repetition(pairs: Pairs) -> Scores:
    """Score: uses of a word on average, of the worse side; null where both sides are shorter than 12 words.

    In languages without spaces a word is a character.
    """
    worst = np.zeros(len(pairs), dtype=np.float64)
    for side in pairs.sides:
        unspaced = side.language in _UNSPACED
        length = side.code_points.lengths if unspaced else side.words
        rows = np.flatnonzero(length >= _MIN_REPETITION_WORDS)
        texts = side.texts.take(rows).to_pylist()
        distinct = [len(set(text if unspaced else text.split(" "))) for text in texts]
        worst[rows] = np.maximum(worst[rows], length[rows] / np.maximum(distinct, 1))
    return _scores(worst, worst > 0)


def terminal_punctuation(pairs: Pairs) -> Scores:
    """Score: 0 where both sides end alike (full stop, question, exclamation, none), 1 where one asks and the other
    does not, 0.5 otherwise; null at an empty side."""
    src, tgt = (_ending(side) for side in pairs.sides)
    asks = (src == "?") != (tgt == "?")
    values = np.where(src == tgt, 0.0, np.where(asks, 1.0, 0.5))
    return _scores(values, (pairs.src.code_points.lengths > 0) & (pairs.tgt.code_points.lengths > 0))


def _ending(side: Side) -> npt.NDArray[np.str_]:
    bare = pc.utf8_rtrim(side.texts, characters="\"'”’“»«)]）」』 ")
    last = pc.utf8_slice_codeunits(bare, -1)
    kinds = {".": ".", "。": ".", "…": ".", "।": ".", "?": "?", "？": "?", "؟": "?", "!": "!", "！": "!"}
    return np.array([kinds.get(character, "") for character in last.to_pylist()], dtype="<U1")


def language(pairs: Pairs) -> Scores:
    """Score: p(best language other than the expected one), of the worse side; null below 15 letters on both sides.

    An ideograph counts for three letters. Raises ValueError for a language that the model does not know.
    """
    worst = np.zeros(len(pairs), dtype=np.float64)
    applies = np.zeros(len(pairs), dtype=np.bool_)
    for side in pairs.sides:
        rows = np.flatnonzero(_letter_volume(side) >= _MIN_LANGUAGE_LETTERS)
        if not len(rows):
            continue
        _, other = language_scores(side.texts.take(rows).to_pylist(), side.language)
        worst[rows] = np.maximum(worst[rows], other)
        applies[rows] = True
    return _scores(worst, applies)


def _count(texts: pa.Array, pattern: str) -> Counts:
    counts: Counts = np.asarray(pc.count_substring_regex(texts, pattern), dtype=np.int64)
    return counts


def _scored_rows(scores: Sequence[float | None], rows: npt.NDArray[np.int64], total: int) -> Scores:
    return _scattered(pa.array(scores, type=pa.float32()), rows, total)


RULES = (
    Rule("empty", empty, worse="below"),
    Rule("characters", characters),
    Rule("words", words),
    Rule("length_ratio", length_ratio),
    Rule("long_word", long_word),
    Rule("markup", markup),
    Rule("broken_encoding", broken_encoding),
    Rule("control", control),
    Rule("script", script),
    Rule("alphabetic_ratio", alphabetic_ratio, worse="below"),
    Rule("identical", identical),
    Rule("numbers", numbers),
    Rule("url", url),
    Rule("repetition", repetition),
    Rule("terminal_punctuation", terminal_punctuation),
    Rule("language", language),
)
