"""What normalisation changes, what it leaves alone, and that the quick way is the plain way."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.config import NormalizeConfig
from pipelines.normalize import normalize, normalize_line

PLAIN = NormalizeConfig()
UNIFIED = NormalizeConfig(unify_quotes=True, unify_dashes=True)
EVERYTHING = NormalizeConfig(
    form="NFKC", unify_quotes=True, unify_dashes=True, unify_widths=True, strip_markup=True, chinese="simplified"
)
NOTHING = NormalizeConfig(unescape_html=False, repair_encoding=False)
CONFIGS = [PLAIN, UNIFIED, EVERYTHING, NOTHING]
# Dense in what normalisation is about: entities, spaces of all kinds, marks, unseen characters, quotes.
TRICKY = st.text(
    alphabet=st.one_of(
        st.sampled_from("&;#amplt0123x \t\u00a0\u2028\u200b\u00ad\ufeffe\u0301\u1100\u1161\x00\x85„“–'\u037e한ßü字"),
        st.sampled_from("Ãâ€¼\x9f\xa0`*:<>b/[]ＡＢ１ｶﾞ－ﬁ薴隻後"),
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


@given(st.lists(TRICKY, max_size=6), st.sampled_from(CONFIGS), st.sampled_from(["en", "zh-Hant", "fa"]))
def test_the_quick_way_is_the_plain_way(texts: list[str], config: NormalizeConfig, language: str) -> None:
    expected = [normalize_line(text, language, config) for text in texts]
    assert normalize(pa.array(texts, type=pa.string()), language, config).to_pylist() == expected


@given(TRICKY, st.sampled_from(CONFIGS), st.sampled_from(["en", "zh", "fa"]))
def test_normalising_twice_changes_nothing(text: str, config: NormalizeConfig, language: str) -> None:
    once = normalize_line(text, language, config)
    assert normalize_line(once, language, config) == once


@pytest.mark.parametrize(
    ("options", "language", "text", "expected"),
    [
        ({}, "de", "Ein MÃ¤dchen, gro\u00c3\u009f", "Ein Mädchen, groß"),
        ({}, "de", "M&Atilde;&curren;dchen", "Mädchen"),
        ({"repair_encoding": False}, "de", "Ein MÃ¤dchen", "Ein MÃ¤dchen"),
        ({}, "en", "ﬁt ² ＡＢ１", "ﬁt ² ＡＢ１"),
        ({"form": "NFKC"}, "en", "ﬁt ² ＡＢ１", "fit 2 AB1"),
        ({"unify_widths": True}, "ja", "ＡＢ１ｶﾞｷ，ﬁ", "AB1ガキ，ﬁ"),
        (
            {"strip_markup": True},
            "en",
            "See :ref:`the dogs <d>`, ``x`` and <b>*it*</b> {0}.",
            "See the dogs, x and it {0}.",
        ),
        ({"chinese": "simplified"}, "zh", "這隻狗 &amp; 貓", "这只狗 & 猫"),
        ({"chinese": "traditional"}, "zh-Hant", "这只狗", "這隻狗"),
        ({"chinese": "simplified"}, "ja", "這隻狗", "這隻狗"),
    ],
)
def test_what_the_config_asks_for(options: dict[str, Any], language: str, text: str, expected: str) -> None:
    config = NormalizeConfig(**options)
    assert normalize(pa.array([text, "plain"]), language, config).to_pylist() == [expected, "plain"]


def test_a_language_has_its_own_changes() -> None:
    config = NormalizeConfig(
        unify_dashes=True, by_language={"de": {"unify_quotes": True}, "de-CH": {"unify_dashes": False}}
    )
    texts = pa.array(["„Ja“ – nein"])
    assert normalize(texts, "en", config).to_pylist() == ["„Ja“ - nein"]
    assert normalize(texts, "de", config).to_pylist() == ['"Ja" - nein']
    assert normalize(texts, "de-CH", config).to_pylist() == ['"Ja" – nein']


@pytest.mark.parametrize(
    ("by_language", "message"),
    [
        ({"de": {"unify_quote": True}}, "unify_quote\n"),
        ({"zh": {"chinese": "mixed"}}, "chinese\n"),
        ({"german": {"unify_quotes": True}}, "german"),
        ({"de": {"by_language": None}}, "cannot be nested"),
    ],
)
def test_changes_of_a_language_are_checked(by_language: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NormalizeConfig(by_language=by_language)


def test_a_config_of_an_earlier_version_loads() -> None:
    stored = json.loads('{"unescape_html": true, "unify_quotes": true, "unify_dashes": false}')
    assert NormalizeConfig.model_validate(stored) == NormalizeConfig(unify_quotes=True)


def test_a_config_comes_back_from_json() -> None:
    config = NormalizeConfig(chinese="simplified", by_language={"zh": {"unify_widths": True}})
    assert NormalizeConfig.model_validate_json(config.model_dump_json()) == config
