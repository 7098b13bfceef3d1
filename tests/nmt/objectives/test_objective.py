"""The objective that a config asks for: alone it is its part, together and in parts of a micro-batch it is one sum."""

from __future__ import annotations

import pytest
import torch

from nmt.config import ModelTable, TrainConfig
from nmt.model.embeddings import RowsNoise
from nmt.objectives.objective import objective
from nmt.objectives.rdrop import rdrop
from nmt.objectives.sampling import sampled
from nmt.objectives.supervised import supervised
from nmt.training.memory import Part
from tests.nmt.objectives.conftest import MODELS, RECURRENT, generator_of, gradients_of, model_of, toy_batch

PLAIN = TrainConfig(label_smoothing=0.1)
EVERY = PLAIN.model_copy(
    update={
        "rdrop_weight": 3.0,
        "scheduled_sampling": 0.5,
        "scheduled_sampling_updates": 10,
        "guided_alignment_weight": 0.3,
    }
)


def test_without_more_it_is_teacher_forcing() -> None:
    model, batch = model_of(RECURRENT), toy_batch()
    found = objective(model, batch, generator_of(), PLAIN, 50)
    expected = supervised(model, batch, generator_of(), label_smoothing=0.1)
    assert torch.equal(found.total, expected.total)


def test_all_together_are_two_guided_passes_over_what_was_sampled() -> None:
    model, batch = model_of(RECURRENT), toy_batch()
    batch = batch._replace(alignment=torch.rand(3, 6, 6, generator=generator_of(1)) < 0.3)
    found = objective(model, batch, generator_of(), EVERY, 5)
    generator = generator_of()
    mixed = sampled(model, batch, generator, 0.25)
    expected = rdrop(model, mixed, generator, label_smoothing=0.1, alpha=3.0, alignment_weight=0.3)
    assert torch.equal(found.total, expected.total)
    assert found.weight == int(batch.target_lengths.sum())


@pytest.mark.parametrize("table", MODELS.values(), ids=MODELS)
def test_a_micro_batch_in_parts_has_the_same_loss_and_gradient(table: ModelTable) -> None:
    model, batch = model_of(table), toy_batch(rows=5)
    batch = batch._replace(alignment=torch.rand(5, 6, 6, generator=generator_of(1)) < 0.3)
    whole = objective(model, batch, generator_of(), EVERY, 10)
    expected = gradients_of(model, whole.total)
    total, nll, weight = 0.0, 0.0, 0
    summed = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
    for start, end in ((0, 2), (2, 3), (3, 5)):
        part = Part(0, start, end, 5)
        loss = objective(model, part.of(batch), RowsNoise(generator_of(), start, end, 5), EVERY, 10)
        total, nll, weight = total + loss.total.item(), nll + loss.nll.item(), weight + loss.weight
        for name, gradient in gradients_of(model, loss.total).items():
            summed[name] += gradient
    assert (total, nll, weight) == pytest.approx((whole.total.item(), whole.nll.item(), whole.weight), rel=1e-11)
    for name, gradient in expected.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-8, atol=1e-11)
