"""The whole model: padding, batching, step by step, dropout by generator, tied weights."""

from __future__ import annotations

import itertools

import pytest
import torch

from nmt.architectures import build_model
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Encoded, Seq2Seq

SIZE = 23
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


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, SIZE, (3, 6), generator=generator)
    previous = torch.randint(4, SIZE, (3, 5), generator=generator)
    return src, torch.tensor([6, 2, 4]), previous


def logits(model: Seq2Seq, src: torch.Tensor, lengths: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    vectors = model(src, lengths, previous).vectors
    return model.logits(vectors)


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_padding_changes_nothing_and_neither_do_the_batchs_other_rows(config: RecurrentConfig) -> None:
    model = build_model(config, SIZE, SIZE).double()
    src, lengths, previous = batch()
    whole = logits(model, src, lengths, previous)
    # Whatever stands behind a source's end, and however wide the batch is.
    noisy = torch.cat([src, torch.randint(0, SIZE, (3, 4))], dim=1)
    for row, length in enumerate(lengths.tolist()):
        noisy[row, length:] = torch.randint(0, SIZE, (10 - length,))
    torch.testing.assert_close(logits(model, noisy, lengths, previous), whole, rtol=1e-10, atol=1e-12)
    for row, length in enumerate(lengths.tolist()):
        alone = logits(model, src[row : row + 1, :length], lengths[row : row + 1], previous[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_padding_gets_no_gradient_and_gives_none(config: RecurrentConfig) -> None:
    def gradients(width: int) -> list[torch.Tensor]:
        model = build_model(config, SIZE, SIZE).double()
        src, lengths, previous = batch()
        src = torch.nn.functional.pad(src, (0, width), value=7)
        logits(model, src, lengths, previous).pow(2).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    for narrow, wide in zip(gradients(0), gradients(5)):
        torch.testing.assert_close(wide, narrow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_step_by_step_gives_what_teacher_forcing_gives(config: RecurrentConfig) -> None:
    model = build_model(config, SIZE, SIZE).double()
    src, lengths, previous = batch()
    encoded = model.encode(src, lengths)
    together, _, weights = model.decode(previous, encoded)
    for t in range(previous.shape[1]):
        vector, state, weight = model.decode(previous[:, t : t + 1], encoded)
        torch.testing.assert_close(vector[:, 0], together[:, t], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(weight[:, 0], weights[:, t], rtol=1e-10, atol=1e-12)
        encoded = Encoded(encoded.memory, state)


@pytest.mark.parametrize("config", MODELS[:2], ids=name)
def test_noise_is_a_function_of_the_generators_seed(config: RecurrentConfig) -> None:
    model = build_model(config, SIZE, SIZE)
    src, lengths, previous = batch()

    def with_seed(seed: int) -> torch.Tensor:
        return model(src, lengths, previous, torch.Generator().manual_seed(seed)).vectors

    assert torch.equal(with_seed(1), with_seed(1))
    assert not torch.equal(with_seed(1), with_seed(2))


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
