"""The update: any split over workers is the same update, and it is torch's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nmt.architectures import build_model
from nmt.batches import MicroBatch, collate
from nmt.config import TrainConfig
from nmt.model.batch_norm import collectors
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, clip_by_norm, make_optimizer
from nmt.training.schedules import learning_rate
from nmt.training.step import World, noise_seed, train_step
from pipelines.shards import ShardColumns

CONFIG = TrainConfig(label_smoothing=0.1, clip_norm=0.5)


def toy_shards() -> ShardColumns:
    rng = np.random.default_rng(4)
    lengths = rng.integers(2, 7, 8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(4, 19, offsets[-1]).astype(np.int32)
    return ShardColumns(np.arange(8), ids, offsets, ids[::-1].copy(), offsets)


def model_of(dropout: float) -> Seq2Seq:
    return build_model(RecurrentConfig(embedding_dim=6, hidden_dim=8, dropout=dropout), 19, 19).double()


def step(
    model: Seq2Seq, batches: list[tuple[int, MicroBatch]], tokens: int, config: TrainConfig = CONFIG
) -> tuple[float, float, float]:
    parameters = list(model.parameters())
    return train_step(
        model, make_optimizer(config, parameters), FlatGradients(parameters), None, batches, config,
        update=3, target_tokens=tokens, rate=0.01, world=World(),
    )  # fmt: skip


def test_an_update_of_two_micro_batches_is_torchs_adam_on_the_mean_loss() -> None:
    shards, model = toy_shards(), model_of(0.0)
    reference = copy.deepcopy(model)
    batches = [collate(shards, np.asarray([0, 3, 5])), collate(shards, np.asarray([1, 6]))]
    tokens = int(sum(batch.target_mask().sum() for batch in batches))
    loss, _, norm = step(model, list(enumerate(batches)), tokens)

    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01, betas=CONFIG.adam_betas)
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        vectors = reference(batch.src, batch.src_lengths, batch.previous).vectors
        real = batch.target_mask()
        total = total + F.cross_entropy(
            reference.logits(vectors)[real], batch.target[real], label_smoothing=0.1, reduction="sum"
        )
    (total / tokens).backward()
    expected_norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), CONFIG.clip_norm)
    optimizer.step()
    assert loss == pytest.approx(total.item() / tokens, rel=1e-12)
    assert norm == pytest.approx(expected_norm.item(), rel=1e-9)
    for found, expected in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_noise_depends_on_the_micro_batchs_number_and_not_on_who_computes_it() -> None:
    shards = toy_shards()
    batches = list(enumerate([collate(shards, np.asarray([0, 3])), collate(shards, np.asarray([1, 6]))]))
    tokens = int(sum(batch.target_mask().sum() for _, batch in batches))

    loose = CONFIG.model_copy(update={"clip_norm": 1e9})

    def gradients(shares: list[list[tuple[int, MicroBatch]]]) -> torch.Tensor:
        """Return the gradient of an update whose micro-batches are dealt to so many workers, summed by hand."""
        total = None
        for share in shares:
            model = model_of(0.5)
            flat = FlatGradients(list(model.parameters()))
            train_step(
                model, torch.optim.SGD(model.parameters(), lr=0.0), flat, None, share, loose,
                update=3, target_tokens=tokens, rate=0.0, world=World(),
            )  # fmt: skip
            total = flat.gradients.clone() if total is None else total + flat.gradients
        assert total is not None
        return total

    together = gradients([batches])
    apart = gradients([[batches[0]], [batches[1]]])
    swapped = gradients([[(1, batches[0][1])], [(0, batches[1][1])]])
    torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(swapped, together)


def normed_model() -> Seq2Seq:
    return build_model(RecurrentConfig(embedding_dim=6, hidden_dim=8, dropout=0.0, batch_norm=True), 19, 19).double()


def flat_of(model: Seq2Seq) -> FlatGradients:
    return FlatGradients(list(model.parameters()), collectors(model))


def norm_step(model: Seq2Seq, flat: FlatGradients, share: list[tuple[int, MicroBatch]], tokens: int) -> float:
    """Return the norm of the gradient of an update of this share, done without moving a weight."""
    return train_step(
        model, torch.optim.SGD(model.parameters(), lr=0.0), flat, None, share,
        CONFIG.model_copy(update={"clip_norm": 1e9}), update=3, target_tokens=tokens, rate=0.0, world=World(),
    ).gradient_norm  # fmt: skip


def test_batch_norms_statistics_are_those_of_an_update_however_it_is_dealt_to_workers() -> None:
    shards = toy_shards()
    batches = list(enumerate([collate(shards, np.asarray([0, 3])), collate(shards, np.asarray([1, 6, 7]))]))
    tokens = int(sum(batch.target_mask().sum() for _, batch in batches))
    together = normed_model()
    flat = flat_of(together)
    norm = norm_step(together, flat, batches, tokens)
    assert norm == pytest.approx(float(flat.gradients.norm()), rel=1e-12)
    assert norm == pytest.approx(sum(float(p.grad.square().sum()) for p in together.parameters()) ** 0.5, rel=1e-12)

    # Two workers: the sum of their buffers is what each has before it moves its statistics.
    apart = normed_model()
    after = flat_of(apart)
    for batch in batches:
        worker = normed_model()
        share = flat_of(worker)
        norm_step(worker, share, [batch], tokens)
        after.buffer += share.buffer
    torch.testing.assert_close(after.buffer, flat.buffer, rtol=1e-9, atol=1e-12)
    for module in collectors(apart):
        module.move()
    assert len(collectors(together)) == 2
    for found, expected, before in zip(collectors(apart), collectors(together), collectors(normed_model())):
        torch.testing.assert_close(found.running_mean, expected.running_mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.running_var, expected.running_var, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(expected.running_mean, before.running_mean)

    # The next update starts from nothing again.
    norm_step(together, flat, batches, tokens)
    positions = sum(int(batch.src_lengths.sum()) for _, batch in batches)
    assert [float(module.collected[-1]) for module in flat.collecting] == pytest.approx([positions / tokens] * 2)


def test_an_update_that_fails_leaves_batch_norms_statistics_as_they_were() -> None:
    model, shards = normed_model(), toy_shards()
    with torch.no_grad():
        model.output_bias[5] = float("nan")
    with pytest.raises(FloatingPointError):
        norm_step(model, flat_of(model), [(0, collate(shards, np.asarray([0])))], 5)
    assert all(not module.running_mean.any() and (module.running_var == 1.0).all() for module in collectors(model))


def test_noise_seeds_are_distinct_and_fit_torchs_generator() -> None:
    seeds = {noise_seed(s, u, m) for s in range(5) for u in range(40) for m in range(5)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were() -> None:
    shards, model = toy_shards(), model_of(0.0)
    with torch.no_grad():
        model.output_bias[5] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = collate(shards, np.asarray([0]))
    with pytest.raises(FloatingPointError, match="update 3"):
        step(model, [(0, batch)], 5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], equal_nan=True, rtol=0, atol=0)


def test_clipping_scales_to_the_bound_and_only_above_it() -> None:
    gradients = torch.tensor([3.0, 4.0])
    assert clip_by_norm(gradients, 10.0) == 5.0
    assert gradients.tolist() == [3.0, 4.0]
    assert clip_by_norm(gradients, 1.0) == 5.0
    assert gradients.tolist() == pytest.approx([0.6, 0.8])


def test_schedules_have_the_values_of_their_formulas() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_updates=10, schedule="cosine")
    assert [learning_rate(config, update, 110) for update in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(config, 60, 110) == pytest.approx(0.5)
    assert learning_rate(config, 110, 110) == pytest.approx(0.0)
    inverse = config.model_copy(update={"schedule": "inverse_sqrt"})
    assert learning_rate(inverse, 39, 110) == pytest.approx(0.5)
    constant = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, 100, 110) == 1.0


def test_averages_follow_their_recurrence_and_swap_back() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
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
