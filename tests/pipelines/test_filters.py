"""Each rule's score, the first rule that drops a pair, and what the defaults let through."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import LanguagesConfig, NormalizeConfig, RulesConfig
from pipelines.filters import RULES, Pairs, Rule, judge
from pipelines.normalize import normalize

EN_DE = LanguagesConfig(source="en", target="de")
EN_ZH = LanguagesConfig(source="en", target="zh")
RULE = {rule.name: rule for rule in RULES}


def pairs_of(src: str, tgt: str, languages: LanguagesConfig = EN_DE) -> Pairs:
    raw = pa.array([src]), pa.array([tgt])
    config = NormalizeConfig()
    normalised = normalize(raw[0], languages.source, config), normalize(raw[1], languages.target, config)
    return Pairs.of(*normalised, languages, src_raw=raw[0], tgt_raw=raw[1])


def score(rule: str, src: str, tgt: str, languages: LanguagesConfig = EN_DE) -> float | None:
    value: float | None = RULE[rule].score(pairs_of(src, tgt, languages))[0].as_py()
    return value


def dropped_by(src: str, tgt: str, languages: LanguagesConfig = EN_DE) -> str | None:
    name: str | None = judge(pairs_of(src, tgt, languages), RulesConfig()).rule[0].as_py()
    return name


# (rule, source, target, score); None: the rule does not apply.
SCORES = [
    ("empty", "", "Ein Hund.", 0),
    ("empty", " \u200b\t", "Ein Hund.", 0),
    ("empty", "A", "Ein Hund.", 1),
    ("characters", "four", "äöüßé", 5),
    ("words", "A dog runs.", "Hund", 3),
    ("words", "", "", 0),
    ("length_ratio", "a" * 10, "b" * 30, 2.0),
    ("length_ratio", "a" * 30, "b" * 10, 2.0),
    ("length_ratio", "a", "", None),
    ("long_word", "a bbb cc", "dddd e", 4),
    ("long_word", "", "x" * 60, 60),
    ("long_word", "a-b https://x.org/y", "c", 15),
    ("markup", "<b>A dog</b>", "Ein Hund", 2),
    ("markup", "I <3 you & 2 < 3 > 1", "a <- b", 0),
    ("markup", "&lt;a href='x'&gt;A dog", "Ein {{name}} Hund", 3),
    ("markup", "[b]A dog[/b]", "Ein [kleiner] Hund", 2),
    ("markup", "<!-- hidden -->", "nichts", 2),
    ("broken_encoding", "A girl", "Ein MÃ¤dchen isst KÃ¼chlein", 2),
    ("broken_encoding", "It\u00e2\u20ac\u2122s a dog", "Ein Hund", 1),
    ("broken_encoding", "A \ufffd dog", "Ein Hund", 1),
    ("broken_encoding", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "hallo", 6),
    ("broken_encoding", "São João, MAÇÃO, «Âge», España", "Größe, “LINDA MAÇÃ”, Ärger", 0),
    ("control", "A \x02dog\x7f", "Ein Hund", 2),
    ("control", "A\tdog\x0b\u2028", "Ein\u00adHund\u200b", 0),
    ("script", "A dog", "Это собака", 1.0),
    ("script", "A dog", "Hund (ABCD) дюже", 4 / 12),
    ("script", "A dog", "Ein Hund, 5 µm, 1ª, 10 €", 0),
    ("script", "12", "34", None),
    ("alphabetic_ratio", "ab 12", "abcd", 0.5),
    ("alphabetic_ratio", "abcd", "12.34", 0),
    ("alphabetic_ratio", "", "12.34", None),
    ("identical", "A dog runs.", "a dog RUNS", 3),
    ("identical", "A dog runs.", "Ein Hund rennt.", 0),
    ("identical", "", "", None),
    ("numbers", "In 1985 there were 23 dogs", "1985 gab es 23 Hunde", 0),
    ("numbers", "In 1985 there were 23 dogs", "1985 gab es 24 Hunde", 2 / 3),
    ("numbers", "It costs 3.50 euros", "Es kostet 3,50 Euro", 0),
    ("numbers", "1,000 men and 2,500,000.75", "1.000 Männer und 2.500.000,75", 0),
    ("numbers", "1,000 men", "1 000 Männer", 0),
    ("numbers", "1'000 men", "1000 Männer", 0),
    ("numbers", "for 2.00 euros", "für 2 Euro", 0),
    ("numbers", "on 12/05/2020", "am 12.5.2020", 0),
    ("numbers", "two dogs", "2 Hunde", 0),
    ("numbers", "sixty dogs", "60 Hunde", 1),
    ("numbers", "47 dogs and 47 cats", "47 Hunde", 0.5),
    ("numbers", "a dog", "ein Hund", None),
    ("numbers", "year ١٩٨٥", "Jahr 1985", 0),
    ("url", "see www.example.com/en", "siehe http://example.de/de", 0),
    ("url", "see https://example.com", "siehe hier", 1),
    ("url", "mail me@one.org and you@two.org", "Mail an me@one.org", 0.5),
    ("url", "a dog", "ein Hund", None),
    ("url", "at @ sign", "ein @", None),
    ("repetition", "a dog " * 10, "Ein Hund", 10),
    ("repetition", "no no no", "nein", None),
    ("terminal_punctuation", "Is it?", "Ist es?", 0),
    ("terminal_punctuation", "It is.", "Es ist", 0.5),
    ("terminal_punctuation", "Is it?", "Es ist.", 1),
    ("terminal_punctuation", 'He said "yes."', "Er sagte „ja.“", 0),
    ("language", "Hi", "Hallo", None),
]


@pytest.mark.parametrize(("rule", "src", "tgt", "expected"), SCORES)
def test_the_score_of_a_pair(rule: str, src: str, tgt: str, expected: float | None) -> None:
    found = score(rule, src, tgt)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("rule", "src", "tgt", "expected"),
    [
        ("words", "A dog", "一只狗在雪地里奔跑。", 9),
        ("length_ratio", "A dog is running through snow.", "一只狗在雪地里奔跑。", 40 / 38),
        ("long_word", "abc", "一" * 100, 3),
        ("script", "Huawei", "华为公司", 0),
        ("script", "A dog", "A dog", 1.0),
        ("script", "Tom swam.", "Tom游泳。", 3 / 9),
        ("script", "A dog 狗", "一只狗", 3 / 7),
        ("repetition", "Ha", "哈哈" * 10, 20),
    ],
)
def test_the_score_of_a_pair_with_ideographs(rule: str, src: str, tgt: str, expected: float) -> None:
    assert score(rule, src, tgt, EN_ZH) == pytest.approx(expected)


def test_hangul_counts_for_two_letters_in_the_ratio() -> None:
    languages = LanguagesConfig(source="en", target="ko")
    assert score("length_ratio", "a" * 20, "강" * 10, languages) == pytest.approx(1)


def test_another_language_scores_high() -> None:
    found = score("language", "A dog is running through the snow.", "Un chien court dans la neige profonde.")
    assert found is not None
    assert found > 0.9


def test_the_expected_language_scores_low() -> None:
    found = score("language", "A dog is running through the snow.", "Ein Hund rennt durch den tiefen Schnee.")
    assert found is not None
    assert found < 0.1


CAPTION = ("A man in a blue shirt is standing on a ladder.", "Ein Mann in einem blauen Hemd steht auf einer Leiter.")

DROPPED = [
    (*CAPTION, None),
    ("", CAPTION[1], "empty"),
    ("a b " * 501, "c d " * 501, "characters"),
    ("ab " * 251, "cd " * 251, "words"),
    (CAPTION[0], "Ein", "length_ratio"),
    (CAPTION[0], CAPTION[1].replace(" ", "") * 2, "long_word"),
    (CAPTION[0], f'<a href="x">{CAPTION[1]}</a>', "markup"),
    (CAPTION[0], CAPTION[1].replace("e", "Ã©"), "broken_encoding"),
    (CAPTION[0], "\x01" + CAPTION[1], "control"),
    (CAPTION[0], "Мужчина в синей рубашке стоит на лестнице.", "script"),
    ("12 34 56 78 -- 9 / 10 a b c", "12 34 56 78 -- 9 / 10 d e f", "alphabetic_ratio"),
    (CAPTION[0], CAPTION[0], "identical"),
    (f"{CAPTION[0]} 1985", f"{CAPTION[1]} 2023", "numbers"),
    (f"{CAPTION[0]} www.example.org", f"{CAPTION[1]} im Netz", "url"),
    (CAPTION[0] * 2, "auf der Leiter " * 6, "repetition"),
    (CAPTION[0], "Un homme en chemise bleue se tient sur une échelle.", "language"),
    # What looks odd and is right.
    ("Yes.", "Ja, sicher.", None),
    ("Berlin", "Berlin", None),
    ("New York", "New York", None),
    ("7:30 pm", "19:30 Uhr", None),
    ("Price: 12.50 EUR", "Preis: 12,50 €", None),
    ("No, no, no, no!", "Nein, nein, nein, nein!", None),
    ("Danube steamship company captain", "Donaudampfschifffahrtsgesellschaftskapitän", None),
]


@pytest.mark.parametrize(("src", "tgt", "rule"), DROPPED)
def test_which_rule_drops_a_pair(src: str, tgt: str, rule: str | None) -> None:
    assert dropped_by(src, tgt) == rule


def test_every_rule_has_a_threshold_in_the_config() -> None:
    assert [rule.name for rule in RULES] == list(RulesConfig.model_fields)


def test_language_comes_last_and_sees_only_what_is_left() -> None:
    src, tgt = pa.array([CAPTION[0], CAPTION[0]]), pa.array([CAPTION[1], CAPTION[0]])
    verdict = judge(Pairs.of(src, tgt, EN_DE), RulesConfig())
    assert RULES[-1].name == "language"
    assert verdict.rule.to_pylist() == [None, "identical"]
    assert verdict.scores["language"].is_valid().to_pylist() == [True, False]


def test_a_threshold_of_none_switches_a_rule_off_and_keeps_its_score() -> None:
    pairs = pairs_of(CAPTION[0], CAPTION[0])
    verdict = judge(pairs, RulesConfig(identical=None, language=None))
    assert verdict.rule[0].as_py() is None
    assert verdict.scores["identical"][0].as_py() == 11


def test_language_is_not_scored_where_it_is_switched_off() -> None:
    languages = LanguagesConfig(source="en", target="xx")
    verdict = judge(pairs_of(*CAPTION, languages), RulesConfig(language=None))
    assert verdict.scores["language"].null_count == 1


def test_the_verdict_holds_the_score_that_decided() -> None:
    src, tgt = pa.array([*CAPTION, "A dog runs"]), pa.array([CAPTION[1], CAPTION[1], ""])
    verdict = judge(Pairs.of(src, tgt, EN_DE), RulesConfig())
    assert verdict.rule.to_pylist() == [None, "identical", "empty"]
    assert verdict.score.to_pylist() == [None, 10, 0]


def test_scores_are_float32_and_do_not_depend_on_the_rows_around() -> None:
    src = pa.array([src for src, _, _ in DROPPED])
    tgt = pa.array([tgt for _, tgt, _ in DROPPED])
    together = Pairs.of(src, tgt, EN_DE)
    for rule in RULES:
        scores = rule.score(together)
        alone = [
            rule.score(Pairs.of(src.slice(row, 1), tgt.slice(row, 1), EN_DE))[0].as_py() for row in range(len(src))
        ]
        assert scores.type == pa.float32()
        assert scores.to_pylist() == alone, rule.name


def test_no_rows_give_no_scores() -> None:
    none = pa.array([], type=pa.string())
    verdict = judge(Pairs.of(none, none, EN_DE), RulesConfig())
    assert {len(scores) for scores in verdict.scores.values()} == {0}
    assert len(verdict.rule) == len(verdict.score) == 0


@pytest.mark.parametrize(
    ("worse", "expected"), [("above", [False, False, True, False]), ("below", [True, False, False, False])]
)
def test_a_score_at_the_threshold_and_a_null_stay(worse: str, expected: list[bool]) -> None:
    rule = Rule("any", lambda pairs: pairs, worse=worse)  # type: ignore[arg-type]
    scores = pa.array([1.0, 2.0, 3.0, None], type=pa.float32())
    assert rule.drops(scores, 2.0).tolist() == expected
    assert not rule.drops(scores, None).any()


def test_absurd_texts_give_finite_scores() -> None:
    odd = ["", " ", "\x00", "1" * 5000, "𠀀" * 50, "\u0301", "@" * 30, "<" * 100, "a" * 3000, "9," * 400, "\ufffe"]
    src = pa.array([text for text in odd for _ in odd])
    tgt = pa.array(odd * len(odd))
    for rule in RULES:
        scores = np.array(rule.score(Pairs.of(src, tgt, EN_DE)).to_pylist(), dtype=np.float64)
        assert all(math.isfinite(value) or math.isnan(value) for value in scores), rule.name
