"""The checkpoint contract: write and read, refuse another version or tokeniser, never half there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from nmt.architectures import build_model
from nmt.checkpoint import (
    CheckpointConfig,
    TrainState,
    load_model,
    load_training,
    save_model,
    save_training,
    training_checkpoints,
    verify_checkpoint,
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
