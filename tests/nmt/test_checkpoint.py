"""The checkpoint contract: write and read, refuse another version or tokeniser, never half there."""

from __future__ import annotations

import json
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
