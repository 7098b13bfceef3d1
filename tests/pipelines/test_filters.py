"""The rules together: what the defaults let through, one side alone, and that rows do not touch each other."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scored_pairs import EN_DE, EN_ZH, RULE, pairs_of

from pipelines.config import LanguagesConfig, RulesConfig
from pipelines.filters import RULES, Pairs, Rule, rule_scores
from pipelines.verdict import RATINGS


def dropped_by(src: str, tgt: str, languages: LanguagesConfig = EN_DE) -> str | None:
    """The first rule whose default threshold drops a pair."""
    pairs, config = pairs_of(src, tgt, languages), RulesConfig()
    for rule in RULES:
        threshold = getattr(config, rule.name)
        if isinstance(threshold, float) and is_bad(rule, rule_scores(pairs, [rule])[rule.name][0].as_py(), threshold):
            return rule.name
    return None


def is_bad(rule: Rule, score: float | None, threshold: float) -> bool:
    return score is not None and (score > threshold if rule.worse == "above" else score < threshold)


CAPTION = ("A man in a blue shirt is standing on a ladder.", "Ein Mann in einem blauen Hemd steht auf einer Leiter.")

DROPPED = [
    (*CAPTION, None),
    ("", CAPTION[1], "empty"),
    ("a b " * 501, "c d " * 501, "characters"),
    ("ab " * 251, "cd " * 251, "words"),
    (CAPTION[0], "Ein", "length_ratio"),
    (CAPTION[0], CAPTION[1].replace(" ", "") * 2, "long_word"),
    (CAPTION[0], f'<a href="x">{CAPTION[1]}</a>', "markup"),
    (CAPTION[0], CAPTION[1].replace("Mann", "``Mann``"), "markup_mismatch"),
    (CAPTION[0], CAPTION[1].replace("e", "\ufffd"), "broken_encoding"),
    (CAPTION[0], "\x01" + CAPTION[1], "control"),
    (CAPTION[0], "\ue001 " + CAPTION[1], "private_use"),
    (CAPTION[0], "Мужчина в синей рубашке стоит на лестнице.", "script"),
    ("12 34 56 78 -- 9 / 10 a b c", "12 34 56 78 -- 9 / 10 d e f", "alphabetic_ratio"),
    (CAPTION[0], CAPTION[0], "identical"),
    (f"{CAPTION[0]} 1985", f"{CAPTION[1]} 2023", "numbers"),
    (f"{CAPTION[0]} www.example.org", f"{CAPTION[1]} im Netz", "url"),
    (CAPTION[0] * 2, "auf der Leiter " * 6, "repetition"),
    (CAPTION[0], CAPTION[1] + "." * 21, "character_run"),
    (CAPTION[0], "Ein Mann steht auf einer Leiter " * 2, "phrase_repetition"),
    (CAPTION[0], "Un homme en chemise bleue se tient sur une échelle.", "language"),
    # What looks odd and is right.
    ("Yes.", "Ja, sicher.", None),
    ("Berlin", "Berlin", None),
    ("New York", "New York", None),
    ("7:30 pm", "19:30 Uhr", None),
    ("Price: 12.50 EUR", "Preis: 12,50 €", None),
    ("No, no, no, no!", "Nein, nein, nein, nein!", None),
    ("Danube steamship company captain", "Donaudampfschifffahrtsgesellschaftskapitän", None),
    (CAPTION[0], CAPTION[1].replace("blauen", "blÃ¤ulichen"), None),
    ("Call ``open()`` *twice*, %s times.", "``open()`` *zweimal* aufrufen, %s Mal.", None),
]


@pytest.mark.parametrize(("src", "tgt", "rule"), DROPPED)
def test_which_rule_drops_a_pair(src: str, tgt: str, rule: str | None) -> None:
    assert dropped_by(src, tgt) == rule


@pytest.mark.parametrize(
    ("src", "tgt", "rule"),
    [
        ("A dog is running through the snow.", "一只狗在雪地里奔跑。", None),
        ("In May 2019, 850 million people.", "2019年5月，8.5亿人。", None),
        ("A dog is running through the snow.", "有隻狗喺雪地度跑緊。", "language"),
        ("A dog is running through the snow.", "A dog is running through the snow!", "script"),
    ],
)
def test_which_rule_drops_a_pair_with_chinese(src: str, tgt: str, rule: str | None) -> None:
    assert dropped_by(src, tgt, EN_ZH) == rule


def test_every_rule_has_a_threshold_in_the_config() -> None:
    assert [*(rule.name for rule in RULES), *RATINGS] == list(RulesConfig.model_fields)


def test_costly_rules_come_last() -> None:
    assert [rule.name for rule in RULES if rule.costly] == [rule.name for rule in RULES][-2:]


def test_only_the_rules_that_are_asked_for_are_scored() -> None:
    found = rule_scores(pairs_of(*CAPTION), [RULE["words"], RULE["characters"]])
    assert {name: scores.to_pylist() for name, scores in found.items()} == {"words": [11], "characters": [53]}
    assert list(found) == ["words", "characters"]


def test_what_no_rule_asks_for_is_not_computed() -> None:
    pairs = pairs_of(*CAPTION)
    rule_scores(pairs, [RULE["characters"]])
    assert {"words", "spaced", "word_ids", "keys"}.isdisjoint(pairs.sides[0].__dict__)


@pytest.mark.parametrize("side", ["src", "tgt"])
def test_one_side_alone_scores_as_the_worse_of_two(side: str) -> None:
    text = "A <b>dog</b> - \ue000 runs (runs (RUNS and runs again :: and again ......, 7 \\n times!"
    alone = pairs_of(
        text if side == "src" else None, text if side == "tgt" else None, LanguagesConfig(source="en", target="en")
    )
    twice = pairs_of(text, text, LanguagesConfig(source="en", target="en"))
    counted_together = {"markup", "wiki", "escapes", "broken_encoding", "control", "private_use"}
    for rule in RULES:
        (found,) = rule_scores(alone, [rule])[rule.name].to_pylist()
        (both,) = rule_scores(twice, [rule])[rule.name].to_pylist()
        if not rule.one_side:
            assert found is None
        else:
            assert found == (both / 2 if rule.name in counted_together else both), rule.name
    assert len(alone) == len(alone.sides) == 1


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


def test_some_of_the_pairs_score_as_they_do_among_all() -> None:
    pairs = Pairs.of(pa.array([src for src, _, _ in DROPPED]), pa.array([tgt for _, tgt, _ in DROPPED]), EN_DE)
    rows = np.array([3, 0, 11])
    for rule in RULES:
        if not rule.costly:
            assert rule.score(pairs.take(rows)).equals(rule.score(pairs).take(pa.array(rows))), rule.name


def test_no_rows_give_no_scores() -> None:
    none = pa.array([], type=pa.string())
    scores = rule_scores(Pairs.of(none, none, EN_DE), RULES)
    assert {name: (len(found), found.type) for name, found in scores.items()} == {
        rule.name: (0, pa.float32()) for rule in RULES
    }


def test_pairs_need_a_side() -> None:
    with pytest.raises(ValueError, match="neither side"):
        Pairs.of(None, None, EN_DE)


ODD = [
    "",
    " ",
    "\x00",
    "1" * 5000,
    "𠀀" * 50,
    "\u0301",
    "@" * 30,
    "<" * 100,
    "a" * 3000,
    "9," * 400,
    "\ufffe",
    "(" * 40,
]
SHARES = [rule.name for rule in RULES if rule.scale == "share"]


@pytest.mark.parametrize("languages", [EN_DE, EN_ZH], ids=["en-de", "en-zh"])
def test_absurd_texts_give_finite_scores(languages: LanguagesConfig) -> None:
    src = pa.array([text for text in ODD for _ in ODD])
    tgt = pa.array(ODD * len(ODD))
    for rule in RULES:
        scores = np.array(rule.score(Pairs.of(src, tgt, languages)).to_pylist(), dtype=np.float64)
        assert all(math.isfinite(value) or math.isnan(value) for value in scores), rule.name
        if rule.name in SHARES:
            assert 0 <= np.nanmin(scores, initial=0) <= np.nanmax(scores, initial=0) <= 1, rule.name
