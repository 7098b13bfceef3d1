"""Rules on how a text is written."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_pairs import EN_DE, EN_ZH, RULE, TEXTS, score, scores

from pipelines.config import NormalizeConfig
from pipelines.filters import Pairs
from pipelines.normalize import normalize


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        # Repaired by normalisation.
        ("broken_encoding", "A girl", "Ein MÃ¤dchen isst KÃ¼chlein", 0),
        ("broken_encoding", "It\u00e2\u20ac\u2122s a dog", "Gro\u00c3\u009f", 0),
        # Not repaired, since part of it is lost.
        ("broken_encoding", "A \ufffd dog", "Ein Hund", 1),
        ("broken_encoding", "A \ufffd dog", "Ein MÃ¤dchen, K\ufffdche, \u00c3\u009f", 4),
        ("broken_encoding", "São João, MAÇÃO, «Âge», España", "Größe, “LINDA MAÇÃ”, Ärger", 0),
        ("control", "A \x02dog\x7f", "Ein Hund", 2),
        ("control", "A\tdog\x0b\u2028", "Ein\u00adHund\u200b", 0),
        ("control", "Stra\u00c3\u009fe", "\x02", 1),
        ("private_use", "A \ue000dog", "\U000f0000\uf8ff", 3),
        ("private_use", "A dog", "Ein Hund 😀", 0),
        ("script", "A dog", "Это собака", 1.0),
        ("script", "A dog", "Hund (ABCD) дюже", 4 / 12),
        ("script", "A dog", "Ein Hund, 5 µm, 1ª, 10 €", 0),
        ("script", "12", "34", None),
        ("alphabetic_ratio", "ab 12", "abcd", 0.5),
        ("alphabetic_ratio", "abcd", "12.34", 0),
        ("alphabetic_ratio", "", "12.34", None),
        ("punctuation", "A dog.", "Hund!!", 2 / 6),
        ("punctuation", "$5", "fünf", 0.5),
        ("punctuation", "", "", None),
        ("brackets", "A (big) dog", "Ein (großer) Hund", 0),
        ("brackets", "A (big dog", "Ein (großer) Hund", 1),
        ("brackets", "a) b) c)", "a) b) c)", 3),
        ("brackets", 'The "dog', "Der „Hund“", 1),
        ("brackets", "A (big) [dog] {here}", "Ein Hund", 6),
        ("breadcrumbs", "Home > News > Sport", "Ein Hund", 2 / 5),
        ("breadcrumbs", "a :: b :: c", "Ein Hund", 2 / 5),
        ("breadcrumbs", "A dog - a cat", "Ein Hund", None),
        ("breadcrumbs", "a->b->c :: d", ">", None),
        ("title_case", "A Dog Runs Home", "Der Hund Rennt Heim", 1),
        ("title_case", "A Dog Runs Home", "Der Hund rennt heim", 0.5),
        ("title_case", "A Dog Runs Home", "Éin Ärger 12 (So) öde aus", 0.5),
        ("title_case", "A Dog", "Ein Hund", None),
        ("terminal_punctuation", "Is it?", "Ist es?", 0),
        ("terminal_punctuation", "It is.", "Es ist", 0.5),
        ("terminal_punctuation", "Is it?", "Es ist.", 1),
        ("terminal_punctuation", 'He said "yes."', "Er sagte „ja.“", 0),
        ("terminal_punctuation", "?", "(?”)", 0),
        ("terminal_punctuation", '"', ")", 0),
        ("terminal_punctuation", "", "Ja.", None),
    ],
)
def test_the_score_of_a_pair(rule: str, src: str, tgt: str, expected: float | None) -> None:
    assert score(rule, src, tgt) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        ("alphabetic_ratio", "In May 2019", "2019年5月", 6 / 11),
        ("script", "Huawei", "华为公司", 0),
        ("script", "A dog", "A dog", 1.0),
        ("script", "Tom swam.", "Tom游泳。", 3 / 9),
        ("script", "A dog 狗", "一只狗", 3 / 7),
        ("brackets", "A (big) dog", "一只（大）狗", 0),
        ("title_case", "A Dog Runs Home", "一只狗跑回家", 1),
        ("terminal_punctuation", "Is it?", "是吗？」", 0),
    ],
)
def test_the_score_of_a_pair_with_ideographs(rule: str, src: str, tgt: str, expected: float) -> None:
    assert score(rule, src, tgt, EN_ZH) == pytest.approx(expected)


@pytest.mark.parametrize(("rule", "expected"), [("broken_encoding", 2), ("control", 1)])
def test_what_is_not_repaired_counts_with_the_unseen(rule: str, expected: int) -> None:
    raw = pa.array(["MÃ¤dchen, gro\u00c3\u009f"])
    texts = normalize(raw, "de", NormalizeConfig(repair_encoding=False))
    assert texts.to_pylist() == ["MÃ¤dchen, gro\u00c3"]
    pairs = Pairs.of(None, texts, EN_DE, tgt_raw=raw)
    assert RULE[rule].score(pairs).to_pylist() == [expected]


def printed(text: str) -> list[str]:
    return [character for character in text if not character.isspace()]


def share(text: str, categories: str) -> float | None:
    characters = printed(text)
    return sum(unicodedata.category(c)[0] in categories for c in characters) / len(characters) if characters else None


def brackets(text: str) -> tuple[int, int]:
    kinds = [*zip("([{（［｛【《「『", ")]}）］｝】》」』")]
    unmatched = sum(abs(text.count(opening) - text.count(closing)) for opening, closing in kinds)
    return unmatched + text.count('"') % 2, sum(text.count(sign) for kind in kinds for sign in kind)


def breadcrumbs(text: str) -> float:
    words = text.split(" ")
    # A word in the middle of the text: a menu neither begins nor ends with a separator.
    count = sum(word in [*"|>»·•→/-–—›", "::"] for word in words[1:-1])
    return count / len(words) if count > 1 else 0.0


def titles(text: str) -> float | None:
    initials = [word[0] for word in text.split() if unicodedata.category(word[0])[0] in "LM"]
    return sum(map(str.isupper, initials)) / len(initials) if len(initials) >= 4 else None


def ending(text: str) -> str:
    last = text.rstrip("\"'”’“»«)]）」』 ")[-1:]
    return {"。": ".", "…": ".", "？": "?", "！": "!"}.get(last, last if last in ".?!" else "")


def reference(rule: str, src: str, tgt: str) -> float | None:
    sides = (src, tgt)
    match rule:
        case "alphabetic_ratio":
            # An ideograph three times.
            shares = [share("".join(3 * c if "\u3400" <= c <= "\u9fff" else c for c in text), "LM") for text in sides]
            return None if None in shares else min(found for found in shares if found is not None)
        case "punctuation":
            return max((found for text in sides if (found := share(text, "PS")) is not None), default=None)
        case "brackets":
            (one, many), (other, more) = map(brackets, sides)
            return max(one, other, abs(many - more))
        case "breadcrumbs":
            return max(map(breadcrumbs, sides)) or None
        case "title_case":
            return min((found for text in sides if (found := titles(text)) is not None), default=None)
    if not src or not tgt:
        return None
    one_ends, other_ends = map(ending, sides)
    return 0 if one_ends == other_ends else 1 if "?" in (one_ends, other_ends) else 0.5


COMPARED = ("alphabetic_ratio", "punctuation", "brackets", "breadcrumbs", "title_case", "terminal_punctuation")


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_scores_are_those_of_a_plain_loop(pairs: list[tuple[str, str]]) -> None:
    src, tgt = zip(*pairs)
    for rule in COMPARED:
        assert scores(rule, src, tgt) == pytest.approx([reference(rule, *pair) for pair in pairs]), rule
