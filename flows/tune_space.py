"""The space of a search: its points, drawn from the seed, and the recipe at a point.

    for point in points(config): recipe_at(base, point)

A point is a pure function of (seed, number of the draw, key): a search of more trials begins with the points of one of
fewer, and another key in the space leaves the values of the others as they are. Points are drawn at random, each value
by itself, which finds good ones in fewer trials than a grid where few keys matter.
Source: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization", JMLR 13.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flows.config import ParameterConfig, Recipe, TuneConfig, recipe_of
from nmt.config import RECORD_KEYS
from pipelines.draws import derived, row_keys, uniform
from pipelines.errors import InputError

Point = dict[str, Any]  # values by the dotted keys of the space

TABLES = ("model", "train", "tokenizer", "augment", "clean")
PER_PIECE = ("loss", "perplexity")
HIGHER_IS_BETTER = ("bleu", "chrf")
DIGITS = 4  # significant ones of a drawn number: as many as anybody would write into a recipe
MAX_CORNERS = 512
_DRAWS_PER_TRIAL = 100  # after so many without enough different points there are no more


def base_tree(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that a recipe gives, without its search: what a point is filled into.

    The recipe is one of `load_recipe` without its model's table, so that the defaults of another architecture hold
    where a point names it.
    """
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    tree.pop("tune", None)
    return tree


def tree_at(tree: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe's keys with the values of a point in their places."""
    copy: dict[str, Any] = json.loads(json.dumps(tree))
    for key, value in point.items():
        *tables, last = key.split(".")
        table = copy
        for name in tables:
            if not isinstance(table.get(name), dict):
                table[name] = {}
            table = table[name]
        table[last] = value
    return copy


def recipe_at(tree: Mapping[str, Any], config: TuneConfig, point: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trial. Raises InputError naming the key that is wrong."""
    epochs = {} if config.max_epochs is None else {"train.max_epochs": config.max_epochs}
    return recipe_of(tree_at(tree, {**epochs, **point}), "tune.space")


def trial_recipes(tree: Mapping[str, Any], config: TuneConfig) -> list[tuple[Point, Recipe]]:
    """Return the points of the trials, each with its recipe. Raises InputError naming key and value."""
    found = []
    for point in points(config):
        try:
            found.append((point, recipe_at(tree, config, point)))
        except InputError as error:
            raise _named(tree, config, point, error) from error
    return found


def points(config: TuneConfig) -> list[Point]:
    """Return the points of the trials, all different, in their order. Raises InputError where there are not so many."""
    found: list[Point] = []
    seen: set[str] = set()
    for number in range(_DRAWS_PER_TRIAL * config.trials):
        point = _drawn(config, number)
        if (digest := json.dumps(point, sort_keys=True)) not in seen:
            seen.add(digest)
            found.append(point)
        if len(found) == config.trials:
            return found
    raise InputError(
        f"the space has {len(found)} different points, and {config.trials} trials are asked for",
        where="tune.trials",
        remedy=f"Set tune.trials: {len(found)}, or widen the space",
    )


def _drawn(config: TuneConfig, number: int) -> Point:
    key = row_keys(config.seed, 0, np.array([number], dtype=np.int64))
    return {
        name: value_at(parameter, float(uniform(derived(key, name))[0])) for name, parameter in config.space.items()
    }


def value_at(parameter: ParameterConfig, place: float) -> Any:
    """Return the value of a parameter at a place in [0, 1)."""
    if parameter.choice is not None:
        return parameter.choice[int(place * len(parameter.choice))]
    if parameter.integers is not None:
        first, last = parameter.integers
        step = int(parameter.step or 1)
        return first + step * int(place * ((last - first) // step + 1))
    if parameter.log_uniform is not None:
        low, high = parameter.log_uniform
        return _rounded(low * (high / low) ** place, low, high)
    assert parameter.uniform is not None
    low, high = parameter.uniform
    if parameter.step is None:
        return _rounded(low + (high - low) * place, low, high)
    steps = math.floor((high - low) / parameter.step + 1e-9)  # 0.3 / 0.1 is a little less than 3
    return float(f"{low + parameter.step * int(place * (steps + 1)):.12g}")


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def extremes(parameter: ParameterConfig) -> tuple[Any, ...]:
    """Return the values of a parameter that are checked before anything runs: all of a choice, else both ends."""
    if parameter.choice is not None:
        return parameter.choice
    return value_at(parameter, 0.0), value_at(parameter, 1.0 - 2.0**-53)


def is_logarithmic(parameter: ParameterConfig) -> bool:
    """Return whether the values of a parameter are drawn, and shown, on a scale of logarithms."""
    return parameter.log_uniform is not None


def check_space(tree: Mapping[str, Any], config: TuneConfig) -> None:
    """Raise InputError, naming key and value, where a point of the space is no recipe or its scores tell nothing.

    Looked at are the corners of the space, and beyond MAX_CORNERS of them those where at most one key is not at its
    first or at its last value; the points of the trials are checked as they are made recipes.
    """
    for key in config.space:
        _check_key(key)
    _check_comparable(config)
    sides = set()
    for corner in corners(config):
        try:
            recipe = recipe_at(tree, config, corner)
        except InputError as error:
            raise _named(tree, config, corner, error) from error
        if config.metric in HIGHER_IS_BETTER and not recipe.translates():
            raise InputError(
                f"a language model translates nothing, so that it has no {config.metric}",
                where="tune.metric",
                remedy="Set tune.metric: loss",
            )
        sides.add(recipe.model_table().only_side() or "target")
    if len(sides) > 1:
        raise InputError(
            "some points are scored on the source and some on the target, whose losses are of different texts",
            where="tune.space",
            remedy="Search the models of one side: set model.side, and take it out of the space",
        )


def corners(config: TuneConfig) -> Iterator[Point]:
    """Yield the points whose values are all extremes, or some of them where they are too many."""
    values = {key: extremes(parameter) for key, parameter in config.space.items()}
    if math.prod(len(found) for found in values.values()) <= MAX_CORNERS:
        for corner in itertools.product(*values.values()):
            yield dict(zip(values, corner))
        return
    for base in ({key: found[0] for key, found in values.items()}, {key: found[-1] for key, found in values.items()}):
        yield base
        for key, found in values.items():
            yield from ({**base, key: value} for value in found)


def _check_key(key: str) -> None:
    table, _, name = key.partition(".")
    if table not in TABLES or not name:
        raise InputError(
            "no key that a search can change",
            where=f"tune.space.{key}",
            remedy=f"Give a key of {', '.join(TABLES)}, such as train.learning_rate; `seqloom schema` lists them",
        )
    if table == "train" and name in RECORD_KEYS:
        raise InputError(
            "the key decides nothing of what is learned", where=f"tune.space.{key}", remedy="Take it out of the space"
        )


def _check_comparable(config: TuneConfig) -> None:
    """Raise InputError where the scores of two trials would be of different things."""
    changing = [key for key in config.space if key.startswith(("tokenizer.", "clean."))]
    if config.metric in PER_PIECE and changing:
        raise InputError(
            f"{config.metric} is per piece, and {changing[0]} changes the pieces",
            where="tune.metric",
            remedy="Set tune.metric: bleu or chrf, which are of the text",
        )
    cleaning = [key for key in config.space if key.startswith("clean.")]
    if config.folds and cleaning:
        raise InputError(
            f"{cleaning[0]} changes the rows that the folds are made of, so that trials would not have the same dev",
            where="tune.folds",
            remedy="Set tune.folds: 0: the rows of the recipe's dev are never judged by score",
        )


def _named(tree: Mapping[str, Any], config: TuneConfig, corner: Point, error: InputError) -> InputError:
    """Return the error of a corner with the values that cause it: one alone, where one alone does."""
    said = _said(error)
    culprits = [key for key, value in corner.items() if _fault(tree, config, {key: value}) == said]
    blamed: Sequence[str] = culprits[:1] or tuple(corner)
    values = ", ".join(f"{key} = {json.dumps(corner[key], ensure_ascii=False)}" for key in blamed)
    where = f"tune.space.{blamed[0]}" if len(blamed) == 1 else "tune.space"
    return InputError(f"{values} makes no recipe: {error.what}", where=where, remedy=error.remedy)


def _fault(tree: Mapping[str, Any], config: TuneConfig, point: Point) -> str | None:
    try:
        recipe_at(tree, config, point)
    except InputError as error:
        return _said(error)
    return None


def _said(error: InputError) -> str:
    """Return what is wrong without what was found, which may be a whole table."""
    return error.what.partition(" (found ")[0]
