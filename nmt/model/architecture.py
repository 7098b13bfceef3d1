"""What an architecture is: its name, its keys, how it is built, and the models of the literature that it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nmt.config import ModelTable
from nmt.model.seq2seq import Seq2Seq


@dataclass(frozen=True)
class Variant:
    """A model of the literature: its name, where it is from, and the keys that make the architecture that model.

    The keys hold what makes it that model, not its sizes: those are the recipe's.
    """

    name: str
    paper: str
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """An architecture that a recipe can name. `build(table, source_size, target_size)` draws from torch's own seed.

    `layers` of a model are modules that are used by calling them and in no other way, what is in another one before it:
    of a model that is dealt out over workers the weights of each are gathered for its own passes alone.
    """

    name: str
    table: type[ModelTable]
    build: Callable[[Any, int, int], Seq2Seq]
    variants: tuple[Variant, ...]
    layers: Callable[[Seq2Seq], Iterable[nn.Module]] = lambda model: ()
