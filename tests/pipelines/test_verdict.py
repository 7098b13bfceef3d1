"""From scores to decisions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipelines.config import CorpusConfig, InputScoreConfig, RulesConfig
from pipelines.filters import RULES
from pipelines.verdict import NONE, Criterion, corpus_criteria, corpus_rules, judge, scored_rules

CORPUS = CorpusConfig(name="a", tsv="a.tsv")


def floats(*values: float | None) -> pa.Array:
    return pa.array(values, pa.float32())


def test_a_score_at_the_threshold_stays_on_either_side() -> None:
    scores = floats(0.69, 0.7, 0.71, None)
    assert Criterion("x", "x", "above", 0.7).drops(scores).tolist() == [False, False, True, False]
    assert Criterion("x", "x", "below", 0.7).drops(scores).tolist() == [True, False, False, False]
    assert Criterion("x", "x", "above", None).drops(scores).tolist() == [False] * 4


def test_the_distance_to_the_threshold_is_infinite_where_there_is_no_score() -> None:
    distance = Criterion("x", "x", "above", 2.0).distance(floats(1.5, 4.0, None))
    assert distance.tolist() == [0.5, 2.0, np.inf]
    assert Criterion("x", "x", "above", None).distance(floats(1.0)).tolist() == [np.inf]


def test_the_first_criterion_that_drops_a_row_is_its_reason() -> None:
    criteria = [Criterion("a", "a", "above", 1.0), Criterion("b", "b", "below", 5.0), Criterion("c", "c", "above", 0.0)]
    scores = {"a": floats(2.0, 0.0, 2.0, 0.0), "b": floats(1.0, 1.0, 9.0, 9.0)}
    verdict = judge(scores, criteria, 4)
    assert verdict.first.tolist() == [0, 1, 0, NONE]
    assert verdict.alone.tolist() == [2, 2, 0]
    # Row 0 goes for two reasons, so either rule without the other would still drop it.
    assert verdict.only.tolist() == [1, 1, 0]


def test_thresholds_of_a_corpus_take_the_place_of_the_recipes() -> None:
    rules = RulesConfig(words=100.0, numbers=0.5)
    own = CORPUS.model_copy(update={"rules": {"words": 20, "numbers": "soft", "url": None}})
    found = {criterion.name: criterion.threshold for criterion in corpus_criteria(rules, own)}
    assert found["words"] == 20.0
    assert found["numbers"] is None
    assert "url" not in found
    assert {criterion.name: criterion.threshold for criterion in corpus_criteria(rules, CORPUS)}["words"] == 100.0


def test_an_unknown_rule_of_a_corpus_is_refused() -> None:
    with pytest.raises(ValidationError, match="wrods"):
        corpus_rules(RulesConfig(), CORPUS.model_copy(update={"rules": {"wrods": 3.0}}))


def test_soft_rules_are_scored_and_null_ones_are_not() -> None:
    off = RulesConfig(**{rule.name: None for rule in RULES if rule.name != "empty"})
    assert scored_rules([off]) == ("empty",)
    some = off.model_copy(update={"numbers": "soft", "words": 9.0})
    assert scored_rules([off, some]) == ("empty", "words", "numbers")


def test_bounds_of_a_corpuss_own_score_are_criteria() -> None:
    corpus = CORPUS.model_copy(update={"scores": {"bicleaner": InputScoreConfig(column=2, min=0.5, max=0.9)}})
    verdict = judge({"input_bicleaner": floats(0.4, 0.5, 0.95, None)}, corpus_criteria(RulesConfig(), corpus)[-2:], 4)
    assert [criterion.name for criterion in verdict.criteria] == ["input_bicleaner"] * 2
    assert verdict.first.tolist() == [0, NONE, 1, NONE]


def test_texts_of_one_side_are_judged_by_the_rules_of_one_side() -> None:
    both = {criterion.name for criterion in corpus_criteria(RulesConfig(), CORPUS)}
    one = {criterion.name for criterion in corpus_criteria(RulesConfig(), CORPUS, one_side=True)}
    assert both - one >= {"length_ratio", "identical", "numbers"}
    assert {"characters", "script", "language"} <= one


def test_ratings_are_judged_where_there_are_some() -> None:
    rules = RulesConfig(quality=0.3)
    rated = corpus_criteria(rules, CORPUS, rated=True)
    last = [(criterion.name, criterion.worse, criterion.threshold) for criterion in rated[-2:]]
    assert last == [("adequacy", "below", None), ("quality", "below", 0.3)]
    assert "quality" not in {criterion.name for criterion in corpus_criteria(rules, CORPUS)}
