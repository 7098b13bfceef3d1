"""The decoder against plain loops over its steps, written from the papers' equations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nmt.architectures import architecture, build_model
from nmt.model.attention import AdditiveAttention
from nmt.model.embeddings import keep_mask
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.recurrent_decoder import Decoder, DecoderState
from nmt.model.recurrent_encoder import EncoderOutput
from nmt.model.seq2seq import Decoded, Encoded

E, H, STEPS = 4, 6, 4
LENGTHS = [5, 2, 3]
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def decoder_of(**keys: Any) -> Decoder:
    """Return a decoder in float64, all its parameters away from their first values."""
    torch.manual_seed(5)
    decoder = Decoder(
        RecurrentConfig.model_validate({"embedding_dim": E, "hidden_dim": H, "attention_heads": 2, **keys})
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder.double().requires_grad_(False)


def encoder_output(layers: int = 1, *, has_cell: bool = True) -> EncoderOutput:
    draw = torch.Generator().manual_seed(6)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    mask = torch.arange(5)[None, :] < torch.tensor(LENGTHS)[:, None]
    hidden, cell = normal(layers, 3, H), normal(layers, 3, H if has_cell else 0)
    return EncoderOutput(normal(3, 5, H), mask, hidden[-1], hidden, cell, 1, mask)


def pieces() -> Tensor:
    """Return the embeddings [B, T, E] of the previous target pieces."""
    return torch.randn(3, STEPS, E, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def decoded(decoder: Decoder, output: EncoderOutput) -> Decoded:
    result: Decoded = decoder(pieces(), decoder.start(output), None, need_weights=True)
    return result


# The equations, of one sentence


def lstm(layer: nn.Module, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.LSTM)
    gates = layer.weight_ih_l0 @ x + layer.bias_ih_l0 + layer.weight_hh_l0 @ hidden + layer.bias_hh_l0
    i, f, g, o = gates.chunk(4)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru(layer: nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    assert isinstance(layer, nn.GRU)
    r_x, z_x, n_x = (layer.weight_ih_l0 @ x + layer.bias_ih_l0).chunk(3)
    r_h, z_h, n_h = (layer.weight_hh_l0 @ hidden + layer.bias_hh_l0).chunk(3)
    z = (z_x + z_h).sigmoid()
    return (1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * hidden


def linear(map_: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(map_, nn.Linear)
    product = map_.weight @ x
    return product if map_.bias is None else product + map_.bias


def additive(decoder: Decoder, query: Tensor, states: Tensor, covered: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the context [H] and the weights of real states: Bahdanau et al. 2015, A.1.2; See et al. 2017, eq. 11."""
    attention = decoder.attention
    assert isinstance(attention, AdditiveAttention)
    scores = []
    for s, state in enumerate(states):
        inner = linear(attention.query, query) + linear(attention.key, state)
        if covered is not None and attention.covered is not None:
            inner = inner + attention.covered.weight[:, 0] * covered[s]
        scores.append(attention.energy.weight[0] @ inner.tanh())
    powers = torch.stack(scores).exp()
    weights = powers / powers.sum()
    return sum((weight * state for weight, state in zip(weights, states)), torch.zeros(H).double()), weights


def maxout(decoder: Decoder, x: Tensor) -> Tensor:
    inner = linear(decoder.maxout, x)
    return torch.stack([torch.maximum(inner[2 * j], inner[2 * j + 1]) for j in range(E)])


def assert_decodes(found: Decoded, row: int, vectors: list[Tensor], weights: list[Tensor]) -> None:
    torch.testing.assert_close(found.vectors[row], torch.stack(vectors), **EXACT)
    assert found.weights is not None
    torch.testing.assert_close(found.weights[row, :, : LENGTHS[row]], torch.stack(weights), **EXACT)
    assert not found.weights[row, :, LENGTHS[row] :].any()


@pytest.mark.parametrize("coverage", [False, True])
def test_bahdanaus_decoder_is_the_papers_equations(coverage: bool) -> None:
    name = "coverage" if coverage else "bahdanau"
    decoder = decoder_of(**variant_keys(name))
    output = encoder_output(has_cell=False)
    found = decoded(decoder, output)
    for row, length in enumerate(LENGTHS):
        states, hidden = output.states[row, :length], linear(decoder.bridge_hidden[0], output.final[row]).tanh()
        covered, vectors, weights = torch.zeros(length).double(), [], []
        for piece in pieces()[row]:
            context, weight = additive(decoder, hidden, states, covered)
            covered = covered + weight
            hidden = gru(decoder.layers[0], torch.cat([piece, context]), hidden)
            vectors.append(maxout(decoder, torch.cat([hidden, context, piece])))
            weights.append(weight)
        assert_decodes(found, row, vectors, weights)
        assert isinstance(found.state, DecoderState)
        torch.testing.assert_close(found.state.hidden[0, row], hidden, **EXACT)
        if coverage:
            torch.testing.assert_close(found.state.coverage[row, :length], covered, **EXACT)


@pytest.mark.parametrize("feeding", [False, True])
@pytest.mark.parametrize("query", ["current", "previous"])
def test_gnmts_decoder_is_the_papers_equations(feeding: bool, query: str) -> None:
    keys = variant_keys("gnmt") | {"decoder_layers": 3, "decoder_start": "last"}
    decoder = decoder_of(**keys | {"input_feeding": feeding, "attention_query": query})
    output = encoder_output(layers=2)
    found = decoded(decoder, output)
    for row, length in enumerate(LENGTHS):
        states = output.states[row, :length]
        hidden = [output.finals_hidden[layer, row] for layer in (0, 1, 1)]
        cell = [output.finals_cell[layer, row] for layer in (0, 1, 1)]
        context, vectors, weights = torch.zeros(H).double(), [], []
        for piece in pieces()[row]:
            fed = [context] if feeding else []
            if query == "previous":
                context, weight = additive(decoder, hidden[0], states)
                fed.append(context)
            hidden[0], cell[0] = lstm(decoder.layers[0], torch.cat([piece, *fed]), hidden[0], cell[0])
            if query == "current":
                context, weight = additive(decoder, hidden[0], states)
            x = hidden[0]
            for layer in (1, 2):
                below = torch.cat([x, context])
                hidden[layer], cell[layer] = lstm(decoder.layers[layer], below, hidden[layer], cell[layer])
                x = hidden[layer] + x
            vectors.append(linear(decoder.combine, x).tanh())
            weights.append(weight)
        assert_decodes(found, row, vectors, weights)


def test_luongs_decoder_with_input_feeding_is_the_papers_equations() -> None:
    keys = variant_keys("additive-feeding") | {"decoder_layers": 2, "output": "attentional"}
    decoder = decoder_of(**keys)
    output = encoder_output()
    found = decoded(decoder, output)
    for row, length in enumerate(LENGTHS):
        states, final = output.states[row, :length], output.final[row]
        hidden = [linear(bridge, final).tanh() for bridge in decoder.bridge_hidden]
        cell = [linear(bridge, final) for bridge in decoder.bridge_cell]
        vector, vectors, weights = torch.zeros(E).double(), [], []
        for piece in pieces()[row]:
            x = torch.cat([piece, vector])
            for layer in (0, 1):
                hidden[layer], cell[layer] = lstm(decoder.layers[layer], x, hidden[layer], cell[layer])
                x = hidden[layer]
            context, weight = additive(decoder, x, states)
            vector = linear(decoder.combine, torch.cat([x, context])).tanh()
            vectors.append(vector)
            weights.append(weight)
        assert_decodes(found, row, vectors, weights)


def test_chos_decoder_reads_one_summary_at_every_step() -> None:
    decoder = decoder_of(**variant_keys("cho"))
    output = encoder_output(has_cell=False)
    found = decoded(decoder, output)
    assert decoder.summary is not None
    assert found.weights is None
    for row in range(3):
        summary = linear(decoder.summary, output.final[row]).tanh()
        hidden = linear(decoder.bridge_hidden[0], summary).tanh()
        for t, piece in enumerate(pieces()[row]):
            hidden = gru(decoder.layers[0], torch.cat([piece, summary]), hidden)
            vector = maxout(decoder, torch.cat([hidden, summary, piece]))
            torch.testing.assert_close(found.vectors[row, t], vector, **EXACT)


def test_sutskevers_decoder_sees_the_source_in_its_first_state_alone() -> None:
    decoder = decoder_of(**variant_keys("sutskever"))
    output = encoder_output(layers=2)
    found = decoded(decoder, output)
    assert found.weights is None
    for row in range(3):
        hidden, cell = list(output.finals_hidden[:, row]), list(output.finals_cell[:, row])
        for t, x in enumerate(pieces()[row]):
            for layer in (0, 1):
                hidden[layer], cell[layer] = lstm(decoder.layers[layer], x, hidden[layer], cell[layer])
                x = hidden[layer]
            torch.testing.assert_close(found.vectors[row, t], linear(decoder.combine, x).tanh(), **EXACT)


# First states and outputs


def first_state(output: EncoderOutput, **keys: Any) -> tuple[Decoder, DecoderState]:
    decoder = decoder_of(decoder_layers=3, **keys)
    state = decoder.start(output).state
    assert isinstance(state, DecoderState)
    return decoder, state


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh", "peephole_lstm"])
def test_a_decoder_that_starts_from_the_last_has_the_encoders_final_states_layer_by_layer(cell: str) -> None:
    output = encoder_output(layers=2, has_cell="lstm" in cell)
    _, state = first_state(output, cell=cell, decoder_start="last", encoder_layers=2)
    assert torch.equal(state.hidden, output.finals_hidden[[0, 1, 1]])
    assert torch.equal(state.cell, output.finals_cell[[0, 1, 1]])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("start", ["mean", "bridge"])
def test_a_decoder_starts_from_learned_maps(cell: str, start: str) -> None:
    output = encoder_output(has_cell=cell == "lstm")
    decoder, state = first_state(output, cell=cell, decoder_start=start)
    for row, length in enumerate(LENGTHS):
        source = output.final[row] if start == "bridge" else output.states[row, :length].mean(0)
        for layer in range(3):
            expected = linear(decoder.bridge_hidden[layer], source).tanh()
            torch.testing.assert_close(state.hidden[layer, row], expected, **EXACT)
            if cell == "lstm":
                expected = linear(decoder.bridge_cell[layer], source)
                torch.testing.assert_close(state.cell[layer, row], expected, **EXACT)
    assert state.cell.shape == (3, 3, H if cell == "lstm" else 0)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_decoder_that_starts_from_zeros_has_no_map(cell: str) -> None:
    decoder, state = first_state(encoder_output(has_cell=cell == "lstm"), cell=cell, decoder_start="zeros")
    assert not state.hidden.any() and not state.cell.any()
    assert state.hidden.shape == (3, 3, H)
    assert state.cell.shape == (3, 3, H if cell == "lstm" else 0)
    assert not any("bridge" in name for name, _ in decoder.named_parameters())


def test_deep_output_is_the_larger_of_each_pair_of_units() -> None:
    decoder = decoder_of(attention="none", attention_query="current", input_feeding=False, output="deep")
    with torch.no_grad():
        decoder.maxout.weight.zero_()
        decoder.maxout.bias.copy_(torch.tensor([1.0, 2.0, -3.0, -5.0, 0.0, 4.0, 7.0, 6.0]))
    assert decoded(decoder, encoder_output()).vectors[0, 0].tolist() == [2.0, -3.0, 4.0, 7.0]
    # State, then embedding: a unit reads each.
    with torch.no_grad():
        decoder.maxout.weight[0, H + 1] = 100.0
    expected = torch.maximum(1.0 + 100.0 * pieces()[..., 1], torch.tensor(2.0))
    torch.testing.assert_close(decoded(decoder, encoder_output()).vectors[..., 0], expected, **EXACT)


# Steps, rows, noise

GRID = [
    {"attention": attention, "attention_query": query, "attention_feeds": feeds, "input_feeding": feeding, **others}
    for attention, query, feeds, feeding, others in itertools.product(
        ["none", "additive", "scaled_general", "multi_head"],
        ["current", "previous"],
        ["output", "layers"],
        [False, True],
        [
            {"cell": "lstm", "output": "deep", "attention_window": 1, "decoder_start": "last"},
            {"cell": "gru", "residual": True, "coverage": True, "decoder_start": "mean"},
            {"cell": "peephole_lstm", "layer_norm": True, "encoder_layers": 3, "pyramid_layers": 2},
        ],
    )
]


def grid() -> list[RecurrentConfig]:
    """Return those of the grid that there are: windows, coverage and reading layers need an attention."""
    configs = []
    for keys in GRID:
        attends = keys["attention"] != "none"
        if keys["attention"] not in ("additive", "normed_additive"):
            keys = keys | {"coverage": False}
        if not attends:
            keys = keys | {"attention_window": 0, "attention_feeds": "output"}
        sizes = {"embedding_dim": E, "hidden_dim": 8, "attention_heads": 2, "decoder_layers": 2, "dropout": 0.3}
        config = RecurrentConfig.model_validate(sizes | keys)
        if config not in configs:
            configs.append(config)
    return configs


def name(config: RecurrentConfig) -> str:
    feeding = "fed" if config.input_feeding else "plain"
    return f"{config.attention}-{config.attention_query}-{config.attention_feeds}-{feeding}-{config.cell}"


@pytest.mark.parametrize("config", grid(), ids=name)
def test_steps_together_are_steps_one_by_one_whatever_stands_beside_a_sentence(config: RecurrentConfig) -> None:
    model = build_model(config, 20, 20).double()
    draw = torch.Generator().manual_seed(1)
    src, lengths = torch.randint(4, 20, (3, 7), generator=draw), torch.tensor([7, 2, 5])
    previous = torch.randint(4, 20, (3, 4), generator=draw)
    with torch.no_grad():
        start = model.encode(src, lengths)
        vectors, last, weights = model.decode(previous, start, need_weights=True)
        plain = model.decode(previous, start)
        assert plain.weights is None
        assert torch.equal(plain.vectors, vectors)

        encoded, order = start, torch.tensor([2, 0, 1])
        for t in range(4):
            found = model.decode(previous[:, t : t + 1], encoded, need_weights=True)
            torch.testing.assert_close(found.vectors[:, 0], vectors[:, t], **EXACT)
            if weights is not None:
                assert found.weights is not None
                torch.testing.assert_close(found.weights[:, 0], weights[:, t], **EXACT)
            # Rows may change their places between steps.
            encoded = Encoded(start.memory, found.state).select(order).select(order.argsort())
        for found_part, part in zip(found.state, last):
            torch.testing.assert_close(found_part, part, **EXACT)

        for row, length in enumerate(lengths.tolist()):
            alone = model(
                src[row : row + 1, :length], lengths[row : row + 1], previous[row : row + 1], need_weights=True
            )
            torch.testing.assert_close(alone.vectors[0], vectors[row], **EXACT)
            if weights is not None:
                torch.testing.assert_close(alone.weights[0], weights[row, :, :length], **EXACT)
                assert not weights[row, :, length:].any()
                torch.testing.assert_close(weights[row].sum(-1), torch.ones(4).double(), **EXACT)


def test_a_pyramids_weights_are_even_over_the_pieces_of_a_state() -> None:
    keys = variant_keys("pyramidal") | {"encoder_layers": 3, "pyramid_layers": 2}
    model = build_model(RecurrentConfig.model_validate({"embedding_dim": E, "hidden_dim": 8, **keys}), 20, 20).double()
    src, lengths = torch.randint(4, 20, (2, 7), generator=torch.Generator().manual_seed(1)), torch.tensor([7, 5])
    with torch.no_grad():
        weights = model(src, lengths, src[:, :3], need_weights=True).weights
    for row, groups in enumerate([[range(4), range(4, 7)], [range(4), range(4, 5)]]):
        for group in groups:
            part = weights[row, :, list(group)]
            torch.testing.assert_close(part, part[:, :1].expand_as(part), rtol=0, atol=1e-15)
    assert not weights[1, :, 5:].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3).double(), **EXACT)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_layers_at_once_and_steps_one_by_one_have_the_same_noise(cell: str) -> None:
    # With what is fed multiplied by zeros, a decoder with input feeding is one without.
    keys = {"cell": cell, "attention": "additive", "decoder_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.4}
    plain, fed = decoder_of(**keys, input_feeding=False), decoder_of(**keys, input_feeding=True)
    values = dict(plain.state_dict())
    values["layers.0.weight_ih_l0"] = torch.cat(
        [values["layers.0.weight_ih_l0"], torch.zeros_like(fed.state_dict()["layers.0.weight_ih_l0"][:, E:])], dim=1
    )
    fed.load_state_dict(values)
    output = encoder_output(has_cell=cell == "lstm")

    def vectors(decoder: Decoder, seed: int) -> Tensor:
        result: Decoded = decoder(pieces(), decoder.start(output), torch.Generator().manual_seed(seed))
        return result.vectors

    torch.testing.assert_close(vectors(fed, 3), vectors(plain, 3), **EXACT)
    assert not torch.allclose(vectors(fed, 3), vectors(fed, 4))
    assert (vectors(plain, 3) == 0.0).double().mean() > 0.1


def test_recurrent_dropout_has_one_mask_for_all_steps() -> None:
    keys = {"cell": "tanh", "attention": "none", "decoder_start": "last", "input_feeding": False, "dropout": 0.0}
    decoder = decoder_of(**keys, recurrent_dropout=0.5)
    output = encoder_output(has_cell=False)
    found = decoder(pieces(), decoder.start(output), torch.Generator().manual_seed(3)).vectors
    mask = keep_mask((3, H), 0.5, torch.Generator().manual_seed(3), like=output.final)
    layer = decoder.layers[0]
    hidden = output.final
    for t in range(STEPS):
        recurrent = (hidden * mask) @ layer.weight_hh.T + layer.bias_hh
        hidden = torch.tanh(pieces()[:, t] @ layer.weight_ih.T + layer.bias_ih + recurrent)
        torch.testing.assert_close(found[:, t], torch.tanh(decoder.combine(hidden)), **EXACT)


def test_cells_stay_wide_under_bfloat16() -> None:
    for feeding, start in itertools.product([False, True], ["last", "mean", "bridge", "zeros"]):
        decoder = decoder_of(attention="additive", coverage=True, input_feeding=feeding, decoder_start=start).float()
        output = encoder_output()
        low = output._replace(
            **{key: getattr(output, key).bfloat16() for key in ("states", "final", "finals_hidden")},
            finals_cell=output.finals_cell.float(),
        )
        with torch.autocast("cpu", torch.bfloat16):
            encoded = decoder.start(low)
            result = decoder(pieces().float(), encoded, None, need_weights=True)
        assert encoded.state.cell.dtype == result.state.cell.dtype == torch.float32
        assert encoded.state.coverage.dtype == result.state.coverage.dtype == torch.float32
        assert result.weights.dtype == torch.float32


# Configs


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"attention": "multi_head", "hidden_dim": 10, "attention_heads": 4},
            "attention_heads 4 must divide hidden_dim 10",
        ),
        (
            {"coverage": True, "attention": "general"},
            "set attention to additive or normed_additive, or coverage to false",
        ),
        ({"attention": "none", "attention_window": 2}, "attention_window needs an attention.*set it to 0"),
        (
            {"attention": "none", "attention_feeds": "layers", "decoder_layers": 2},
            "attention_feeds layers needs an attention.*set attention_feeds to output",
        ),
        (
            {"attention": "none", "position_scaling": "learned"},
            "position_scaling learned is of states that nothing reads.*set position_scaling to none",
        ),
        ({"attention_feeds": "layers"}, "set decoder_layers to 2 or more"),
        ({"attention": "none", "decoder_start": "zeros"}, "nothing of the source: set decoder_start to last"),
        (
            {"attention": "none", "decoder_start": "last", "encoder_layers": 2},
            "reads 1 of 2 encoder_layers: set decoder_layers to as many",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_with_the_remedy(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentConfig.model_validate(keys)


def variant_keys(name: str) -> dict[str, Any]:
    return dict(next(variant.keys for variant in architecture("recurrent").variants if variant.name == name))


def test_the_models_of_the_literature_are_named() -> None:
    names = {variant.name for variant in architecture("recurrent").variants}
    assert names >= {
        "sutskever", "cho", "bahdanau", "luong-dot", "luong-general", "luong-concat", "luong-local", "luong-feeding",
        "additive-feeding", "normed-additive", "multi-head", "gnmt", "coverage", "pyramidal", "position-scaled",
        "layer-normalised", "batch-normalised", "peephole", "vanilla",
    }  # fmt: skip
    assert variant_keys("luong-general") == {"cell": "lstm", "attention": "general", "input_feeding": False}
