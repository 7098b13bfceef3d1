"""What the weights of a new run begin with, beside chance: those of a published model; and which of them stay.

train-<key>/started_from.json     Started: which model it was, and how far it went
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from nmt.architectures import build_model
from nmt.checkpoint import MODEL_FILE, load_config, load_model
from nmt.config import ModelTable, TrainConfig
from nmt.model.flops import without_weights
from nmt.model.seq2seq import Seq2Seq
from nmt.published import PublishedModel, load_published
from pipelines.errors import InputError
from pipelines.stage import write_atomically
from pipelines.tokenizer import Tokenizer

STARTED_FILE = "started_from.json"
START_KEY = "start_from"  # no part of what the stage is named by: what lies in the folder is, see `digests`

log = logging.getLogger(__name__)


class Copied(BaseModel):
    """How many of the pieces of a table have their row from the model that training began with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pieces: int
    copied: int


class Started(BaseModel):
    """What training began with: name and version of the published model, and how far it went, by side.

    Where the tokeniser is the `same` all weights are that model's; of `another` one those of pieces that both have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    tokenizer: Literal["same", "another"]
    pieces: dict[str, Copied]


# Before anything runs


def check_beginnings(table: ModelTable, config: TrainConfig) -> None:
    """Raise InputError where training could not begin as `start_from` and `freeze` say, with a model of this table."""
    if config.start_from is not None:
        _check_start(table, load_published(Path(config.start_from)))
    if config.freeze:
        # The names of parameters do not depend on the pieces, which are not known yet.
        model = without_weights(lambda: build_model(table, 8, 8))
        _check_frozen_vectors(model, frozen_parameters(model, config.freeze))


def _check_start(table: ModelTable, published: PublishedModel) -> None:
    if table.vectors():
        raise InputError(
            "embeddings cannot begin both with files of vectors and with the weights of a model",
            where=", ".join(f"model.{key}" for key in table.vectors()),
            remedy="Leave them out, or train.start_from",
        )
    found = load_config(published.checkpoint).model.model_dump(mode="json")
    wanted = table.without_vectors().model_dump(mode="json")
    # Dropout is of training, and decides no weight's shape or meaning.
    keys = [key for key in {**wanted, **found} if not key.endswith("dropout")]
    differing = [key for key in keys if wanted.get(key, ...) != found.get(key, ...)]
    if differing:
        said = ", ".join(f"{key} {_value(found, key)}, here {_value(wanted, key)}" for key in differing)
        raise InputError(
            f"the model {published.description.name} ({published.folder}) has {said}",
            where="train.start_from",
            remedy=f"Set the same in `model`: {', '.join(differing)}",
        )


def _value(tree: Mapping[str, Any], key: str) -> str:
    return str(tree.get(key, "no such key"))


def digests(config: TrainConfig) -> dict[str, str]:
    """Return what of the model that training begins with decides its weights: digests of weights and tokeniser.

    Empty where it begins with none. Raises InputError as `load_published` does.
    """
    if config.start_from is None:
        return {}
    published = load_published(Path(config.start_from))
    return {
        "start_from": published.description.files[f"{published.checkpoint.name}/{MODEL_FILE}"],
        "start_from_tokenizer": Tokenizer.load(published.tokenizer).digest,
    }


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the config with the folder that `start_from` stands for now: the link to a model may move to another."""
    if config.start_from is None:
        return config
    return config.model_copy(update={"start_from": str(Path(config.start_from).resolve())})


# The weights of a published model


def begin_with_model(model: Seq2Seq, tokenizer: Tokenizer, folder: Path) -> None:
    """Put the weights of a published model into a new one of the same table, whose pieces are those of `tokenizer`.

    Of another tokeniser rows of embeddings and output layer are copied where both have a piece of that text, and the
    others stay as they are; all other weights are taken.
    Raises InputError as `load_published` and `load_model` do, and where a weight has another shape.
    """
    published = load_published(folder)
    theirs = Tokenizer.load(published.tokenizer)
    source, _ = load_model(published.checkpoint, tokenizer=theirs.digest)
    pieces = {}
    if theirs.digest != tokenizer.digest:
        pieces = {side: _shared_pieces(side, theirs, tokenizer) for side in ("source", "target")}
    _copy(model, source, pieces, published.checkpoint / MODEL_FILE)


def record_start(model: Seq2Seq, tokenizer: Tokenizer, published: Path, folder: Path) -> None:
    """Write into the folder of a run what its weights begin with, and log it; of `model` names alone are asked."""
    found = load_published(published)
    theirs = Tokenizer.load(found.tokenizer)
    sizes = {"source": tokenizer.source_size, "target": tokenizer.target_size}
    copied = {
        side: Copied(pieces=sizes[side], copied=len(_shared_pieces(side, theirs, tokenizer)[0]))
        for side in dict.fromkeys(_piece_tables(model).values())
    }
    same: Literal["same", "another"] = "same" if theirs.digest == tokenizer.digest else "another"
    started = Started(name=found.description.name, version=found.description.version, tokenizer=same, pieces=copied)
    log.info(
        "training begins with the weights of %s %s, which has %s tokeniser",
        started.name, started.version, "this" if started.tokenizer == "same" else "another",
    )  # fmt: skip
    if started.tokenizer == "another":
        for side, rows in started.pieces.items():
            log.info("%s: %s of %s pieces have its rows", side, f"{rows.copied:,}", f"{rows.pieces:,}")
    write_atomically(folder / STARTED_FILE, started.model_dump_json(indent=1) + "\n")


def _shared_pieces(side: str, theirs: Tokenizer, ours: Tokenizer) -> tuple[Tensor, Tensor]:
    """Return the ids [n] of the pieces that both tokenisers have on a side, in theirs and in ours."""
    texts = []
    for tokenizer in (theirs, ours):
        size = tokenizer.source_size if side == "source" else tokenizer.target_size
        pieces = tokenizer.source_pieces if side == "source" else tokenizer.target_pieces
        texts.append({piece: number for number, piece in enumerate(pieces(range(size)))})
    found = [(number, texts[1][piece]) for piece, number in texts[0].items() if piece in texts[1]]
    old, new = zip(*found)
    return torch.tensor(old), torch.tensor(new)


def _piece_tables(model: Seq2Seq) -> dict[str, str]:
    """Return the weights that have a row for each piece, with the side whose pieces these are."""
    target = model.config.only_side() or "target"
    tables = {"source_embedding.table.weight": "source", "target_embedding.table.weight": target}
    tables |= {"output_weight": target, "output_bias": target}
    names = model.state_dict().keys()
    return {name: side for name, side in tables.items() if name in names}


@torch.no_grad()
def _copy(model: Seq2Seq, source: Seq2Seq, pieces: Mapping[str, tuple[Tensor, Tensor]], where: Path) -> None:
    """Copy the weights of a model into another, of tables of pieces only the rows of those given, if any."""
    weights, tables = source.state_dict(), _piece_tables(model)
    for name, weight in model.state_dict().items():
        found = weights[name]
        if pieces and name in tables:
            old, new = pieces[tables[name]]
            weight[new] = found[old].to(weight)
        elif weight.shape == found.shape:
            weight.copy_(found)
        else:
            raise InputError(
                f"the weight {name} has the shape {tuple(found.shape)}, here it has {tuple(weight.shape)}",
                where=str(where),
                remedy="Give a model of the same table `model`",
            )


# Frozen parts


def frozen_parameters(model: nn.Module, beginnings: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters whose name, or one of whose names where parts share it, begins with one of these.

    A beginning is whole words between dots: `encoder.layers.1` is not one of `encoder.layers.10`.
    Raises InputError for one that no name begins with, and where no parameter would be left to train.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    frozen: dict[nn.Parameter, None] = {}
    for beginning in beginnings:
        found = [parameter for name, parameter in named if f"{name}.".startswith(f"{beginning}.")]
        if not found:
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name, _ in named))
            raise InputError(
                f"no parameter's name begins with {beginning!r}",
                where="train.freeze",
                remedy=f"Names begin with {known}; training logs all of them",
            )
        frozen.update(dict.fromkeys(found))
    if len(frozen) == len(list(model.parameters())):
        raise InputError("all parameters are frozen", where="train.freeze", remedy="Leave some to be trained")
    return list(frozen)


def freeze(model: Seq2Seq, beginnings: Sequence[str]) -> None:
    """Take the gradient of some parameters away, see `frozen_parameters`, so that training leaves them as they are.

    To be called before the parameters that training changes are asked for: no optimiser is to see these.
    """
    if beginnings:
        for parameter in frozen_parameters(model, beginnings):
            parameter.requires_grad_(False)


def num_frozen(model: nn.Module, beginnings: Sequence[str]) -> int:
    """Return how many numbers are in the parameters that are frozen."""
    return sum(parameter.numel() for parameter in frozen_parameters(model, beginnings))


def log_frozen(model: Seq2Seq, beginnings: Sequence[str]) -> None:
    """Log how many of a model's parameters are frozen, if any."""
    if beginnings:
        frozen, total = num_frozen(model, beginnings), model.num_parameters()
        log.info("%s of %s parameters are frozen: %s", f"{frozen:,}", f"{total:,}", ", ".join(beginnings))


def begun_counters(model: Seq2Seq, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Return the figures of a finished run: what its weights began with, and how many stayed; of neither, nothing."""
    counters: dict[str, Any] = {}
    if (path := folder / STARTED_FILE).exists():
        counters["started_from"] = Started.model_validate_json(path.read_bytes()).model_dump()
    if config.freeze:
        counters["frozen_parameters"] = num_frozen(model, config.freeze)
    return counters


def _check_frozen_vectors(model: Seq2Seq, frozen: Sequence[nn.Parameter]) -> None:
    """Raise InputError for a table that one key lets go after some updates, and the other one never."""
    from nmt.training.optim import pretrained_tables

    if model.config.freeze_embeddings_updates in (0, "always"):
        return
    kept = {id(parameter) for parameter in frozen}
    if any(id(table) in kept for table in pretrained_tables(model)):
        raise InputError(
            "a table that train.freeze keeps for always is one that model.freeze_embeddings_updates lets go",
            where="train.freeze",
            remedy="Leave the table out of it, or set model.freeze_embeddings_updates: always",
        )
