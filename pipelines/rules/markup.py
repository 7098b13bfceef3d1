"""Rules on what is no running text: markup of pages and documents, code, escape sequences."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import Counts
from pipelines.markup import MARKUP_SIGNS, markup_tokens
from pipelines.pairs import Pairs
from pipelines.rules.scores import Scores, scored_rows, scores_of, worst_share

_MARKUP = (
    r"</?[A-Za-z][^<>]*>|<!--|-->|<[!?][A-Za-z]|&#?[A-Za-z0-9]{2,10};|\{\{|\}\}"
    r"|\[/?(?:b|i|u|url|img|quote|code)\]"
)
_TARGET = r"`[^`<>]+<[A-Za-z][^`<>]*>`"
# Without one of these there is no match.
_MARKUP_BEGINS = "<>&{}["
# Backslash and letter as they stand in a program's strings, code points in hexadecimal, and bytes in URL encoding.
_ESCAPES = r"\\[nrt](?:[^a-z]|$)|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\[\"']|%20|(?:%[0-9A-F]{2}){2,}"
_WIKI = r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|'{3}|(?:^|\s)={2,}[^=]+={2,}(?:\s|$)"
_WIKI_BEGINS = "[]{}'="
_CODE = ";{}()=[]<>_|&*+#$^~@\\"


def markup(pairs: Pairs) -> Scores:
    """Score: tags, unresolved entities, template marks and bits of scripts, both sides together.

    The target of a link in reStructuredText is no tag.
    """
    found, targets = _matches(pairs, _MARKUP_BEGINS, _MARKUP), _matches(pairs, "`", _TARGET)
    return scores_of(np.maximum(found - targets, 0))


def markup_mismatch(pairs: Pairs) -> Scores:
    """Score: 1 - Jaccard index of the markup of both sides, as multisets; null where neither side has any.

    What counts as the same markup: `markup_tokens` of `pipelines/markup.py`.
    """
    src, tgt = pairs.both
    rows = np.union1d(*(side.signs.rows_with(side.signs.among(MARKUP_SIGNS)) for side in (src, tgt)))
    scores: list[float | None] = []
    for ours, theirs in zip(*(side.texts.take(pa.array(rows)).to_pylist() for side in (src, tgt))):
        counts = Counter(markup_tokens(ours)), Counter(markup_tokens(theirs))
        every = (counts[0] | counts[1]).total()
        scores.append(1 - (counts[0] & counts[1]).total() / every if every else None)
    return scored_rows(scores, rows, len(pairs))


def escapes(pairs: Pairs) -> Scores:
    """Score: escape sequences that were left as they are (`\\n`, `\\u0041`, `%20`), both sides together."""
    return scores_of(_matches(pairs, "\\%", _ESCAPES))


def code(pairs: Pairs) -> Scores:
    """Score: share of signs of programs among the characters that are no space, of the worse side.

    Signs are `;{}()=[]<>_|&*+#$^~@\\`, and a bracket that directly follows a letter or a digit counts twice, as in a
    call. Null at an empty side.
    """
    parts = []
    for side in pairs.sides:
        signs, texts = side.signs, side.code_points
        found = signs.among(_CODE).astype(np.int64)
        brackets = np.flatnonzero(signs.points == ord("("))
        brackets = brackets[signs.places[brackets] > texts.bounds[signs.rows_of(brackets)]]
        found[brackets] += _word_bytes().take(texts.data[signs.places[brackets] - 1])
        parts.append(signs.sum(found))
    return worst_share(parts, [side.printed for side in pairs.sides])


def wiki(pairs: Pairs) -> Scores:
    """Score: links, templates, tables, emphasis and headings of a wiki's source text, both sides together."""
    return scores_of(_matches(pairs, _WIKI_BEGINS, _WIKI))


def _matches(pairs: Pairs, begins: str, pattern: str) -> Counts:
    """Return how often a pattern matches, both sides together: [rows]; `begins`: without one of these it never does."""
    counts = np.zeros(len(pairs), dtype=np.int64)
    for side in pairs.sides:
        rows = side.signs.rows_with(side.signs.among(begins))
        if len(rows):
            counts[rows] += pc.count_substring_regex(side.texts.take(pa.array(rows)), pattern).to_numpy()
    return counts


@cache
def _word_bytes() -> npt.NDArray[np.int64]:
    return np.array([byte >= 0x80 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)], dtype=np.int64)
