"""Rules on markup, code and escape sequences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_pairs import EN_ZH, TEXTS, score, scores


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        ("markup", "<b>A dog</b>", "Ein Hund", 2),
        ("markup", "I <3 you & 2 < 3 > 1", "a <- b", 0),
        ("markup", "&lt;a href='x'&gt;A dog", "Ein {{name}} Hund", 3),
        ("markup", "[b]A dog[/b]", "Ein [kleiner] Hund", 2),
        ("markup", "<!-- hidden -->", "nichts", 2),
        ("markup", "see :ref:`the dogs <dogs>`", "siehe :ref:`Hunde <dogs>`", 0),
        ("markup", "see :ref:`the dogs <dogs>` <b>", "siehe dort", 1),
        ("markup_mismatch", "A dog", "Ein Hund", None),
        ("markup_mismatch", "``x`` is *here*", "``x`` ist *hier*", 0),
        ("markup_mismatch", "``x`` is *here*", "x ist *hier*", 0.5),
        ("markup_mismatch", "``x``", "``y``", 1),
        ("markup_mismatch", "See :ref:`dogs`.", "Siehe Hunde.", 1),
        ("markup_mismatch", "<b>A</b> dog, %s", "<b>Ein</b> Hund", 1 / 3),
        ("markup_mismatch", "100 % of {0}", "100 % von {0}", 0),
        ("wiki", "[[Dog|a dog]] runs", "Ein Hund", 2),
        ("wiki", "== Dogs == '''bold'''", "{| a |}", 5),
        ("wiki", "It's a = b [1]", "Hund", 0),
        ("escapes", "One\\nTwo", "Ein", 1),
        ("escapes", '\\u0041 \\x41 \\"', "a%20b", 4),
        ("escapes", "C:\\new, 100 %, 50%AB", "ein", 0),
        ("escapes", "%C3%A4", "ein", 1),
        ("code", "f(x);", "Ein Hund", 4 / 5),
        ("code", "A (b)", "Ein Hund", 0.5),
        ("code", "", "", None),
    ],
)
def test_the_score_of_a_pair(rule: str, src: str, tgt: str, expected: float | None) -> None:
    assert score(rule, src, tgt) == (None if expected is None else pytest.approx(expected))


def test_markup_stands_directly_beside_ideographs() -> None:
    assert score("markup_mismatch", "If *item* is ``None``", "如果*item*是``None``", EN_ZH) == 0


def test_markup_of_one_side_alone_is_counted_and_not_compared() -> None:
    assert score("markup", "<b>A dog</b>", None) == 2
    with pytest.raises(ValueError, match="one side alone"):
        score("markup_mismatch", "<b>", None)


def code_share(text: str) -> float | None:
    printed = [character for character in text if not character.isspace()]
    signs = sum(character in ";{}()=[]<>_|&*+#$^~@\\" for character in printed)
    calls = sum(text[at] == "(" and (text[at - 1].isalnum() or text[at - 1] in "_") for at in range(1, len(text)))
    return (signs + calls) / len(printed) if printed else None


@given(st.lists(st.text(alphabet="aZ7 (){}[];_=*|\\äé字", max_size=20), min_size=1, max_size=5))
def test_the_share_of_code_is_that_of_a_plain_loop(texts: list[str]) -> None:
    texts = [" ".join(text.split()) for text in texts]
    expected = [code_share(text) for text in texts]
    assert scores("code", texts, None) == [None if share is None else pytest.approx(share) for share in expected]


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_text_has_the_markup_of_itself(texts: list[str]) -> None:
    assert set(scores("markup_mismatch", texts, texts)) <= {None, 0.0}
