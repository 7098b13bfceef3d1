from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import small_recipe

from flows.config import ParameterConfig, Recipe, TuneConfig, load_recipe
from flows.tune_space import (
    base_tree,
    check_space,
    corners,
    extremes,
    points,
    recipe_at,
    tree_at,
    trial_recipes,
    value_at,
)
from pipelines.errors import InputError

TREE = base_tree(small_recipe())
RATE = {"log_uniform": [1e-4, 1e-2]}
DROPOUT = {"uniform": [0.0, 0.4], "step": 0.1}


def config(space: dict[str, Any], **keys: Any) -> TuneConfig:
    return TuneConfig.model_validate({"space": space, **keys})


def refused(space: dict[str, Any], tree: dict[str, Any] = TREE, **keys: Any) -> InputError:
    with pytest.raises(InputError) as error:
        check_space(tree, config(space, **keys))
    return error.value


# What a table of the recipe may say


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ({}, "give one of choice, uniform, log_uniform, integers"),
        ({"choice": [1], "uniform": [0, 1]}, "give one of choice"),
        ({"choice": []}, "choice needs values"),
        ({"choice": [1, 2], "step": 1}, "takes no step"),
        ({"choice": [1, 1]}, "choice has a value twice"),
        ({"uniform": [1, 1]}, "needs a lower bound below the upper one"),
        ({"log_uniform": [0, 1]}, "log_uniform needs bounds above 0"),
        ({"integers": [1, 9], "step": 0.5}, "the step of integers is a whole number"),
    ],
)
def test_a_parameter_that_says_nothing_is_refused_by_its_key(parameter: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"train.learning_rate: .*{says}"):
        config({"train.learning_rate": parameter})


def test_one_fold_and_two_numbers_of_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="one fold leaves nothing to train on"):
        config({"train.learning_rate": RATE}, folds=1)
    with pytest.raises(ValueError, match="max_epochs is given for all trials"):
        config({"train.max_epochs": {"choice": [1, 2]}}, max_epochs=3)


# Values and points


def test_values_of_a_range_lie_between_its_bounds_and_on_its_steps() -> None:
    places = [*np.linspace(0.0, 1.0, 1001)[:-1].tolist(), 1.0 - 2.0**-53]
    steps = {value_at(ParameterConfig(**DROPOUT), place) for place in places}
    assert steps == {0.0, 0.1, 0.2, 0.3, 0.4}
    assert {value_at(ParameterConfig(integers=(3, 8), step=2), place) for place in places} == {3, 5, 7}
    assert {value_at(ParameterConfig(integers=(-1, 1)), place) for place in places} == {-1, 0, 1}
    rates = [value_at(ParameterConfig(**RATE), place) for place in places]
    assert rates == sorted(rates) and rates[0] == 1e-4 and rates[-1] == 1e-2
    assert rates[500] == pytest.approx(1e-3)  # the geometric mean
    assert all(1.5 <= value_at(ParameterConfig(uniform=(1.5, 1.50001)), place) <= 1.50001 for place in places)


def test_a_drawn_number_has_four_significant_digits() -> None:
    drawn = [value_at(ParameterConfig(log_uniform=(1e-5, 1.0)), place) for place in (0.1, 0.37, 0.9)]
    assert drawn == [float(f"{1e-5 ** (1 - place):.4g}") for place in (0.1, 0.37, 0.9)]


def test_points_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    space = {"train.learning_rate": RATE, "model.dropout": DROPOUT}
    assert points(config(space, trials=12)) == points(config(space, trials=12))
    assert points(config(space, trials=12)) != points(config(space, trials=12, seed=2))


def test_more_trials_begin_with_the_points_of_fewer() -> None:
    space = {"train.learning_rate": RATE, "model.dropout": DROPOUT}
    assert points(config(space, trials=30))[:12] == points(config(space, trials=12))


def test_another_key_leaves_the_values_of_the_others_as_they_are() -> None:
    before = points(config({"train.learning_rate": RATE}, trials=9))
    after = points(config({"model.dropout": DROPOUT, "train.learning_rate": RATE}, trials=9))
    assert [point["train.learning_rate"] for point in after] == [point["train.learning_rate"] for point in before]


def test_points_fill_the_space_evenly_and_keys_are_independent() -> None:
    space = {"train.learning_rate": RATE, "train.seed": {"integers": [0, 9]}}
    drawn = points(config(space, trials=2000))
    place = [math.log(point["train.learning_rate"] / 1e-4) / math.log(100) for point in drawn]
    counts = np.histogram2d(place, [point["train.seed"] for point in drawn], bins=(4, 10))[0]
    # 50 points in each of 40 cells but for chance, whose deviation is 7.
    assert counts.min() > 22 and counts.max() < 80


def test_all_points_of_a_finite_space_are_found_and_no_more_can_be_asked_for() -> None:
    space = {"model.dropout": {"choice": [0.1, 0.2, 0.3]}, "train.seed": {"integers": [1, 4]}}
    drawn = points(config(space, trials=12))
    assert len({(point["model.dropout"], point["train.seed"]) for point in drawn}) == 12
    with pytest.raises(InputError, match="the space has 12 different points, and 13 trials are asked for") as error:
        points(config(space, trials=13))
    assert error.value.remedy.startswith("Set tune.trials: 12")


# Recipes


def test_a_point_is_filled_into_a_copy_of_the_recipe() -> None:
    tree = tree_at(TREE, {"train.learning_rate": 0.5, "augment.sampling.source": 0.25, "model.dropout": 0.0})
    assert tree["train"] == {"learning_rate": 0.5}
    assert tree["augment"] == {"sampling": {"source": 0.25}}
    assert "train" not in TREE
    recipe = recipe_at(TREE, config({"train.learning_rate": RATE}, max_epochs=3), {"train.learning_rate": 0.5})
    assert (recipe.train.learning_rate, recipe.train.max_epochs) == (0.5, 3)
    assert recipe.tune is None and recipe.corpora == small_recipe().corpora


def test_a_trial_has_the_defaults_of_the_architecture_that_its_point_names(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nlanguages: {source: en, target: de}\n"
        "corpora: {train: [{name: a, tsv: a.tsv}], held_out: {dev: 0.1, test: 0.1}}\n"
        "tune: {space: {model.architecture: {choice: [transformer, recurrent]}}, trials: 2}\n"
    )
    loaded = load_recipe(str(path), define={}, with_model=False)
    assert loaded.tune is not None
    found = {recipe.model["architecture"]: recipe for _, recipe in trial_recipes(base_tree(loaded), loaded.tune)}
    assert "feed_forward_dim" in found["transformer"].model or "heads" in found["transformer"].model
    assert "cell" in found["recurrent"].model and "cell" not in found["transformer"].model


@pytest.mark.parametrize(
    ("space", "where", "says"),
    [
        ({"model.dropout": {"uniform": [0.0, 1.5]}}, "tune.space.model.dropout", "model.dropout = 1.5 makes no recipe"),
        (
            {"train.learning_rate": RATE, "train.optimizer": {"choice": ["adam", "lion"]}},
            "tune.space.train.optimizer",
            'train.optimizer = "lion" makes no recipe: key `train.optimizer`',
        ),
        ({"train.lerning_rate": RATE}, "tune.space.train.lerning_rate", "unknown key `train.lerning_rate`"),
        ({"model.hiden_dim": {"choice": [8]}}, "tune.space.model.hiden_dim", "unknown key `model.hiden_dim`"),
        (
            {"train.max_epochs": {"uniform": [1.0, 2.5]}},
            "tune.space.train.max_epochs",
            "train.max_epochs = 1.0 makes no recipe",
        ),
        ({"translate.beam_size": {"choice": [1]}}, "tune.space.translate.beam_size", "no key that a search can change"),
        ({"train": {"choice": [1]}}, "tune.space.train", "no key that a search can change"),
        ({"train.log_updates": {"choice": [1, 2]}}, "tune.space.train.log_updates", "decides nothing of what is"),
    ],
)
def test_what_is_no_recipe_is_refused_by_key_and_value(space: dict[str, Any], where: str, says: str) -> None:
    error = refused(space)
    assert error.where == where
    assert says in error.what
    assert error.remedy


def test_values_that_do_not_go_together_are_named_together() -> None:
    space = {"train.schedule": {"choice": ["noam"]}, "train.warmup_updates": {"choice": [4000, 0]}}
    error = refused(space, tree_at(TREE, {"train.learning_rate": 1.0}))
    assert error.where == "tune.space"
    assert 'train.schedule = "noam", train.warmup_updates = 0 makes no recipe' in error.what


def test_a_value_that_alone_is_wrong_is_blamed_alone() -> None:
    space = {"train.learning_rate": RATE, "train.momentum": {"choice": [0.9]}}
    assert refused(space).where == "tune.space.train.momentum"
    check_space(tree_at(TREE, {"train.optimizer": "sgd"}), config(space))


def test_corners_are_all_extremes_or_those_along_the_edges_where_they_are_many() -> None:
    few = config({"train.learning_rate": RATE, "model.dropout": {"choice": [0.1, 0.2, 0.3]}})
    assert len(list(corners(few))) == 6
    many = config({f"train.key{n}": {"uniform": [0.0, 1.0]} for n in range(12)})
    found = list(corners(many))
    assert len(found) < 100
    for key in many.space:
        assert {corner[key] for corner in found} == {0.0, 1.0}


def test_the_extremes_of_a_range_with_steps_are_values_of_it() -> None:
    assert extremes(ParameterConfig(integers=(3, 8), step=2)) == (3, 7)
    assert extremes(ParameterConfig(uniform=(0.0, 0.35), step=0.1)) == (0.0, 0.3)


# Scores that can be compared


@pytest.mark.parametrize("key", ["tokenizer.vocab_size", "clean.max_reject_rate"])
def test_a_metric_per_piece_is_refused_where_pieces_differ(key: str) -> None:
    values = {"tokenizer.vocab_size": [500, 600], "clean.max_reject_rate": [0.1, 0.2]}
    error = refused({key: {"choice": values[key]}}, metric="perplexity")
    assert error.where == "tune.metric" and "perplexity is per piece" in error.what


def test_folds_are_refused_where_cleaning_changes_their_rows() -> None:
    error = refused({"clean.rules.length_ratio": {"choice": [2.0, 3.0]}}, folds=3)
    assert error.where == "tune.folds"
    check_space(TREE, config({"clean.rules.length_ratio": {"choice": [2.0, 3.0]}}))


def test_a_language_model_is_not_searched_by_translations() -> None:
    space = {"model.architecture": {"choice": ["recurrent_lm"]}, "train.early_stopping_metric": {"choice": ["loss"]}}
    assert refused(space).where == "tune.metric"
    check_space(TREE, config(space, metric="loss"))


def test_language_models_of_both_sides_are_refused() -> None:
    space = {"model.architecture": {"choice": ["recurrent_lm"]}, "train.early_stopping_metric": {"choice": ["loss"]}}
    sides = {"model.side": {"choice": ["source", "target"]}}
    error = refused({**space, **sides}, metric="loss")
    assert error.where == "tune.space" and "losses are of different texts" in error.what
    check_space(TREE, config({**space, "model.side": {"choice": ["source"]}}, metric="loss"))


def test_the_recipe_of_a_search_is_a_recipe_of_all_other_commands() -> None:
    recipe = Recipe.model_validate(
        {**small_recipe().model_dump(), "tune": config({"train.learning_rate": RATE}).model_dump()}
    )
    assert "tune" not in base_tree(recipe)
