"""Rules on lengths: single pairs, and against plain loops over the characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_pairs import EN_DE, EN_ZH, TEXTS, score, scores

from pipelines.config import LanguagesConfig

EN_KO = LanguagesConfig(source="en", target="ko")


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        ("empty", "", "Ein Hund.", 0),
        ("empty", " \u200b\t", "Ein Hund.", 0),
        ("empty", "A", "Ein Hund.", 1),
        ("characters", "four", "äöüßé", 5),
        ("words", "A dog runs.", "Hund", 3),
        ("words", "", "", 0),
        ("word_length", "A dog", "Donau schiff", 5.5),
        ("word_length", "", "", 0),
        ("length_ratio", "a" * 10, "b" * 30, 2.0),
        ("length_ratio", "a" * 30, "b" * 10, 2.0),
        ("length_ratio", "a", "", None),
        ("word_ratio", "a b c", "d e f g h i j k l", 2.0),
        ("word_ratio", "a b c", "", None),
        ("byte_ratio", "a" * 10, "ä" * 15, 2.0),
        ("byte_ratio", "", "b", None),
        ("long_word", "a bbb cc", "dddd e", 4),
        ("long_word", "ä bbb", "üüüü öööööö, c", 7),
        ("long_word", "", "x" * 60, 60),
        ("long_word", "", "", 0),
        ("long_word", "a-b https://x.org/y", "c", 15),
    ],
)
def test_the_score_of_a_pair(rule: str, src: str, tgt: str, expected: float | None) -> None:
    assert score(rule, src, tgt) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        ("words", "A dog", "一只狗在雪地里奔跑。", 9),
        ("word_length", "A dog", "一只狗", 2),
        ("length_ratio", "A dog is running through snow.", "一只狗在雪地里奔跑。", 40 / 38),
        ("word_ratio", "A dog runs.", "一只狗跑。", 7 / 6),
        ("byte_ratio", "A dog runs.", "一只狗跑。", 25 / 21),
        ("long_word", "abc", "一" * 100, 3),
    ],
)
def test_the_score_of_a_pair_with_ideographs(rule: str, src: str, tgt: str, expected: float) -> None:
    assert score(rule, src, tgt, EN_ZH) == pytest.approx(expected)


def test_hangul_counts_for_two_letters_in_the_ratio() -> None:
    assert score("length_ratio", "a" * 20, "강" * 10, EN_KO) == pytest.approx(1)


def test_words_are_not_measured_where_there_are_no_spaces() -> None:
    languages = LanguagesConfig(source="ja", target="zh")
    assert score("long_word", "一", "二", languages) is None
    assert score("word_length", "一", "二", languages) is None


def volume(text: str) -> int:
    return sum(3 if "\u3400" <= character <= "\u9fff" else 2 if character == "강" else 1 for character in text)


def words(text: str) -> int:
    ideographs = sum("\u3400" <= character <= "\u9fff" for character in text)
    return len(text.split(" ")) + max(ideographs - 1, 0) if text else 0


def ratio(one: int, other: int, softener: int) -> float | None:
    shorter, longer = sorted((one, other))
    return (longer + softener) / (shorter + softener) if shorter else None


def expected(rule: str, src: str, tgt: str) -> float | None:
    sides = (src, tgt)
    match rule:
        case "empty":
            return min(map(len, sides))
        case "characters":
            return max(map(len, sides))
        case "words":
            return max(map(words, sides))
        case "word_length":
            return max(sum(map(len, text.split())) / max(len(text.split()), 1) for text in sides)
        case "length_ratio":
            return ratio(volume(src), volume(tgt), 10)
        case "word_ratio":
            return ratio(words(src), words(tgt), 3)
        case "byte_ratio":
            return ratio(len(src.encode()), len(tgt.encode()), 10)
    return max(len(word) for text in sides for word in text.split(" "))


RULES = ("empty", "characters", "words", "word_length", "length_ratio", "word_ratio", "byte_ratio", "long_word")


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_scores_are_those_of_a_plain_loop(pairs: list[tuple[str, str]]) -> None:
    src, tgt = zip(*pairs)
    for rule in RULES:
        assert scores(rule, src, tgt, EN_DE) == pytest.approx([expected(rule, *pair) for pair in pairs]), rule
