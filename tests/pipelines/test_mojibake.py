"""Wrong decodings: which are undone, which are left to the rule, and which texts only look like one."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.characters import CodePoints
from pipelines.mojibake import broken_places, mended_lines, repaired


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ein MÃ¤dchen isst KÃ¼chlein", "Ein Mädchen isst Küchlein"),
        ("It\u00e2\u20ac\u2122s a dog", "It’s a dog"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ("ÃƒÂ¼ber", "über"),
        ("Gro\u00c3\u009f", "Groß"),
        ("Größe Ã¼ber „Haus“", "Größe über „Haus“"),
        ("ðŸ˜€", "😀"),
        # Not in doubt: no such text.
        ("São João, MAÇÃO, «Âge», España, Größe, Ärger", "São João, MAÇÃO, «Âge», España, Größe, Ärger"),
        ("“LINDA MAÇÃ”", "“LINDA MAÇÃ”"),
        ("plain & <b>bold</b> “quoted” ﬁ …", "plain & <b>bold</b> “quoted” ﬁ …"),
        # In doubt: part of it is lost.
        ("KÃ¼che \ufffd", "KÃ¼che \ufffd"),
        ("KÃ¼che ðŸ x", "KÃ¼che ðŸ x"),
    ],
)
def test_a_text_is_repaired_where_it_is_certain(text: str, expected: str) -> None:
    assert repaired(text) == expected


@given(st.text(alphabet="aÃÂäüß¼¤\u009fâ€™œ\ufffdðŸ字", max_size=12))
def test_repairing_twice_changes_nothing(text: str) -> None:
    assert repaired(repaired(text)) == repaired(text)


@given(st.text(alphabet="aé ßñ—“字", min_size=1, max_size=10))
def test_what_was_read_as_windows_1252_is_read_right(text: str) -> None:
    wrong = text.encode().decode("cp1252", errors="ignore")
    if wrong.encode("cp1252") == text.encode():
        # What cannot be told from right text stays; nothing becomes a third text.
        assert repaired(wrong) in (text, wrong)


def test_places_are_counted_by_row() -> None:
    texts = pa.array(["KÃ¼che, MÃ¤dchen", "Küche", "", "\ufffd", "Ã", "¼", "ÄÄ Ñandú"])
    assert broken_places(texts, CodePoints(texts).signs).tolist() == [2, 0, 0, 1, 0, 0, 0]


def test_lines_are_repaired_as_their_texts_are() -> None:
    raw = pa.array(["KÃ¼che\x02", "Gro\u00c3\u009f", "plain", "Gro\u00c3\u009f", "a  b"])
    texts = pa.array(["Küche", "Groß", "plain", "Gro\u00c3", "a b"])
    assert mended_lines(raw, texts).to_pylist() == ["Küche\x02", "Groß", "plain", "Gro\u00c3\u009f", "a  b"]
