"""The rules: each gives every pair a score; the thresholds stand in the config, so scoring and deciding are apart.

A score function takes `Pairs` and returns a float32 array [rows] that is null where the rule does not apply; these
functions stand in `pipelines/rules/`, by theme. RULES is ordered: a pair that several rules would drop is dropped by
the first of them. A rule that costs more than most others together is marked, and comes behind those that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipelines.pairs import Pairs, Side
from pipelines.resources import Resources, load_resources
from pipelines.rules import content, fluency, language, lengths, markup, writing
from pipelines.rules.scores import Scores

__all__ = ["RULES", "Pairs", "Resources", "Rule", "Scores", "Side", "load_resources", "rule_scores"]


@dataclass(frozen=True)
class Rule:
    """A score of pairs, and the side of a threshold on which a score is bad.

    `one_side`: it also judges a text of one side alone. `scale`: whether scores lie in [0, 1] or are counts and ratios
    without a bound. `costly`: better scored last, on the rows that the other rules leave.
    """

    name: str
    score: Callable[[Pairs], Scores]
    worse: Literal["above", "below"] = "above"
    one_side: bool = False
    scale: Literal["share", "count"] = "count"
    costly: bool = False


RULES = (
    Rule("empty", lengths.empty, worse="below", one_side=True),
    Rule("characters", lengths.characters, one_side=True),
    Rule("words", lengths.words, one_side=True),
    Rule("word_length", lengths.word_length, one_side=True),
    Rule("length_ratio", lengths.length_ratio),
    Rule("word_ratio", lengths.word_ratio),
    Rule("byte_ratio", lengths.byte_ratio),
    Rule("long_word", lengths.long_word, one_side=True),
    Rule("markup", markup.markup, one_side=True),
    Rule("markup_mismatch", markup.markup_mismatch, scale="share"),
    Rule("wiki", markup.wiki, one_side=True),
    Rule("escapes", markup.escapes, one_side=True),
    Rule("code", markup.code, one_side=True, scale="share"),
    Rule("broken_encoding", writing.broken_encoding, one_side=True),
    Rule("control", writing.control, one_side=True),
    Rule("private_use", writing.private_use, one_side=True),
    Rule("script", writing.script, one_side=True, scale="share"),
    Rule("alphabetic_ratio", writing.alphabetic_ratio, worse="below", one_side=True, scale="share"),
    Rule("punctuation", writing.punctuation, one_side=True, scale="share"),
    Rule("brackets", writing.brackets, one_side=True),
    Rule("breadcrumbs", writing.breadcrumbs, one_side=True, scale="share"),
    Rule("title_case", writing.title_case, one_side=True, scale="share"),
    Rule("identical", content.identical),
    Rule("similar", content.similar, scale="share"),
    Rule("numbers", content.numbers, scale="share"),
    Rule("url", content.url, scale="share"),
    Rule("profanity", content.profanity, one_side=True),
    Rule("repetition", fluency.repetition, one_side=True),
    Rule("character_run", fluency.character_run, one_side=True),
    Rule("phrase_repetition", fluency.phrase_repetition, one_side=True, scale="share"),
    Rule("terminal_punctuation", writing.terminal_punctuation, scale="share"),
    Rule("common_substring", content.common_substring, scale="share", costly=True),
    Rule("language", language.language, one_side=True, scale="share", costly=True),
)


def rule_scores(pairs: Pairs, rules: Sequence[Rule]) -> dict[str, Scores]:
    """Return the scores of some rules by name: [rows] each, in their order.

    For texts of one side alone, rules that compare two sides give null everywhere. What several rules want to know of
    the texts is computed once, and what none asks for not at all.
    """
    alone = len(pairs.sides) == 1
    return {
        rule.name: pa.nulls(len(pairs), pa.float32()) if alone and not rule.one_side else rule.score(pairs)
        for rule in rules
    }
