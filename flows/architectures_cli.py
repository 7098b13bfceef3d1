"""What `seqloom architectures` prints: every model of the literature that a recipe can name, and its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.config import Recipe
from nmt.architectures import ARCHITECTURES, DEFAULT, architecture, build_model
from nmt.config import VECTOR_KEYS, ModelTable
from nmt.model.flops import SOURCE_PIECES, TARGET_PIECES, Cost, count, described, shapes, without_weights
from pipelines.config import TokenizerConfig

OWN = "(recipe)"  # in the place of a variant's name
_NOT_OF_THE_SIZE = {"architecture", "freeze_embeddings_updates", *VECTOR_KEYS}


@dataclass(frozen=True)
class Listed:
    """One model of the list: where it is from, the keys that make it, and its cost, or why it cannot be built."""

    architecture: str
    variant: str
    paper: str
    keys: Mapping[str, Any]
    cost: Cost | None
    why: str | None

    def described(self) -> dict[str, Any]:
        """Return it as JSON values."""
        cost = self.cost
        flops = None if cost is None else {"forward": round(cost.forward), "training": round(cost.training)}
        return {
            "architecture": self.architecture,
            "variant": self.variant,
            "paper": self.paper,
            "keys": dict(self.keys),
            "parameters": None if cost is None else cost.parameters,
            "flops_per_target_piece": flops,
            "why_not": self.why,
        }


def architectures_and_print(recipe: Recipe | None, console: Console) -> dict[str, Any]:
    """Print the list of models at a recipe's sizes, or the defaults', and return the JSON object.

    Raises InputError where the recipe's own model cannot be.
    """
    listed = models(recipe)
    table = Table(title="Architectures", title_justify="left", box=None, pad_edge=False)
    for name in ("architecture", "variant", "parameters", "forward", "training", "keys", "paper"):
        number = name in ("parameters", "forward", "training")
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for model in listed:
        keys = Text(", ".join(f"{key}: {_yaml(value)}" for key, value in model.keys.items()))
        table.add_row(model.architecture, model.variant, *_figures(model), keys, Text(model.paper))
    console.print(table)
    for model in listed:
        if model.why is not None:
            line = f"{model.architecture} {model.variant} cannot be built at these sizes: {model.why}"
            console.print(Text(line), soft_wrap=True)
    pieces = _vocabulary(recipe)
    console.print()
    console.print(Text(_note(pieces)), soft_wrap=True)
    return {
        "recipe": None if recipe is None else recipe.name,
        "vocabulary": pieces,
        "source_pieces": SOURCE_PIECES,
        "target_pieces": TARGET_PIECES,
        "models": [model.described() for model in listed],
    }


def shapes_and_print(recipe: Recipe | None, console: Console) -> dict[str, Any]:
    """Print names and shapes of a recipe's own model's parameters, and return the JSON object.

    Without a recipe: of the default model. Raises InputError where the recipe's model cannot be.
    """
    table, pieces = _own_table(recipe), _vocabulary(recipe)
    model = without_weights(partial(build_model, table, pieces, pieces))
    console.print(Text(f"{table.architecture}: {described(model)}"), soft_wrap=True)
    found = [{"name": name, "shape": list(shape.shape)} for shape in shapes(model) for name in shape.names]
    return {"model": table.model_dump(mode="json"), "vocabulary": pieces, "parameters": found}


def models(recipe: Recipe | None) -> list[Listed]:
    """Return every variant of every architecture at a recipe's sizes, or the defaults'; the recipe's own model first.

    A variant has the recipe's keys that it does not decide and that its architecture has. Raises InputError where the
    recipe's own model cannot be.
    """
    pieces, listed = _vocabulary(recipe), []
    given = {} if recipe is None else {k: v for k, v in recipe.model.items() if k not in _NOT_OF_THE_SIZE}
    if recipe is not None:
        table = _own_table(recipe)
        listed.append(_listed(table.architecture, OWN, recipe.name, given, table, pieces))
    for name in ARCHITECTURES:
        found = architecture(name)
        own = {key: value for key, value in given.items() if key in found.table.model_fields}
        for variant in found.variants:
            try:
                table_or_why: ModelTable | str = found.table.model_validate(own | dict(variant.keys))
            except ValidationError as error:
                table_or_why = _why(error)
            listed.append(_listed(name, variant.name, variant.paper, variant.keys, table_or_why, pieces))
    return listed


def _own_table(recipe: Recipe | None) -> ModelTable:
    if recipe is None:
        return architecture(DEFAULT).table.model_validate({})
    return recipe.model_table().without_vectors()


def _vocabulary(recipe: Recipe | None) -> int:
    return (TokenizerConfig() if recipe is None else recipe.tokenizer).vocab_size


def _listed(
    name: str, variant: str, paper: str, keys: Mapping[str, Any], table: ModelTable | str, pieces: int
) -> Listed:
    if isinstance(table, str):
        return Listed(name, variant, paper, keys, None, table)
    try:
        return Listed(name, variant, paper, keys, count(partial(build_model, table, pieces, pieces)), None)
    except (ValueError, RuntimeError) as error:  # ours, and torch's where sizes do not fit
        return Listed(name, variant, paper, keys, None, str(error))


def _why(error: ValidationError) -> str:
    faults = (f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors())
    return "; ".join(faults)


def _figures(model: Listed) -> tuple[str, str, str]:
    if model.cost is None:
        return "-", "-", "-"
    return f"{model.cost.parameters:,}", f"{model.cost.forward / 1e6:.1f} M", f"{model.cost.training / 1e6:.1f} M"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _note(pieces: int) -> str:
    return (
        f"forward, training: FLOPs per target piece, of pairs of {SOURCE_PIECES} source and {TARGET_PIECES} target "
        f"pieces and vocabularies of {pieces:,}. Counted are products of matrices, the source's too; training is three "
        "times the forward pass."
    )
