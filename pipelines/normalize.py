"""Text normalisation: what cleaning does to each line, and translation to its input, by the same function."""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import SPACE, UNSETTLED, CodePoints, Flags, flag_table
from pipelines.config import NormalizeConfig

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


def normalize(texts: pa.Array, language: str, config: NormalizeConfig) -> pa.Array:
    """Return the texts in Unicode NFC, on one line, without what cannot be seen; nulls stay null.

    HTML entities are resolved, zero-width and control characters removed, each run of white space becomes one space,
    ends are trimmed; quotes and dashes are unified where the config says so. Normalising twice changes nothing.
    Most lines need none of it: they are told by their code points, and only the others are gone through one by one.
    """
    if len(texts) == 0:
        return texts
    rows = np.flatnonzero(_needs_work(CodePoints(texts), config))
    if not len(rows):
        return texts
    mended = [None if text is None else normalize_line(text, language, config) for text in texts.take(rows).to_pylist()]
    mask = np.zeros(len(texts), dtype=np.bool_)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(mended, type=texts.type))


def normalize_line(text: str, language: str, config: NormalizeConfig) -> str:
    """Return one text normalised: the definition of what `normalize` does."""
    unseen = _unseen(language.partition("-")[0] in _JOINING_LANGUAGES)
    while True:
        text = unicodedata.normalize("NFC", text.translate(unseen))
        if not config.unescape_html or "&" not in text:
            break
        resolved = _ENTITY.sub(_character, text)
        if resolved == text:
            break
        text = resolved
    if config.unify_quotes:
        text = text.translate(_UNIFIED_QUOTES)
    if config.unify_dashes:
        text = text.translate(_UNIFIED_DASHES)
    return " ".join(text.split())


_UNIFIED_QUOTES = str.maketrans(dict.fromkeys(_DOUBLE_QUOTES, '"') | dict.fromkeys(_SINGLE_QUOTES, "'"))
_UNIFIED_DASHES = str.maketrans(dict.fromkeys(_DASHES, "-"))


def _character(entity: re.Match[str]) -> str:
    text = entity.group()
    if text[1] == "#":
        return html.unescape(text)
    return html.entities.html5.get(text[1:], text)


@cache
def _unseen(keep_joiners: bool) -> dict[int, None]:
    planes = (*range(0x20000), *range(0xE0000, 0xE1000))  # no format character lies elsewhere
    points = (point for point in planes if unicodedata.category(chr(point)) in ("Cc", "Cf"))
    kept = _JOINERS if keep_joiners else ""
    return {point: None for point in points if not chr(point).isspace() and chr(point) not in kept}


def _needs_work(texts: CodePoints, config: NormalizeConfig) -> Flags:
    work = _work_table(config)[texts.index]
    space = (texts.flags & SPACE) != 0
    work[1:] |= space[1:] & space[:-1]
    filled = texts.lengths > 0
    # White space at either end of a row. (A pair of spaces across two rows is marked above; that visit is needless.)
    work[texts.offsets[:-1][filled]] |= space[texts.offsets[:-1][filled]]
    work[texts.offsets[1:][filled] - 1] |= space[texts.offsets[1:][filled] - 1]
    return texts.count(work) > 0


@cache
def _work_table(config: NormalizeConfig) -> npt.NDArray[np.bool_]:
    table: npt.NDArray[np.bool_] = (flag_table() & UNSETTLED) != 0
    also = "&" if config.unescape_html else ""
    also += _DOUBLE_QUOTES + _SINGLE_QUOTES if config.unify_quotes else ""
    also += _DASHES if config.unify_dashes else ""
    table[[ord(character) for character in also]] = True
    return table
