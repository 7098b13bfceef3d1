"""Rules on repetition, of characters, words and phrases."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_pairs import EN_ZH, score, scores

# Some of them differ in their last or middle byte only.
SOME = ("a", "b", "dog", "Donaudampfschiff", "Donaudampfschiff.", "ä", "x" * 80, "x" * 40 + "y" + "x" * 39)
WORDS = st.lists(st.sampled_from(SOME), max_size=40)


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        ("repetition", "a dog " * 10, "Ein Hund", 10),
        ("repetition", "no no no", "nein", None),
        ("repetition", " ".join(f"w{n}" for n in range(500)) + " w1" * 500, "Hund", 2),
        ("character_run", "Nooooo!", "Neiiiiiiin", 7),
        ("character_run", "Wait...", "Eine Million: 1000000", 0),
        ("character_run", "A ---- B", "C", 4),
        ("character_run", "A", "äääääh 😀😀😀😀😀😀", 6),
        ("phrase_repetition", "the dog " * 6, "Ein Hund", 1),
        ("phrase_repetition", "one two three one two three four five six seven eight nine", "Ein", 0.5),
        ("phrase_repetition", "very very good " + "a b c d e f g h i", "Ein", 0),
        ("phrase_repetition", "the dog the dog", "Ein Hund", None),
    ],
)
def test_the_score_of_a_pair(rule: str, src: str, tgt: str, expected: float | None) -> None:
    assert score(rule, src, tgt) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("rule", "tgt", "expected"),
    [("repetition", "哈哈" * 10, 20), ("character_run", "哈" * 20, 20), ("phrase_repetition", "小狗" * 6, 1)],
)
def test_a_word_is_a_letter_where_there_are_no_spaces(rule: str, tgt: str, expected: float) -> None:
    assert score(rule, "Ha", tgt, EN_ZH) == pytest.approx(expected)


def uses(text: str) -> float | None:
    words = text.split()
    return len(words) / len(set(words)) if len(words) >= 12 else None


def phrases(text: str) -> float | None:
    words = text.split()
    covered = set()
    for length, start in itertools.product(range(2, 9), range(len(words))):
        if start + 2 * length <= len(words) and words[start : start + length] == words[start + length :][:length]:
            covered |= {*range(start, start + 2 * length)}
    return len(covered) / len(words) if len(words) >= 12 else None


def longest_run(text: str) -> int:
    runs = [
        len(list(run)) for character, run in itertools.groupby(text) if not character.isdigit() and character != " "
    ]
    return max((run for run in runs if run > 3), default=0)


@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=4))
def test_repeated_words_are_those_of_a_plain_loop(texts: list[str]) -> None:
    assert scores("repetition", texts, None) == pytest.approx([uses(text) for text in texts])
    assert scores("phrase_repetition", texts, None) == pytest.approx([phrases(text) for text in texts])


@given(st.lists(st.text(alphabet="ab.1 ä字😀", max_size=30), min_size=1, max_size=4))
def test_runs_are_those_of_a_plain_loop(texts: list[str]) -> None:
    texts = [" ".join(text.split()) for text in texts]
    assert scores("character_run", texts, None) == [longest_run(text) for text in texts]
    runs = ["".join(character * 3 for character in text) for text in texts]
    assert scores("character_run", runs, None) == [longest_run(" ".join(text.split())) for text in runs]
