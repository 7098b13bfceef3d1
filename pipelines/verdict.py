"""From scores to decisions: which rules drop which rows, at the thresholds of a corpus.

Scoring and deciding are apart: a threshold that moves reruns no scoring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import Counts, Flags
from pipelines.config import CorpusConfig, RulesConfig
from pipelines.filters import RULES

INPUT = "input_"
# Scores of the stage `rate`.
RATINGS = ("adequacy", "quality")
BELOW: Literal["below"] = "below"
NONE = -1


@dataclass(frozen=True)
class Criterion:
    """A column of scores and what of it is too bad. A row without a score is never dropped.

    `column` is the score's column in the files of the stages, `threshold` None where the score drops nothing.
    """

    name: str
    column: str
    worse: Literal["above", "below"]
    threshold: float | None

    def drops(self, scores: pa.Array) -> Flags:
        """Return which rows go: [rows]."""
        if self.threshold is None:
            return np.zeros(len(scores), dtype=np.bool_)
        # In the scores' own precision: what is written as 0.7 is not above a threshold of 0.7.
        limit = pa.scalar(self.threshold, pa.float32())
        bad = pc.greater(scores, limit) if self.worse == "above" else pc.less(scores, limit)
        return np.asarray(bad.fill_null(False))

    def distance(self, scores: pa.Array) -> npt.NDArray[np.float32]:
        """Return how far each score is from the threshold, on either side: [rows]; infinite where there is none."""
        values = scores.to_numpy(zero_copy_only=False).astype(np.float32)
        if self.threshold is None:
            return np.full(len(values), np.inf, dtype=np.float32)
        away: npt.NDArray[np.float32] = np.abs(values - np.float32(self.threshold))
        away[np.isnan(away)] = np.inf
        return away


@dataclass(frozen=True)
class Verdict:
    """What the criteria say of some rows.

    `drops` [criteria, rows]: which would drop which row, by itself. `first` [rows]: the place of the first that does,
    NONE where the row stays.
    """

    criteria: tuple[Criterion, ...]
    drops: npt.NDArray[np.bool_]
    first: Counts

    @property
    def alone(self) -> Counts:
        """Rows that each criterion drops, whatever the others say: [criteria]."""
        rows: Counts = self.drops.sum(axis=1, dtype=np.int64)
        return rows

    @property
    def only(self) -> Counts:
        """Rows that each criterion drops and no other does: [criteria]."""
        rows: Counts = (self.drops & (self.drops.sum(axis=0) == 1)).sum(axis=1, dtype=np.int64)
        return rows


def rule_column(rule: str) -> str:
    """Return the name of the column that holds a rule's scores, or a rating."""
    return f"score_{rule}"


def corpus_rules(rules: RulesConfig, corpus: CorpusConfig) -> RulesConfig:
    """Return the thresholds of one corpus: its own in place of the recipe's."""
    return RulesConfig.model_validate({**rules.model_dump(), **corpus.rules})


def scored_rules(rules: Sequence[RulesConfig]) -> tuple[str, ...]:
    """Return the rules that any of some corpora asks for, soft ones too, in their order."""
    return tuple(rule.name for rule in RULES if any(getattr(config, rule.name) is not None for config in rules))


def corpus_criteria(
    rules: RulesConfig, corpus: CorpusConfig, *, one_side: bool = False, rated: bool = False
) -> tuple[Criterion, ...]:
    """Return what decides on the rows of a corpus, in order: the rules that are scored, ratings, then its own scores.

    `one_side`: texts of one language, which only some rules judge. `rated`: they have adequacy and quality.
    """
    config = corpus_rules(rules, corpus)
    found = []
    sides = [(rule.name, rule.worse) for rule in RULES if rule.one_side or not one_side]
    for name, worse in [*sides, *((name, BELOW) for name in RATINGS if rated)]:
        threshold = getattr(config, name)
        if threshold is not None:
            found.append(Criterion(name, rule_column(name), worse, None if threshold == "soft" else float(threshold)))
    for name, bounds in corpus.scores.items():
        column = INPUT + name
        found.append(Criterion(column, column, "below", bounds.min))
        if bounds.max is not None:
            found.append(Criterion(column, column, "above", bounds.max))
    return tuple(found)


def judge(scores: Mapping[str, pa.Array], criteria: Sequence[Criterion], rows: int) -> Verdict:
    """Return what the criteria say of some rows with these scores, by columns; a missing column drops nothing."""
    drops = np.zeros((len(criteria), rows), dtype=np.bool_)
    first = np.full(rows, NONE, dtype=np.int64)
    for place, criterion in enumerate(criteria):
        if criterion.column in scores and criterion.threshold is not None:
            drops[place] = criterion.drops(scores[criterion.column])
            first[(first == NONE) & drops[place]] = place
    return Verdict(tuple(criteria), drops, first)
