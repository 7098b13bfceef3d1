"""Rules on what both sides say."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_pairs import EN_DE, EN_ZH, TEXTS, pairs_of, score, scores

from pipelines.filters import RULES, Resources, rule_scores
from pipelines.resources import WordList

ALIKE = "ASV: Hintze, Ernst, Schlögl"


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        ("identical", "A dog runs.", "a dog RUNS", 3),
        ("identical", "A dog runs.", "Ein Hund rennt.", 0),
        ("identical", "", "", None),
        ("similar", ALIKE, f"Die {ALIKE}", 1 - 3 / 24),
        ("similar", "A dog runs. 12", "a DOG runs! 13", 1),
        ("similar", "A dog runs.", "Xyz xyz xyz", 0),
        ("similar", "A dog runs.", "a dog runs very far through the snow", 0),
        ("similar", "New York", "New York", None),
        ("similar", "1 2 3", "a b c", None),
        ("common_substring", "A dog runs.", "Ein dog runt", 6 / 8),
        ("common_substring", "A dog runs.", "!", None),
        ("common_substring", "New York", "New York", None),
        ("numbers", "In 1985 there were 23 dogs", "1985 gab es 23 Hunde", 0),
        ("numbers", "In 1985 there were 23 dogs", "1985 gab es 24 Hunde", 2 / 3),
        ("numbers", "It costs 3.50 euros", "Es kostet 3,50 Euro", 0),
        ("numbers", "1,000 men and 2,500,000.75", "1.000 Männer und 2.500.000,75", 0),
        ("numbers", "1,000 men", "1 000 Männer", 0),
        ("numbers", "1'000 men", "1000 Männer", 0),
        ("numbers", "1’000 men", "1000 Männer", 0),
        ("numbers", "for 2.00 euros", "für 2 Euro", 0),
        ("numbers", "on 12/05/2020", "am 12.5.2020", 0),
        ("numbers", "two dogs", "2 Hunde", 0),
        ("numbers", "sixty dogs", "60 Hunde", 1),
        ("numbers", "47 dogs and 47 cats", "47 Hunde", 0.5),
        ("numbers", "a dog", "ein Hund", None),
        ("numbers", "year ١٩٨٥", "Jahr 1985", 0),
        ("numbers", "7" * 30, "7" * 31, 1),
        ("url", "see www.example.com/en", "siehe http://example.de/de", 0),
        ("url", "see WWW.example.com/en", "siehe hier", 1),
        ("url", "see https://example.com", "siehe hier", 1),
        ("url", "mail me@one.org and you@two.org", "Mail an me@one.org", 0.5),
        ("url", "a dog", "ein Hund", None),
        ("url", "at @ sign: // now.", "ein @ .", None),
    ],
)
def test_the_score_of_a_pair(rule: str, src: str, tgt: str, expected: float | None) -> None:
    assert score(rule, src, tgt) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("src", "tgt", "expected"),
    [
        ("the 19th congress", "十九大", 0),
        ("in 2019", "在二〇一九年", 0),
        ("850 million people and 16 billion yuan", "8.5亿人和160亿元", 0),
        ("500,000 new rooms", "50 万间房", 0),
        ("22 dogs", "二十三只狗", 1),
        ("one dog", "一只狗，二十三只猫", None),
        ("13 dogs, 14 cats", "十三只狗，15只猫", 2 / 3),
    ],
)
def test_numbers_in_chinese_characters_are_known(src: str, tgt: str, expected: float | None) -> None:
    assert score("numbers", src, tgt, EN_ZH) == (None if expected is None else pytest.approx(expected))


# Tokens and the numbers that they stand for.
NUMBERS = {
    "7": ["7"],
    "007": ["7"],
    "13": ["13"],
    "23": ["23"],
    "x99y": ["99"],
    "1,000": ["1000"],
    "2.50": ["250"],
    "2.00": ["2"],
    "12.5.2020": ["12", "5", "2020"],
    "13-14": ["13", "14"],
    "9" * 18: ["9" * 18],
    "9" * 19: ["9" * 19],
    "٣٤": ["34"],
    "dog.": [],
}
TOKENS = st.lists(st.sampled_from(list(NUMBERS)), max_size=6)


def difference(src: list[str], tgt: list[str]) -> float | None:
    ours, theirs = (Counter(part for token in side for part in NUMBERS[token]) for side in (src, tgt))
    if not ours and not theirs:
        return None
    apart = sum(count for number, count in ((ours - theirs) + (theirs - ours)).items() if int(number) > 12)
    return apart / ((ours & theirs).total() + apart) if apart else 0.0


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=6))
def test_numbers_are_those_of_a_plain_loop(pairs: list[tuple[list[str], list[str]]]) -> None:
    src, tgt = ([" a ".join(pair[side]) for pair in pairs] for side in (0, 1))
    expected = [difference(*pair) for pair in pairs]
    assert scores("numbers", src, tgt) == pytest.approx(expected)


def letters(text: str) -> str:
    return "".join(character.lower() for character in text if character.isalpha())


def distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for at, character in enumerate(one, 1):
        above, row[0] = row[0], at
        for place, theirs in enumerate(other, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (character != theirs))
    return row[-1]


def longest_common(one: str, other: str) -> int:
    pieces = {one[start:stop] for start in range(len(one)) for stop in range(start + 1, len(one) + 1)}
    return max((len(piece) for piece in pieces if piece in other), default=0)


def alikeness(rule: str, src: str, tgt: str) -> float | None:
    words = max(score("words", side, None) or 0 for side in (src, tgt))
    src, tgt = letters(src), letters(tgt)
    if not src or not tgt or words <= 2:
        return None
    if rule == "common_substring":
        return longest_common(src, tgt) / min(len(src), len(tgt))
    similarity = 1 - distance(src, tgt) / max(len(src), len(tgt))
    return similarity if similarity >= 0.5 else 0.0


@given(st.tuples(TEXTS, TEXTS))
def test_alikeness_is_that_of_a_plain_loop(pair: tuple[str, str]) -> None:
    for rule in ("similar", "common_substring"):
        expected = alikeness(rule, *pair)
        assert score(rule, *pair) == (None if expected is None else pytest.approx(expected, abs=1e-6)), rule


def word_list(*words: str) -> WordList:
    return WordList(tuple(sorted(words)), "digest")


@pytest.mark.parametrize(
    ("src", "tgt", "expected"),
    [
        ("A darn dog, DARN it!", "Ein Hund", 2),
        ("Darning a sock", "Ein Hund", 0),
        ("A dog", "Großer MIST", 1),
        ("A dog", "So eine Scheiße hier, großer Mist", 2),
        ("son of\u00a0a gun", "Ein Hund", 1),
        ("C++ (a+b)", "Ein Hund", 1),
        ("", "", 0),
    ],
)
def test_words_of_a_list_are_counted_on_the_worse_side(src: str, tgt: str, expected: int) -> None:
    resources = Resources(word_list("darn", "son of a gun", "c++"), word_list("mist", "scheisse"))
    assert score("profanity", src, tgt, EN_DE, resources) == expected


def test_words_are_looked_for_anywhere_where_there_are_no_spaces() -> None:
    resources = Resources(target_profanity=word_list("混蛋"))
    assert score("profanity", "A dog", "你这个混蛋狗混蛋", EN_ZH, resources) == 2


def test_only_a_side_with_a_list_is_judged() -> None:
    rule = next(rule for rule in RULES if rule.name == "profanity")
    resources = Resources(source_profanity=word_list("darn"))
    texts = ["darn", "dog"]
    assert rule_scores(pairs_of(texts, texts, EN_DE, resources), [rule])["profanity"].to_pylist() == [1, 0]
    assert rule_scores(pairs_of(None, texts, EN_DE, resources), [rule])["profanity"].to_pylist() == [None, None]
    assert rule_scores(pairs_of(texts, texts, EN_DE), [rule])["profanity"].to_pylist() == [None, None]


def test_a_list_may_be_long() -> None:
    resources = Resources(source_profanity=word_list(*(f"word{number}" for number in range(20_000))))
    assert scores("profanity", ["word19999 is a word", "word20000"], None, EN_DE, resources) == [1, 0]


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_text_is_identical_and_similar_to_itself(texts: list[str]) -> None:
    assert set(scores("numbers", texts, texts)) <= {None, 0.0}
    assert set(scores("similar", texts, texts)) <= {None, 1.0}
    assert scores("identical", texts, texts) == [score("words", text, None) if text else None for text in texts]
