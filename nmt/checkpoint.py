"""The checkpoint contract: folders of safetensors and JSON, renamed into place when whole. Nothing is ever unpickled.

best/                      what is published and translated with
├── config.json            format, model config, vocabulary sizes, tokeniser digest, update, scores of dev
└── model.safetensors      the weights (averaged ones where training averages)
update-00000500/           what training continues from: the same two files (the raw weights), and
├── optimizer.safetensors  the optimiser's moments; averages.safetensors where training averages
└── state.json             position in the plan, early stopping, totals
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmt.architectures import ModelConfig, build_model
from nmt.model.seq2seq import Seq2Seq
from nmt.training.optim import Averages
from pipelines.errors import InputError

CHECKPOINT_FORMAT = 1
CONFIG_JSON, MODEL_FILE, STATE_JSON = "config.json", "model.safetensors", "state.json"
OPTIMIZER_FILE, AVERAGES_FILE = "optimizer.safetensors", "averages.safetensors"
_UPDATE_DIGITS = 8


class CheckpointConfig(BaseModel):
    """What makes weights usable: the architecture, the vocabularies and the tokeniser they belong to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = CHECKPOINT_FORMAT
    model: ModelConfig
    source_size: int
    target_size: int
    tokenizer: str
    update: int
    dev: dict[str, float] = {}


class TrainState(BaseModel):
    """Where training stands. A position is two integers: the epoch, and the updates of it that are done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    update: int = 0
    epoch: int = 0
    updates_of_epoch: int = 0
    best_update: int = 0
    best_metric: float | None = None
    best_dev: dict[str, float] = {}
    validations_since_best: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None


def save_model(folder: Path, model: Seq2Seq, config: CheckpointConfig) -> None:
    """Write the weights and their config as a new checkpoint folder, in place of an old one of that name."""
    _write(folder, {MODEL_FILE: model.state_dict()}, {CONFIG_JSON: config})


def save_training(
    folder: Path,
    model: Seq2Seq,
    optimizer: torch.optim.Optimizer,
    averages: Averages | None,
    config: CheckpointConfig,
    state: TrainState,
) -> Path:
    """Return the new folder `update-<n>` under `folder`, which holds all that training continues from."""
    path = folder / f"update-{state.update:0{_UPDATE_DIGITS}d}"
    tensors = {MODEL_FILE: model.state_dict(), OPTIMIZER_FILE: _optimizer_tensors(optimizer)}
    if averages is not None:
        tensors[AVERAGES_FILE] = {str(i): average for i, average in enumerate(averages.averages)}
    _write(path, tensors, {CONFIG_JSON: config, STATE_JSON: state})
    return path


def training_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints to continue from, oldest first. A folder has its name only when it is whole."""
    return sorted(folder.glob("update-" + "[0-9]" * _UPDATE_DIGITS))


def load_config(folder: Path, *, tokenizer: str | None = None) -> CheckpointConfig:
    """Return the config of a checkpoint, refusing another format, or another tokeniser than the digest given.

    Raises InputError naming the file.
    """
    path = folder / CONFIG_JSON
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("format") != CHECKPOINT_FORMAT:
            raise InputError(
                f"checkpoint format {found.get('format')}, this version reads {CHECKPOINT_FORMAT}",
                where=str(path),
                remedy="Use the version that wrote it, or train again",
            )
        config = CheckpointConfig.model_validate(found)
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise InputError(
            f"no readable checkpoint ({error})", where=str(path), remedy="Give the folder of a trained model"
        ) from error
    if tokenizer is not None and config.tokenizer != tokenizer:
        raise InputError(
            f"the checkpoint belongs to the tokeniser {config.tokenizer[:12]}, found the tokeniser {tokenizer[:12]}",
            where=str(folder),
            remedy="Use the tokeniser that the model was trained with",
        )
    return config


def load_model(folder: Path, *, tokenizer: str | None = None) -> tuple[Seq2Seq, CheckpointConfig]:
    """Return the model of a checkpoint, on the CPU, and its config. Raises InputError as `load_config` does."""
    config = load_config(folder, tokenizer=tokenizer)
    model = build_model(config.model, config.source_size, config.target_size)
    _restore_weights(model, folder)
    return model, config


def load_training(
    folder: Path, model: Seq2Seq, optimizer: torch.optim.Optimizer, averages: Averages | None, tokenizer: str
) -> TrainState:
    """Return the state of training, having put weights, moments and averages back in place. Raises InputError."""
    load_config(folder, tokenizer=tokenizer)
    _restore_weights(model, folder)
    _restore_optimizer(optimizer, _tensors(folder / OPTIMIZER_FILE))
    if averages is not None:
        stored = _tensors(folder / AVERAGES_FILE)
        for i, average in enumerate(averages.averages):
            average.copy_(stored[str(i)])
    try:
        return TrainState.model_validate_json((folder / STATE_JSON).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise _broken(folder / STATE_JSON, error) from error


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], tables: Mapping[str, BaseModel]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}-{folder.name}")
    temporary.mkdir()
    for name, content in tensors.items():
        save_file(_unshared(content), temporary / name)
    for name, table in tables.items():
        (temporary / name).write_text(table.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def _unshared(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by name, each storage once: of tied weights the first name stands for all."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in content.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        kept[name] = tensor.detach().contiguous().cpu()
    return kept


def _restore_weights(model: Seq2Seq, folder: Path) -> None:
    path = folder / MODEL_FILE
    stored = _tensors(path)
    expected = _unshared(model.state_dict())
    if {name: tensor.shape for name, tensor in stored.items()} != {name: t.shape for name, t in expected.items()}:
        raise _broken(path, "the weights do not fit the model of config.json")
    model.load_state_dict(stored, strict=False)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": value for index, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error
    return tensors


def _broken(path: Path, error: object) -> InputError:
    return InputError(
        f"the checkpoint cannot be read ({error})",
        where=str(path),
        remedy="Remove this checkpoint's folder to continue from the one before it",
    )
