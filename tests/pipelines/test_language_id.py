"""Which language a text is in, by the model that is installed with its package."""

from __future__ import annotations

import pytest

from pipelines.language_id import is_known, language_scores


def test_a_text_in_its_language_scores_high() -> None:
    right, other = language_scores(["Ein Mann sitzt auf einer Bank und liest eine Zeitung."], "de")
    assert right[0] > 0.9
    assert other[0] < 0.1


def test_a_text_in_another_language_is_told() -> None:
    right, other = language_scores(["Un homme est assis sur un banc et lit un journal."], "de")
    assert right[0] < 0.1
    assert other[0] > 0.9


def test_sister_languages_do_not_speak_against_each_other() -> None:
    texts = ["Jeg har aldri sett en så stor hund før, sa mannen til kona si."]
    right, other = language_scores(texts, "nb")
    assert other[0] < 0.1
    assert right[0] > 0.5


def test_chinese_is_not_taken_for_japanese() -> None:
    _, other = language_scores(["一大片海和阴云密布的天空。", "真是太可惜了！"], "zh")
    assert other.max() < 0.1


def test_no_text_gives_no_score() -> None:
    right, other = language_scores([], "en")
    assert len(right) == len(other) == 0


def test_scores_stay_within_one() -> None:
    right, other = language_scores(["x", "1234", "Привет, как у тебя дела сегодня утром?"], "ru")
    assert right.max() <= 1
    assert other.max() <= 1


@pytest.mark.parametrize(("language", "known"), [("en", True), ("pt-BR", True), ("zh-Hant", True), ("xx", False)])
def test_known_languages(language: str, known: bool) -> None:
    assert is_known(language) is known


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know 'xx'"):
        language_scores(["a"], "xx")
