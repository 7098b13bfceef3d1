"""What the tables say of code points, and counting over the rows of an array."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.characters import CONTROL, DIGIT, IDEOGRAPH, LETTER, SPACE, SYLLABLE, CodePoints, folded, script_of


@pytest.mark.parametrize(
    ("character", "flags"),
    [
        ("a", LETTER),
        ("\u0301", LETTER),
        ("7", DIGIT),
        ("٣", DIGIT),
        (" ", SPACE),
        ("\u2028", SPACE),
        ("\x85", SPACE),
        ("字", LETTER | IDEOGRAPH),
        ("カ", LETTER | IDEOGRAPH),
        ("𠀀", LETTER | IDEOGRAPH),
        ("강", LETTER | SYLLABLE),
        ("\x07", CONTROL),
        ("\uffff", CONTROL),
        ("\u200b", 0),
        ("€", 0),
        ("😀", 0),
    ],
)
def test_the_kind_of_a_character(character: str, flags: int) -> None:
    every = LETTER | DIGIT | SPACE | IDEOGRAPH | SYLLABLE | CONTROL
    assert CodePoints(pa.array([character])).flags[0] & every == flags


@pytest.mark.parametrize(
    ("character", "script"),
    [
        ("ß", "LATIN"),
        ("Ｗ", "LATIN"),
        ("ж", "CYRILLIC"),
        ("字", "HAN"),
        ("ｶ", "KATAKANA"),
        ("µ", ""),
        ("1", ""),
        ("-", ""),
    ],
)
def test_the_script_of_a_character(character: str, script: str) -> None:
    assert script_of(character) == script


@given(st.lists(st.none() | st.text(alphabet="a1 字😀", max_size=6), max_size=8), st.integers(0, 3))
def test_counts_are_those_of_each_row(texts: list[str | None], start: int) -> None:
    rows = [text or "" for text in texts[start:]]
    code_points = CodePoints(pa.array(texts, type=pa.string()).slice(start))
    assert code_points.lengths.tolist() == [len(text) for text in rows]
    assert code_points.count_flag(DIGIT).tolist() == [text.count("1") for text in rows]
    assert code_points.count_flag(SPACE).tolist() == [text.count(" ") for text in rows]


def test_folding_leaves_what_would_vanish() -> None:
    points, offsets = folded(CodePoints(pa.array(["A-b!", "", "?!", "Ünï 1"])))
    assert "".join(map(chr, points)) == "ab?!ünï1"
    assert offsets.tolist() == [0, 2, 2, 4, 8]
