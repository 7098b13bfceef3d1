"""The checkpoint contract: folders of safetensors and JSON, renamed into place when whole. Nothing is ever unpickled.

best/                      what is published and translated with
├── config.json            format, model config, vocabulary sizes, tokeniser digest, update, scores of dev
├── model.safetensors      the weights (averaged ones where training averages)
└── checksums.json         bytes and sha256 of the other files, written last; older checkpoints have none
update-00000500/           what training continues from: the same three files (the raw weights), and
├── optimizer.safetensors  the optimiser's moments; averages.safetensors where training averages
└── state.json             position in the plan, early stopping, totals
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmt.architectures import ModelConfig, build_model
from nmt.model.seq2seq import Seq2Seq
from nmt.precision import INITIAL_SCALE
from nmt.training.optim import Averages
from pipelines.errors import InputError
from pipelines.stage import file_sha256

CHECKPOINT_FORMAT = 1
CONFIG_JSON, MODEL_FILE, STATE_JSON = "config.json", "model.safetensors", "state.json"
CHECKSUMS_JSON = "checksums.json"
OPTIMIZER_FILE, AVERAGES_FILE = "optimizer.safetensors", "averages.safetensors"
_UPDATE_DIGITS = 8  # at the least
_MOVED_AWAY = "-old"  # ends the name of a checkpoint whose place a newer one of that name is to take


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
    """Where training stands. A position is three integers: the epoch, its window, and the updates of that one done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    update: int = 0
    epoch: int = 0
    updates_of_epoch: int = 0
    window: int = 0
    updates_of_window: int = 0
    total_updates: int | None = None  # that the schedule counts on, once it is known
    best_update: int = 0
    best_metric: float | None = None
    best_dev: dict[str, float] = {}
    validations_since_best: int = 0
    validated_update: int = 0  # the last whose validation is judged, and in metrics.jsonl
    pending_validations: tuple[tuple[int, int], ...] = ()  # (update, epoch) whose weights are scored beside training
    best_models: tuple[tuple[int, float], ...] = ()  # (update, metric) of the best `average_checkpoints`, best first
    mean_dev: dict[str, float] = {}  # scores of the mean of those, once training has stopped
    target_tokens: int = 0
    seconds: float = 0.0
    skipped_updates: int = 0  # whose loss or gradient was not finite
    skipped_in_a_row: int = 0  # those that a smaller loss scale does not mend
    split_microbatches: int = 0  # computed in parts, as they did not fit into memory
    loss_scale: float = INITIAL_SCALE  # of float16
    updates_at_loss_scale: int = 0
    plateau_rate: float = 1.0  # what the schedule plateau multiplies the learning rate by
    plateau_validations: int = 0  # without a better one, since that was changed last
    spent: dict[str, float] = {}  # of these seconds: what they went to beside computing, see `training/record.py`
    unrecorded: dict[str, float] = {}  # what is in no line of metrics.jsonl yet, see `training/record.py`
    stopped: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_the_only_window(cls, values: Any) -> Any:
        """Of a checkpoint from before there were windows, the updates of the epoch are those of its first window."""
        if isinstance(values, dict) and "updates_of_window" not in values:
            return values | {"updates_of_window": values.get("updates_of_epoch", 0)}
        return values


class FileSum(BaseModel):
    """The size of a file and the sha256, in hex, of what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Checksums(BaseModel):
    """What the files of a checkpoint held when it was written, by their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    files: dict[str, FileSum]


class Content(NamedTuple):
    """What a checkpoint's folder is to hold: tensors by their names, and tables, by the names of their files."""

    tensors: dict[str, dict[str, Tensor]]
    tables: dict[str, BaseModel]


# In this the folder is renamed into place: a caller may hold a lock, or refuse.
Placing = Callable[[], AbstractContextManager[None]]


def model_content(model: Seq2Seq, config: CheckpointConfig) -> Content:
    """Return what a model's checkpoint holds: the weights as they are now, without a copy, and their config."""
    return Content({MODEL_FILE: _unshared(model.state_dict())}, {CONFIG_JSON: config})


def training_content(
    model: Seq2Seq,
    optimizer: torch.optim.Optimizer,
    averages: Averages | None,
    config: CheckpointConfig,
    state: TrainState,
) -> Content:
    """Return what training continues from: a model's content, the optimiser's and the averages' tensors, the state."""
    content = model_content(model, config)
    content.tensors[OPTIMIZER_FILE] = _unshared(_optimizer_tensors(optimizer))
    if averages is not None:
        content.tensors[AVERAGES_FILE] = _unshared({str(i): average for i, average in enumerate(averages.averages)})
    content.tables[STATE_JSON] = state
    return content


def training_folder(folder: Path, update: int) -> Path:
    """Return where under `folder` lies what training continues from at an update."""
    return folder / f"update-{update:0{_UPDATE_DIGITS}d}"


def write_checkpoint(folder: Path, content: Content, placing: Placing = nullcontext) -> None:
    """Write a checkpoint's folder, in place of an old one of that name; it has that name only when it is whole.

    All of it is on the disk before it has its name. The checksums are of what was written, read back from the files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(folder, folder.name)
    temporary.mkdir()
    for name, tensors in content.tensors.items():
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, temporary / name)
    sums = {name: _sum_of(temporary / name) for name in content.tensors}
    _complete(temporary, content.tables, sums)
    with placing():
        place_checkpoint(temporary, folder)
    _sync(folder.parent)


def write_tables(folder: Path, tables: Mapping[str, BaseModel], placing: Placing = nullcontext) -> None:
    """Write a checkpoint of this version anew with other tables, in its own place; its tensors stay the same files.

    They are linked, so that it costs next to nothing; copied where the file system has no links.
    """
    temporary = _aside(folder, folder.name)
    temporary.mkdir()
    written = _read_checksums(folder).files
    sums = {name: written[name] for name in written if name not in tables}
    for name in sums:
        try:
            (temporary / name).hardlink_to(folder / name)
        except OSError:
            shutil.copyfile(folder / name, temporary / name)
    _complete(temporary, tables, sums)
    with placing():
        place_checkpoint(temporary, folder)
    _sync(folder.parent)


def place_checkpoint(new: Path, folder: Path) -> None:
    """Rename a whole checkpoint, in place of an old one of that name.

    Of a kill between the two renames the old one is left under another name, see `clear_left_over`.
    """
    if not folder.exists():
        new.rename(folder)
        return
    old = _aside(folder, folder.name + _MOVED_AWAY)
    folder.rename(old)
    new.rename(folder)
    _sync(folder.parent)
    remove_checkpoint(old)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint. It loses its name first, so that a kill leaves no half of one under it."""
    removed = _aside(folder, "removed")
    folder.rename(removed)
    shutil.rmtree(removed)


def clear_left_over(folder: Path) -> None:
    """Remove what a writer that was killed has left beside the checkpoints of a folder.

    One that was moved away for a newer one gets its name back, where that one never had it.
    """
    for left_over in sorted(folder.glob(".tmp-*")):
        name = left_over.name.split("-", 2)[2]
        checkpoint = folder / name.removesuffix(_MOVED_AWAY)
        if name.endswith(_MOVED_AWAY) and not checkpoint.exists():
            left_over.rename(checkpoint)
        else:
            remove_checkpoint(left_over)


def verify_checkpoint(folder: Path) -> None:
    """Raise InputError, naming folder, file and fault, where a checkpoint does not hold what was written.

    One without checksums, of an older version, has nothing to be held against but the files that each must have.
    """
    of_training = (STATE_JSON, OPTIMIZER_FILE) if _is_training(folder) else ()
    for name in (CONFIG_JSON, MODEL_FILE, *of_training):
        if not (folder / name).is_file():
            raise _broken(folder / name, "the file is missing")
    if not (folder / CHECKSUMS_JSON).exists():
        return
    for name, expected in _read_checksums(folder).files.items():
        file = folder / name
        if not file.is_file():
            raise _broken(file, "the file is missing")
        if (found := file.stat().st_size) != expected.bytes:
            raise _broken(file, f"it has {found:,} bytes, and was written with {expected.bytes:,}")
        if (digest := file_sha256(file)) != expected.sha256:
            raise _broken(file, f"its sha256 is {digest[:12]}, and was {expected.sha256[:12]} when it was written")


def save_model(folder: Path, model: Seq2Seq, config: CheckpointConfig, placing: Placing = nullcontext) -> None:
    """Write the weights and their config as a new checkpoint folder, in place of an old one of that name."""
    write_checkpoint(folder, model_content(model, config), placing)


def save_training(
    folder: Path,
    model: Seq2Seq,
    optimizer: torch.optim.Optimizer,
    averages: Averages | None,
    config: CheckpointConfig,
    state: TrainState,
) -> Path:
    """Return the new folder `update-<n>` under `folder`, which holds all that training continues from."""
    path = training_folder(folder, state.update)
    write_checkpoint(path, training_content(model, optimizer, averages, config, state))
    return path


def training_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints to continue from, oldest first. A folder has its name only when it is whole."""
    found = [(update, path) for path in folder.glob("update-*") if (update := _update_of(path)) is not None]
    return [path for _, path in sorted(found)]


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
    verify_checkpoint(folder)
    model = build_model(config.model, config.source_size, config.target_size)
    _restore_weights(model, folder)
    return model, config


def load_training(
    folder: Path,
    model: Seq2Seq,
    optimizer: torch.optim.Optimizer,
    averages: Averages | None,
    tokenizer: str,
    part: Callable[[int, Tensor], Tensor] = lambda number, tensor: tensor,
) -> TrainState:
    """Return the state of training, having put weights, moments and averages back in place. Raises InputError.

    `part` gives what is kept here of a tensor that belongs to a trained weight, by the weight's number.
    """
    load_config(folder, tokenizer=tokenizer)
    verify_checkpoint(folder)
    _restore_weights(model, folder)
    _restore_optimizer(optimizer, _tensors(folder / OPTIMIZER_FILE), part)
    if averages is not None:
        stored = _tensors(folder / AVERAGES_FILE)
        for i, average in enumerate(averages.averages):
            average.copy_(part(i, stored[str(i)]))
    return read_state(folder)


def read_state(folder: Path) -> TrainState:
    """Return the state of what training continues from. Raises InputError where the file cannot be read."""
    try:
        return TrainState.model_validate_json((folder / STATE_JSON).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise _broken(folder / STATE_JSON, error) from error


def _update_of(folder: Path) -> int | None:
    """Return the update whose training goes on from a folder, by its name; None of any other folder."""
    found = re.fullmatch(r"update-([0-9]+)", folder.name)
    return int(found[1]) if found else None


def _is_training(folder: Path) -> bool:
    return _update_of(folder) is not None or (folder / STATE_JSON).exists()


def _aside(folder: Path, name: str) -> Path:
    """Return a path beside a checkpoint that no reader looks at."""
    return folder.with_name(f".tmp-{uuid.uuid4().hex}-{name}")


def _complete(temporary: Path, tables: Mapping[str, BaseModel], sums: Mapping[str, FileSum]) -> None:
    """Write the tables beside files whose checksums are known, then all checksums; have all of it on the disk."""
    for name, table in tables.items():
        (temporary / name).write_text(table.model_dump_json(indent=1) + "\n", encoding="utf-8")
    files = {**sums, **{name: _sum_of(temporary / name) for name in tables}}
    (temporary / CHECKSUMS_JSON).write_text(Checksums(files=files).model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name in (*files, CHECKSUMS_JSON, "."):
        _sync(temporary / name)


def _sum_of(path: Path) -> FileSum:
    return FileSum(bytes=path.stat().st_size, sha256=file_sha256(path))


def _read_checksums(folder: Path) -> Checksums:
    path = folder / CHECKSUMS_JSON
    try:
        return Checksums.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _broken(path, error) from error


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unshared(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by name, each storage once: of tied weights the first name stands for all."""
    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        kept[name] = tensor.detach()
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


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], part: Callable[[int, Tensor], Tensor]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = part(int(index), value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error
    return tensors


def _broken(path: Path, error: object) -> InputError:
    if _is_training(path.parent):
        remedy = "Train with --continue-from-earlier to go on from the checkpoint before it: the weights are the same"
    else:
        remedy = "Copy the model again from where it was made, or train it again"
    return InputError(f"the checkpoint cannot be read: {error}", where=str(path), remedy=remedy)
