"""Compiled models: the same updates within rounding, and what cannot be compiled is refused before the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nmt.training.step as step_module
from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.batches import collate
from nmt.compilation import check_arithmetic, check_compile, compile_model
from nmt.config import ModelTable, TrainConfig
from nmt.model.convolutional import ConvolutionalConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.transformer_config import TransformerConfig
from nmt.training.gradients import FlatGradients
from nmt.training.optim import make_optimizer
from nmt.training.step import UpdateFigures, World, train_step
from pipelines.errors import InputError
from pipelines.shards import ShardColumns
from tests.nmt.training.test_memory import fitting

COMPILED: dict[str, ModelTable] = {
    "transformer": TransformerConfig(
        embedding_dim=8, attention_heads=2, feed_forward_dim=12, encoder_layers=1, decoder_layers=1, dropout=0.2,
        attention_dropout=0.2,
    ),
    "convolutional": ConvolutionalConfig(
        embedding_dim=6, hidden_dim=8, encoder_layers=1, decoder_layers=1, dropout=0.2
    ),
}  # fmt: skip


def updates(table: ModelTable, *, compiled: bool) -> tuple[list[UpdateFigures], dict[str, torch.Tensor]]:
    """Return the figures of updates of batches of many shapes, in float64, and the weights after them.

    By SGD: Adam makes steps of whole size of gradients that are zero but for rounding, such as that of keys' biases.
    """
    rng = np.random.default_rng(4)
    lengths = rng.integers(2, 30, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(4, 19, offsets[-1]).astype(np.int32)
    shards = ShardColumns(np.arange(40), ids, offsets, ids[::-1].copy(), offsets)
    model, config = build_model(table, 19, 19, seed=3).double(), TrainConfig(clip_norm=0.5, optimizer="sgd")
    if compiled:
        compile_model(model)
    parameters = list(model.parameters())
    optimizer, flat, figures = make_optimizer(config, parameters), FlatGradients(parameters), []
    for update, number in enumerate((5, 3, 8, 1, 2, 7)):
        batch = collate(shards, rng.permutation(40)[:number])
        figures.append(
            train_step(
                model, optimizer, flat, None, [(0, batch)], config,
                update=update, target_tokens=int(batch.target_lengths.sum()), rate=0.5, world=World(),
            )
        )  # fmt: skip
    return figures, model.state_dict()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own tracing
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_makes_the_same_updates_within_rounding_for_all_shapes(name: str) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    expected, weights = updates(COMPILED[name], compiled=False)
    assert not counters["stats"]
    found, compiled_weights = updates(COMPILED[name], compiled=True)
    assert counters["stats"]["calls_captured"] > 50
    for one, other in zip(found, expected):
        assert one[:3] == pytest.approx(other[:3], rel=1e-9)
    assert compiled_weights.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(compiled_weights[key], tensor, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_parts_of_a_micro_batch_of_a_compiled_model_make_the_same_update(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected, weights = updates(COMPILED[name], compiled=False)
    monkeypatch.setattr(step_module, "objective", fitting(3, late=False))
    found, compiled_weights = updates(COMPILED[name], compiled=True)
    assert [figures.num_split for figures in found] == [1, 0, 1, 0, 0, 1]
    for one, other in zip(found, expected):
        assert one[:3] == pytest.approx(other[:3], rel=1e-9)
    for key, tensor in weights.items():
        torch.testing.assert_close(compiled_weights[key], tensor, rtol=1e-8, atol=1e-10)


def test_what_is_compiled_is_tested() -> None:
    assert {name for name in ARCHITECTURES if architecture(name).table.compiles} == set(COMPILED)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(COMPILED)))
def test_a_model_that_would_lose_gradients_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"architecture {name} are not compiled"):
        check_compile(architecture(name).table.model_validate({"architecture": name}), use_gpu=False)


@pytest.mark.parametrize(("use_gpu", "variable", "named"), [(False, "CXX", "nothing-g++"), (True, "CC", "nothing-gcc")])
def test_without_a_compiler_there_is_an_error_at_the_start(
    monkeypatch: pytest.MonkeyPatch, use_gpu: bool, variable: str, named: str
) -> None:
    monkeypatch.setenv(variable, named)
    arguments: dict[str, Any] = {"use_gpu": use_gpu}
    with pytest.raises(InputError, match=r"needs the compiler nothing-g") as caught:
        check_compile(COMPILED["transformer"], **arguments)
    assert caught.value.where == "train.compile"
    with pytest.raises(InputError, match="needs the compiler"):
        check_arithmetic(COMPILED["transformer"], TrainConfig(compile=True), **arguments)
    check_arithmetic(COMPILED["transformer"], TrainConfig(), **arguments)
    monkeypatch.setenv(variable, "python3")  # what is there
    check_compile(COMPILED["transformer"], **arguments)


def test_float16_is_looked_at_where_the_recipe_and_the_profile_meet() -> None:
    with pytest.raises(InputError, match="float16 is computed on a GPU"):
        check_arithmetic(RecurrentConfig(), TrainConfig(precision="float16"), use_gpu=False)
