"""The update: any split over workers is the same update, and it is torch's own."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import nmt.training.step as step_module
from nmt.architectures import build_model
from nmt.batches import MicroBatch, collate
from nmt.config import ModelTable, TrainConfig
from nmt.model.batch_norm import collectors
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.model.transformer_config import TransformerConfig
from nmt.objectives.objective import objective
from nmt.objectives.supervised import Loss
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, make_optimizer
from nmt.training.step import UpdateFigures, World, noise_seed, train_step
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
) -> UpdateFigures:
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
    loss, _, norm, *_ = step(model, list(enumerate(batches)), tokens)

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


def test_noise_seeds_are_distinct_and_fit_torchs_generator() -> None:
    seeds = {noise_seed(s, u, m) for s in range(5) for u in range(40) for m in range(5)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


# Updates that are left out


class Everything(NamedTuple):
    """All that an update changes."""

    model: Seq2Seq
    optimizer: torch.optim.Optimizer
    flat: FlatGradients
    averages: Averages

    def update(self, number: int, *, loss_scale: float = 1.0, config: TrainConfig = CONFIG) -> UpdateFigures:
        batch = collate(toy_shards(), np.asarray([number % 8, (number + 3) % 8]))
        return train_step(
            self.model, self.optimizer, self.flat, self.averages, [(0, batch)], config, update=number,
            target_tokens=int(batch.target_mask().sum()), rate=0.01, world=World(), loss_scale=loss_scale,
        )  # fmt: skip

    def values(self) -> dict[str, torch.Tensor]:
        """Return copies of weights, running statistics, moments and averages by name."""
        moments = self.optimizer.state_dict()["state"]
        found = dict(self.model.state_dict())
        found |= {f"{i}/{name}": value for i, values in moments.items() for name, value in values.items()}
        found |= {f"average {i}": average for i, average in enumerate(self.averages.averages)}
        return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


NORMED = RecurrentConfig(embedding_dim=6, hidden_dim=8, dropout=0.3, batch_norm=True)


def everything(
    table: ModelTable = NORMED, *, dtype: torch.dtype = torch.float64, optimizer: str = "adam"
) -> Everything:
    model = build_model(table, 19, 19, seed=2).to(dtype)
    parameters = list(model.parameters())
    config = TrainConfig.model_validate({"optimizer": optimizer, "momentum": 0.9 if optimizer == "sgd" else 0.0})
    return Everything(
        model, make_optimizer(config, parameters), FlatGradients(parameters, collectors(model)),
        Averages(parameters, 0.9),
    )  # fmt: skip


def spoiled_loss(*, value: float) -> Callable[..., Loss]:
    """Return the objective whose loss is not finite."""

    def spoiled(*arguments: Any) -> Loss:
        loss = objective(*arguments)
        return loss._replace(total=loss.total * value, nll=loss.nll * value)

    return spoiled


class _Spoiling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.value, None


def spoiled_gradient(*, value: float) -> Callable[..., Loss]:
    """Return the objective whose loss is finite, and its gradient not."""

    def spoiled(*arguments: Any) -> Loss:
        loss = objective(*arguments)
        return loss._replace(total=_Spoiling.apply(loss.total, value))

    return spoiled


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoil", [spoiled_loss, spoiled_gradient])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adafactor"])
def test_an_update_that_is_not_finite_changes_nothing_and_the_next_one_is_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any], value: float, optimizer: str
) -> None:
    found, expected = everything(optimizer=optimizer), everything(optimizer=optimizer)
    for run in (found, expected):
        assert not run.update(0).skipped
    before = found.values()
    monkeypatch.setattr(step_module, "objective", spoil(value=value))
    figures = found.update(1)
    assert figures.skipped
    assert not (math.isfinite(figures.loss) and math.isfinite(figures.gradient_norm))
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.values().items())
    monkeypatch.undo()
    assert found.update(2) == expected.update(2)
    assert all(torch.equal(tensor, expected.values()[name]) for name, tensor in found.values().items())


def test_clipping_by_value_does_not_let_an_infinite_gradient_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "objective", spoiled_gradient(value=float("inf")))
    run = everything()
    before = run.values()
    assert run.update(0, config=CONFIG.model_copy(update={"clip_value": 0.1})).skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.values().items())


# float16


HALF = CONFIG.model_copy(update={"precision": "float16"})
# What oneDNN has no float16 of on a CPU, recurrent layers, is left to a GPU.
SMALL = TransformerConfig(embedding_dim=16, attention_heads=2, feed_forward_dim=32, dropout=0.1, attention_dropout=0.1)


@pytest.mark.parametrize("loss_scale", [1.0, 2.0**10, 2.0**16])
def test_an_update_in_float16_is_that_of_float32_within_its_rounding_whatever_the_scale(loss_scale: float) -> None:
    half, single = (everything(SMALL, dtype=torch.float32) for _ in range(2))
    found, expected = half.update(0, config=HALF, loss_scale=loss_scale), single.update(0)
    assert not found.skipped
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-2)
    cosine = torch.nn.functional.cosine_similarity(half.flat.gradients, single.flat.gradients, dim=0)
    assert float(cosine) > 0.999


def test_small_gradients_are_lost_in_float16_without_a_scale() -> None:
    kept = {}
    for loss_scale in (1.0, 2.0**16):
        run = everything(SMALL, dtype=torch.float32)
        small = HALF.model_copy(update={"clip_norm": None})
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.mul_(1e-2)
        run.update(0, config=small, loss_scale=loss_scale)
        kept[loss_scale] = int((run.flat.gradients != 0.0).sum())
    assert kept[2.0**16] > 1.1 * kept[1.0]


def test_a_scale_that_is_too_large_leaves_the_update_out() -> None:
    run = everything(SMALL, dtype=torch.float32)
    before = run.values()
    figures = run.update(0, config=HALF, loss_scale=2.0**40)
    assert (figures.skipped, math.isfinite(figures.loss), math.isfinite(figures.gradient_norm)) == (True, True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.values().items())


# Workers


def hindered(rank: int, size: int) -> Callable[..., Loss]:
    """Return the objective on one of several workers: in update 1 the last one's loss is not a number, in update 2 the
    memory of the first one is for two rows."""

    def found(model: Seq2Seq, batch: MicroBatch, generator: Any, config: TrainConfig, update: int) -> Loss:
        loss = objective(model, batch, generator, config, update)
        if update == 1 and rank == size - 1:
            return loss._replace(total=loss.total * float("nan"))
        if update == 2 and rank == 0 and len(batch.target) > 2:
            loss.total.backward()
            raise torch.OutOfMemoryError
        return loss

    return found


class Worker(NamedTuple):
    """What one of several workers has done: the figures of five updates, and all that they changed."""

    figures: list[UpdateFigures]
    values: dict[str, torch.Tensor]


def five_updates(run: Everything, rank: int, size: int) -> Worker:
    """Return what a worker does of five updates of five micro-batches each."""
    figures = []
    for update in range(5):
        rows = np.random.default_rng(update).permutation(8)
        batches = [collate(toy_shards(), part) for part in (rows[:3], rows[3:4], rows[4:5], rows[5:7], rows[7:])]
        mine = [(number, batch) for number, batch in enumerate(batches) if number % size == rank]
        tokens = sum(int(batch.target_lengths.sum()) for batch in batches)
        found = train_step(
            run.model, run.optimizer, run.flat, run.averages, mine, CONFIG,
            update=update, target_tokens=tokens, rate=0.01, world=World(rank, size),
        )  # fmt: skip
        figures.append(found)
    return Worker(figures, run.values())


def assert_same_updates(workers: list[Worker], alone: Worker) -> None:
    for worker in workers:
        assert str(worker.figures) == str(workers[0].figures)  # as text, where what is not a number equals itself
        assert [found.skipped for found in worker.figures] == [False, True, False, False, False]
        assert [found.num_split for found in worker.figures] == [0, 0, 1, 0, 0]
        for found, expected in zip(worker.figures, alone.figures):
            assert found[:3] == pytest.approx(expected[:3], rel=1e-10, nan_ok=True)
        assert worker.values.keys() == alone.values.keys()
        for name, tensor in alone.values.items():
            torch.testing.assert_close(worker.values[name], tensor, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_workers_makes_the_same_updates_and_leaves_out_and_splits_alike(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    # A thread for each worker, and their sum as torch.distributed gives it: the same numbers to each.
    runs = [everything(SMALL) for _ in range(size)]
    here, meeting, buffers = threading.local(), threading.Barrier(size), [torch.zeros(0)] * size

    def all_reduce(buffer: torch.Tensor) -> None:
        buffers[here.rank] = buffer.clone()
        meeting.wait(60)
        buffer.copy_(torch.stack(buffers).sum(0))
        meeting.wait(60)

    def of_thread(*arguments: Any) -> Loss:
        return hindered(here.rank, here.size)(*arguments)

    def work(rank: int) -> Worker:
        here.rank, here.size = rank, size
        return five_updates(runs[rank], rank, size)

    monkeypatch.setattr(step_module, "objective", of_thread)
    monkeypatch.setattr("nmt.training.gradients.dist.all_reduce", all_reduce)
    here.rank, here.size = 0, 1
    alone = five_updates(everything(SMALL), 0, 1)
    with ThreadPoolExecutor(size) as threads:
        workers = list(threads.map(work, range(size)))
    assert_same_updates(workers, alone)


# Real processes


TABLES: dict[str, ModelTable] = {
    "transformer": SMALL,
    "recurrent": RecurrentConfig(embedding_dim=6, hidden_dim=8, dropout=0.3),
}
_WORKER = """
import sys
import torch
from safetensors.torch import save_file
import nmt.training.step as step_module
from tests.nmt.training.test_step import TABLES, everything, five_updates, hindered
rank, folder = int(sys.argv[1]), sys.argv[2]
for size in range(max(2, rank + 1), 5):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store-{size}", rank=rank, world_size=size)
    step_module.objective = hindered(rank, size)
    for name, table in TABLES.items():
        found = five_updates(everything(table), rank, size)
        figures = torch.tensor([tuple(map(float, figures)) for figures in found.figures], dtype=torch.float64)
        save_file(found.values | {"figures": figures}, f"{folder}/{name}-{size}-{rank}.safetensors")
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two, three and four processes have done, which gloo sums over: four of them, one group after the other."""
    folder = tmp_path_factory.mktemp("processes")
    found = [subprocess.Popen([sys.executable, "-c", _WORKER, str(rank), str(folder)]) for rank in range(4)]
    assert [process.wait(timeout=180) for process in found] == [0, 0, 0, 0]
    return folder


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", TABLES)
def test_processes_make_the_same_updates_as_one_and_leave_out_and_split_alike(
    processes: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    monkeypatch.setattr(step_module, "objective", hindered(0, 1))
    alone = five_updates(everything(TABLES[name]), 0, 1)
    workers = []
    for rank in range(size):
        values = load_file(processes / f"{name}-{size}-{rank}.safetensors")
        figures = [UpdateFigures(*found[:3], bool(found[3]), int(found[4])) for found in values.pop("figures").tolist()]
        workers.append(Worker(figures, values))
    assert_same_updates(workers, alone)
