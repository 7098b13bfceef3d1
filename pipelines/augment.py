"""What a training row becomes in an epoch: changes of its text, each a pure function of the row's key.

    chosen = augmentation.chosen(keys)                          which changes each row has, [rows]
    pairs = augmentation.changed(chosen, keys, pairs, followers)

The changes are those of OpusTrainer (Bogoychev et al. 2023, "OpusCleaner and OpusTrainer, open source toolkits for
training Machine Translation and Large language models", arXiv:2311.14838), without its need for word alignments: noise
stands at the start or the end, where it is in its place on both sides. They follow one upon another in the order of
`Change`; each is drawn by itself, save that a row has one case at most.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.config import AugmentConfig
from pipelines.draws import Draws, Keys, derived, uniform

Chosen = npt.NDArray[np.uint8]


class Pair(NamedTuple):
    """A source and a target text."""

    src: str
    tgt: str


class Change(IntEnum):
    """What may be done to a row; a row's changes are a sum of these."""

    MERGE = 1
    UPPER_CASE = 2
    TITLE_CASE = 4
    NO_END_PUNCTUATION = 8
    TYPOS = 16
    NOISE_WORDS = 32
    SAMPLED_SOURCE = 64
    SAMPLED_TARGET = 128


@dataclass(frozen=True)
class Augmentation:
    """The changes of a config, for texts of two languages (their codes)."""

    config: AugmentConfig
    source: str
    target: str

    def chosen(self, keys: Keys) -> Chosen:
        """Return the sum of the changes of each row: [rows] uint8."""
        config = self.config
        shares = {
            Change.MERGE: config.merge,
            Change.NO_END_PUNCTUATION: config.no_end_punctuation,
            Change.TYPOS: config.typos,
            Change.NOISE_WORDS: config.noise_words,
            Change.SAMPLED_SOURCE: config.sampling.source,
            Change.SAMPLED_TARGET: config.sampling.target,
        }
        chosen = np.zeros(len(keys), dtype=np.uint8)
        for change, share in shares.items():
            if share > 0.0:
                chosen[_drawn(keys, change.name, share)] |= change.value
        if config.upper_case + config.title_case > 0.0:
            case = uniform(derived(keys, "case"))
            upper, either = case < config.upper_case, case < config.upper_case + config.title_case
            chosen[upper] |= Change.UPPER_CASE.value
            chosen[either & ~upper] |= Change.TITLE_CASE.value
        return chosen

    def tagged(self, keys: Keys, names: Sequence[str], corpus: npt.NDArray[np.int32]) -> list[npt.NDArray[np.bool_]]:
        """Return for each tag of the config which rows have it: [rows].

        `corpus` [rows] has the place of each row's corpus among the `names`.
        """
        tagged = []
        for tag in self.config.tags:
            places = [place for place, name in enumerate(names) if not tag.corpora or name in tag.corpora]
            tagged.append(np.isin(corpus, places) & _drawn(keys, f"tag {tag.tag}", tag.rate))
        return tagged

    def noise_rows(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Return after which rows a row of noise follows: [rows]."""
        return _drawn(keys, "noise row", self.config.noise_rows)

    def changed(
        self, chosen: Chosen, keys: Keys, pairs: Sequence[Pair], followers: Sequence[Pair | None]
    ) -> list[Pair]:
        """Return what each row becomes: the same pair where nothing of it can be changed so.

        `chosen` and `keys` [rows] are of these rows; a follower is the next row of the row's corpus, None at its end.
        """
        typing = derived(keys, "within typos").tolist()
        noise = derived(keys, "within noise words").tolist()
        return [
            self._changed(changes, Draws(typing[row]), Draws(noise[row]), pairs[row], followers[row])
            for row, changes in enumerate(chosen.tolist())
        ]

    def _changed(self, changes: int, typing: Draws, noise: Draws, pair: Pair, follower: Pair | None) -> Pair:
        if changes & Change.MERGE and follower is not None:
            pair = Pair(merged(pair.src, follower.src, self.source), merged(pair.tgt, follower.tgt, self.target))
        if changes & Change.UPPER_CASE and has_case(pair.src, self.source):
            pair = Pair(upper_case(pair.src, self.source), upper_case(pair.tgt, self.target))
        if changes & Change.TITLE_CASE and has_case(pair.src, self.source):
            pair = Pair(title_case(pair.src, self.source), title_case(pair.tgt, self.target))
        if changes & Change.NO_END_PUNCTUATION:
            pair = without_end_punctuation(pair, self.source, self.target)
        if changes & Change.TYPOS:
            pair = Pair(with_typos(pair.src, self.config.typo_words, self.source, typing), pair.tgt)
        if changes & Change.NOISE_WORDS:
            word, first = noise_word(noise), noise.below(2) == 0
            pair = Pair(*(f"{word} {text}" if first else f"{text} {word}" for text in pair))
        return pair


def _drawn(keys: Keys, purpose: str, share: float) -> npt.NDArray[np.bool_]:
    return uniform(derived(keys, purpose)) < share


# Rows put together

# Between two sentences; other scripts that write words without spaces do set one between sentences.
_NO_SPACE = frozenset({"zh", "yue", "lzh", "wuu", "ja"})


def merged(first: str, second: str, language: str) -> str:
    """Return two texts as one, as sentences of the language follow each other."""
    return first + ("" if _base(language) in _NO_SPACE else " ") + second


# Cases

# Georgian has capitals in Unicode since version 11, but text in them alone is rare, and few models know them.
_CASELESS = frozenset({"ka", "xmf"})
_DOTTED = frozenset({"tr", "az"})
_GREEK_ACCENTS = re.compile("[\u0300\u0301\u0342\u0313\u0314]")
# A vowel pair of which the accent alone said that it is no diphthong.
_GREEK_HIATUS = re.compile("([ΑΕΟΥαεου])\u0301([ΙΥιυ])(?!\u0308)")
_LITHUANIAN_DOT = re.compile("([iįj])\u0307")
# After a space or an opening mark; an apostrophe before it counts only there: "don't" has one first letter.
_FIRST_LETTER = re.compile(r"((?:(?<!\S)|(?<=[(\[{\"“”„«‹¿¡\-–—/]))['‘’‚]?)([^\W\d_])")


def has_case(text: str, language: str) -> bool:
    """Return whether at least half of the letters have an upper and a lower form: else case says nothing in it."""
    if _base(language) in _CASELESS:
        return False
    letters = list(filter(str.isalpha, text))
    cased: int = sum(map(operator.ne, map(str.lower, letters), map(str.upper, letters)))
    return cased > 0 and 2 * cased >= len(letters)


def upper_case(text: str, language: str) -> str:
    """Return the text in capitals, NFC, as the language writes them.

    ß becomes SS; Turkish and Azerbaijani i becomes İ; Lithuanian i loses a dot of its own; Greek accents are left out,
    and a diaeresis stands for one that parted two vowels; Georgian stays.
    Source: Unicode's SpecialCasing.txt; for Greek, the practice that ICU follows (ICU-12845, "el-Upper").
    """
    base = _base(language)
    if base in _CASELESS:
        return text
    if base in _DOTTED:
        text = text.replace("i", "İ")
    if base == "lt":
        text = _LITHUANIAN_DOT.sub(r"\1", unicodedata.normalize("NFD", text))
    if base == "el":
        text = " ".join(_greek_upper(word) for word in text.split(" "))
    return unicodedata.normalize("NFC", text.upper())


def title_case(text: str, language: str) -> str:
    """Return the text with a capital at the start of each word, NFC; the other letters stay as they are.

    Turkish and Azerbaijani i becomes İ, Dutch ij becomes IJ; Georgian stays.
    """
    base = _base(language)
    if base in _CASELESS:
        return text

    def capital(match: re.Match[str]) -> str:
        before, first = match.groups()
        return before + ("İ" if first == "i" and base in _DOTTED else first.title())

    text = _FIRST_LETTER.sub(capital, text)
    return unicodedata.normalize("NFC", re.sub(r"\bIj", "IJ", text) if base == "nl" else text)


def _greek_upper(word: str) -> str:
    if word.strip(",.;:!·»") == "ή":  # "or", which keeps its accent: without it, it is the article
        return word
    parts = _GREEK_HIATUS.sub("\\1\\2\u0308", unicodedata.normalize("NFD", word))
    return _GREEK_ACCENTS.sub("", parts)


# Ends

_STOPS, _QUESTIONS, _EXCLAMATIONS = ".。｡．।۔։።", "?？؟", "!！՜"


def without_end_punctuation(pair: Pair, source: str, target: str) -> Pair:
    """Return both sides without their last mark, where it is a full stop, a question or an exclamation mark on both.

    The pair stays where a mark is one of several (`...`, `?!`), all of a text, or answers one at the start (`¿`).
    """
    kinds = {_end_mark(text, language) for text, language in zip(pair, (source, target))}
    left = [text[:-1].rstrip() for text in pair]
    if len(kinds) > 1 or None in kinds or any(not text or unicodedata.category(text[-1])[0] == "P" for text in left):
        return pair
    if any("¿" in text or "¡" in text for text in left):
        return pair
    return Pair(*left)


def _end_mark(text: str, language: str) -> str | None:
    """Return the mark that stands for all of its kind, or None where no such mark ends the text."""
    questions = _QUESTIONS + (";" if _base(language) == "el" else "")
    return next((marks[0] for marks in (_STOPS, questions, _EXCLAMATIONS) if text and text[-1] in marks), None)


# Typing errors

_KEYBOARDS: dict[str, tuple[str, ...]] = {
    "": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "de": ("qwertzuiopü", "asdfghjklöä", "yxcvbnm"),
    "cs": ("qwertzuiop", "asdfghjkl", "yxcvbnm"),
    "es": ("qwertyuiop", "asdfghjklñ", "zxcvbnm"),
    "fr": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
    "tr": ("qwertyuıopğü", "asdfghjklşi", "zxcvbnmöç"),
    "el": ("ςερτυθιοπ", "ασδφγηξκλ", "ζχψωβνμ"),
    "ru": ("йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"),
    "uk": ("йцукенгшщзхї", "фівапролджє", "ячсмитьбю"),
}
_LIKE = {"hu": "cs", "sk": "cs", "sl": "cs", "hr": "cs", "bs": "cs", "be": "ru", "gl": "es"}
# Words of four letters or more, of scripts that are typed letter by letter; not parts of addresses and tags.
_TYPED_WORD = re.compile(
    "(?<![\\w@/.:#<&%\u0300-\u036f])[^\\W\\d_\u2e80-\U0010ffff]{4,}(?![\\w@/<>;\u0300-\u036f]|[.:][\\w/])"
)


def with_typos(text: str, share: float, language: str, draws: Draws) -> str:
    """Return the text with one typing error in this share of its words of four letters or more, in one at least.

    An error is two letters in the wrong order, one left out, one typed twice, or one of the key beside it.
    """
    words = [match.span() for match in _TYPED_WORD.finditer(text)]
    keys = _neighbours(_base(language))
    parts, done = [], 0
    for start, stop in draws.some_of(words, max(1, round(share * len(words)))):
        parts += [text[done:start], _mistyped(text[start:stop], keys, draws)]
        done = stop
    return "".join([*parts, text[done:]])


def _mistyped(word: str, keys: dict[str, str], draws: Draws) -> str:
    place = draws.below(len(word))
    letter = word[place]
    beside = keys.get(letter.lower(), "")
    kind = draws.below(4 if beside else 3)
    if kind == 0 and word[place : place + 2] not in (letter, letter * 2):
        return word[:place] + word[place + 1] + letter + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    if kind == 3:
        hit = draws.one_of(beside)
        return word[:place] + (hit.upper() if letter.isupper() else hit) + word[place + 1 :]
    return word[:place] + letter + word[place:]


@cache
def _neighbours(language: str) -> dict[str, str]:
    """Return the letters beside each letter of the language's keyboard, whose rows are half a key apart."""
    rows = _KEYBOARDS.get(_LIKE.get(language, language), _KEYBOARDS[""])
    places = {letter: (row, 2 * column + row) for row, keys in enumerate(rows) for column, letter in enumerate(keys)}
    return {
        letter: "".join(
            other
            for other, (other_row, other_place) in places.items()
            if other != letter and abs(row - other_row) <= 1 and abs(place - other_place) <= 2 - abs(row - other_row)
        )
        for letter, (row, place) in places.items()
    }


# Noise

_EMOJI = "😀😂😉😍😎😢😡👍👎👏🙏💪🔥🎉✨⭐❤☀⚡✅❌➡☎♥"
# First and last of runs of letters without a gap.
_LETTERS = ("αω", "ая", "את", "بغ", "कह", "กฮ", "あん", "アヲ", "가힣", "一龥", "აჰ")
_LATIN = "abcdefghijklmnopqrstuvwxyz"
_LATIN_AND_DIGITS = _LATIN + "0123456789"
_DOMAINS = ("com", "org", "net", "info", "eu", "io")


def noise_word(draws: Draws) -> str:
    """Return a word that is the same in every language: an emoji, an address, a code, or letters of some script."""
    match draws.below(6):
        case 0:
            return "".join(draws.one_of(_EMOJI) for _ in range(1 + draws.below(3)))
        case 1:
            path = "/".join(_letters(_LATIN_AND_DIGITS, 2, 10, draws) for _ in range(draws.below(3)))
            return f"https://{_letters(_LATIN, 4, 12, draws)}.{draws.one_of(_DOMAINS)}/{path}"
        case 2:
            name, host = _letters(_LATIN, 3, 8, draws), _letters(_LATIN, 4, 10, draws)
            return f"{name}@{host}.{draws.one_of(_DOMAINS)}"
        case 3:
            return _letters(_LATIN_AND_DIGITS.upper(), 4, 12, draws)
        case 4:
            return ("@", "#")[draws.below(2)] + _letters(_LATIN_AND_DIGITS, 4, 12, draws)
        case _:
            first, last = (ord(letter) for letter in draws.one_of(_LETTERS))
            return "".join(chr(first + draws.below(last - first + 1)) for _ in range(2 + draws.below(7)))


def noise_text(draws: Draws) -> str:
    """Return a text of one to six noise words."""
    return " ".join(noise_word(draws) for _ in range(1 + draws.below(6)))


def _letters(alphabet: Sequence[str], shortest: int, longest: int, draws: Draws) -> str:
    return "".join(draws.one_of(alphabet) for _ in range(shortest + draws.below(longest - shortest + 1)))


def _base(language: str) -> str:
    return language.partition("-")[0]
