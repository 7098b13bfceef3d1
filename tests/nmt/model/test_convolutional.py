"""The convolutional model against torch's own layers, and against loops written from the paper's equations."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.architectures import build_model
from nmt.model.convolutional import (
    ConvolutionalConfig,
    Decoder,
    Encoder,
    Memory,
    NormedLinear,
    Positions,
    Product,
    attend,
    gated_convolution,
)
from nmt.model.seq2seq import Encoded, Seq2Seq

SIZE = 17
EXACT = {"rtol": 1e-10, "atol": 1e-12}
CONFIG = ConvolutionalConfig(
    embedding_dim=5, hidden_dim=6, encoder_layers=2, decoder_layers=2, kernel_width=3, max_positions=20, dropout=0.0
)


def model_of(config: ConvolutionalConfig = CONFIG) -> Seq2Seq:
    """Return a model in float64 whose every parameter, biases and lengths included, differs from its start."""
    model = build_model(config, SIZE, SIZE, seed=2).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def encoder_of(model: Seq2Seq) -> Encoder:
    assert isinstance(model.encoder, Encoder)
    return model.encoder


def decoder_of(model: Seq2Seq) -> Decoder:
    assert isinstance(model.decoder, Decoder)
    return model.decoder


def batch() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    src = torch.randint(4, SIZE, (3, 6), generator=draw)
    return src, torch.tensor([6, 1, 4]), torch.randint(4, SIZE, (3, 5), generator=draw)


# References


def weight_of(layer: NormedLinear) -> Tensor:
    """Return the weight of a map, output by output: g v / ||v||."""
    rows = [g * v / (v * v).sum().sqrt() for v, g in zip(layer.weight_v, layer.weight_g)]
    return torch.stack(rows)


def mapped(layer: NormedLinear, vector: Tensor) -> Tensor:
    return weight_of(layer) @ vector + layer.bias


def as_conv1d(layer: NormedLinear, width: int) -> nn.Conv1d:
    """Return torch's convolution with the same weight."""
    weight = weight_of(layer)
    inputs = weight.shape[1] // width
    conv = nn.Conv1d(inputs, len(weight), width).double()
    with torch.no_grad():
        conv.weight.copy_(weight.view(len(weight), width, inputs).permute(0, 2, 1))
        conv.bias.copy_(layer.bias)
    return conv


def gated(layer: NormedLinear, window: list[Tensor]) -> Tensor:
    """Return A sigmoid(B) of one window of vectors."""
    a, b = mapped(layer, torch.cat(window)).chunk(2)
    return a * torch.sigmoid(b)


def sources_alone(model: Seq2Seq, pieces: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs z and the embeddings e of one source, vector by vector."""
    encoder, config = encoder_of(model), CONFIG
    embedded = [model.source_embedding.table.weight[p] + encoder.positions.table[i] for i, p in enumerate(pieces)]
    states = [mapped(encoder.enter, e) for e in embedded]
    side = config.kernel_width // 2
    nothing = torch.zeros(config.hidden_dim, dtype=torch.float64)
    for layer in encoder.layers:
        around = [nothing] * side + states + [nothing] * side
        found = [gated(layer, around[i : i + config.kernel_width]) for i in range(len(states))]
        states = [(a + b) * math.sqrt(0.5) for a, b in zip(found, states)]
    return [mapped(encoder.leave, state) for state in states], embedded


def targets_alone(model: Seq2Seq, source: list[int], previous: list[int]) -> tuple[list[Tensor], Tensor]:
    """Return the vectors of one target, step by step, and the mean attention weights [T, S]."""
    decoder, config = decoder_of(model), CONFIG
    outputs, embeddings = sources_alone(model, source)
    table = model.target_embedding.table.weight
    embedded = [table[p] + decoder.positions.table[i] for i, p in enumerate(previous)]
    states = [mapped(decoder.enter, g) for g in embedded]
    nothing = torch.zeros(config.hidden_dim, dtype=torch.float64)
    mean = torch.zeros(len(previous), len(source), dtype=torch.float64)
    for layer in decoder.layers:
        before, after = [nothing] * (config.kernel_width - 1) + states, []
        for i, state in enumerate(states):
            found = gated(layer.convolution, before[i : i + config.kernel_width])
            query = (mapped(layer.query, found) + embedded[i]) * math.sqrt(0.5)
            scores = [math.exp(float(query @ output)) for output in outputs]
            weights = [score / sum(scores) for score in scores]
            context = torch.zeros(config.embedding_dim, dtype=torch.float64)
            for j, weight in enumerate(weights):
                context = context + weight * (outputs[j] + embeddings[j]) * math.sqrt(0.5)
                mean[i, j] += weight / config.decoder_layers
            context = context * len(source) * math.sqrt(1.0 / len(source))
            with_context = (found + mapped(layer.context, context)) * math.sqrt(0.5)
            after.append((with_context + state) * math.sqrt(0.5))
        states = after
    return [mapped(decoder.leave, state) for state in states], mean


# The equations


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_gated_convolution_is_torchs_convolution_and_gate(width: int) -> None:
    torch.manual_seed(5)
    layer, vectors = NormedLinear(width * 4, 8).double(), torch.randn(2, 7, 4, dtype=torch.float64)
    expected = F.glu(as_conv1d(layer, width)(vectors.transpose(1, 2)), dim=1).transpose(1, 2)
    torch.testing.assert_close(gated_convolution(vectors, width, layer.product()), expected, **EXACT)


def test_a_normed_map_is_torchs_weight_normalisation() -> None:
    torch.manual_seed(6)
    layer, vectors = NormedLinear(4, 3).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3).double(), dim=0)
    with torch.no_grad():
        layer.weight_g.mul_(1.7)
        reference.parametrizations.weight.original0.copy_(layer.weight_g)
        reference.parametrizations.weight.original1.copy_(layer.weight_v)
        reference.bias.copy_(layer.bias)
    torch.testing.assert_close(layer(vectors), reference(vectors), **EXACT)
    found = torch.autograd.grad(layer(vectors).pow(2).sum(), [layer.weight_g, layer.weight_v])
    original = reference.parametrizations.weight
    expected = torch.autograd.grad(reference(vectors).pow(2).sum(), [original.original0, original.original1])
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, **EXACT)


def test_the_encoder_is_the_papers_row_by_row() -> None:
    model = model_of()
    src, lengths, _ = batch()
    with torch.no_grad():
        embedded = model.source_embedding(src, 0.0, None)
        found = encoder_of(model)(embedded, lengths, None)
        for row, length in enumerate(lengths.tolist()):
            outputs, embeddings = sources_alone(model, src[row, :length].tolist())
            torch.testing.assert_close(found.outputs[row, :length], torch.stack(outputs), **EXACT)
            torch.testing.assert_close(found.embedded[row, :length], torch.stack(embeddings), **EXACT)
            assert found.mask[row].tolist() == [True] * length + [False] * (6 - length)


def test_the_decoder_is_the_papers_step_by_step_and_weights_are_the_mean_of_the_layers() -> None:
    model = model_of()
    src, lengths, previous = batch()
    with torch.no_grad():
        vectors, _, weights = model(src, lengths, previous, need_weights=True)
        for row, length in enumerate(lengths.tolist()):
            expected, mean = targets_alone(model, src[row, :length].tolist(), previous[row].tolist())
            torch.testing.assert_close(vectors[row], torch.stack(expected), **EXACT)
            torch.testing.assert_close(weights[row, :, :length], mean, **EXACT)
            assert not weights[row, :, length:].any()


def test_the_encoders_layers_have_a_gradient_scaled_by_twice_the_number_of_attentions() -> None:
    model = model_of()
    src, lengths, previous = batch()
    encoder = encoder_of(model)

    def total() -> Tensor:
        return model.logits(model(src, lengths, previous).vectors).sin().sum()

    for parameter, scale in ((encoder.enter.weight_v, 0.25), (encoder.leave.bias, 0.25), (model.output_bias, 1.0)):
        (found,) = torch.autograd.grad(total(), [parameter])
        flat = parameter.detach().view(-1)
        for place in range(min(4, len(flat))):
            before, step = float(flat[place]), 1e-6
            with torch.no_grad():
                flat[place] = before + step
                above = float(total())
                flat[place] = before - step
                difference = (above - float(total())) / (2 * step)
                flat[place] = before
            assert float(found.view(-1)[place]) == pytest.approx(scale * difference, rel=1e-5, abs=1e-7)


def test_the_embeddings_beside_the_outputs_have_their_whole_gradient() -> None:
    model = model_of()
    src, lengths, previous = batch()
    encoder = encoder_of(model)
    with torch.no_grad():
        # Nothing comes through the layers: what is left is the sum of outputs and embeddings.
        encoder.leave.weight_g.zero_()
    (found,) = torch.autograd.grad(model(src, lengths, previous).vectors.sin().sum(), [encoder.positions.table])
    before, step = float(encoder.positions.table.detach()[2, 1]), 1e-6
    ends = []
    with torch.no_grad():
        for change in (step, -step):
            encoder.positions.table[2, 1] = before + change
            ends.append(float(model(src, lengths, previous).vectors.sin().sum()))
    assert float(found[2, 1]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_gradients_of_convolution_and_attention_are_those_of_their_formulas() -> None:
    draw = torch.Generator().manual_seed(7)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)

    def convolved(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gated_convolution(vectors, 3, Product(weight, bias))

    def attended(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        nothing = Product(keys, keys)
        return attend(queries, Memory(keys, values, torch.tensor([[True, True, False]]), nothing, (), nothing))

    assert torch.autograd.gradcheck(convolved, (drawn(2, 4, 2), drawn(4, 6), drawn(4)))
    assert torch.autograd.gradcheck(attended, (drawn(1, 2, 3), drawn(1, 3, 3), drawn(1, 3, 3)))


# Decoding


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [4, 1], [1, 4]])
def test_steps_by_any_number_give_what_all_at_once_give(width: int, sizes: list[int]) -> None:
    model = model_of(CONFIG.model_copy(update={"kernel_width": width}))
    src, lengths, previous = batch()
    with torch.no_grad():
        encoded = model.encode(src, lengths)
        together = model.decode(previous, encoded, need_weights=True)
        vectors, weights = [], []
        for part in previous.split(sizes, dim=1):
            vector, state, weight = model.decode(part, encoded, need_weights=True)
            vectors.append(vector)
            weights.append(weight)
            encoded = Encoded(encoded.memory, state)
    torch.testing.assert_close(torch.cat(vectors, dim=1), together.vectors, **EXACT)
    torch.testing.assert_close(torch.cat(weights, dim=1), together.weights, **EXACT)


def test_no_step_sees_a_later_piece() -> None:
    model = model_of()
    src, lengths, previous = batch()
    changed = previous.clone()
    changed[:, 3] = (changed[:, 3] - 3) % (SIZE - 4) + 4
    with torch.no_grad():
        first, second = model(src, lengths, previous).vectors, model(src, lengths, changed).vectors
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.isclose(first[:, 3:], second[:, 3:]).any(-1).all()


def test_a_weight_is_normalised_once_for_all_steps_of_a_batch() -> None:
    model = model_of()
    src, lengths, previous = batch()
    with torch.no_grad():
        encoded = model.encode(src, lengths)
        expected = model.decode(previous, encoded).vectors
        for layer in decoder_of(model).modules():
            if isinstance(layer, NormedLinear):
                layer.weight_g.zero_()
        assert torch.equal(model.decode(previous, encoded).vectors, expected)


def test_positions_beyond_the_last_have_its_vector() -> None:
    positions = Positions(4, 3)
    found = positions(5, 2)
    expected = positions.table[[2, 3, 3, 3, 3]]
    assert torch.equal(found, expected)
    found.sum().backward()
    assert positions.table.grad is not None
    assert positions.table.grad[:, 0].tolist() == [0.0, 0.0, 1.0, 4.0]


def test_longer_texts_than_there_are_positions_have_a_value() -> None:
    model = model_of(CONFIG.model_copy(update={"max_positions": 2}))
    with torch.no_grad():
        assert torch.isfinite(model(*batch()).vectors).all()


# The start


def test_the_first_weights_have_the_papers_variances() -> None:
    config = ConvolutionalConfig(
        embedding_dim=64, hidden_dim=96, dropout=0.2, tie_target_embeddings=False, share_embeddings=False
    )
    model = build_model(config, 500, 400)
    encoder, decoder = encoder_of(model), decoder_of(model)
    layer = decoder.layers[0]
    expected = [
        (model.source_embedding.table.weight[1:], 0.1),
        (model.target_embedding.table.weight[1:], 0.1),
        (encoder.positions.table, 0.1),
        (encoder.enter.weight_v, math.sqrt(0.8 / 64)),
        (encoder.layers[1].weight_v, math.sqrt(4 * 0.8 / (3 * 96))),
        (encoder.leave.weight_v, math.sqrt(1 / 96)),
        (decoder.enter.weight_v, math.sqrt(0.8 / 64)),
        (layer.convolution.weight_v, math.sqrt(4 * 0.8 / (3 * 96))),
        (layer.query.weight_v, math.sqrt(1 / 96)),
        (layer.context.weight_v, math.sqrt(1 / 64)),
        (decoder.leave.weight_v, math.sqrt(1 / 96)),
        (model.output_weight, math.sqrt(0.8 / 64)),
    ]
    for weight, std in expected:
        assert weight.detach().std().item() == pytest.approx(std, rel=0.05)
        assert abs(weight.detach().mean().item()) < 0.1 * std
    for module in model.modules():
        if isinstance(module, NormedLinear):
            assert not module.bias.any()
            torch.testing.assert_close(module.product().weight, module.weight_v)
    assert not model.source_embedding.table.weight[0].any()


def test_a_deep_encoder_keeps_the_variance_of_its_input() -> None:
    torch.manual_seed(8)
    config = ConvolutionalConfig(embedding_dim=128, hidden_dim=128, encoder_layers=20, dropout=0.0)
    encoder = Encoder(config)
    embedded = 0.1 * torch.randn(8, 30, 128)
    with torch.no_grad():
        outputs, given, _ = encoder(embedded, torch.full((8,), 30), None)
    assert 0.5 < float(outputs.var() / given.var()) < 2.0


def test_dropout_acts_on_embeddings_on_convolutions_inputs_and_on_the_output() -> None:
    config = CONFIG.model_copy(update={"embedding_dim": 200, "hidden_dim": 200, "kernel_width": 5, "dropout": 0.25})
    model = model_of(config)
    src, _, previous = batch()
    with torch.no_grad():
        encoded = model.encode(src, torch.full((3,), 6))
        embedded = model.source_embedding(src, 0.0, None)
        given = encoder_of(model)(embedded, torch.full((3,), 6), torch.Generator().manual_seed(1)).embedded
        found = model.decode(previous, encoded, torch.Generator().manual_seed(1))
    for noisy in (given, *found.state.inputs, found.vectors):  # type: ignore[attr-defined]
        assert float((noisy == 0.0).double().mean()) == pytest.approx(0.25, abs=0.03)
    embedded = model.source_embedding(src, 0.0, None) + encoder_of(model).positions(6, 0)
    kept = given != 0.0
    torch.testing.assert_close(given[kept], embedded[kept] / 0.75, **EXACT)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValidationError, match="kernel_width 4 must be odd"):
        ConvolutionalConfig(kernel_width=4)
