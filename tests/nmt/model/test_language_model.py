"""The language model against torch's LSTM, and trained by the trainer itself: one side, no translations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.architectures import build_model
from nmt.batches import MicroBatch, collate, one_sided
from nmt.checkpoint import load_model, training_checkpoints
from nmt.config import TrainConfig
from nmt.model.embeddings import keep_mask
from nmt.model.language_model import RecurrentLanguageModelConfig
from nmt.model.seq2seq import Encoded, Seq2Seq
from nmt.objectives.supervised import supervised
from nmt.train import train
from nmt.training.metrics import read_metrics
from nmt.training.progress import validation_line
from pipelines.errors import InputError
from pipelines.shards import read_shards
from pipelines.stage import StageRun
from pipelines.tokenizer import BOS_ID, EOS_ID
from tests.nmt.conftest import ToyStages, toy_pairs
from tests.nmt.toy_runs import broken_off_at

SIZE = 19
EXACT = {"rtol": 1e-10, "atol": 1e-12}
CONFIG = RecurrentLanguageModelConfig(embedding_dim=5, hidden_dim=7, layers=2, dropout=0.0, tie_target_embeddings=False)


def model_of(**changes: Any) -> Seq2Seq:
    return build_model(CONFIG.model_copy(update=changes), SIZE, SIZE, seed=2).double()


def batch() -> MicroBatch:
    """Return three texts of unlike lengths: a language model's sources have no piece."""
    target = torch.tensor([[5, 6, 7, 8, EOS_ID], [9, EOS_ID, 0, 0, 0], [4, 5, EOS_ID, 0, 0]])
    previous = torch.cat([torch.full((3, 1), BOS_ID), target[:, :-1]], dim=1)
    nothing = torch.zeros(3, 0, dtype=torch.long)
    return MicroBatch(nothing, torch.zeros(3, dtype=torch.long), previous, target, torch.tensor([5, 2, 3]))


# The model


class Reference(nn.Module):
    """A language model of torch's own layers with the weights of ours."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, 5).double()
        self.lstm = nn.LSTM(5, 7, num_layers=2, batch_first=True).double()
        self.output = nn.Linear(7, SIZE).double()
        with torch.no_grad():
            self.embedding.weight.copy_(model.target_embedding.table.weight)
            self.output.weight.copy_(model.output_weight)
            self.output.bias.copy_(model.output_bias)
            for depth, layer in enumerate(model.decoder.layers):  # type: ignore[arg-type, union-attr]
                for name, weight in layer.named_parameters():
                    getattr(self.lstm, name.replace("l0", f"l{depth}")).copy_(weight)

    def forward(self, previous: Tensor) -> Tensor:
        logits: Tensor = self.output(self.lstm(self.embedding(previous))[0])
        return logits


def test_loss_and_gradients_are_those_of_torchs_lstm_and_cross_entropy() -> None:
    model, given = model_of(), batch()
    with torch.no_grad():
        model.output_bias.normal_(generator=torch.Generator().manual_seed(1))
    reference = Reference(model)
    loss = supervised(model, given, None, label_smoothing=0.1)
    real = given.target_mask()
    logits = reference(given.previous)[real]
    expected = F.cross_entropy(logits, given.target[real], label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss.total, expected, **EXACT)
    torch.testing.assert_close(loss.nll, F.cross_entropy(logits, given.target[real], reduction="sum"), **EXACT)
    loss.total.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(model.target_embedding.table.weight.grad, reference.embedding.weight.grad, **EXACT)
    torch.testing.assert_close(model.output_weight.grad, reference.output.weight.grad, **EXACT)
    for depth, layer in enumerate(model.decoder.layers):  # type: ignore[arg-type, union-attr]
        for name, weight in layer.named_parameters():
            torch.testing.assert_close(
                weight.grad, getattr(reference.lstm, name.replace("l0", f"l{depth}")).grad, **EXACT
            )


@pytest.mark.parametrize("cell", ["tanh", "relu", "leaky_relu", "gru", "lstm", "peephole_lstm"])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [4, 1]])
def test_steps_by_any_number_give_what_all_at_once_give(cell: str, sizes: list[int]) -> None:
    model, given = model_of(cell=cell, residual=True, layer_norm=True), batch()
    with torch.no_grad():
        encoded = model.encode(given.src, given.src_lengths)
        together = model.decode(given.previous, encoded, need_weights=True)
        assert together.weights is None
        vectors = []
        for part in given.previous.split(sizes, dim=1):
            vector, state, _ = model.decode(part, encoded)
            vectors.append(vector)
            encoded = Encoded(encoded.memory, state)
    torch.testing.assert_close(torch.cat(vectors, dim=1), together.vectors, **EXACT)


def test_rows_can_be_selected_midway() -> None:
    model, given = model_of(), batch()
    rows = torch.tensor([2, 0, 0])
    with torch.no_grad():
        encoded = model.encode(given.src, given.src_lengths)
        expected = model.decode(given.previous, encoded).vectors[rows, 2:]
        state = model.decode(given.previous[:, :2], encoded).state
        found = model.decode(given.previous[rows, 2:], Encoded(encoded.memory, state).select(rows)).vectors
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_residual_adds_a_layers_input_to_its_output() -> None:
    plain, residual = model_of(layers=2), model_of(layers=2, residual=True)
    first = model_of(layers=1)
    first.load_state_dict(plain.state_dict(), strict=False)
    given = batch()
    arguments = (given.src, given.src_lengths, given.previous)
    with torch.no_grad():
        expected = plain(*arguments).vectors + first(*arguments).vectors
        torch.testing.assert_close(residual(*arguments).vectors, expected, **EXACT)


def test_recurrent_dropout_is_one_mask_over_time_on_the_hidden_state() -> None:
    model, given = model_of(cell="tanh", layers=1, recurrent_dropout=0.4), batch()
    (layer,) = model.decoder.layers  # type: ignore[union-attr, misc]
    cell = nn.RNNCell(5, 7).double()
    cell.load_state_dict(layer.state_dict())
    mask = keep_mask((3, 7), 0.4, torch.Generator().manual_seed(5), like=torch.zeros((), dtype=torch.float64))
    hidden, expected = torch.zeros(3, 7, dtype=torch.float64), []
    with torch.no_grad():
        found = model(given.src, given.src_lengths, given.previous, torch.Generator().manual_seed(5)).vectors
        for embedded in model.target_embedding.table.weight[given.previous].unbind(1):
            hidden = cell(embedded, mask * hidden)
            expected.append(hidden)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), **EXACT)


def test_a_tied_output_layer_has_a_map_before_it_where_sizes_differ() -> None:
    tied = model_of(tie_target_embeddings=True)
    assert tied.output_matrix is tied.target_embedding.table.weight
    given, loose = batch(), model_of()
    arguments = (given.src, given.src_lengths, given.previous)
    loose.load_state_dict(tied.state_dict(), strict=False)
    with torch.no_grad():
        expected = tied.decoder.projection(loose(*arguments).vectors)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(tied(*arguments).vectors, expected, **EXACT)
    same = model_of(tie_target_embeddings=True, embedding_dim=7)
    assert not [name for name, _ in same.named_parameters() if "projection" in name]


@pytest.mark.parametrize(("side", "size"), [("source", 30), ("target", 20)])
def test_it_has_one_embedding_and_that_is_of_its_side(side: str, size: int) -> None:
    model = build_model(CONFIG.model_copy(update={"side": side}), 30, 20)
    assert [name for name, _ in model.named_parameters() if "embedding" in name] == ["target_embedding.table.weight"]
    assert model.target_embedding.table.weight.shape == (size, 5)
    assert model.target_size == size


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"share_embeddings": True}, "share_embeddings"),
        ({"source_vectors": "a.vec"}, "leave source_vectors out"),
        ({"target_vectors": "a.vec", "side": "source"}, "leave target_vectors out"),
    ],
)
def test_keys_of_a_source_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RecurrentLanguageModelConfig(**keys)


# The trainer

TINY = RecurrentLanguageModelConfig(embedding_dim=16, hidden_dim=24, layers=1, dropout=0.1, recurrent_dropout=0.1)
TRAIN = TrainConfig(
    max_epochs=6, patience=6, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.01, warmup_updates=4,
    ema_decay=0.9, checkpoint_updates=3, log_updates=2, early_stopping_metric="loss",
)  # fmt: skip


def run_train(toy: ToyStages, root: Path, *, side: str = "target", **options: Any) -> StageRun:
    model = TINY.model_copy(update={"side": side})
    config = options.pop("config", TRAIN)
    return train(model, config, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, root, use_ray=False, **options)


@pytest.fixture(scope="module")
def undisturbed(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("undisturbed"))


def validations(run: StageRun) -> list[dict[str, Any]]:
    return [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "validation"]


def test_training_lowers_the_perplexity_and_keeps_the_best_checkpoint(undisturbed: StageRun) -> None:
    records = validations(undisturbed)
    assert [record["epoch"] for record in records] == list(range(TRAIN.max_epochs))
    assert records[-1]["perplexity"] < 0.7 * records[0]["perplexity"]
    assert all(record["perplexity"] == math.exp(record["loss"]) for record in records)
    best = min(records, key=lambda record: record["loss"])
    counters = undisturbed.manifest.counters
    assert (counters["best_update"], counters["best_loss"]) == (best["update"], best["loss"])
    config = json.loads((undisturbed.folder / "best" / "config.json").read_text(encoding="utf-8"))
    assert config["dev"] == {"loss": best["loss"]}


def test_validation_makes_no_translations_and_no_bleu(undisturbed: StageRun) -> None:
    for record in validations(undisturbed):
        assert "bleu" not in record
        assert record["samples"] == []
        assert "BLEU" not in validation_line(record)
        assert f"perplexity {record['perplexity']:.2f}  (" in validation_line(record)
    assert "best_bleu" not in undisturbed.manifest.counters


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_best_loss_is_the_cross_entropy_of_its_side_of_dev(toy: ToyStages, tmp_path: Path, side: str) -> None:
    run = run_train(toy, tmp_path, side=side, config=TRAIN.model_copy(update={"max_epochs": 2}))
    model, config = load_model(run.folder / "best")
    assert config.update == run.manifest.counters["best_update"]
    shards = read_shards(toy.encoded.folder / "shards" / "dev")
    rows = np.arange(len(shards))
    nll, pieces = 0.0, 0
    for ids in shards.sources(rows) if side == "source" else shards.targets(rows):
        assert ids[-1] == EOS_ID
        target = torch.from_numpy(ids).long()[None]
        previous = torch.cat([torch.tensor([[BOS_ID]]), target[:, :-1]], dim=1)
        with torch.no_grad():
            encoded = model.encode(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
            scores = model.logits(model.decode(previous, encoded).vectors)
        nll += F.cross_entropy(scores[0], target[0], reduction="sum").item()
        pieces += len(ids)
    counters = run.manifest.counters
    characters = sum(len(pair[0 if side == "source" else 1]) for pair in toy_pairs("dev"))
    assert counters["best_loss"] == pytest.approx(nll / pieces, rel=1e-5)
    assert counters["best_perplexity"] == pytest.approx(math.exp(nll / pieces), rel=1e-5)
    assert counters["best_perplexity_per_character"] == pytest.approx(math.exp(nll / characters), rel=1e-5)
    assert (counters["dev_rows"], counters["dev_pieces"], counters["dev_characters"]) == (17, pieces, characters)


def test_updates_count_the_pieces_of_its_side(toy: ToyStages, tmp_path: Path) -> None:
    run = run_train(toy, tmp_path, side="source", config=TRAIN.model_copy(update={"max_epochs": 1}))
    shards = read_shards(toy.encoded.folder / "shards" / "train")
    assert run.manifest.counters["target_tokens"] == shards.src_lengths().sum()


def test_one_side_of_rows_stands_where_the_target_is_and_nothing_where_the_source_is(toy: ToyStages) -> None:
    shards, rows = read_shards(toy.encoded.folder / "shards" / "dev"), np.arange(4)
    found = collate(one_sided(shards, "source"), rows)
    assert found.src.shape == (4, 0)
    assert found.src_lengths.tolist() == [0] * 4
    for row, ids in enumerate(shards.sources(rows)):
        assert found.target[row, : len(ids)].tolist() == ids.tolist()
        assert found.previous[row, : len(ids)].tolist() == [BOS_ID, *ids[:-1].tolist()]
    assert one_sided(shards, None) is shards


def test_a_run_that_broke_off_within_an_epoch_continues_bit_for_bit(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    with broken_off_at(5):
        run_train(toy, tmp_path)
    assert training_checkpoints(next(tmp_path.glob("train-*")) / "checkpoints")
    found = final_weights(run_train(toy, tmp_path))
    expected = final_weights(undisturbed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def final_weights(run: StageRun) -> dict[str, Tensor]:
    return load_file(training_checkpoints(run.folder / "checkpoints")[-1] / "model.safetensors")


def test_early_stopping_by_bleu_is_refused_with_the_remedy(toy: ToyStages, tmp_path: Path) -> None:
    config = TRAIN.model_copy(update={"early_stopping_metric": "bleu"})
    with pytest.raises(InputError) as raised:
        run_train(toy, tmp_path, config=config)
    assert raised.value.where == "train.early_stopping_metric"
    assert raised.value.remedy == "Set train.early_stopping_metric: loss"
    assert not list(tmp_path.iterdir())
