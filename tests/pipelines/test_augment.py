"""What augmentation makes of a row: each change by itself, by its share, and always the same for the same key."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.augment import (
    Augmentation,
    Change,
    Pair,
    has_case,
    merged,
    noise_text,
    noise_word,
    title_case,
    upper_case,
    with_typos,
    without_end_punctuation,
)
from pipelines.config import AugmentConfig, TokenizerConfig
from pipelines.draws import Draws, row_keys

PAIR = Pair("The house is red.", "Das Haus ist rot.")


def augmentation(source: str = "en", target: str = "de", **config: Any) -> Augmentation:
    return Augmentation(AugmentConfig.model_validate(config), source, target)


def changed(pair: Pair, source: str = "en", target: str = "de", follower: Pair | None = None, **config: Any) -> Pair:
    found = augmentation(source, target, **config)
    keys = row_keys(1, 0, np.arange(1))
    return found.changed(found.chosen(keys), keys, [pair], [follower])[0]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "The house, 3 cats!", "THE HOUSE, 3 CATS!"),
        ("de", "Straße über Maß", "STRASSE ÜBER MASS"),
        ("tr", "istanbul ılık İyi", "İSTANBUL ILIK İYİ"),
        ("az", "bizim", "BİZİM"),
        ("tr-TR", "i", "İ"),
        ("lt", "i\u0307\u0300", "Ì"),
        ("el", "Αθήνα, Μάιος ή ταΐζω", "ΑΘΗΝΑ, ΜΑΪΟΣ Ή ΤΑΪΖΩ"),
        ("el", "το μαΐστρο η", "ΤΟ ΜΑΪΣΤΡΟ Η"),
        ("ru", "Ёлка", "ЁЛКА"),
        ("ka", "სახლი", "სახლი"),
        ("zh", "我的房子", "我的房子"),
    ],
)
def test_capitals_are_those_of_the_language(language: str, text: str, expected: str) -> None:
    assert upper_case(text, language) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "the old man's (red) well-known NASA house", "The Old Man's (Red) Well-Known NASA House"),
        ("en", "'tis don't “so”", "'Tis Don't “So”"),
        ("fr", "l'homme à l'œil", "L'homme À L'œil"),
        ("tr", "iyi ılık", "İyi Ilık"),
        ("nl", "het ijs rijdt", "Het IJs Rijdt"),
        ("en", "ijs", "Ijs"),
        ("hr", "ǆep", "ǅep"),
        ("ka", "სახლი", "სახლი"),
    ],
)
def test_title_case_has_a_capital_at_the_start_of_words_alone(language: str, text: str, expected: str) -> None:
    assert title_case(text, language) == expected


@given(st.text(max_size=40), st.sampled_from(["en", "de", "tr", "lt", "el", "nl"]))
def test_cases_leave_text_normalised(text: str, language: str) -> None:
    text = unicodedata.normalize("NFC", text)
    for found in (upper_case(text, language), title_case(text, language)):
        assert unicodedata.is_normalized("NFC", found)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "a house", True),
        ("zh", "我有一个 iPhone 手机和房子", False),
        ("zh", "12345", False),
        ("ka", "სახლი", False),
        ("ru", "дом 7", True),
        ("th", "บ้าน", False),
    ],
)
def test_text_has_a_case_where_half_of_its_letters_have(language: str, text: str, expected: bool) -> None:
    assert has_case(text, language) is expected


def test_case_changes_both_sides_and_only_where_the_source_shows_it() -> None:
    assert changed(PAIR, upper_case=1.0) == ("THE HOUSE IS RED.", "DAS HAUS IST ROT.")
    assert changed(PAIR, title_case=1.0) == ("The House Is Red.", "Das Haus Ist Rot.")
    chinese = Pair("房子是红的。", "The house is red.")
    assert changed(chinese, "zh", "en", upper_case=1.0) == chinese
    assert changed(Pair(*reversed(chinese)), "en", "zh", upper_case=1.0) == ("THE HOUSE IS RED.", "房子是红的。")


@pytest.mark.parametrize(
    ("pair", "languages", "expected"),
    [
        (("A house.", "Ein Haus."), ("en", "de"), ("A house", "Ein Haus")),
        (("A house.", "房子。"), ("en", "zh"), ("A house", "房子")),
        (("Really?", "Vraiment ?"), ("en", "fr"), ("Really", "Vraiment")),
        (("Really?", "Αλήθεια;"), ("en", "el"), ("Really", "Αλήθεια")),
        (("one;", "eins;"), ("en", "de"), None),
        (("Go!", "Los."), ("en", "de"), None),
        (("A house.", "Ein Haus"), ("en", "de"), None),
        (("Wait...", "Warte..."), ("en", "de"), None),
        (("What?!", "Was?!"), ("en", "de"), None),
        (("What?", "¿Qué?"), ("en", "es"), None),
        ((".", "."), ("en", "de"), None),
        (("", ""), ("en", "de"), None),
    ],
)
def test_end_marks_of_one_kind_go_from_both_sides(
    pair: tuple[str, str], languages: tuple[str, str], expected: tuple[str, str] | None
) -> None:
    assert without_end_punctuation(Pair(*pair), *languages) == (expected or pair)


@pytest.mark.parametrize(
    ("language", "expected"), [("en", "One. Two."), ("zh", "One.Two."), ("ja", "One.Two."), ("th", "One. Two.")]
)
def test_rows_are_put_together_as_sentences_of_the_language(language: str, expected: str) -> None:
    assert merged("One.", "Two.", language) == expected


def test_a_row_is_merged_with_its_follower_on_both_sides() -> None:
    follower = Pair("It is old.", "它很旧。")
    assert changed(Pair("A house.", "房子。"), "en", "zh", follower, merge=1.0) == (
        "A house. It is old.",
        "房子。它很旧。",
    )
    assert changed(PAIR, merge=1.0) == PAIR


def distance_of_one(before: str, after: str) -> str | None:
    """The kind of a single typing error that makes one word of another, by trying all of them; None: it is none."""
    places = range(len(before))
    for kind, words in {
        "swapped": {before[:i] + before[i + 1 : i + 2] + before[i] + before[i + 2 :] for i in places} - {before},
        "dropped": {before[:i] + before[i + 1 :] for i in places},
        "doubled": {before[:i] + before[i] + before[i:] for i in places},
        "replaced": {before[:i] + letter + before[i + 1 :] for i in places for letter in "qwertyuiopasdfghjklzxcvbnm"},
    }.items():
        if after in words:
            return kind
    return None


def test_a_typing_error_changes_one_letter_of_a_word_in_one_of_four_ways() -> None:
    kinds = []
    for key in range(400):
        words = with_typos("the yellow cat", 0.1, "en", Draws(key)).split(" ")
        assert words[::2] == ["the", "cat"]
        kinds.append(distance_of_one("yellow", words[1]))
    assert None not in kinds
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert set(counts) == {"swapped", "dropped", "doubled", "replaced"}
    assert min(counts.values()) > 40


def test_letters_are_replaced_by_those_beside_them_on_the_keyboard() -> None:
    hits = {with_typos("gggg", 1.0, "en", Draws(key)).replace("g", "") for key in range(300)}
    assert hits == {"", *"tyfhvb"}
    assert {with_typos("ZZZZ", 1.0, "de", Draws(key)).replace("Z", "") for key in range(300)} == {"", *"TUGH"}


def test_a_share_of_the_words_has_errors_and_at_least_one() -> None:
    text = " ".join(["lovely"] * 20)
    for share, expected in ((0.0, 1), (0.25, 5), (1.0, 20)):
        words = with_typos(text, share, "en", Draws(5)).split(" ")
        assert sum(word != "lovely" for word in words) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat 2024",
        "https://example.com/path",
        "me@example.com",
        "<2deutsch>",
        "我的房子很大很红",
        "집이아주큽니다",
    ],
)
def test_addresses_numbers_tags_and_syllables_have_no_typing_errors(text: str) -> None:
    assert all(with_typos(text, 1.0, "en", Draws(key)) == text for key in range(50))


def test_typing_errors_are_in_the_source_alone() -> None:
    found = changed(PAIR, typos=1.0)
    assert found.src != PAIR.src
    assert found.tgt == PAIR.tgt


def test_noise_is_the_same_at_the_same_end_of_both_sides() -> None:
    places = set()
    keys = row_keys(1, 0, np.arange(60))
    found = augmentation(noise_words=1.0)
    for pair in found.changed(found.chosen(keys), keys, [PAIR] * 60, [None] * 60):
        assert pair.src.replace(PAIR.src, "|") == pair.tgt.replace(PAIR.tgt, "|")
        places.add(pair.src.startswith(PAIR.src))
    assert places == {True, False}


@given(st.integers(0, 2**64 - 1))
def test_noise_is_words_that_normalisation_leaves_as_they_are(key: int) -> None:
    assert " " not in noise_word(Draws(key))
    text = noise_text(Draws(key))
    assert 1 <= len(text.split(" ")) <= 6
    assert unicodedata.is_normalized("NFC", text)
    assert all(not character.isspace() and character.isprintable() for character in text.replace(" ", ""))


SHARES: dict[str, Any] = {
    "merge": 0.3, "upper_case": 0.2, "title_case": 0.1, "no_end_punctuation": 0.4, "typos": 0.05, "noise_words": 0.02,
    "sampling": {"source": 0.5, "target": 0.25},
}  # fmt: skip


def test_rows_are_chosen_by_their_shares() -> None:
    chosen = augmentation(**SHARES).chosen(row_keys(1, 0, np.arange(100_000)))
    shares = {change.name: np.count_nonzero(chosen & change) / 100_000 for change in Change}
    expected = {
        "MERGE": 0.3, "UPPER_CASE": 0.2, "TITLE_CASE": 0.1, "NO_END_PUNCTUATION": 0.4, "TYPOS": 0.05,
        "NOISE_WORDS": 0.02, "SAMPLED_SOURCE": 0.5, "SAMPLED_TARGET": 0.25,
    }  # fmt: skip
    assert shares == pytest.approx(expected, abs=0.006)
    assert not np.any((chosen & Change.UPPER_CASE != 0) & (chosen & Change.TITLE_CASE != 0))


def test_changes_are_drawn_apart_from_each_other() -> None:
    chosen = augmentation(merge=0.5, typos=0.5).chosen(row_keys(1, 0, np.arange(100_000)))
    assert np.count_nonzero(chosen == Change.MERGE | Change.TYPOS) == pytest.approx(25_000, abs=700)


def test_what_a_row_becomes_does_not_depend_on_the_rows_around_it() -> None:
    found = augmentation(**SHARES)
    rows = np.arange(200)
    keys = row_keys(3, 7, rows)
    pairs = [Pair(f"The {row} lovely houses.", f"Die {row} Häuser.") for row in rows]
    followers = [*pairs[1:], None]
    whole = found.changed(found.chosen(keys), keys, pairs, followers)
    backwards = rows[::-1]
    alone = [
        found.changed(found.chosen(keys[[row]]), keys[[row]], [pairs[row]], [followers[row]])[0] for row in backwards
    ]
    assert alone == whole[::-1]
    assert sum(pair != before for pair, before in zip(whole, pairs)) > 100


def test_no_share_changes_nothing() -> None:
    keys = row_keys(1, 0, np.arange(1000))
    assert not augmentation().chosen(keys).any()
    assert not augmentation().noise_rows(keys).any()
    assert augmentation().tagged(keys, ["a"], np.zeros(1000, dtype=np.int32)) == []


def test_tags_are_of_their_corpora() -> None:
    keys, corpus = row_keys(1, 0, np.arange(10_000)), np.arange(10_000, dtype=np.int32) % 3
    tags = [{"tag": "<talk>", "corpora": ["talks", "films"]}, {"tag": "<any>", "rate": 0.1}]
    talk, every = augmentation(tags=tags).tagged(keys, ["news", "talks", "films"], corpus)
    assert np.array_equal(talk, corpus > 0)
    assert np.count_nonzero(every) == pytest.approx(1000, abs=160)


@pytest.mark.parametrize(
    ("config", "active", "changes_text"),
    [
        ({}, False, False),
        ({"typo_words": 0.5}, False, False),
        ({"tags": [{"tag": "<a>", "rate": 0.0}]}, False, False),
        ({"tags": [{"tag": "<a>"}]}, True, False),
        ({"noise_rows": 0.1}, True, False),
        ({"typos": 0.1}, True, True),
        ({"sampling": {"target": 0.1}}, True, True),
    ],
)
def test_a_config_says_whether_it_does_anything(config: dict[str, Any], active: bool, changes_text: bool) -> None:
    found = AugmentConfig.model_validate(config)
    assert (found.active, found.changes_text) == (active, changes_text)


def test_a_row_cannot_have_two_cases() -> None:
    with pytest.raises(ValidationError, match="together at most 1"):
        AugmentConfig(upper_case=0.6, title_case=0.5)


@pytest.mark.parametrize("symbols", [("<a>", "<a>"), ("<s>",), ("two words",), ("",), ("\u2581a",)])
def test_symbols_are_words_that_differ(symbols: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="symbols"):
        TokenizerConfig(symbols=symbols)
