"""Stored samples of each format version that this version promises to read: the files are never written again."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from nmt.checkpoint import TrainState, load_model, load_training
from nmt.config import TrainConfig
from nmt.training.optim import Averages, make_optimizer
from pipelines.shards import check_shard, check_texts, read_shards

FORMATS = Path(__file__).parents[1] / "data" / "formats"
TOKENIZER = "0" * 64


def test_a_model_of_checkpoint_format_1_gives_the_scores_that_it_gave_when_it_was_stored() -> None:
    model, config = load_model(FORMATS / "checkpoint-1", tokenizer=TOKENIZER)
    assert config.update == 1
    assert config.dev == {"bleu": 12.5, "loss": 2.5}
    vectors = model(torch.tensor([[4, 5, 3]]), torch.tensor([3]), torch.tensor([[2, 6]])).vectors
    expected = [[-0.00074959, 0.07739340, -0.01914847, 0.08726666], [-0.00074140, 0.11591738, 0.01609131, 0.04883302]]
    for found, row in zip(model.logits(vectors)[0, :, :4].tolist(), expected):
        assert found == pytest.approx(row, abs=1e-6)


def test_training_continues_from_checkpoint_format_1() -> None:
    model, _ = load_model(FORMATS / "checkpoint-1")
    optimizer, averages = make_optimizer(TrainConfig(), model.parameters()), Averages(model.parameters(), 0.9)
    state = load_training(FORMATS / "checkpoint-1", model, optimizer, averages, TOKENIZER)
    assert state == TrainState(update=1, updates_of_epoch=1, target_tokens=7)
    # One step of Adam with gradients of a half: the first moment is (1 - beta1) / 2 everywhere.
    moments = [values["exp_avg"] for values in optimizer.state_dict()["state"].values()]
    assert len(moments) == len(list(model.parameters()))
    assert all(torch.allclose(moment, torch.full_like(moment, 0.05)) for moment in moments)


def test_a_shard_of_format_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes((FORMATS / "shard-1.parquet").read_bytes())
    assert check_shard(tmp_path / "part-00000.parquet", TOKENIZER) == 2
    shards = read_shards(tmp_path, TOKENIZER)
    assert shards.row_id.tolist() == [0, 2**40 + 3]
    assert shards.src.tolist() == [4, 5, 3, 6, 3]
    assert shards.src_offsets.tolist() == [0, 3, 5]
    assert shards.tgt.tolist() == [7, 3, 8, 9, 3]


def test_a_shard_of_format_1_with_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes((FORMATS / "shard-1-text.parquet").read_bytes())
    assert check_shard(tmp_path / "part-00000.parquet", TOKENIZER) == 2
    shards = read_shards(tmp_path, TOKENIZER)
    assert shards.src.tolist() == [4, 5, 3, 6, 3]
    assert shards.tgt.tolist() == [7, 3, 8, 9, 3]
    check_texts(tmp_path)
    texts = pq.read_table(tmp_path / "part-00000.parquet", columns=["src_text", "tgt_text"])
    assert texts.to_pydict() == {"src_text": ["red house", "cat"], "tgt_text": ["Haus", "die Katze"]}
