"""The architectures that a recipe can name: a line each.

An architecture is a module of `nmt/model/` with a constant ARCHITECTURE: its name, the table of its keys, the models of
the literature that it can be, and how it is built. A module is imported when its architecture is asked for, since torch
takes a second or two to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from nmt.config import ModelTable

if TYPE_CHECKING:
    from nmt.model.architecture import Architecture
    from nmt.model.seq2seq import Seq2Seq

DEFAULT = "recurrent"
ARCHITECTURES = {
    "recurrent": "nmt.model.recurrent",
    "transformer": "nmt.model.transformer",
    "convolutional": "nmt.model.convolutional",
    "recurrent_lm": "nmt.model.language_model",
}


def architecture(name: str) -> Architecture:
    """Return an architecture by its name. Raises ValueError naming those that there are."""
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    found: Architecture = importlib.import_module(ARCHITECTURES[name]).ARCHITECTURE
    return found


def model_table(value: Any) -> ModelTable:
    """Return a recipe's `model` as the table of the architecture that it names, `recurrent` where it names none.

    Raises ValueError (pydantic's ValidationError is one) for another architecture, an unknown key or a wrong value.
    """
    if isinstance(value, ModelTable):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("must be a table of keys")
    return architecture(value.get("architecture", DEFAULT)).table.model_validate(value)


# A table of any architecture as a field: read by the architecture that it names, written with all its keys.
ModelConfig = Annotated[SerializeAsAny[ModelTable], BeforeValidator(model_table)]


def build_model(config: ModelTable, source_size: int, target_size: int, *, seed: int = 1) -> Seq2Seq:
    """Return a new model of the config's architecture, its weights drawn from `seed` alone.

    Raises ValueError when the vocabularies do not fit the config.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture(config.architecture).build(config, source_size, target_size)
