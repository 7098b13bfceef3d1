"""Guided alignment: the loss against a plain loop, its gradient through the attention of each model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nmt.batches import MicroBatch
from nmt.model.language_model import RecurrentLanguageModelConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.objectives.guidance import guidance
from nmt.objectives.rdrop import rdrop
from nmt.objectives.supervised import supervised
from tests.nmt.objectives.conftest import (
    MODELS,
    RECURRENT,
    TRANSFORMER,
    generator_of,
    gradients_of,
    model_of,
    toy_batch,
)


def aligned(batch: MicroBatch) -> MicroBatch:
    """Return the micro-batch with some links: one or two of each piece but the last, and none in row 1."""
    alignment = torch.zeros(*batch.target.shape, batch.src.shape[1], dtype=torch.bool)
    for row in (0, 2):
        for place in range(int(batch.target_lengths[row]) - 1):
            alignment[row, place, place % int(batch.src_lengths[row])] = True
            if place % 2:
                alignment[row, place, 0] = True
    return batch._replace(alignment=alignment)


def looped(weights: Tensor, alignment: Tensor) -> float:
    """Return the cross-entropy, link by link."""
    total, weights = 0.0, weights.detach()
    for row in range(len(weights)):
        for place in range(weights.shape[1]):
            links = [s for s in range(weights.shape[2]) if alignment[row, place, s]]
            total -= sum(math.log(float(weights[row, place, s])) / len(links) for s in links)
    return total


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_a_loop_over_the_links_of_the_models_own_weights(name: str) -> None:
    model, batch = model_of(MODELS[name]), aligned(toy_batch())
    weights = model(batch.src, batch.src_lengths, batch.previous, generator_of(), need_weights=True).weights
    assert batch.alignment is not None
    assert weights.shape == batch.alignment.shape
    # A window leaves some weights at 0, where the loss has its bound.
    expected = looped(weights.clamp(min=1e-9), batch.alignment)
    assert guidance(weights, batch.alignment).item() == pytest.approx(expected, rel=1e-12)
    plain = supervised(model, batch, generator_of(), label_smoothing=0.1)
    guided = supervised(model, batch, generator_of(), label_smoothing=0.1, alignment_weight=0.25)
    assert (guided.total - plain.total).item() == pytest.approx(0.25 * expected, rel=1e-9)
    assert (guided.nll, guided.weight) == (plain.nll, plain.weight)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    model, batch = model_of(MODELS[name]), aligned(toy_batch())
    found = gradients_of(
        model, supervised(model, batch, generator_of(), label_smoothing=0.0, alignment_weight=2.0).total
    )
    torch.manual_seed(0)
    named = dict(model.named_parameters())
    # The convolutional model scales its encoder's gradients.
    moves = [key for key in found if name != "convolutional" or key.startswith("decoder")]
    direction = {key: torch.randn_like(named[key]) for key in moves}
    slope = sum(float((found[key] * direction[key]).sum()) for key in moves)

    def moved(step: float) -> float:
        with torch.no_grad():
            for key, change in direction.items():
                named[key].add_(change, alpha=step)
            loss = supervised(model, batch, generator_of(), label_smoothing=0.0, alignment_weight=2.0).total
            for key, change in direction.items():
                named[key].sub_(change, alpha=step)
        return float(loss)

    assert (moved(1e-6) - moved(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_guidance_moves_attention_to_the_links() -> None:
    model, batch = model_of(TRANSFORMER), aligned(toy_batch())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def linked() -> float:
        weights = model(batch.src, batch.src_lengths, batch.previous, need_weights=True).weights
        assert batch.alignment is not None
        return ((weights * batch.alignment).sum() / batch.alignment.any(-1).sum()).item()

    before = linked()
    for _ in range(60):
        optimizer.zero_grad()
        supervised(model, batch, None, label_smoothing=0.1, alignment_weight=1.0).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert before < 0.5 < 0.9 < linked()


def test_rows_without_a_link_and_padding_add_nothing() -> None:
    model, batch = model_of(RECURRENT), aligned(toy_batch())
    assert batch.alignment is not None
    unlinked = batch._replace(alignment=torch.zeros_like(batch.alignment))
    plain = supervised(model, batch, generator_of(), label_smoothing=0.1)
    found = supervised(model, unlinked, generator_of(), label_smoothing=0.1, alignment_weight=1.0)
    assert torch.equal(found.total, plain.total)


def test_a_weight_of_nothing_is_bounded_and_gives_no_gradient_that_is_not_finite() -> None:
    scores = torch.tensor([[[0.0, -400.0]]], requires_grad=True)
    loss = guidance(scores.softmax(-1), torch.tensor([[[False, True]]]))
    assert loss.item() == pytest.approx(-math.log(1e-9), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss * 2.0**16, scores)
    assert torch.isfinite(gradient).all()


def test_the_two_passes_of_rdrop_are_guided_by_half_each() -> None:
    model, batch = model_of(TRANSFORMER), aligned(toy_batch())
    assert batch.alignment is not None
    generator = generator_of()
    passes = [
        looped(
            model(batch.src, batch.src_lengths, batch.previous, generator, need_weights=True).weights, batch.alignment
        )
        for _ in range(2)
    ]
    plain = rdrop(model, batch, generator_of(), label_smoothing=0.1, alpha=3.0)
    guided = rdrop(model, batch, generator_of(), label_smoothing=0.1, alpha=3.0, alignment_weight=0.4)
    assert (guided.total - plain.total).item() == pytest.approx(0.2 * sum(passes), rel=1e-9)


def test_a_model_without_attention_and_a_micro_batch_without_links_are_refused() -> None:
    silent = model_of(RecurrentConfig(embedding_dim=8, hidden_dim=8, attention="none"))
    with pytest.raises(ValueError, match="a model with attention"):
        supervised(silent, aligned(toy_batch()), None, label_smoothing=0.0, alignment_weight=1.0)
    with pytest.raises(ValueError, match="micro-batches with an alignment"):
        supervised(model_of(RECURRENT), toy_batch(), None, label_smoothing=0.0, alignment_weight=1.0)
    assert not RecurrentLanguageModelConfig().attends()
    assert not silent.config.attends()
    assert all(table.attends() for table in MODELS.values())
