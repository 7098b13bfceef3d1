"""Chinese: one script out of two, text in the other script, and Cantonese under the name of Chinese."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Literal

import opencc

# Characters of words that Cantonese is written with and standard written Chinese is not: function words (嘅 of,
# 咗 done, 喺 at, 冇 not have), pronouns (佢 they, 哋 plural), everyday verbs (睇 look, 嚟 come, 諗 think).
# 唔 (not) is a mere sound in Chinese, where punctuation follows it.
_CANTONESE = re.compile("[嘅咗佢喺嚟哋啲冇睇咁嗰啱嘢噉冚唞攞搵揾嗌諗攰嘥喎啩嗱嚿]|唔(?=[\u3400-\u9fff])")
_IDEOGRAPH = re.compile("[\u3400-\u9fff]")
# How many of 1,000,000 ideographs are such: of TED talks in Cantonese, and (with a margin) of Chinese sentences.
_RATE_IN_CANTONESE, _RATE_IN_CHINESE = 1e-1, 1e-5
# So that a single character of the other script is no proof.
_SCRIPT_SOFTENER = 1

Script = Literal["simplified", "traditional"]


def cantonese_probability(text: str) -> float:
    """Return p(Cantonese) of a text in Chinese characters, 0 where no word of it is distinctly Cantonese.

    Both languages are equally likely beforehand, and each ideograph is one of a distinctly Cantonese word, or is not,
    with its rate in the one and in the other. So a word that is quoted in a long text proves nothing.
    Source: the idea of Lau, Lau and To 2024, https://aclanthology.org/2024.eurali-1.4, that such words tell the two
    apart; which words, and the rates, are ours.
    """
    words = len(_CANTONESE.findall(text))
    if not words:
        return 0.0
    others = len(_IDEOGRAPH.findall(text)) - words
    for_cantonese = words * math.log(_RATE_IN_CANTONESE / _RATE_IN_CHINESE)
    against = others * math.log((1 - _RATE_IN_CHINESE) / (1 - _RATE_IN_CANTONESE))
    return 1 / (1 + math.exp(min(against - for_cantonese, 700.0)))


def other_script(text: str, script: Script) -> float:
    """Return how many of the characters that only one script has are of the other one, against all such and one more.

    Source: what only one script has is what of the standards GB 2312 (simplified) and Big5 (traditional) only one has.
    """
    simplified, traditional = _script_characters()
    counts = {
        "simplified": sum(map(simplified.__contains__, text)),
        "traditional": sum(map(traditional.__contains__, text)),
    }
    right = counts.pop(script)
    (wrong,) = counts.values()
    return wrong / (wrong + right + _SCRIPT_SOFTENER)


@cache
def _script_characters() -> tuple[frozenset[str], frozenset[str]]:
    """Return the characters of simplified script alone, and those of traditional script alone."""
    ideographs = [chr(point) for point in range(0x4E00, 0xA000)]
    simplified, traditional = (
        {character for character in ideographs if _is_in(character, encoding)} for encoding in ("gb2312", "big5")
    )
    return frozenset(simplified - traditional), frozenset(traditional - simplified)


def _is_in(character: str, encoding: str) -> bool:
    return bool(character.encode(encoding, errors="ignore"))


def converted(text: str, script: Script) -> str:
    """Return a text in one Chinese script, so that converting it again changes nothing.

    A few characters of the tables lead to one that leads on to another; should some ever lead back, the first in the
    order of code points stands for all of them.
    Source: OpenCC (https://github.com/BYVoid/OpenCC), its standard tables without regional words.
    """
    seen = [text]
    while (text := _converter(script).convert(text)) not in seen:
        seen.append(text)
    return min(seen[seen.index(text) :])


@cache
def _converter(script: Script) -> opencc.OpenCC:
    return opencc.OpenCC({"simplified": "t2s", "traditional": "s2t"}[script])
