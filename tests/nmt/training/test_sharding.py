"""A model that is dealt out over workers learns what one process with all of it learns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from nmt.architectures import architecture, build_model
from nmt.batches import collate
from nmt.checkpoint import (
    AVERAGES_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    CheckpointConfig,
    TrainState,
    load_training,
    read_state,
    save_training,
    write_checkpoint,
)
from nmt.config import ModelTable, RayConfig, TrainConfig, check_sharding
from nmt.model.convolutional import ConvolutionalConfig
from nmt.model.language_model import RecurrentLanguageModelConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.model.transformer_config import TransformerConfig
from nmt.objectives.objective import objective
from nmt.objectives.supervised import Loss
from nmt.training.beginnings import freeze
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, make_optimizer, trained_parameters
from nmt.training.probe import idle_microbatch
from nmt.training.sharding import Sharding
from nmt.training.step import UpdateFigures, World, train_step
from pipelines.errors import InputError
from tests.nmt.conftest import ToyStages
from tests.nmt.toy_runs import CONFIG, assert_same_updates, broken_off_at, run_train
from tests.nmt.training.test_step import toy_shards

SMALL = {"embedding_dim": 6, "dropout": 0.3}
TABLES: dict[str, ModelTable] = {
    "additive": RecurrentConfig(**SMALL, hidden_dim=10, attention="additive", input_feeding=True),
    "general": RecurrentConfig(**SMALL, hidden_dim=10, encoder_layers=2, attention="general", input_feeding=False),
    "transformer": TransformerConfig(
        **SMALL, attention_heads=2, feed_forward_dim=7, encoder_layers=2, decoder_layers=1, share_embeddings=True
    ),
    "convolutional": ConvolutionalConfig(**SMALL),
    "language model": RecurrentLanguageModelConfig(**SMALL, hidden_dim=10),
}
# What decides how often a model is computed with, and what is kept of its weights.
CONFIGS: dict[str, TrainConfig] = {
    "plain": TrainConfig(label_smoothing=0.1, clip_norm=0.5, clip_value=0.2),
    "often": TrainConfig(rdrop_weight=1.0, scheduled_sampling=0.5, scheduled_sampling_updates=2, freeze=("encoder",)),
    "momentum": TrainConfig(optimizer="sgd", momentum=0.9, clip_norm=None),
}
CASES = [(name, "plain") for name in TABLES] + [("additive", "often"), ("transformer", "momentum")]
SPOILED = 1  # the update whose loss is not a number on the last worker


def spoiled(compute: Callable[..., Loss]) -> Callable[..., Loss]:
    def found(*arguments: Any) -> Loss:
        loss = compute(*arguments)
        return loss._replace(total=loss.total * float("nan"))

    return found


def watch_layers(model: Seq2Seq) -> list[int]:
    """Return a list that gets, in each layer, how many weights of encoder and decoder a worker has gathered."""
    found: list[int] = []

    def note(*_: object) -> None:
        weights = [weight for part in (model.encoder, model.decoder) for weight in part.parameters()]
        found.append(sum(weight.numel() for weight in weights if not isinstance(weight, DTensor)))

    for name, module in model.named_modules():
        if name.endswith(".queries_keys_values"):
            module.register_forward_hook(note)
    return found


def learn(case: tuple[str, str], rank: int, size: int, folder: Path) -> list[UpdateFigures]:
    """Do five updates of five micro-batches each as a worker, dealt out where there are several, and save them.

    From the fourth on all goes on from what was saved behind the third, in a model that began elsewhere.
    """
    table, config = TABLES[case[0]], CONFIGS[case[1]]
    figures: list[UpdateFigures] = []
    for first, last, seed in ((0, 3, 2), (3, 5, 7)):
        model = build_model(table, 19, 19, seed=seed).double()
        freeze(model, config.freeze)
        layers = [sum(map(torch.numel, layer.parameters())) for layer in architecture(table.architecture).layers(model)]
        sharding, gathered = (Sharding(model, World(rank, size)), watch_layers(model)) if size > 1 else (None, [])
        trained = trained_parameters(model) if sharding is None else sharding.trained
        if sharding is not None:
            kept, all_of_them = (sum(map(torch.numel, some)) for some in (trained, trained_parameters(model)))
            assert kept < 0.7 * all_of_them
        optimizer, averages = make_optimizer(config, trained), Averages(trained, 0.9)
        flat = FlatGradients(trained) if sharding is None else sharding.gradients()
        compute = objective if sharding is None else sharding.objective
        if first:
            newest = folder / f"update-{first:08d}"
            if sharding is None:
                state = load_training(newest, model, optimizer, averages, "t" * 64)
            else:
                state = sharding.load_training(newest, optimizer, averages, "t" * 64)
            assert state == read_state(newest)
        for update in range(first, last):
            rows = np.random.default_rng(update).permutation(8)
            batches = [collate(toy_shards(), part) for part in (rows[:3], rows[3:4], rows[4:5], rows[5:7], rows[7:])]
            if not table.has_source:
                batches = [batch._replace(src=batch.src[:, :0], src_lengths=batch.src_lengths * 0) for batch in batches]
            mine = [(number, batch) for number, batch in enumerate(batches) if number % size == rank]
            if len(mine) * size < len(batches):
                mine.append((len(batches), idle_microbatch(config, has_source=table.has_source)))
            tokens = sum(int(batch.target_lengths.sum()) for batch in batches)
            found = train_step(
                model, optimizer, flat, averages, mine, config,
                update=update, target_tokens=tokens, rate=0.01, world=World(rank, size),
                compute=spoiled(compute) if update == SPOILED and rank == size - 1 else compute,
            )  # fmt: skip
            figures.append(found)
        if layers and sharding is not None:
            assert max(gathered) <= max(layers)
        about = CheckpointConfig(model=table, source_size=19, target_size=19, tokenizer="t" * 64, update=last)
        state = TrainState(update=last)
        if sharding is None:
            save_training(folder, model, optimizer, averages, about, state)
            continue
        content = sharding.training_content(optimizer, averages, about, state)
        assert (content is not None) == (rank == 0)
        if content is not None:
            write_checkpoint(folder / f"update-{last:08d}", content)
        torch.distributed.barrier()
    return figures


_WORKER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tests.nmt.training.test_sharding import CASES, learn
rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
for case in CASES:
    figures = learn(case, rank, size, folder / "-".join(case))
    numbers = torch.tensor([[float(value) for value in found] for found in figures], dtype=torch.float64)
    save_file({"figures": numbers}, folder / f"{'-'.join(case)}-{rank}.safetensors")
"""


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Return a number of workers, and the folder of what they have learned."""
    size, folder = request.param, tmp_path_factory.mktemp("workers")
    processes = [
        subprocess.Popen([sys.executable, "-c", _WORKER, str(rank), str(size), str(folder)]) for rank in range(size)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * size
    return size, folder


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_workers_with_shares_learn_what_one_process_learns(
    workers: tuple[int, Path], case: tuple[str, str], tmp_path: Path
) -> None:
    size, folder = workers
    alone = learn(case, 0, 1, tmp_path)
    for rank in range(size):
        found = load_file(folder / f"{'-'.join(case)}-{rank}.safetensors")["figures"]
        expected = torch.tensor([[float(value) for value in figures] for figures in alone], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    assert [figures.skipped for figures in alone] == [update == SPOILED for update in range(5)]
    for update in (3, 5):
        for file in (MODEL_FILE, OPTIMIZER_FILE, AVERAGES_FILE):
            kept = load_file(folder / "-".join(case) / f"update-{update:08d}" / file)
            expected_tensors = load_file(tmp_path / f"update-{update:08d}" / file)
            assert kept.keys() == expected_tensors.keys()
            for name, tensor in expected_tensors.items():
                torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-10)


def test_a_run_of_one_process_goes_on_with_the_model_dealt_out_over_two(toy: ToyStages, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_epochs": 6})
    undisturbed = run_train(toy, tmp_path / "undisturbed", config=config)
    with broken_off_at(undisturbed.manifest.counters["updates"] // 2):
        run_train(toy, tmp_path / "dealt", config=config)
    dealt_out = replace(toy, ray=toy.ray.model_copy(update={"shard_model": True}))
    found = run_train(dealt_out, tmp_path / "dealt", workers=2, config=config)
    assert_same_updates(found, undisturbed)
    assert found.manifest.counters["best_update"] == undisturbed.manifest.counters["best_update"]
    best, expected = (load_file(run.folder / "best" / MODEL_FILE) for run in (found, undisturbed))
    assert best.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(best[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "model", "train"),
    [
        ("train.optimizer", RecurrentConfig(), TrainConfig(optimizer="adafactor")),
        ("train.compile", TransformerConfig(), TrainConfig(compile=True)),
        ("model.batch_norm", RecurrentConfig(batch_norm=True), TrainConfig()),
        (
            "model.freeze_embeddings_updates",
            RecurrentConfig(source_vectors="wiki.vec", freeze_embeddings_updates=9),
            TrainConfig(),
        ),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(key: str, model: ModelTable, train: TrainConfig) -> None:
    check_sharding(model, train, RayConfig())
    with pytest.raises(InputError, match=key):
        check_sharding(model, train, RayConfig(shard_model=True))


@pytest.mark.parametrize("ray", [RayConfig(num_workers=1), RayConfig(num_workers=3, min_workers=1)])
def test_one_worker_that_would_hold_the_whole_model_is_refused(ray: RayConfig) -> None:
    check_sharding(RecurrentConfig(), TrainConfig(), ray)
    with pytest.raises(InputError, match="there may be one alone"):
        check_sharding(RecurrentConfig(), TrainConfig(), ray.model_copy(update={"shard_model": True}))


def test_an_idle_micro_batch_adds_nothing() -> None:
    config = TrainConfig(guided_alignment_weight=0.1)
    model = build_model(TABLES["additive"], 19, 19).double()
    loss = objective(model, idle_microbatch(config, has_source=True), torch.Generator(), config, 0)
    loss.total.backward()
    assert loss.total.item() == loss.nll.item() == 0.0
    # All have one, though: torch sums up those of weights that have.
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
