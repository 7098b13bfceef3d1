"""Numbers that are not in digits alone: Chinese numerals, and digits with a word or character for their scale."""

from __future__ import annotations

import re
from decimal import Decimal

_DIGITS = dict(zip("〇零一二两兩三四五六七八九", (0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9)))
_TENS = {"十": 10, "百": 100, "千": 1000}
# The largest first.
_SCALES = {"亿": 10**8, "億": 10**8, "万": 10**4, "萬": 10**4}
_NUMERAL = re.compile(f"[{''.join([*_DIGITS, *_TENS, *_SCALES])}]+")
_SCALED_IN_CHINESE = re.compile(r"(?<![\d.,])(\d++(?:,\d{3})*+(?:\.\d++)?) ?([百千万萬亿億]+)")
# What a language says behind digits, and the power of ten that it means. (A German Billion is an English trillion.)
_SCALE_WORDS = {
    "en": {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "bn": 9, "trillion": 12},
    "de": {"tausend": 3, "million": 6, "mio": 6, "milliarde": 9, "mrd": 9, "billion": 12},
    "fr": {"mille": 3, "million": 6, "milliard": 9, "billion": 12},
}
_DECIMAL_COMMA = frozenset({"de", "fr"})


def chinese_numerals(text: str) -> list[str]:
    """Return the values of the numerals in a Chinese text that are written in characters: "十九" is "19".

    Both ways of writing are known: with units (二十二, 一百零五, 三千万), and digit by digit as in years (二〇一九).
    """
    return [str(_value(numeral)) for numeral in _NUMERAL.findall(text)]


def _value(numeral: str) -> int:
    for character, scale in _SCALES.items():
        before, found, behind = numeral.rpartition(character)
        if found:
            # 三千万 is 三千 times 万, and 一万亿 is 一万 times 亿.
            return (_value(before) or 1) * scale + _value(behind)
    if all(character in _DIGITS for character in numeral):
        return int("".join(str(_DIGITS[character]) for character in numeral) or 0)
    total, digit = 0, 0
    for character in numeral:
        if character in _DIGITS:
            digit = _DIGITS[character]
        else:
            # 十九 is 一十九.
            total += (digit or 1) * _TENS[character]
            digit = 0
    return total + digit


def scaled(text: str, language: str) -> str:
    """Return a text in which digits with a scale stand as one number: "1.5 million" and "150万" are "1500000".

    Known are Chinese, English, German and French; other texts stay as they are.
    """
    if language in ("wuu", "yue", "zh"):
        return _SCALED_IN_CHINESE.sub(_scaled_by_characters, text)
    words = _SCALE_WORDS.get(language)
    if words is None:
        return text
    pattern = rf"(?<![\d.,])(\d++(?:[.,]\d++)*+)[ -]?({'|'.join(sorted(words, key=len, reverse=True))})"

    def with_zeros(match: re.Match[str]) -> str:
        digits = match[1]
        digits = digits.replace(".", "").replace(",", ".") if language in _DECIMAL_COMMA else digits.replace(",", "")
        if digits.count(".") > 1:
            return match.group()
        return _plain(Decimal(digits) * 10 ** words[match[2].lower()])

    return re.sub(pattern, with_zeros, text, flags=re.IGNORECASE)


def _scaled_by_characters(match: re.Match[str]) -> str:
    scale = 1
    for character in match[2]:
        scale *= _TENS.get(character) or _SCALES[character]
    return _plain(Decimal(match[1].replace(",", "")) * scale)


def _plain(number: Decimal) -> str:
    return format(number.normalize(), "f")
