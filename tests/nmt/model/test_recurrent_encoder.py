"""The recurrent encoder against a plain reading of each sentence alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from nmt.model.cells import GATES, has_cell, run_layer
from nmt.model.embeddings import keep_mask
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.recurrent_encoder import LEARNED_POSITIONS, Encoder, EncoderOutput

EXACT = {"rtol": 1e-11, "atol": 1e-12}
LENGTHS = [7, 1, 4, 6]
ONE_WAY = {"bidirectional": False}
DEEP = {"encoder_layers": 3}
MENU: dict[str, dict[str, Any]] = {
    "one-way": ONE_WAY,
    "deep": DEEP,
    "reversed": DEEP | ONE_WAY | {"reverse_source": True},
    "residual": DEEP | {"residual": True},
    "layer-norm": {"encoder_layers": 2, "layer_norm": True},
    "batch-norm": {"encoder_layers": 2, "batch_norm": True},
    "pyramid": DEEP | {"pyramid_layers": 1},
    "pyramid-reversed": DEEP | ONE_WAY | {"reverse_source": True, "pyramid_layers": 2},
    "pyramid-residual-norm": DEEP | {"pyramid_layers": 1, "residual": True, "batch_norm": True},
    "sinusoidal": {"position_scaling": "sinusoidal"},
    "learned": {"position_scaling": "learned"},
}
every_option = pytest.mark.parametrize("keys", MENU.values(), ids=MENU)
every_kind = pytest.mark.parametrize("kind", GATES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def encoder_of(**keys: Any) -> Encoder:
    """Return an encoder in float64 of 6 units in and 8 out, without dropout, everything in it drawn at random."""
    encoder = Encoder(
        RecurrentConfig(**({"embedding_dim": 6, "hidden_dim": 8, "dropout": 0.0, "decoder_start": "last"} | keys))
    ).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        for name, buffer in encoder.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return encoder


def sources() -> tuple[Tensor, Tensor]:
    """Return embedded sources [4, 7, 6], any numbers behind their ends, and their lengths."""
    return torch.randn(4, 7, 6, dtype=torch.float64), torch.tensor(LENGTHS)


def read_alone(encoder: Encoder, sentence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states [S', H] and the final hidden states and cells [L, H] of one sentence [S, E], by evaluation."""
    config = encoder.config
    states, hidden, cell = sentence[None], [], []
    for depth, layers in enumerate(encoder.layers):
        is_pyramid = depth >= config.encoder_layers - config.pyramid_layers
        below = states
        if is_pyramid:
            steps = [*below[0], *([torch.zeros_like(below[0, 0])] if below.shape[1] % 2 else [])]
            pairs = [torch.cat([steps[i], steps[i + 1]]) for i in range(0, len(steps), 2)]
            below = torch.stack(pairs)[None]
        outputs, ends = [], []
        for direction, layer in enumerate(layers):
            backwards = direction == 1 or config.reverse_source
            norm = encoder.norms[depth][direction] if config.batch_norm else None

            def normed(product: Tensor, norm: Any = norm) -> Tensor:
                return (product - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.gain

            output, end = run_layer(
                layer, below.flip(1) if backwards else below, None, normed=None if norm is None else normed
            )
            outputs.append(output.flip(1) if backwards else output)
            ends.append(end)
        above = torch.cat(outputs, dim=-1)
        states = above + states if config.residual and depth > 0 and not is_pyramid else above
        hidden.append(torch.cat([end.hidden for end in ends], dim=-1)[0])
        cell.append(torch.cat([end.cell for end in ends], dim=-1)[0])
    return states[0], torch.stack(hidden), torch.stack(cell)


def assert_reads_each_alone(encoder: Encoder, output: EncoderOutput, embedded: Tensor, scales: Tensor) -> None:
    """Hold the output against each sentence's own, whose states are multiplied by scales [*, H] of their positions."""
    for row, length in enumerate(LENGTHS):
        states, hidden, cell = read_alone(encoder, embedded[row, :length])
        assert output.mask[row].tolist() == [position < len(states) for position in range(output.states.shape[1])]
        torch.testing.assert_close(output.states[row, : len(states)], states * scales[: len(states)], **EXACT)
        torch.testing.assert_close(output.finals_hidden[:, row], hidden, **EXACT)
        torch.testing.assert_close(output.finals_cell[:, row], cell, **EXACT)


# Each option, for each kind of cell


@every_kind
@every_option
def test_the_encoder_reads_each_sentence_as_if_it_were_alone(kind: str, keys: dict[str, Any]) -> None:
    encoder = encoder_of(cell=kind, **keys)
    embedded, lengths = sources()
    output = encoder(embedded, lengths, None)
    scales = torch.ones(7, 8, dtype=torch.float64)
    if keys.get("position_scaling") == "learned":
        scales = encoder.position_scales[:7]
    elif keys.get("position_scaling") == "sinusoidal":
        # Vaswani et al. 2017: wavelengths from 2 pi to 10000 * 2 pi, here four; sines, then cosines.
        angles = torch.arange(7)[:, None] / 10_000.0 ** (torch.arange(4) / 4)
        scales = 1.0 + torch.cat([angles.sin(), angles.cos()], dim=-1).double()
    pyramid = encoder.config.pyramid_layers
    assert output.scale == 2**pyramid
    assert output.states.shape == (4, -(-7 // 2**pyramid), 8)
    assert output.finals_cell.shape == (encoder.config.encoder_layers, 4, 8 if has_cell(kind) else 0)
    assert torch.equal(output.final, output.finals_hidden[-1])
    assert output.pieces.sum(1).tolist() == LENGTHS
    # The table of sinusoids is made in float32.
    if keys.get("position_scaling") == "sinusoidal":
        plain = encoder_of(cell=kind)
        plain.load_state_dict(encoder.state_dict())
        expected = plain(embedded, lengths, None).states * scales
        torch.testing.assert_close(output.states, expected, rtol=0, atol=1e-6)
    else:
        assert_reads_each_alone(encoder, output, embedded, scales)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@every_option
def test_padding_changes_nothing_and_gets_no_gradient(keys: dict[str, Any], training: bool) -> None:
    encoder = encoder_of(cell="lstm", **keys)
    embedded, lengths = sources()
    generator = torch.Generator() if training else None
    found = []
    for width in (0, 4):
        again = copy.deepcopy(encoder)
        noisy = torch.cat([embedded, torch.randn(4, width, 6).double()], dim=1)
        for row, length in enumerate(LENGTHS):
            noisy[row, length:] = 9.0 * torch.randn(7 + width - length, 6)
        noisy.requires_grad_()
        output = again(noisy, lengths, generator)
        real = output.states[:, : output.states.shape[1] if width == 0 else -(-7 // output.scale)]
        real = real * output.mask[:, : real.shape[1], None]
        (real.square().sum() + output.finals_hidden.sum() + output.finals_cell.square().sum()).backward()
        assert all(not noisy.grad[row, length:].any() for row, length in enumerate(LENGTHS))
        collected = [norm.collected for pair in again.norms for norm in pair]
        parameters = [parameter.grad for parameter in again.parameters()]
        found.append([real, output.finals_hidden, output.finals_cell, noisy.grad[:, :7], *parameters, *collected])
    for wide, narrow in zip(found[1], found[0]):
        torch.testing.assert_close(wide, narrow, rtol=1e-10, atol=1e-10)


# What is particular to an option


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_dropout_is_one_mask_for_all_steps_of_a_row_and_direction(kind: str, bidirectional: bool) -> None:
    encoder = encoder_of(cell=kind, bidirectional=bidirectional, recurrent_dropout=0.5)
    embedded, lengths = sources()
    states = encoder(embedded, lengths, torch.Generator().manual_seed(5)).states
    draw = torch.Generator().manual_seed(5)
    for direction, layer in enumerate(encoder.layers[0]):
        size = layer.hidden_size
        mask = keep_mask((4, size), 0.5, draw, like=embedded)
        assert len(set(map(tuple, mask.tolist()))) > 1
        for row, length in enumerate(LENGTHS):
            alone = embedded[row : row + 1, :length]
            expected, _ = run_layer(layer, alone.flip(1) if direction else alone, None, mask[row : row + 1])
            expected = (expected.flip(1) if direction else expected)[0]
            found = states[row, :length, direction * size : (direction + 1) * size]
            torch.testing.assert_close(found, expected, **EXACT)


def test_recurrent_dropout_is_of_training_only() -> None:
    encoder, (embedded, lengths) = encoder_of(recurrent_dropout=0.5), sources()
    plain = encoder_of()
    plain.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder(embedded, lengths, None).states, plain(embedded, lengths, None).states)


def test_a_reversed_source_ends_with_its_first_piece() -> None:
    encoder, (embedded, lengths) = encoder_of(bidirectional=False, reverse_source=True), sources()
    output = encoder(embedded, lengths, None)
    torch.testing.assert_close(output.final, output.states[:, 0], **EXACT)
    # The last piece's state knows of no other piece.
    changed = embedded.clone()
    changed[0, :6] += 1.0
    after = encoder(changed, lengths, None)
    torch.testing.assert_close(after.states[0, 6], output.states[0, 6], **EXACT)
    assert not torch.allclose(after.states[0, 5], output.states[0, 5])


def test_learned_positions_start_at_one_and_are_one_beyond_their_table() -> None:
    keys = {"embedding_dim": 6, "hidden_dim": 2, "bidirectional": False, "cell": "tanh"}
    plain = Encoder(RecurrentConfig(**keys))
    scaled = Encoder(RecurrentConfig(**keys, position_scaling="learned"))
    scaled.load_state_dict(plain.state_dict(), strict=False)
    embedded, lengths = torch.randn(1, LEARNED_POSITIONS + 3, 6), torch.tensor([LEARNED_POSITIONS + 3])
    expected = plain(embedded, lengths, None).states
    assert torch.equal(scaled(embedded, lengths, None).states, expected)
    with torch.no_grad():
        scaled.position_scales.mul_(2.0)
    found = scaled(embedded, lengths, None).states
    assert torch.equal(found[:, :LEARNED_POSITIONS], 2.0 * expected[:, :LEARNED_POSITIONS])
    assert torch.equal(found[:, LEARNED_POSITIONS:], expected[:, LEARNED_POSITIONS:])


def test_the_residual_connection_is_of_the_input_before_dropout() -> None:
    encoder = encoder_of(encoder_layers=2, residual=True, dropout=0.5)
    with torch.no_grad():
        for parameter in encoder.layers[1].parameters():
            parameter.zero_()
    embedded, lengths = sources()
    shallow = encoder_of(dropout=0.5)
    shallow.load_state_dict(encoder.state_dict(), strict=False)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    deep, expected = (model(embedded, lengths, draw).states for model, draw in zip((encoder, shallow), generators))
    torch.testing.assert_close(deep, expected, **EXACT)


def test_batch_norm_in_training_is_of_the_batchs_own_statistics_over_real_positions() -> None:
    encoder = encoder_of(cell="tanh", bidirectional=False, batch_norm=True)
    embedded, lengths = sources()
    states = encoder(embedded, lengths, torch.Generator()).states
    layer, norm = encoder.layers[0][0], encoder.norms[0][0]
    products = [embedded[row, :length] @ layer.weight_ih.T for row, length in enumerate(LENGTHS)]
    real = torch.cat(products)
    mean, variance = real.mean(0), real.var(0, unbiased=False)
    for row, product in enumerate(products):
        hidden = torch.zeros(8, dtype=torch.float64)
        for t, given in enumerate((product - mean) / (variance + 1e-5).sqrt() * norm.gain):
            hidden = torch.tanh(given + layer.bias_ih + layer.bias_hh + layer.weight_hh @ hidden)
            torch.testing.assert_close(states[row, t], hidden, **EXACT)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_weights_of_lstm_and_gru_have_the_names_that_checkpoints_know(kind: str) -> None:
    names = [f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    expected = [f"layers.{depth}.{direction}.{name}" for depth in (0, 1) for direction in (0, 1) for name in names]
    assert list(encoder_of(cell=kind, encoder_layers=2).state_dict()) == expected


@every_option
@every_kind
def test_bfloat16_is_near_and_gives_finite_gradients(kind: str, keys: dict[str, Any]) -> None:
    config = RecurrentConfig(
        **({"embedding_dim": 32, "hidden_dim": 32, "dropout": 0.0, "cell": kind, "decoder_start": "last"} | keys)
    )
    encoder, embedded, lengths = Encoder(config), torch.randn(4, 7, 32), torch.tensor(LENGTHS)
    for generator in (None, torch.Generator()):
        expected = encoder(embedded, lengths, generator)
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(embedded, lengths, generator)
        for low, high in ((found.states, expected.states), (found.finals_hidden, expected.finals_hidden)):
            # About two roundings (2^-9) for each step of two layers.
            assert float((low - high).detach().norm()) <= 32 * 2**-9 * float(high.detach().norm())
        encoder.zero_grad()
        found.states.float().square().sum().backward()
        assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"hidden_dim": 7}, ["hidden_dim", "bidirectional"]),
        ({"reverse_source": True}, ["reverse_source", "bidirectional"]),
        ({"pyramid_layers": 1}, ["pyramid_layers", "encoder_layers"]),
        ({"pyramid_layers": 3, "encoder_layers": 3}, ["pyramid_layers", "encoder_layers"]),
        ({"batch_norm": True, "layer_norm": True}, ["batch_norm", "layer_norm"]),
        (
            {"hidden_dim": 7, "bidirectional": False, "position_scaling": "sinusoidal"},
            ["position_scaling", "hidden_dim"],
        ),
    ],
)
def test_an_encoder_that_cannot_be_is_refused_by_the_names_of_its_keys(keys: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        RecurrentConfig(**keys)
    assert all(name in str(caught.value) for name in named)


def test_states_are_the_same_where_no_decoder_asks_for_the_cells() -> None:
    keys = {"embedding_dim": 6, "hidden_dim": 8}
    with_cells, without = (Encoder(RecurrentConfig(**keys, decoder_start=start)) for start in ("last", "zeros"))
    without.load_state_dict(with_cells.state_dict())
    embedded, lengths = sources()
    expected, found = (encoder(embedded.float(), lengths, None) for encoder in (with_cells, without))
    torch.testing.assert_close(found.states[found.mask], expected.states[found.mask])
    torch.testing.assert_close(found.finals_hidden, expected.finals_hidden)
    assert found.finals_cell.shape == (1, 4, 0)
