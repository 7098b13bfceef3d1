"""What the tables say of code points, counting over the rows of an array, and folding."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.characters import (
    CONTROL,
    DIGIT,
    IDEOGRAPH,
    LETTER,
    PRIVATE,
    PUNCTUATION,
    SPACE,
    SYLLABLE,
    SYMBOL,
    UNSETTLED,
    UPPER,
    CodePoints,
    folded,
    folded_letters,
    replaced,
    script_of,
    utf8_sizes,
)

TEXTS = st.lists(
    st.none()
    | st.text(
        alphabet=st.one_of(st.sampled_from("aZ1 .ÄßẞİȺ字강\U0001f600„"), st.characters(codec="utf-8")), max_size=8
    ),
    max_size=8,
)


@pytest.mark.parametrize(
    ("character", "flags"),
    [
        ("a", LETTER),
        ("Ä", LETTER | UPPER),
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
        ("\U000e0041", 0),
        ("€", SYMBOL),
        ("😀", SYMBOL),
        ("。", PUNCTUATION),
        ("\ue000", PRIVATE),
        ("\U0010fffd", PRIVATE),
    ],
)
def test_the_kind_of_a_character(character: str, flags: int) -> None:
    kinds = (LETTER, DIGIT, SPACE, IDEOGRAPH, SYLLABLE, CONTROL, PUNCTUATION, SYMBOL, PRIVATE)
    code_points = CodePoints(pa.array([character]))
    assert [flag for flag in kinds if code_points.count_flag(flag)[0]] == [flag for flag in kinds if flags & flag]
    if not character.isascii():
        assert bool(code_points.signs.flags[0] & UPPER) is bool(flags & UPPER)


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


@given(TEXTS, st.integers(0, 3))
def test_counts_are_those_of_each_row(texts: list[str | None], start: int) -> None:
    rows = [text or "" for text in texts[start:]]
    code_points = CodePoints(pa.array(texts, type=pa.string()).slice(start))
    assert code_points.lengths.tolist() == [len(text) for text in rows]
    assert code_points.sizes.tolist() == [len(text.encode()) for text in rows]
    assert "".join(map(chr, code_points.points)) == "".join(rows)
    assert code_points.offsets.tolist() == [sum(map(len, rows[:row])) for row in range(len(rows) + 1)]
    of_category = {LETTER: "LM", DIGIT: ["Nd"], PUNCTUATION: "P", SYMBOL: "S", PRIVATE: ["Co"]}
    for flag, categories in of_category.items():
        kinds = [[unicodedata.category(character) for character in text] for text in rows]
        expected = [sum(kind in categories or kind[0] in categories for kind in found) for found in kinds]
        # Beyond the tables lie ideographs, and a few unassigned code points among them.
        if all(ord(character) < 0x20000 or ord(character) >= 0xE0000 for text in rows for character in text):
            assert code_points.count_flag(flag).tolist() == expected


@given(TEXTS)
def test_signs_are_all_that_is_no_ascii_letter(texts: list[str | None]) -> None:
    code_points = CodePoints(pa.array(texts, type=pa.string()))
    signs, content = code_points.signs, code_points.content
    every = [
        character for text in texts for character in text or "" if not (character.isascii() and character.isalpha())
    ]
    assert [chr(point) for point in signs.points] == every
    ends = signs.places + utf8_sizes(signs.points)
    assert [content[start:end].decode() for start, end in zip(signs.places, ends)] == every
    assert signs.count(signs.among("1 ")).tolist() == [
        (text or "").count("1") + (text or "").count(" ") for text in texts
    ]
    assert signs.rows_with(signs.points == ord("1")).tolist() == [
        row for row, text in enumerate(texts) if "1" in (text or "")
    ]


@pytest.mark.parametrize("flag", [SPACE, UNSETTLED])
def test_nothing_is_counted_in_no_text(flag: int) -> None:
    assert CodePoints(pa.array([None, ""], type=pa.string())).count_flag(flag).tolist() == [0, 0]


def test_folding_leaves_what_would_vanish() -> None:
    points, offsets = folded(CodePoints(pa.array(["A-b!", "", "?!", "Ünï 1", "...", "ẞİ„K“", " ", "€"])))
    assert "".join(map(chr, points)) == "ab?!ünï1...ßik €"
    assert offsets.tolist() == [0, 2, 2, 4, 8, 11, 14, 15, 16]


def plainly_folded(text: str) -> str:
    kept = [
        character
        for character in text
        if not (unicodedata.category(character)[0] in "PZC" or unicodedata.category(character) == "Sk")
        and not character.isspace()
    ]
    lower = [character.lower()[0] for character in kept]
    return (
        "".join(one if len(one.encode()) <= len(other.encode()) else other for one, other in zip(lower, kept)) or text
    )


@given(st.lists(st.text(alphabet="aZ1 .,ÄßẞİȺK字、강\U0001f600„“^\t", max_size=8), max_size=8))
def test_folding_is_that_of_a_plain_loop(texts: list[str]) -> None:
    code_points = CodePoints(pa.array(texts, type=pa.string()))
    expected = [plainly_folded(text) for text in texts]
    assert code_points.folded.to_arrow().to_pylist() == expected
    assert code_points.folded.lengths.tolist() == [len(text) for text in expected]
    letters = folded_letters(code_points)
    assert letters.to_arrow().to_pylist() == [
        "".join(c for c in text if c.isalpha()) if any(map(str.isalpha, text)) else "" for text in expected
    ]


def test_every_code_point_folds_by_itself() -> None:
    texts = [chr(point) for point in range(0x20100) if not 0xD800 <= point < 0xE000]
    found = CodePoints(pa.array(texts)).folded.to_arrow().to_pylist()
    differ = [text for text, other in zip(texts, found) if ord(text) < 0x20000 and other != plainly_folded(text)]
    assert not differ
    assert found[0x20000 - 0x800 :] == texts[0x20000 - 0x800 :]


def test_rows_are_replaced() -> None:
    texts = pa.array(["a", None, "c", "d"]).slice(1)
    assert replaced(texts, np.array([0, 2]), pa.array(["x", None])).to_pylist() == ["x", "c", None]
