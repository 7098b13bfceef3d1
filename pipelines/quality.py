"""How likely a pair is valid: a logistic regression over all that is known of it, fitted to people's verdicts.

What is known: the scores of the rules, how far the words of both sides account for each other, and the lengths of the
sides against each other. The log-odds are a sum of functions of each of these that are linear between the quartiles (a
linear spline), since of many scores both ends are bad. Large weights are penalised, and the maximum is found by
Newton's method in float64: the same rows give the same model, but for rounding on another machine.

Source: Hastie, Tibshirani & Friedman 2009, "The elements of statistical learning", sections 4.4.1 (Newton), 5.2
(splines) and 3.4.1 (the penalty).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.characters import Counts, Flags
from pipelines.config import LanguagesConfig
from pipelines.dedup import Keys
from pipelines.errors import InputError
from pipelines.filters import RULES
from pipelines.lexicon import Lexicon
from pipelines.pairs import Pairs, mixed
from pipelines.stage import write_atomically
from pipelines.verdict import rule_column

Values: TypeAlias = npt.NDArray[np.float64]
Features: TypeAlias = Mapping[str, Values]  # [rows] each, NaN where a row has no such value

QUALITY_FORMAT = 1
LENGTH_FEATURES = ("length_difference", "word_difference")
FOLDS = 5

# ROC area on rows it was not fitted to, of four pairs of languages, with 10, 30, 100, 300: .711 .711 .709 .706.
_PENALTY = 30.0
_BENDS = (0.25, 0.5, 0.75)  # where the splines bend, as quantiles
_ENDS = (0.005, 0.995)  # quantiles beyond which a value counts as the quantile: one odd row must not decide
_NO_SPREAD = 1e-12
_MAX_ITERATIONS = 100
_TOLERANCE = 1e-10
_MAX_LOGIT = 30.0  # beyond, a probability is 0 or 1 in float32 anyway


def pair_features(batch: pa.RecordBatch, languages: LanguagesConfig, lexicon: Lexicon) -> dict[str, Values]:
    """Return all that is known of rows of the stage score, of which all can be read: [rows] each, by names.

    The scores of the rules, under the rules' names, LEXICAL_FEATURES, and LENGTH_FEATURES: log((target + 1) / (source +
    1)) of characters and of words. Which difference of lengths is usual is up to the two languages, and learned.
    """
    columns = {rule.name: rule_column(rule.name) for rule in RULES}
    features = {name: _values(batch[column]) for name, column in columns.items() if column in batch.schema.names}
    features |= lexicon.match(batch["src"], batch["tgt"])
    one, other = Pairs.of(batch["src"], batch["tgt"], languages).both
    features["length_difference"] = np.log((other.lengths + 1) / (one.lengths + 1))
    features["word_difference"] = np.log((other.words + 1) / (one.words + 1))
    return features


def _values(column: pa.Array) -> Values:
    values: Values = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def adequacy(features: Features) -> Values:
    """Return the share of the different words that are translated, on average of both sides: [rows], NaN as there.

    In [0, 1]; lower is worse. A word is translated where it is the best partner of a word of the other side: one that
    has it as a translation with a probability of 0.1 at least, by a table that was estimated without this pair.
    """
    mean: Values = (features["src_translated"] + features["tgt_translated"]) / 2
    return mean


# --- The model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """One feature's part in the regression.

    A value is cut to [low, high]; a missing one counts as `middle` and has its own weight. Columns: the value, what of
    it is above each of the bends, and whether it is missing; `means`, `scales` and `weights` [columns] are theirs. What
    the term adds to the logit is the sum of weight * (column - mean) / scale.
    """

    name: str
    low: float
    high: float
    middle: float
    bends: tuple[float, ...]
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, values: Values) -> Term:
        """Return the term of a feature that has such values: [rows]; without weights yet."""
        there = values[np.isfinite(values)]
        bare = cls(name, 0.0, 0.0, 0.0, ())
        if len(there):
            low, high = np.quantile(there, _ENDS).tolist()
            bends = np.unique(np.quantile(there, _BENDS))
            inside = tuple(bends[(bends > low) & (bends < high)].tolist())
            bare = cls(name, low, high, float(np.median(there)), inside)
        columns = bare.columns(values)
        scales = (float(column.std()) for column in columns)
        return replace(
            bare,
            means=tuple(float(column.mean()) for column in columns),
            # A column that is the same in all rows says nothing: its weight comes out as 0.
            scales=tuple(scale if scale > _NO_SPREAD else 1.0 for scale in scales),
        )

    def columns(self, values: Values) -> list[Values]:
        """Return the columns of some rows: [rows] each."""
        missing = ~np.isfinite(values)
        cut = np.clip(np.where(missing, self.middle, values), self.low, self.high)
        return [cut, *(np.maximum(cut - bend, 0.0) for bend in self.bends), missing.astype(np.float64)]

    def scaled(self, values: Values) -> list[Values]:
        """Return the columns of some rows, with the mean 0 and the spread 1 where the term was fitted: [rows] each."""
        parts = zip(self.columns(values), self.means, self.scales)
        return [(column - mean) / scale for column, mean, scale in parts]

    def logit(self, values: Values) -> Values:
        """Return what the term adds to the logit of some rows: [rows]."""
        total = np.zeros(len(values))
        for column, weight in zip(self.scaled(values), self.weights):
            total += weight * column
        return total


@dataclass(frozen=True)
class Quality:
    """A fitted regression: log-odds of being valid = intercept + the sum of the terms."""

    intercept: float
    terms: tuple[Term, ...]

    def logits(self, features: Features) -> Values:
        """Return the log-odds of rows: [rows]. Raises ValueError where a feature that it was fitted with is missing."""
        missing = [term.name for term in self.terms if term.name not in features]
        if missing:
            raise ValueError(f"rows have no {', '.join(missing)}")
        rows = len(next(iter(features.values())))
        # Term by term, not as a product of matrices: a row's sum must not depend on the rows beside it.
        total = np.full(rows, self.intercept)
        for term in self.terms:
            total += term.logit(features[term.name])
        return total

    def probabilities(self, features: Features) -> npt.NDArray[np.float32]:
        """Return p(valid) of rows, among rows such as those with verdicts: [rows]."""
        return sigmoid(self.logits(features)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        content = {
            "format": QUALITY_FORMAT,
            "intercept": self.intercept,
            "terms": [asdict(term) for term in self.terms],
        }
        write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Quality:
        """Return what `save` wrote. Raises InputError where it is something else."""
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != QUALITY_FORMAT:
                raise ValueError(f"format {content['format']}, not {QUALITY_FORMAT}")
            return cls(float(content["intercept"]), tuple(_term(term) for term in content["terms"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"not a model of quality ({type(error).__name__}: {error})",
                where=str(path),
                remedy="Remove the stage's folder, and it will run again",
            ) from error


def _term(content: dict[str, Any]) -> Term:
    low, high, middle = (float(content[name]) for name in ("low", "high", "middle"))
    lists = ("bends", "means", "scales", "weights")
    bends, means, scales, weights = (tuple(float(value) for value in content[name]) for name in lists)
    if not len(means) == len(scales) == len(weights) == len(bends) + 2:
        raise ValueError(f"the columns of {content['name']!r} do not fit together")
    return Term(str(content["name"]), low, high, middle, bends, means, scales, weights)


@dataclass(frozen=True)
class FitReport:
    """How a fit went: Newton's iterations, log-likelihood per row, and each term's spread of logits over the rows."""

    iterations: int
    log_likelihood: float
    spreads: dict[str, float]


def fit(features: Features, valid: Flags, penalty: float = _PENALTY) -> tuple[Quality, FitReport]:
    """Return the regression of `valid` [rows] on the features, with the penalty on the weights of scaled columns.

    Raises ValueError unless there are both valid and invalid rows.
    """
    if not valid.any() or valid.all():
        raise ValueError("a regression needs valid and invalid rows")
    terms = [Term.of(name, values) for name, values in features.items()]
    columns = [column for term in terms for column in term.scaled(features[term.name])]
    weights, iterations, likelihood = newton(np.stack(columns, axis=1), valid.astype(np.float64), penalty)
    intercept, *others = weights.tolist()
    left = iter(others)
    fitted = tuple(replace(term, weights=tuple(islice(left, len(term.means)))) for term in terms)
    spreads = {term.name: float(term.logit(features[term.name]).std()) for term in fitted}
    return Quality(intercept, fitted), FitReport(iterations, likelihood, spreads)


def newton(matrix: Values, targets: Values, penalty: float) -> tuple[Values, int, float]:
    """Return weights [1 + columns], the intercept first; iterations; and the log-likelihood per row.

    What is maximised is the log-likelihood less penalty / 2 * the sum of the squared weights, the intercept left out:
    a concave function, so that there is one maximum. A step that would go down is halved. Raises RuntimeError when the
    steps do not end, which a concave function does not let happen but by a fault of ours.
    """
    matrix = np.concatenate([np.ones((len(matrix), 1)), matrix], axis=1)
    penalties = np.full(matrix.shape[1], penalty)
    penalties[0] = 0.0
    weights = np.zeros(matrix.shape[1])
    value = _objective(matrix, targets, penalties, weights)
    for iteration in range(1, _MAX_ITERATIONS + 1):
        odds = sigmoid(matrix @ weights)
        gradient = matrix.T @ (targets - odds) - penalties * weights
        curvature = (matrix.T * (odds * (1 - odds))) @ matrix + np.diag(penalties)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (following := _objective(matrix, targets, penalties, weights + size * step)) < value and size > 1e-12:
            size /= 2
        weights, gain, value = weights + size * step, following - value, following
        if gain <= _TOLERANCE * len(targets):
            likelihood = value + float((penalties * weights**2).sum()) / 2
            return weights, iteration, likelihood / len(targets)
    raise RuntimeError(f"the logistic regression has not ended after {_MAX_ITERATIONS} iterations")


def _objective(matrix: Values, targets: Values, penalties: Values, weights: Values) -> float:
    logits = matrix @ weights
    # log(1 + e^z), without overflow.
    return float((targets * logits - np.logaddexp(0.0, logits)).sum() - (penalties * weights**2).sum() / 2)


def sigmoid(logits: Values) -> Values:
    """Return the probabilities of log-odds: [n]."""
    return 1 / (1 + np.exp(-np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT)))


# --- How good it is --------------------------------------------------------------------------------------------------


def roc_area(scores: npt.NDArray[np.floating[Any]], valid: Flags) -> float:
    """Return the probability that a valid row has a higher score than an invalid one, ties counting one half.

    Raises ValueError unless there are both. Source: Hanley & McNeil 1982, Radiology 143, p. 30 (Wilcoxon's statistic).
    """
    positives = int(valid.sum())
    negatives = len(valid) - positives
    if not positives or not negatives:
        raise ValueError("a ROC area needs valid and invalid rows")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of each value, from 1
    return float((ranks[inverse][valid].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def folds(groups: Keys, count: int = FOLDS, seed: int = 0) -> Counts:
    """Return the fold of each row, from 0: [rows]. Rows of one group share theirs; it comes from the group's number."""
    salt = mixed(np.array([seed], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return (mixed(mixed(groups) ^ salt) % np.uint64(count)).astype(np.int64)


def cross_validated(features: Features, valid: Flags, fold: Counts, penalty: float = _PENALTY) -> Values:
    """Return the log-odds of each row by a model that was fitted to the other folds: [rows].

    Raises ValueError where the rows outside of a fold are not both valid and invalid.
    """
    logits = np.full(len(valid), np.nan)
    for number in np.unique(fold).tolist():
        inside = fold == number
        model, _ = fit({name: values[~inside] for name, values in features.items()}, valid[~inside], penalty)
        logits[inside] = model.logits({name: values[inside] for name, values in features.items()})
    return logits
