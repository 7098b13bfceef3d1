"""Scheduled sampling: its schedule, what it replaces by what, and what it leaves as it is."""

from __future__ import annotations

import pytest
import torch

from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.model.batch_norm import collectors
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives import cross_entropy
from nmt.objectives.objective import objective
from nmt.objectives.sampling import predicted, sampled, sampling_share
from nmt.objectives.supervised import supervised
from pipelines.tokenizer import BOS_ID, PAD_ID
from tests.nmt.objectives.conftest import (
    MODELS,
    PIECES,
    RECURRENT,
    TRANSFORMER,
    generator_of,
    gradients_of,
    model_of,
    toy_batch,
)

CONFIG = TrainConfig(scheduled_sampling=0.6, scheduled_sampling_updates=40, label_smoothing=0.1)


def by_steps(model: Seq2Seq, batch: MicroBatch) -> list[list[int]]:
    """Return the most probable piece after each real piece of `previous`, one step and row at a time."""
    found = []
    for row in range(len(batch.src)):
        src = batch.src[row : row + 1, : int(batch.src_lengths[row])]
        encoded = model.encode(src, batch.src_lengths[row : row + 1])
        pieces = []
        for piece in batch.previous[row, : int(batch.target_lengths[row])]:
            decoded = model.decode(piece.view(1, 1), encoded)
            encoded = encoded._replace(state=decoded.state)
            pieces.append(int(model.logits(decoded.vectors[0, 0]).argmax()))
        found.append(pieces)
    return found


def test_the_share_grows_linearly_and_then_stays() -> None:
    assert [sampling_share(CONFIG, update) for update in (0, 10, 20, 40, 41, 10_000)] == pytest.approx(
        [0.0, 0.15, 0.3, 0.6, 0.6, 0.6]
    )
    assert sampling_share(TrainConfig(), 10**6) == 0.0


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_is_the_most_probable_piece_after_the_references_pieces(
    name: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_CPU", rows_at_once * PIECES)
    model, batch = model_of(MODELS[name]), toy_batch()
    found = predicted(model, batch)
    for row, pieces in enumerate(by_steps(model, batch)):
        assert found[row, : len(pieces)].tolist() == pieces
        assert (found[row, len(pieces) :] == PAD_ID).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_share_of_one_replaces_all_pieces_but_bos_and_padding(name: str) -> None:
    model, batch = model_of(MODELS[name]), toy_batch()
    found = sampled(model, batch, generator_of(), 1.0)
    assert (found.previous[:, 0] == BOS_ID).all()
    for row, pieces in enumerate(by_steps(model, batch)):
        assert found.previous[row, 1 : len(pieces)].tolist() == pieces[:-1]
        assert (found.previous[row, len(pieces) :] == batch.previous[row, len(pieces) :]).all()
    kept = ("src", "src_lengths", "target", "target_lengths")
    assert all(torch.equal(getattr(found, name), getattr(batch, name)) for name in kept)


def test_a_share_of_zero_replaces_nothing() -> None:
    model, batch = model_of(RECURRENT), toy_batch()
    assert torch.equal(sampled(model, batch, generator_of(), 0.0).previous, batch.previous)


def test_the_share_is_that_of_the_places_replaced_and_places_are_independent() -> None:
    model, batch = model_of(RECURRENT), toy_batch(rows=2000)
    everywhere = sampled(model, batch, generator_of(), 1.0).previous
    differs = everywhere != batch.previous  # only there a replaced piece is to be seen
    found = sampled(model, batch, generator_of(), 0.3).previous
    replaced = (found != batch.previous)[differs].double()
    assert torch.equal(found[differs & (found != batch.previous)], everywhere[differs & (found != batch.previous)])
    number = int(differs.sum())
    assert number > 4000
    assert abs(float(replaced.mean()) - 0.3) < 4 * (0.3 * 0.7 / number) ** 0.5
    # Of neighbours in a row both are replaced as often as chance says.
    both = differs[:, 1:-1] & differs[:, 2:]
    pairs = (found != batch.previous)[:, 1:-1][both] & (found != batch.previous)[:, 2:][both]
    assert abs(float(pairs.double().mean()) - 0.09) < 4 * (0.09 * 0.91 / int(both.sum())) ** 0.5


def test_the_first_update_is_exactly_supervised_and_later_ones_are_pure_functions_of_generator_and_update() -> None:
    model, batch = model_of(TRANSFORMER), toy_batch(rows=12)
    first = objective(model, batch, generator_of(), CONFIG, 0)
    plain = supervised(model, batch, generator_of(), label_smoothing=0.1)
    assert torch.equal(first.total, plain.total)

    def later(update: int, seed: int = 7) -> float:
        torch.manual_seed(update)
        return objective(model, batch, generator_of(seed), CONFIG, update).total.item()

    assert later(30) == later(30)
    assert later(30) != later(40)
    assert later(30) != later(30, seed=8)


def test_a_sampled_update_is_teacher_forcing_on_what_was_sampled_and_the_first_pass_has_no_gradient() -> None:
    model, batch = model_of(RECURRENT), toy_batch()
    found = objective(model, batch, generator_of(), CONFIG, 40)
    generator = generator_of()
    mixed = sampled(model, batch, generator, 0.6)
    assert not torch.equal(mixed.previous, batch.previous)
    expected = supervised(model, mixed, generator, label_smoothing=0.1)
    assert torch.equal(found.total, expected.total)
    exact = gradients_of(model, expected.total)
    for key, gradient in gradients_of(model, found.total).items():
        assert torch.equal(gradient, exact[key])


def test_the_first_pass_leaves_batch_norms_as_they_are_and_gradients_of_bfloat16_whole() -> None:
    table = RecurrentConfig(embedding_dim=8, hidden_dim=8, batch_norm=True)
    model, batch = model_of(table).float(), toy_batch()
    sampled(model, batch, generator_of(), 0.5)
    assert all(not module.collected.any() for module in collectors(model))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sampled(model, batch, generator_of(), 0.5)
        found = supervised(model, mixed, None, label_smoothing=0.1).total
    with torch.autocast("cpu", torch.bfloat16):
        exact = supervised(model, mixed, None, label_smoothing=0.1).total
    expected = gradients_of(model, exact)
    gradients = gradients_of(model, found)
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[key], expected[key]) for key in expected)


def test_nothing_is_sampled_without_a_generator() -> None:
    model, batch = model_of(RECURRENT), toy_batch()
    assert torch.equal(
        objective(model, batch, None, CONFIG, 40).total, supervised(model, batch, None, label_smoothing=0.1).total
    )
