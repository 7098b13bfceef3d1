"""The rule on the language of a text."""

from __future__ import annotations

import pytest
from scored_pairs import EN_ZH, score

from pipelines.config import LanguagesConfig

ENGLISH = "A dog is running through the snow."


def test_another_language_scores_high() -> None:
    found = score("language", ENGLISH, "Un chien court dans la neige profonde.")
    assert found is not None
    assert found > 0.9


def test_the_expected_language_scores_low() -> None:
    found = score("language", ENGLISH, "Ein Hund rennt durch den tiefen Schnee.")
    assert found is not None
    assert found < 0.1


def test_a_short_text_has_no_score() -> None:
    assert score("language", "Hi", "Hallo") is None


def test_one_side_alone_is_judged() -> None:
    found = score("language", None, ENGLISH)
    assert found is not None
    assert found > 0.9


def test_cantonese_is_no_chinese() -> None:
    cantonese, chinese = "我哋嘅狗喺雪地度跑。", "我们的狗在雪地里跑。"
    found = score("language", ENGLISH, cantonese, EN_ZH)
    assert found is not None
    assert found > 0.9
    assert score("language", ENGLISH, chinese, EN_ZH) == pytest.approx(0, abs=0.1)
    # The other way round the model cannot tell for certain, and nothing is held against it.
    assert score("language", ENGLISH, cantonese, LanguagesConfig(source="en", target="yue")) == pytest.approx(
        0, abs=0.1
    )


@pytest.mark.parametrize(("target", "bad"), [("zh-Hans", True), ("zh-Hant", False), ("zh", False), ("zh-TW", False)])
def test_the_script_of_chinese_counts_where_it_is_said(target: str, bad: bool) -> None:
    found = score("language", ENGLISH, "這隻狗從雪地裡跑過來。", LanguagesConfig(source="en", target=target))
    assert found is not None
    assert (found > 0.7) is bad
