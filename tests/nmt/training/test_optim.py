"""Optimisers, clipping, averages: torch's own loop gives the same, and a stored run goes on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nmt.architectures import build_model
from nmt.batches import MicroBatch, collate
from nmt.checkpoint import CheckpointConfig, TrainState, load_training, save_training
from nmt.config import TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, clip, make_optimizer, state_numbers
from nmt.training.step import World, train_step
from pipelines.shards import ShardColumns

MODEL = RecurrentConfig(embedding_dim=6, hidden_dim=8, dropout=0.2)
RATE = 0.02
PLAIN = {"fused": False, "foreach": False}
OPTIMISERS: dict[str, tuple[dict[str, Any], Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "sgd": ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, RATE, **PLAIN)),
    "momentum": (
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, RATE, momentum=0.9, weight_decay=0.01, **PLAIN),
    ),
    "adam": (
        {"optimizer": "adam", "adam_betas": (0.8, 0.95)},
        lambda p: torch.optim.Adam(p, RATE, betas=(0.8, 0.95), **PLAIN),
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, RATE, betas=(0.9, 0.98), weight_decay=0.1, **PLAIN),
    ),
    "adafactor": (
        {"optimizer": "adafactor", "weight_decay": 0.01},
        lambda p: torch.optim.Adafactor(p, RATE, weight_decay=0.01, foreach=False),
    ),
}


def config_of(name: str) -> TrainConfig:
    return TrainConfig.model_validate({"clip_norm": None, **OPTIMISERS[name][0]})


def toy_batch(update: int) -> MicroBatch:
    rng = np.random.default_rng(4)
    lengths = rng.integers(2, 7, 8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(4, 19, offsets[-1]).astype(np.int32)
    shards = ShardColumns(np.arange(8), ids, offsets, ids[::-1].copy(), offsets)
    return collate(shards, np.asarray([update % 8, (update + 3) % 8]))


def run_updates(
    model: Seq2Seq,
    optimizer: torch.optim.Optimizer,
    averages: Averages | None,
    config: TrainConfig,
    updates: range,
    *,
    held: list[nn.Parameter] | None = None,
) -> None:
    """Do these updates. With `held` parameters get no gradient before update 3."""
    flat = FlatGradients(list(model.parameters()))
    for update in updates:
        flat.hold(held or [], update < 3)
        batch = toy_batch(update)
        train_step(
            model, optimizer, flat, averages, [(0, batch)], config,
            update=update, target_tokens=int(batch.target_lengths.sum()), rate=RATE, world=World(),
        )  # fmt: skip


def plain_model() -> Seq2Seq:
    return build_model(MODEL.model_copy(update={"dropout": 0.0}), 19, 19, seed=2).double()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_five_updates_are_those_of_torchs_own_loop(name: str) -> None:
    config, model, reference = config_of(name), plain_model(), plain_model()
    run_updates(model, make_optimizer(config, model.parameters()), None, config, range(5))
    optimizer = OPTIMISERS[name][1](list(reference.parameters()))
    for update in range(5):
        batch = toy_batch(update)
        optimizer.zero_grad()
        vectors = reference(batch.src, batch.src_lengths, batch.previous).vectors
        real = batch.target_mask()
        F.cross_entropy(reference.logits(vectors)[real], batch.target[real], label_smoothing=0.1).backward()
        optimizer.step()
    for found, expected, first in zip(model.parameters(), reference.parameters(), plain_model().parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(found, first)


def test_sgd_with_momentum_is_its_recurrence() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    config = TrainConfig(optimizer="sgd", momentum=0.5, weight_decay=0.1, learning_rate=0.2)
    optimizer = make_optimizer(config, [weight])
    expected, velocity = np.asarray([1.0, -2.0]), np.zeros(2)
    for gradient in ([0.3, 0.1], [-0.2, 0.4], [0.0, 1.0]):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        velocity = 0.5 * velocity + np.asarray(gradient) + 0.1 * expected
        expected = expected - 0.2 * velocity
    assert weight.tolist() == pytest.approx(expected.tolist(), rel=1e-14)


def test_adafactor_is_algorithm_4_of_its_paper() -> None:
    draw = np.random.default_rng(3)
    start, gradients = draw.normal(size=(3, 4)), draw.normal(size=(4, 3, 4))
    weight = nn.Parameter(torch.tensor(start))
    optimizer = make_optimizer(TrainConfig(optimizer="adafactor", learning_rate=0.3), [weight])
    expected, rows, columns = start.copy(), np.zeros((3, 1)), np.zeros((1, 4))
    tiny = np.finfo(np.float64).eps ** 2
    for step, gradient in enumerate(gradients, start=1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        decay = 1.0 - step**-0.8
        rows = decay * rows + (1.0 - decay) * np.square(gradient).mean(1, keepdims=True)
        columns = decay * columns + (1.0 - decay) * np.square(gradient).mean(0, keepdims=True)
        change = gradient / np.sqrt(np.maximum(rows @ columns / rows.mean(), tiny))
        change /= max(1.0, np.sqrt(np.square(change).mean()))
        relative = min(0.3, step**-0.5) * max(1e-3, np.sqrt(np.square(expected).mean()))
        expected = expected - relative * change
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("with_held", [False, True], ids=["all", "some begin later"])
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stored_run_goes_on_bit_for_bit(tmp_path: Path, name: str, with_held: bool, stop: int) -> None:
    def fresh(seed: int) -> tuple[Seq2Seq, torch.optim.Optimizer, Averages, list[nn.Parameter]]:
        model = build_model(MODEL, 19, 19, seed=seed)
        held = [model.source_embedding.table.weight, model.output_bias] if with_held else []
        return model, make_optimizer(config, model.parameters()), Averages(model.parameters(), 0.9), held

    config = config_of(name)
    whole, whole_optimizer, whole_averages, held = fresh(1)
    run_updates(whole, whole_optimizer, whole_averages, config, range(6), held=held)

    model, optimizer, averages, held = fresh(1)
    run_updates(model, optimizer, averages, config, range(stop), held=held)
    about = CheckpointConfig(model=MODEL, source_size=19, target_size=19, tokenizer="t" * 64, update=stop)
    path = save_training(tmp_path, model, optimizer, averages, about, TrainState(update=stop))
    model, optimizer, averages, held = fresh(9)
    load_training(path, model, optimizer, averages, "t" * 64)
    run_updates(model, optimizer, averages, config, range(stop, 6), held=held)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(averages.averages, whole_averages.averages))
    found, expected = optimizer.state_dict()["state"], whole_optimizer.state_dict()["state"]
    assert found.keys() == expected.keys()
    for index, values in expected.items():
        assert found[index].keys() == values.keys()
        assert all(torch.equal(found[index][key], value) for key, value in values.items())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_numbers_that_an_optimiser_keeps_are_foreseen(name: str) -> None:
    config, model = config_of(name), plain_model()
    optimizer = make_optimizer(config, model.parameters())
    expected = state_numbers(config, model.parameters())
    run_updates(model, optimizer, None, config, range(1))
    kept = [value for values in optimizer.state.values() for key, value in values.items() if key != "step"]
    assert sum(value.numel() for value in kept) == expected


def test_clipping_scales_to_the_bound_and_only_above_it() -> None:
    gradients = torch.tensor([3.0, 4.0])
    assert clip(gradients, 10.0, None) == 5.0
    assert gradients.tolist() == [3.0, 4.0]
    assert clip(gradients, 1.0, None) == 5.0
    assert gradients.tolist() == pytest.approx([0.6, 0.8])
    assert clip(gradients, None, None) == pytest.approx(1.0)
    assert gradients.tolist() == pytest.approx([0.6, 0.8])


def test_clipping_by_value_and_then_by_norm_is_torchs() -> None:
    drawn = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for max_norm, max_value in ((None, 0.7), (2.0, 0.7), (2.0, None), (100.0, 0.7)):
        reference = nn.Parameter(torch.zeros(50, dtype=torch.float64))
        reference.grad = drawn.clone()
        if max_value is not None:
            nn.utils.clip_grad_value_(reference, max_value)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(reference, max_norm)
        found = drawn.clone()
        assert clip(found, max_norm, max_value) == pytest.approx(float(drawn.norm()), rel=1e-12)
        torch.testing.assert_close(found, reference.grad, rtol=1e-6, atol=0)
        assert not torch.equal(found, drawn)


@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
def test_a_gradient_that_is_not_finite_is_not_hidden_by_clipping(wrong: float) -> None:
    gradients = torch.tensor([1.0, wrong, 9.0])
    assert not np.isfinite(clip(gradients, 1.0, 2.0))
    assert gradients[[0, 2]].tolist() == [1.0, 9.0]


def test_averages_follow_their_recurrence_and_swap_back() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    averages = Averages([weight], 0.5)
    with torch.no_grad():
        weight.fill_(3.0)
    averages.update(0)  # decay 0.1 at the start
    assert averages.averages[0].item() == pytest.approx(2.8)
    averages.update(1000)  # and 0.5 at last
    assert averages.averages[0].item() == pytest.approx(2.9)
    averages.swap()
    assert weight.item() == pytest.approx(2.9)
    averages.swap()
    assert weight.item() == 3.0
