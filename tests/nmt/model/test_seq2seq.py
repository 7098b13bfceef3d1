"""The whole model: tied and shared weights, the seed; the recurrent models that stored checkpoints are of.

What every model keeps is tested in test_architectures.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from nmt.architectures import build_model
from nmt.model.recurrent_config import RecurrentConfig
from tests.nmt.model.test_architectures import assert_keeps_the_contracts

SIZE = 20
MODELS = [
    RecurrentConfig(
        cell=cell, attention=attention, input_feeding=feeding, encoder_layers=layers, decoder_layers=layers,
        embedding_dim=6, hidden_dim=8, dropout=0.4, word_dropout=0.1,
    )
    for cell, attention, feeding, layers in itertools.product(
        ["lstm", "gru"], ["additive", "dot", "general"], [True, False], [1, 2]
    )
]  # fmt: skip


def name(config: RecurrentConfig) -> str:
    return f"{config.cell}-{config.attention}-{'feeding' if config.input_feeding else 'plain'}-{config.decoder_layers}"


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_each_mix_of_cell_attention_feeding_and_layers_keeps_the_contracts(config: RecurrentConfig) -> None:
    assert_keeps_the_contracts(build_model(config, SIZE, SIZE).double())


def test_tied_weights_are_one_parameter_and_counted_once() -> None:
    tied = build_model(RecurrentConfig(embedding_dim=6, hidden_dim=8), SIZE, SIZE)
    loose = build_model(
        RecurrentConfig(embedding_dim=6, hidden_dim=8, tie_target_embeddings=False, share_embeddings=False), SIZE, SIZE
    )
    assert tied.source_embedding is tied.target_embedding
    assert loose.num_parameters() - tied.num_parameters() == 2 * SIZE * 6


def test_shared_embeddings_of_two_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        build_model(RecurrentConfig(), 30, 40)


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(9)
    first = build_model(MODELS[0], SIZE, SIZE, seed=4).state_dict()
    torch.manual_seed(10)
    second = build_model(MODELS[0], SIZE, SIZE, seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
