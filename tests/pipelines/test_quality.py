"""The learned combination: against plain loops, a plain gradient, and by what must not matter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import LanguagesConfig
from pipelines.errors import InputError
from pipelines.lexicon import LEXICAL_FEATURES, fit_lexicon
from pipelines.quality import (
    FOLDS,
    LENGTH_FEATURES,
    Quality,
    Term,
    adequacy,
    cross_validated,
    fit,
    folds,
    newton,
    pair_features,
    roc_area,
)

EN_DE = LanguagesConfig(source="en", target="de")


def rows_with_signal(
    rows: int = 400, seed: int = 0
) -> tuple[dict[str, npt.NDArray[np.float64]], npt.NDArray[np.bool_]]:
    """Features of which one is good in the middle, one the higher the better, one often missing, one constant."""
    generator = np.random.default_rng(seed)
    middle, higher, noise = generator.normal(size=(3, rows))
    missing = np.where(generator.random(rows) < 0.5, np.nan, generator.normal(size=rows))
    logits = 1.5 * higher - 2 * np.abs(middle) + 1.2 + np.where(np.isnan(missing), 1.0, 0.0)
    valid = generator.random(rows) < 1 / (1 + np.exp(-logits))
    features = {"middle": middle, "higher": higher, "noise": noise, "missing": missing, "constant": np.full(rows, 3.0)}
    return features, valid


# --- ROC area --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_a_roc_area_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    good = [score for score, valid in rows if valid]
    bad = [score for score, valid in rows if not valid]
    scores, valid = np.array([score for score, _ in rows], dtype=np.float64), np.array([valid for _, valid in rows])
    if not good or not bad:
        with pytest.raises(ValueError, match="valid and invalid"):
            roc_area(scores, valid)
        return
    won = sum((one > other) + (one == other) / 2 for one in good for other in bad)
    assert roc_area(scores, valid) == pytest.approx(won / (len(good) * len(bad)), rel=1e-12)


# --- Newton's method -------------------------------------------------------------------------------------------------


def test_the_weights_are_those_that_a_plain_gradient_arrives_at() -> None:
    generator = np.random.default_rng(1)
    matrix = generator.normal(size=(60, 3))
    targets = (generator.random(60) < 1 / (1 + np.exp(-matrix @ [1.0, -2.0, 0.0] - 0.5))).astype(np.float64)
    weights, iterations, likelihood = newton(matrix, targets, 2.0)
    plain = [0.0] * 4
    rows = [[1.0, *row] for row in matrix.tolist()]
    for _ in range(3000):
        gradient = [-2.0 * weight for weight in plain]
        gradient[0] = 0.0
        for row, target in zip(rows, targets.tolist()):
            odds = 1 / (1 + math.exp(-sum(value * weight for value, weight in zip(row, plain))))
            for place, value in enumerate(row):
                gradient[place] += (target - odds) * value
        plain = [weight + 0.05 * slope for weight, slope in zip(plain, gradient)]
    assert weights.tolist() == pytest.approx(plain, abs=1e-6)
    odds = 1 / (1 + np.exp(-(matrix @ weights[1:] + weights[0])))
    logs = np.log(np.where(targets == 1, odds, 1 - odds))
    assert likelihood == pytest.approx(logs.mean(), abs=1e-9)
    assert 2 <= iterations < 20


def test_rows_that_can_be_told_apart_exactly_have_a_maximum_too() -> None:
    matrix = np.array([[-1e4], [-1.0], [1.0], [1e4]])
    weights, _, likelihood = newton(matrix, np.array([0.0, 0.0, 1.0, 1.0]), 1e-6)
    assert np.isfinite(weights).all()
    assert -0.01 < likelihood < 0.0


def test_without_anything_known_the_odds_are_those_of_all_rows() -> None:
    weights, _, _ = newton(np.zeros((8, 2)), np.array([1.0, 1, 1, 1, 1, 1, 0, 0]), 1.0)
    assert weights.tolist() == pytest.approx([math.log(3), 0.0, 0.0], abs=1e-6)


# --- Terms and models ------------------------------------------------------------------------------------------------


def test_a_term_bends_at_the_quartiles_and_marks_what_is_missing() -> None:
    values = np.append(np.arange(101.0), np.nan)
    term = Term.of("length", values)
    assert (term.low, term.middle, term.high) == (0.5, 50.0, 99.5)
    assert term.bends == (25.0, 50.0, 75.0)
    asked = term.columns(np.array([-7.0, 30.0, 60.0, 1000.0, np.nan]))
    assert [column.tolist() for column in asked] == [
        [0.5, 30.0, 60.0, 99.5, 50.0],
        [0.0, 5.0, 35.0, 74.5, 25.0],
        [0.0, 0.0, 10.0, 49.5, 0.0],
        [0.0, 0.0, 0.0, 24.5, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
    for column in term.scaled(values):
        assert (column.mean(), column.std()) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0))


def test_a_feature_without_values_or_with_one_has_no_weight() -> None:
    features, valid = rows_with_signal()
    features["nothing"] = np.full(len(valid), np.nan)
    model, report = fit(features, valid)
    terms = {term.name: term for term in model.terms}
    assert terms["nothing"].bends == terms["constant"].bends == ()
    for name in ("nothing", "constant"):
        assert terms[name].weights == pytest.approx((0.0, 0.0), abs=1e-9)
        assert report.spreads[name] == pytest.approx(0.0, abs=1e-9)


def test_a_model_tells_rows_apart_by_what_matters() -> None:
    features, valid = rows_with_signal()
    model, report = fit(features, valid)
    others, other_valid = rows_with_signal(seed=1)
    assert roc_area(model.logits(others), other_valid) > 0.8
    assert max(report.spreads, key=lambda name: report.spreads[name]) in ("higher", "middle")
    assert report.spreads["noise"] < report.spreads["missing"] < report.spreads["higher"]
    probabilities = model.probabilities(others)
    assert probabilities.dtype == np.float32
    assert probabilities.mean() == pytest.approx(other_valid.mean(), abs=0.05)
    logits = model.logits(others)
    assert probabilities.tolist() == pytest.approx((1 / (1 + np.exp(-logits))).tolist(), rel=1e-6)


def test_a_row_s_odds_do_not_depend_on_the_rows_beside_it() -> None:
    features, valid = rows_with_signal()
    model, _ = fit(features, valid)
    whole = model.logits(features)
    single = [model.logits({name: values[row : row + 1] for name, values in features.items()})[0] for row in range(50)]
    assert whole[:50].tolist() == single


def test_the_penalty_makes_weights_smaller() -> None:
    features, valid = rows_with_signal()
    sizes = [
        sum(weight**2 for term in fit(features, valid, penalty)[0].terms for weight in term.weights)
        for penalty in (1.0, 10.0, 1000.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("valid", [True, False])
def test_verdicts_of_one_kind_are_no_basis(valid: bool) -> None:
    with pytest.raises(ValueError, match="valid and invalid"):
        fit({"a": np.arange(4.0)}, np.full(4, valid))


def test_a_model_is_the_same_when_it_is_read_back(tmp_path: Path) -> None:
    features, valid = rows_with_signal()
    model, _ = fit(features, valid)
    model.save(tmp_path / "quality.json")
    loaded = Quality.load(tmp_path / "quality.json")
    assert loaded == model
    assert loaded.logits(features).tolist() == model.logits(features).tolist()
    with pytest.raises(ValueError, match="rows have no noise, constant"):
        loaded.logits({name: values for name, values in features.items() if name not in ("noise", "constant")})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": 2}, "format 2, not 1"),
        ({"intercept": None}, "TypeError"),
        ({"terms": [{"name": "a"}]}, "KeyError"),
        (
            {
                "terms": [
                    {
                        "name": "a",
                        "low": 0,
                        "high": 1,
                        "middle": 0,
                        "bends": [],
                        "means": [0],
                        "scales": [1],
                        "weights": [1],
                    }
                ]
            },
            "columns of 'a' do not fit together",
        ),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, change: dict[str, object], what: str) -> None:
    path = tmp_path / "quality.json"
    Quality(0.5, ()).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=what):
        Quality.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not a model of quality"):
        Quality.load(path)


# --- Cross-validation ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.integers(0, 5))
def test_rows_of_one_group_share_their_fold(groups: list[int], seed: int) -> None:
    found = folds(np.array(groups, dtype=np.uint64), seed=seed)
    by_group: dict[int, set[int]] = {}
    for group, fold in zip(groups, found.tolist()):
        by_group.setdefault(group, set()).add(fold)
    assert all(len(numbers) == 1 and numbers <= set(range(FOLDS)) for numbers in by_group.values())


def test_folds_are_of_about_one_size_and_differ_by_seed() -> None:
    groups = np.arange(10_000, dtype=np.uint64)
    sizes = np.bincount(folds(groups), minlength=FOLDS)
    assert sizes.min() > 1850
    assert sizes.max() < 2150
    same = folds(groups) == folds(groups, seed=1)
    assert 0.17 < same.mean() < 0.23


def test_a_row_s_verdict_plays_no_part_in_its_own_odds() -> None:
    features, valid = rows_with_signal(200)
    fold = np.arange(200) % 4
    found = cross_validated(features, valid, fold)
    turned = np.where(fold == 2, ~valid, valid)
    others = cross_validated(features, turned, fold)
    assert others[fold == 2].tolist() == found[fold == 2].tolist()
    assert (others[fold != 2] != found[fold != 2]).all()
    model, _ = fit({name: values[fold != 1] for name, values in features.items()}, valid[fold != 1])
    assert found[fold == 1].tolist() == model.logits({n: v[fold == 1] for n, v in features.items()}).tolist()


def test_random_verdicts_cannot_be_told_apart() -> None:
    features, valid = rows_with_signal(2000)
    shuffled = np.random.default_rng(3).permutation(valid)
    fold = folds(np.arange(2000, dtype=np.uint64))
    assert 0.45 < roc_area(cross_validated(features, shuffled, fold), shuffled) < 0.55


# --- Features of pairs -----------------------------------------------------------------------------------------------


@given(st.sampled_from(["the house", "", "Das Haus"]))
def test_features_are_scores_and_words_and_lengths(text: str) -> None:
    src, tgt = pa.array(["the house", "the book", text]), pa.array(["das Haus", "das Buch", "das große alte Haus"])
    lexicon, _ = fit_lexicon(src, tgt, 2, min_meetings=1)
    scores = {"score_url": pa.array([0.5, None, 1], pa.float32()), "input_other": pa.array([1.0, 1.0, 1.0])}
    features = pair_features(pa.record_batch({"src": src, "tgt": tgt, **scores}), EN_DE, lexicon)
    assert set(features) == {"url", *LEXICAL_FEATURES, *LENGTH_FEATURES}
    assert features["url"].tolist() == pytest.approx([0.5, math.nan, 1.0], nan_ok=True)
    assert features["length_difference"][0] == math.log(9 / 10)
    assert features["word_difference"][2] == math.log(5 / (len(text.split()) + 1))
    shares = (features["src_translated"] + features["tgt_translated"]) / 2
    assert adequacy(features).tolist() == pytest.approx(shares.tolist(), nan_ok=True)
    assert math.isnan(adequacy(features)[2]) == (text == "")
