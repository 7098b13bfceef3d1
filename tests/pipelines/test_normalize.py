"""What normalisation changes, what it leaves alone, and that the quick way is the plain way."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import NormalizeConfig
from pipelines.normalize import normalize, normalize_line

PLAIN = NormalizeConfig()
UNIFIED = NormalizeConfig(unify_quotes=True, unify_dashes=True)
# Dense in what normalisation is about: entities, spaces of all kinds, marks, unseen characters, quotes.
TRICKY = st.text(
    alphabet=st.one_of(
        st.sampled_from("&;#amplt0123x \t\u00a0\u2028\u200b\u00ad\ufeffe\u0301\u1100\u1161\x00\x85„“–'\u037e한ßü字"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man smiles.", "A man smiles."),
        ("", ""),
        ("  two  spaces ", "two spaces"),
        ("a\u00a0b\u2028c\x0bd\te\x85f\rg", "a b c d e f g"),
        ("cafe\u0301", "café"),
        ("\u1112\u1161\u11ab", "한"),
        ("zero\u200bwidth\ufeff soft\u00adhyphen", "zerowidth softhyphen"),
        ("bell\x07 and nul\x00", "bell and nul"),
        ("bread &amp; butter &#233; &#x20AC;", "bread & butter é €"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("AT&T; R&D; a&copy=1", "AT&T; R&D; a&copy=1"),
        ("Fish & chips", "Fish & chips"),
        ("„Hallo“ – ja", "„Hallo“ – ja"),
        ("👩\u200d👧", "👩👧"),
    ],
)
def test_a_line_is_normalised(text: str, expected: str) -> None:
    assert normalize(pa.array([text]), "en", PLAIN).to_pylist() == [expected]


def test_quotes_and_dashes_are_unified_on_demand() -> None:
    texts = pa.array(["„Hallo“ – er‘s", "plain"])
    assert normalize(texts, "de", UNIFIED).to_pylist() == ['"Hallo" - er\'s', "plain"]


def test_entities_stay_on_demand() -> None:
    config = NormalizeConfig(unescape_html=False)
    assert normalize(pa.array(["a &amp; b"]), "en", config).to_pylist() == ["a &amp; b"]


def test_joiners_stay_where_they_decide_the_word() -> None:
    texts = pa.array(["می\u200cخواهم"])
    assert normalize(texts, "fa", PLAIN).equals(texts)
    assert normalize(texts, "en", PLAIN).to_pylist() == ["میخواهم"]


def test_nulls_stay_null() -> None:
    texts = pa.array([None, " a ", None, "b"])
    assert normalize(texts, "en", PLAIN).to_pylist() == [None, "a", None, "b"]


def test_an_array_without_rows_stays_one() -> None:
    assert normalize(pa.array([], type=pa.string()), "en", PLAIN).to_pylist() == []


def test_a_slice_is_normalised_as_its_rows() -> None:
    texts = pa.array(["skipped \u200b", " a\u0301 ", "ü", "b  c"]).slice(1, 3)
    assert normalize(texts, "en", PLAIN).to_pylist() == ["á", "ü", "b c"]


@given(st.lists(TRICKY, max_size=6), st.sampled_from([PLAIN, UNIFIED]))
def test_the_quick_way_is_the_plain_way(texts: list[str], config: NormalizeConfig) -> None:
    expected = [normalize_line(text, "en", config) for text in texts]
    assert normalize(pa.array(texts, type=pa.string()), "en", config).to_pylist() == expected


@given(TRICKY)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalize_line(text, "en", UNIFIED)
    assert normalize_line(once, "en", UNIFIED) == once
