"""Text in UTF-8 that was read as Windows-1252 or Latin-1, as in `Ã¼` for ü: where it stands, and its repair."""

from __future__ import annotations

import re
from functools import cache

import ftfy
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import CodePoints, Counts, Signs, replaced

# What a lead byte of UTF-8 becomes (Ã, Â, Ð ...), then what the bytes 80 to BF become. (Without what closes a
# quotation, which may rightly follow such a capital.) The replacement character tells of text that is lost.
_LEADS = "ÃÂÄÅÐÑâðï\ufffd"
_TRAIL = "\u0080-\u009f¡-º¼-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ˜™š›œžŸ"
_BROKEN = f"\ufffd|[ÃÂÄÅÐÑ][{_TRAIL}]|Ã\u00a0|â[\u0080-\u009f€‚„][{_TRAIL}“”•–—]|ðŸ|ï»¿"
_BROKEN_TEXT = re.compile(_BROKEN)
# Of the library's mending, only what undoes a wrong decoding: no guess at what was lost, nothing else of its changes.
_MENDING = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
    replace_lossy_sequences=False,
    fix_c1_controls=False,
)


def repaired(text: str) -> str:
    """Return a text as it was before it was wrongly decoded; unchanged where it does not look so, or where in doubt.

    In doubt means that something still looks wrong afterwards: then nothing is changed at all. A text may have been
    wrongly decoded more than once.
    Source: ftfy (Speer 2019, doi:10.5281/zenodo.2591652), its reversal of wrong decodings alone.
    """
    if not _BROKEN_TEXT.search(text) or "\ufffd" in text:
        return text
    steps = [(*step,) for step in ftfy.fix_encoding_and_explain(text, _MENDING).explanation or ()]
    # It may go on where there is nothing more to mend, and make one rare letter of two common ones.
    for done, (action, _) in enumerate(steps, 1):
        if action in ("decode", "apply"):
            mended = ftfy.apply_plan(text, steps[:done])
            if not _BROKEN_TEXT.search(mended):
                return mended
    return text


def broken_places(texts: pa.Array, signs: Signs) -> Counts:
    """Return how many places of each text look wrongly decoded, replacement characters among them: [rows]."""
    counts = np.zeros(len(texts), dtype=np.int64)
    rows = suspects(signs)
    if len(rows):
        counts[rows] = pc.count_substring_regex(texts.take(pa.array(rows)), _BROKEN).to_numpy()
    return counts


def suspects(signs: Signs) -> Counts:
    """Return the rows that may hold such a place, in ascending order: those with a lead before another odd sign."""
    leads = _lead_table().take(signs.points, mode="clip")
    numbers = np.flatnonzero(leads)
    follows = np.minimum(numbers + 1, len(signs.points) - 1)
    # All leads take two or three bytes, and so does what follows them.
    near = (signs.places[follows] - signs.places[numbers] <= 3) & (signs.points[follows] >= 0x80)
    return signs.rows_of(numbers[near | (signs.points[numbers] == 0xFFFD)], distinct=True)


@cache
def _lead_table() -> npt.NDArray[np.bool_]:
    table = np.zeros(0x10001, dtype=np.bool_)
    table[[ord(lead) for lead in _LEADS]] = True
    table.flags.writeable = False
    return table


def mended_lines(raw: pa.Array, texts: pa.Array) -> pa.Array:
    """Return the lines as they were read, but repaired where their normalised texts are: [rows].

    So what a rule finds in them is what normalisation did not mend, unseen characters included.
    """
    changed = np.flatnonzero(np.asarray(pc.not_equal(raw, texts)))
    lines = raw.take(pa.array(changed))
    some = suspects(CodePoints(lines).signs)
    if not len(some):
        return raw
    rows = pa.array(changed[some])
    chosen = [_as_in(line, text) for line, text in zip(raw.take(rows).to_pylist(), texts.take(rows).to_pylist())]
    return replaced(raw, changed[some], pa.array(chosen, type=raw.type))


def _as_in(line: str, text: str) -> str:
    mended = repaired(line)
    return line if _leads(line) == _leads(text) else mended


def _leads(text: str) -> int:
    return sum(text.count(lead) for lead in _LEADS)
