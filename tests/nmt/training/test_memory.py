"""Micro-batches in parts make the update of whole ones, dropout included, whatever does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import nmt.training.step as step_module
from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.batches import MicroBatch, collate
from nmt.config import ModelTable, TrainConfig
from nmt.model.batch_norm import collectors
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.objective import objective
from nmt.training.gradients import FlatGradients
from nmt.training.memory import Part, RowTooLarge, in_parts
from nmt.training.optim import make_optimizer
from nmt.training.step import UpdateFigures, World, train_step
from pipelines.errors import InputError
from pipelines.shards import ShardColumns

SIZE = 19
NOISE = {
    "recurrent": {"embedding_dim": 6, "hidden_dim": 8, "dropout": 0.3, "recurrent_dropout": 0.3, "word_dropout": 0.2},
    "transformer": {
        "embedding_dim": 8, "attention_heads": 2, "feed_forward_dim": 12, "dropout": 0.3, "attention_dropout": 0.3,
        "activation_dropout": 0.3, "word_dropout": 0.2,
    },
    "convolutional": {"embedding_dim": 6, "hidden_dim": 8, "dropout": 0.3, "word_dropout": 0.2},
    "recurrent_lm": {
        "embedding_dim": 6, "hidden_dim": 8, "dropout": 0.3, "recurrent_dropout": 0.3, "word_dropout": 0.2,
        "side": "target",
    },
}  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "supervised": {},
    "rdrop": {"rdrop_weight": 2.0},
    "sampling": {"scheduled_sampling": 0.6, "scheduled_sampling_updates": 1},
}


def table_of(name: str) -> ModelTable:
    return architecture(name).table.model_validate({"architecture": name, **NOISE[name]})


def toy_batches(*rows: int) -> list[tuple[int, MicroBatch]]:
    """Return micro-batches of so many rows each, of lengths that differ."""
    rng, first = np.random.default_rng(4), 0
    lengths = rng.integers(2, 9, sum(rows))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(4, SIZE, offsets[-1]).astype(np.int32)
    shards, batches = ShardColumns(np.arange(sum(rows)), ids, offsets, ids[::-1].copy(), offsets), []
    for number, size in enumerate(rows):
        batches.append((number, collate(shards, np.arange(first, first + size))))
        first += size
    return batches


def fitting(limit: int, *, late: bool) -> Callable[..., Any]:
    """Return the objective on a device that has memory for so many rows; `late`: it is short in the backward pass."""

    def limited(model: Seq2Seq, batch: MicroBatch, *others: Any) -> Any:
        found = objective(model, batch, *others)
        if len(batch.target) > limit:
            if late:
                found.total.backward(retain_graph=True)  # what a pass that breaks off may have added before
            raise torch.OutOfMemoryError("out of memory, as a device would say")
        return found

    return limited


def update_of(
    table: ModelTable, config: TrainConfig, batches: list[tuple[int, MicroBatch]]
) -> tuple[UpdateFigures, torch.Tensor, list[torch.Tensor]]:
    """Return the figures, the gradient and the weights of one update in float64."""
    model = build_model(table, SIZE, SIZE, seed=3).double()
    parameters = list(model.parameters())
    flat = FlatGradients(parameters, collectors(model))
    figures = train_step(
        model, make_optimizer(config, parameters), flat, None, batches, config,
        update=7, target_tokens=sum(int(batch.target_lengths.sum()) for _, batch in batches), rate=0.01, world=World(),
    )  # fmt: skip
    return figures, flat.gradients.clone(), [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("objective_name", OBJECTIVES)
@pytest.mark.parametrize("name", NOISE)
def test_an_update_in_parts_is_the_update_of_whole_micro_batches_dropout_included(
    monkeypatch: pytest.MonkeyPatch, name: str, objective_name: str
) -> None:
    config = TrainConfig.model_validate({"clip_norm": None, **OBJECTIVES[objective_name]})
    batches = toy_batches(3, 7, 4)
    whole, gradient, weights = update_of(table_of(name), config, batches)
    monkeypatch.setattr(step_module, "objective", fitting(3, late=True))
    found, found_gradient, found_weights = update_of(table_of(name), config, batches)
    assert (whole.num_split, found.num_split) == (0, 2)
    assert (found.loss, found.nll) == pytest.approx((whole.loss, whole.nll), rel=1e-12)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-9, atol=1e-13)
    for part, together in zip(found_weights, weights):
        torch.testing.assert_close(part, together, rtol=1e-7, atol=1e-10)


def test_guided_attention_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(clip_norm=None, guided_alignment_weight=0.5)
    draw = torch.Generator().manual_seed(2)
    batches = [
        (number, batch._replace(alignment=torch.rand((*batch.target.shape, batch.src.shape[1]), generator=draw) < 0.3))
        for number, batch in toy_batches(3, 7)
    ]
    whole, gradient, _ = update_of(table_of("transformer"), config, batches)
    monkeypatch.setattr(step_module, "objective", fitting(3, late=True))
    found, found_gradient, _ = update_of(table_of("transformer"), config, batches)
    assert (found.num_split, found.loss) == (1, pytest.approx(whole.loss, rel=1e-12))
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-9, atol=1e-13)


def test_every_architecture_is_tried_in_parts() -> None:
    assert set(NOISE) == set(ARCHITECTURES)


def test_without_their_own_noise_rows_would_make_another_update(monkeypatch: pytest.MonkeyPatch) -> None:
    config, batches = TrainConfig(clip_norm=None), toy_batches(7)
    _, gradient, _ = update_of(table_of("transformer"), config, batches)
    monkeypatch.setattr(step_module, "objective", fitting(4, late=False))
    monkeypatch.setattr(step_module, "RowsNoise", lambda source, start, end, total: source)
    _, found, _ = update_of(table_of("transformer"), config, batches)
    assert not torch.allclose(found, gradient, rtol=1e-3)


def test_a_model_with_batch_norm_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    table = RecurrentConfig(embedding_dim=6, hidden_dim=8, batch_norm=True)
    monkeypatch.setattr(step_module, "objective", fitting(3, late=False))
    with pytest.raises(InputError, match="batch norm's statistics are of whole micro-batches") as caught:
        update_of(table, TrainConfig(), toy_batches(3, 7))
    assert caught.value.where == "train.microbatch_tokens"


def test_a_single_row_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_row_five(model: Seq2Seq, batch: MicroBatch, *others: Any) -> Any:
        if any(torch.equal(row, sixth) for row in batch.target):
            raise torch.OutOfMemoryError
        return objective(model, batch, *others)

    batches = toy_batches(3, 7)
    sixth = batches[1][1].target[5]
    monkeypatch.setattr(step_module, "objective", only_row_five)
    with pytest.raises(RowTooLarge, match="row 5 of micro-batch 1 does not fit") as caught:
        update_of(table_of("recurrent"), TrainConfig(), batches)
    assert (caught.value.place, caught.value.row) == (1, 5)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a fault of another kind")

    monkeypatch.setattr(step_module, "objective", broken)
    with pytest.raises(RuntimeError, match="a fault of another kind"):
        update_of(table_of("recurrent"), TrainConfig(), toy_batches(2))


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 100])
def test_every_row_is_counted_once_whatever_fits(limit: int) -> None:
    rows, counts = [8, 1, 5], [np.zeros(number, dtype=int) for number in (8, 1, 5)]

    def compute(part: Part) -> None:
        counts[part.place][part.start : part.end] += 1  # added before it breaks off
        if part.end - part.start > limit:
            raise torch.OutOfMemoryError

    def forget() -> None:
        for count in counts:
            count[:] = 0

    split = in_parts(rows, compute, forget, None)
    assert all((count == 1).all() for count in counts)
    assert split == sum(number > limit for number in rows)


def test_what_a_failed_attempt_held_is_free_before_the_next_one() -> None:
    held, alive = [], []

    class Held:
        def __init__(self) -> None:
            held.append(1)

        def __del__(self) -> None:
            held.pop()

    def compute(part: Part) -> None:
        alive.append(len(held))
        kept = Held()
        if part.is_whole():
            raise torch.OutOfMemoryError(str(kept))

    in_parts([4], compute, lambda: None, None)
    assert alive == [0, 0, 0]
