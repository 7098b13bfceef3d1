"""Text normalisation: what cleaning does to each line, and translation to its input, by the same function."""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.characters import IDEOGRAPH, SPACE, UNSETTLED, CodePoints, Counts, flag_table, replaced
from pipelines.chinese import converted
from pipelines.config import NormalizeConfig
from pipelines.markup import MARKUP_SIGNS, strip_markup
from pipelines.mojibake import repaired, suspects

# Only with its semicolon is it certain that an entity is meant: "AT&T" and "?a=1&copy=2" stay as they are.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_DOUBLE_QUOTES = "„“”‟«»〝〞＂"
_SINGLE_QUOTES = "‚‘’‛‹›"
_DASHES = "‐‑‒–—―−"
# Zero-width joiners decide how letters join, and at times what a word means, in Arabic and Indic scripts.
_JOINERS = "\u200c\u200d"
_JOINING_LANGUAGES = frozenset(
    {"ar", "as", "bn", "ckb", "fa", "gu", "hi", "kn", "ks", "ku", "ml", "mr", "ne"}
    | {"or", "pa", "ps", "sa", "sd", "si", "ta", "te", "ug", "ur"}
)
_CHINESE = frozenset({"cmn", "wuu", "yue", "zh"})
# Letters and digits as wide as an ideograph stand at this distance from their ASCII forms.
_FULL_WIDTH_DISTANCE = 0xFEE0
_HALF_WIDTH = re.compile("[\uff66-\uffdc]+")  # kana and Hangul


def normalize(texts: pa.Array, language: str, config: NormalizeConfig) -> pa.Array:
    """Return the texts in one form of Unicode, on one line, without what cannot be seen; nulls stay null.

    Wrong decodings are undone, HTML entities resolved, zero-width and control characters removed, each run of white
    space becomes one space, ends are trimmed; the config says what else is done, and what is left alone. Normalising
    twice changes nothing. Most lines need none of it: they are told by their code points, and only the others are gone
    through one by one.
    """
    if len(texts) == 0:
        return texts
    config = config.of(language)
    rows = _to_change(CodePoints(texts), language, config)
    if not len(rows):
        return texts
    mended = [None if text is None else _normalized(text, language, config) for text in texts.take(rows).to_pylist()]
    return replaced(texts, rows, pa.array(mended, type=texts.type))


def normalize_lines(texts: Sequence[str], language: str, config: NormalizeConfig) -> list[str]:
    """Return the texts of a list as `normalize` does."""
    lines: list[str] = normalize(pa.array(texts, pa.string()), language, config).to_pylist()
    return lines


def normalize_line(text: str, language: str, config: NormalizeConfig) -> str:
    """Return one text normalised: the definition of what `normalize` does."""
    return _normalized(text, language, config.of(language))


def _normalized(text: str, language: str, config: NormalizeConfig) -> str:
    # What one step takes away may be what kept another from its work.
    while True:
        before, text = text, _once(text, language, config)
        if text == before:
            return text


def _once(text: str, language: str, config: NormalizeConfig) -> str:
    base = language.partition("-")[0]
    if config.repair_encoding:
        text = repaired(text)
    if config.unescape_html and "&" in text:
        text = _ENTITY.sub(_character, text)
    if config.strip_markup:
        text = strip_markup(text)
    if config.unify_widths:
        text = _HALF_WIDTH.sub(_plain_width, text.translate(_PLAIN_WIDTHS))
    text = unicodedata.normalize(config.form, text.translate(_unseen(base in _JOINING_LANGUAGES)))
    if config.chinese is not None and base in _CHINESE:
        text = converted(text, config.chinese)
    if config.unify_quotes:
        text = text.translate(_UNIFIED_QUOTES)
    if config.unify_dashes:
        text = text.translate(_UNIFIED_DASHES)
    return " ".join(text.split())


_UNIFIED_QUOTES = str.maketrans(dict.fromkeys(_DOUBLE_QUOTES, '"') | dict.fromkeys(_SINGLE_QUOTES, "'"))
_UNIFIED_DASHES = str.maketrans(dict.fromkeys(_DASHES, "-"))
_PLAIN_WIDTHS = {point + _FULL_WIDTH_DISTANCE: point for point in range(0x80) if chr(point).isalnum()}


def _character(entity: re.Match[str]) -> str:
    text = entity.group()
    if text[1] == "#":
        return html.unescape(text)
    return html.entities.html5.get(text[1:], text)


def _plain_width(letters: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", letters.group())


@cache
def _unseen(keep_joiners: bool) -> dict[int, None]:
    planes = (*range(0x20000), *range(0xE0000, 0xE1000))  # no format character lies elsewhere
    points = (point for point in planes if unicodedata.category(chr(point)) in ("Cc", "Cf"))
    kept = _JOINERS if keep_joiners else ""
    return {point: None for point in points if not chr(point).isspace() and chr(point) not in kept}


def _to_change(texts: CodePoints, language: str, config: NormalizeConfig) -> Counts:
    """Return the rows that may need work, in ascending order: all that do, and a few others."""
    signs = texts.signs
    work = _work_table(config, language).take(signs.points, mode="clip")
    # White space at either end of a row, or behind other white space. (All of it but the space is in the table.)
    spaces = np.flatnonzero(signs.flags & SPACE)
    places = signs.places[spaces]
    edge = np.zeros(len(texts.data) + 1, dtype=np.bool_)
    edge[texts.bounds[:-1]] = True
    edge[texts.bounds[1:] - 1] = True
    doubled = np.concatenate([np.diff(places) == 1, [False]]) if len(places) else np.empty(0, dtype=np.bool_)
    work[spaces[edge[places] | doubled]] = True
    rows = signs.rows_with(work)
    return np.union1d(rows, suspects(signs)) if config.repair_encoding else rows


def _work_table(config: NormalizeConfig, language: str) -> npt.NDArray[np.bool_]:
    converts = config.chinese is not None and language.partition("-")[0] in _CHINESE
    also = "&" if config.unescape_html else ""
    also += MARKUP_SIGNS + ":" if config.strip_markup else ""
    also += _DOUBLE_QUOTES + _SINGLE_QUOTES if config.unify_quotes else ""
    also += _DASHES if config.unify_dashes else ""
    return _table_of_work(config.form, also, config.unify_widths, converts)


@cache
def _table_of_work(form: str, also: str, widths: bool, converts: bool) -> npt.NDArray[np.bool_]:
    table: npt.NDArray[np.bool_] = (flag_table() & UNSETTLED) != 0
    table[[ord(character) for character in also]] = True
    if form == "NFKC":
        table |= [not unicodedata.is_normalized("NFKC", chr(point)) for point in range(len(table) - 1)] + [True]
    if widths:
        table[0xFF00:0xFFF0] = True
    if converts:
        table |= (flag_table() & IDEOGRAPH) != 0
    table.flags.writeable = False
    return table
