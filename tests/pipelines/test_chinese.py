"""The two scripts of Chinese, and Cantonese."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.chinese import cantonese_probability, converted, other_script


@pytest.mark.parametrize(
    ("text", "words", "others"),
    [
        ("我哋嘅狗喺雪地度跑。", 3, 6),
        ("佢唔係狗。", 2, 2),
        ("哪里有" * 40 + "嘅", 1, 120),
    ],
)
def test_cantonese_words_count_against_all_others(text: str, words: int, others: int) -> None:
    odds = math.prod([0.1 / 1e-5] * words + [0.9 / (1 - 1e-5)] * others)
    assert cantonese_probability(text) == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("text", ["", "我们的狗在雪地里跑。", "我們的狗在雪地裡跑。", "唔，我不知道。", "A dog"])
def test_a_text_without_cantonese_words_is_none(text: str) -> None:
    assert cantonese_probability(text) == 0


def test_a_cantonese_word_that_is_quoted_in_a_long_text_proves_nothing() -> None:
    assert cantonese_probability("嘅" + "这是一个例子" * 30) < 0.01
    assert cantonese_probability("嘅" + "这是一个例子" * 3000) == pytest.approx(0)


@pytest.mark.parametrize(
    ("text", "script", "expected"),
    [
        ("这个", "simplified", 0),
        ("這個", "simplified", 2 / 3),
        ("這個", "traditional", 0),
        ("這个国", "traditional", 2 / 4),
        # In both standards.
        ("后里只面", "simplified", 0),
        ("后里只面", "traditional", 0),
        ("", "simplified", 0),
    ],
)
def test_characters_of_the_other_script(text: str, script: str, expected: float) -> None:
    assert other_script(text, script) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "script", "expected"),
    [
        ("這隻狗", "simplified", "这只狗"),
        ("这只狗", "traditional", "這隻狗"),
        ("a 1。", "traditional", "a 1。"),
        ("薴", "simplified", "苎"),
    ],
)
def test_a_text_is_converted(text: str, script: str, expected: str) -> None:
    assert converted(text, script) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("script", ["simplified", "traditional"])
@given(text=st.text(alphabet=st.characters(min_codepoint=0x3400, max_codepoint=0x9FFF), max_size=8))
def test_converting_twice_changes_nothing(script: str, text: str) -> None:
    once = converted(text, script)  # type: ignore[arg-type]
    assert converted(once, script) == once  # type: ignore[arg-type]
