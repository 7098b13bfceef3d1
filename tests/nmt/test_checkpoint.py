"""The checkpoint contract: write and read, refuse another version or tokeniser, never half there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nmt.architectures import build_model
from nmt.checkpoint import (
    CheckpointConfig,
    TrainState,
    clear_left_over,
    load_model,
    load_training,
    place_checkpoint,
    read_state,
    remove_checkpoint,
    save_model,
    save_training,
    training_checkpoints,
    training_folder,
    verify_checkpoint,
    write_tables,
)
from nmt.config import TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.training.optim import Averages, make_optimizer
from pipelines.errors import InputError

MODEL = RecurrentConfig(embedding_dim=6, hidden_dim=8)
CONFIG = CheckpointConfig(model=MODEL, source_size=11, target_size=11, tokenizer="t" * 64, update=7)


def trained() -> tuple[Seq2Seq, torch.optim.Optimizer, Averages]:
    model = build_model(MODEL, 11, 11, seed=5)
    optimizer = make_optimizer(TrainConfig(), model.parameters())
    averages = Averages(model.parameters(), 0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    averages.update(3)
    return model, optimizer, averages


def test_what_training_continues_from_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer, averages = trained()
    state = TrainState(update=7, epoch=1, updates_of_epoch=2, best_metric=1.5, best_dev={"bleu": 1.5})
    path = save_training(tmp_path, model, optimizer, averages, CONFIG, state)
    assert training_checkpoints(tmp_path) == [path]

    fresh = build_model(MODEL, 11, 11, seed=6)
    fresh_optimizer = make_optimizer(TrainConfig(), fresh.parameters())
    fresh_averages = Averages(fresh.parameters(), 0.9)
    assert load_training(path, fresh, fresh_optimizer, fresh_averages, "t" * 64) == state
    for found, expected in zip(fresh.parameters(), model.parameters()):
        assert torch.equal(found, expected)
    for found, expected in zip(fresh_averages.averages, averages.averages):
        assert torch.equal(found, expected)
    for old, new in ((optimizer, fresh_optimizer),):
        for index, values in old.state_dict()["state"].items():
            for name, value in values.items():
                assert torch.equal(new.state_dict()["state"][index][name], value)


def test_a_model_comes_back_with_tied_weights_tied(tmp_path: Path) -> None:
    model, _, _ = trained()
    save_model(tmp_path / "best", model, CONFIG)
    found, config = load_model(tmp_path / "best", tokenizer="t" * 64)
    assert config == CONFIG
    assert found.source_embedding.table.weight is found.target_embedding.table.weight
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters()))


def test_a_checkpoint_of_another_tokeniser_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "best", trained()[0], CONFIG)
    with pytest.raises(InputError, match="belongs to the tokeniser tttttttttttt, found the tokeniser uuuuuuuuuuuu"):
        load_model(tmp_path / "best", tokenizer="u" * 64)


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "best", trained()[0], CONFIG)
    path = tmp_path / "best" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="checkpoint format 99, this version reads 1"):
        load_model(tmp_path / "best")


@pytest.mark.parametrize("damage", ["truncated", "missing", "other"])
def test_damaged_weights_are_named(tmp_path: Path, damage: str) -> None:
    save_model(tmp_path / "best", trained()[0], CONFIG)
    path = tmp_path / "best" / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        path.unlink()
    else:
        other = build_model(RecurrentConfig(embedding_dim=6, hidden_dim=10), 11, 11)
        save_model(tmp_path / "other", other, CONFIG)
        path.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(tmp_path / "best")


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-update-00000009").mkdir()
    model, optimizer, averages = trained()
    path = save_training(tmp_path, model, optimizer, averages, CONFIG, TrainState(update=7))
    assert training_checkpoints(tmp_path) == [path]


def test_checkpoints_come_in_the_order_of_their_updates_however_many_digits_these_have(tmp_path: Path) -> None:
    updates = [7, 99_999_999, 100_000_000, 100_000_001, 1_000_000_000]
    for update in reversed(updates):
        training_folder(tmp_path, update).mkdir()
    for name in ("update-", "update-7-copy", "update-00000005.part", "unreadable-1-update-00000006"):
        (tmp_path / name).mkdir()
    assert training_checkpoints(tmp_path) == [training_folder(tmp_path, update) for update in updates]


# Kills


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_in(monkeypatch: pytest.MonkeyPatch, name: str, calls: int, work: Callable[[], object]) -> None:
    """Have a process do some work that is killed before a call of a function of files, after so many others of it."""
    owner, attribute = {"rename": (Path, "rename"), "rmtree": (shutil, "rmtree")}[name]
    real, left = getattr(owner, attribute), calls

    def killing(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            if name == "rmtree":  # it has removed some of the files
                next(Path(arguments[0]).glob("checksums.json")).unlink()
            raise Killed
        left -= 1
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, attribute, killing)
        work()


@pytest.mark.parametrize(
    ("name", "calls", "epoch"), [("rename", 0, 1), ("rename", 1, 1), ("rename", 2, 2), ("rmtree", 0, 2)]
)
def test_a_kill_while_a_checkpoint_takes_the_place_of_another_leaves_one_of_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: int, epoch: int
) -> None:
    held = trained()

    def save(epoch: int) -> Path:
        return save_training(tmp_path, *held, CONFIG, TrainState(update=7, epoch=epoch))

    path = save(1)
    killed_in(monkeypatch, name, calls, lambda: save(2))
    clear_left_over(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    verify_checkpoint(path)
    assert read_state(path).epoch == epoch


@pytest.mark.parametrize("name", ["rename", "rmtree"])
def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = save_training(tmp_path, *trained(), CONFIG, TrainState(update=7))
    killed_in(monkeypatch, name, 0, lambda: remove_checkpoint(path))
    assert training_checkpoints(tmp_path) == ([path] if name == "rename" else [])
    clear_left_over(tmp_path)
    assert list(tmp_path.iterdir()) == ([path] if name == "rename" else [])


def test_a_kill_while_a_model_is_renamed_in_place_of_another_leaves_both_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("old", "new"):
        save_model(tmp_path / folder, trained()[0], CONFIG.model_copy(update={"dev": {folder: 1.0}}))
    killed_in(monkeypatch, "rename", 1, lambda: place_checkpoint(tmp_path / "new", tmp_path / "old"))
    clear_left_over(tmp_path)
    assert [load_model(tmp_path / folder)[1].dev for folder in ("old", "new")] == [{"old": 1.0}, {"new": 1.0}]
    place_checkpoint(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert load_model(tmp_path / "old")[1].dev == {"new": 1.0}


# Tables that are written anew


@pytest.mark.parametrize("links", [True, False])
def test_tables_are_written_anew_beside_the_same_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    held = trained()
    path = save_training(tmp_path, *held, CONFIG, TrainState(update=7))
    names = ["model.safetensors", "optimizer.safetensors", "averages.safetensors"]
    before = {name: ((path / name).stat().st_ino, load_file(path / name)) for name in names}

    def no_links(path: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    state = TrainState(update=7, validated_update=7, best_metric=3.5)
    write_tables(path, {"config.json": CONFIG, "state.json": state})
    verify_checkpoint(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for name, (inode, tensors) in before.items():
        assert ((path / name).stat().st_ino == inode) is links
        found = load_file(path / name)
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    assert load_training(path, *held, "t" * 64) == state


# Checksums


def test_each_file_of_a_checkpoint_has_its_size_and_sha256_written_last(tmp_path: Path) -> None:
    model, optimizer, averages = trained()
    path = save_training(tmp_path, model, optimizer, averages, CONFIG, TrainState(update=7))
    sums = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
    assert sums["format"] == 1
    files = {file.name for file in path.iterdir()} - {"checksums.json"}
    assert files == {"config.json", "model.safetensors", "optimizer.safetensors", "averages.safetensors", "state.json"}
    assert sums["files"] == {
        name: {
            "bytes": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in files
    }


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "optimizer.safetensors", "averages.safetensors", "state.json"]
)
def test_a_changed_byte_of_any_file_is_found_and_named_before_training_continues(tmp_path: Path, name: str) -> None:
    model, optimizer, averages = trained()
    path = save_training(tmp_path, model, optimizer, averages, CONFIG, TrainState(update=7))
    data = (path / name).read_bytes()
    # A digit for another one, so that JSON stays JSON; in the weights any byte.
    place = max(data.rfind(b"7"), 0) if name.endswith(".json") else len(data) - 1
    (path / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(InputError, match="its sha256 is") as raised:
        load_training(path, model, optimizer, averages, "t" * 64)
    assert raised.value.where == str(path / name)
    assert "--continue-from-earlier" in raised.value.remedy


def test_a_file_that_is_missing_or_too_short_is_named(tmp_path: Path) -> None:
    save_model(tmp_path / "best", trained()[0], CONFIG)
    path = tmp_path / "best" / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"it has {size - 100:,} bytes, and was written with {size:,}"):
        verify_checkpoint(tmp_path / "best")
    path.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: .*the file is missing"):
        verify_checkpoint(tmp_path / "best")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_without_checksums_needs_the_files_that_each_has(tmp_path: Path, name: str) -> None:
    path = save_training(tmp_path, *trained(), CONFIG, TrainState(update=7))
    (path / "checksums.json").unlink()
    verify_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(InputError, match="the file is missing") as raised:
        verify_checkpoint(path)
    assert raised.value.where == str(path / name)
    assert "--continue-from-earlier" in raised.value.remedy


def test_checksums_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    save_model(tmp_path / "best", trained()[0], CONFIG)
    (tmp_path / "best" / "checksums.json").write_text('{"format": 1, "fil')
    with pytest.raises(InputError, match=r"checksums\.json"):
        load_model(tmp_path / "best")


def test_a_checkpoint_of_a_version_without_checksums_is_read(tmp_path: Path) -> None:
    model, _, _ = trained()
    save_model(tmp_path / "best", model, CONFIG)
    (tmp_path / "best" / "checksums.json").unlink()
    found, _ = load_model(tmp_path / "best")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters()))


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, Path.rename
    descriptors = "/proc/self/fd"

    def noted_sync(descriptor: int) -> None:
        steps.append(Path(f"{descriptors}/{descriptor}").readlink().name)
        sync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr("os.fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    save_model(tmp_path / "best", trained()[0], CONFIG)
    place = steps.index("rename")
    assert {"model.safetensors", "config.json", "checksums.json"} < set(steps[:place])
    assert steps[place - 1].endswith("-best")  # the folder's names
    assert steps[place + 1 :] == [tmp_path.name]


def test_a_checkpoint_takes_the_place_of_one_of_the_same_name(tmp_path: Path) -> None:
    model, _, _ = trained()
    save_model(tmp_path / "best", model, CONFIG)
    with torch.no_grad():
        model.output_bias.add_(1.0)
    save_model(tmp_path / "best", model, CONFIG)
    found, _ = load_model(tmp_path / "best")
    assert torch.equal(found.output_bias, model.output_bias)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
