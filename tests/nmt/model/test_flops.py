"""Parameters and FLOPs: torch's count against sums by hand, and the shapes of equal layers together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.config import ModelTable
from nmt.model import transformer
from nmt.model.flops import Cost, count, described, shapes, without_weights
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq

V, E, H = 8000, 256, 512
ADDITIVE = RecurrentConfig(
    embedding_dim=E, hidden_dim=H, cell="lstm", encoder_layers=1, bidirectional=True, decoder_layers=1,
    decoder_start="bridge", attention="additive", attention_query="current", input_feeding=True, output="attentional",
)  # fmt: skip


def cost(config: ModelTable, source: int, target: int, pieces: int = V) -> Cost:
    return count(lambda: build_model(config, pieces, pieces), source_pieces=source, target_pieces=target)


def by_hand(source: int, target: int, *, gates: int = 4, fed: int = E, bridges: int = 2, query: bool = True) -> int:
    """FLOPs of a pair: 2 for each multiplication with its addition, of each matrix as often as it is used."""
    each = H // 2
    encoder = source * 2 * (gates * each) * (E + each) * 2  # two directions
    start = bridges * 2 * H * H
    keys = source * 2 * H * H
    layer = 2 * (gates * H) * (E + fed + H)
    scores = (2 * H * H if query else 0) + 2 * source * H  # the query's product, then v tanh(...) or the dot product
    context = 2 * source * H
    vector, logits = 2 * (H + H) * E, 2 * V * E
    return encoder + start + keys + target * (layer + scores + context + vector + logits)


def test_input_feeding_with_additive_attention_costs_what_its_products_cost() -> None:
    found = cost(ADDITIVE, 15, 15)
    # An encoder's LSTM may read up to 8 columns more than the embedding, which stop it at a source's end.
    assert 0 <= found.forward * 15 - by_hand(15, 15) <= 15 * 2 * (4 * H // 2) * 8 * 2
    # Encoder and keys 2.62, bridge 0.07, LSTM 4.19, attention 0.56, vector 0.52, scores of the pieces 4.10.
    assert found.forward / 1e6 == pytest.approx(2.62 + 0.07 + 4.19 + 0.56 + 0.52 + 4.10, abs=0.05)
    assert found.training == 3 * found.forward
    with_literatures_vector = found.forward + 2 * V * (H - E) + 2 * 2 * H * (H - E) + 2 * 4 * H * (H - E)
    assert with_literatures_vector / 1e6 == pytest.approx(17.5, rel=0.02)


GRU = ADDITIVE.model_copy(update={"cell": "gru"})


def test_fused_layers_cost_what_their_products_cost() -> None:
    config = GRU.model_copy(update={"attention": "general", "input_feeding": False})
    expected = by_hand(7, 9, gates=3, fed=0, bridges=1, query=False)
    assert cost(config, 7, 9).forward * 9 == pytest.approx(expected, rel=1e-12)


def test_longer_sources_cost_each_target_piece_more() -> None:
    short, long = cost(GRU, 10, 10), cost(GRU, 30, 10)
    expected = by_hand(30, 10, gates=3) - by_hand(10, 10, gates=3)
    assert (long.forward - short.forward) * 10 == pytest.approx(expected, rel=1e-9)
    assert short.parameters == long.parameters


def test_a_transformer_costs_what_its_products_cost() -> None:
    table = transformer.ARCHITECTURE.table
    config = table.model_validate(
        {"embedding_dim": 24, "encoder_layers": 2, "decoder_layers": 3, "attention_heads": 4, "feed_forward_dim": 40}
    )
    d, f, s, t = 24, 40, 7, 9
    encoder = 2 * (s * 4 * 2 * d * d + 2 * 2 * s * s * d + s * 2 * 2 * d * f)
    itself = t * 4 * 2 * d * d + 2 * 2 * t * t * d
    across = t * 2 * 2 * d * d + s * 2 * 2 * d * d + 2 * 2 * t * s * d  # query and output; keys and values
    decoder = 3 * (itself + across + t * 2 * 2 * d * f)
    found = count(lambda: transformer.ARCHITECTURE.build(config, 50, 50), source_pieces=s, target_pieces=t)
    assert found.forward * t == pytest.approx(encoder + decoder + t * 2 * d * 50, rel=1e-12)


def test_convolutions_cost_what_their_products_cost() -> None:
    table = architecture("convolutional").table
    config = table.model_validate({"embedding_dim": 10, "hidden_dim": 12, "encoder_layers": 2, "decoder_layers": 3})
    e, h, s, t = 10, 12, 7, 9
    encoder = s * (2 * 2 * e * h + 2 * 2 * (3 * h) * (2 * h))
    attention = 2 * 2 * h * e + 2 * 2 * s * e  # to a query and back; scores and contexts
    decoder = t * (2 * 2 * e * h + 3 * (2 * (3 * h) * (2 * h) + attention))
    assert cost(config, s, t, 50).forward * t == pytest.approx(encoder + decoder + t * 2 * e * 50, rel=1e-12)


class Products(nn.Module):
    """One product of each kind that models have, in the interface's clothes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.convolution = nn.Conv1d(8, 5, kernel_size=3, padding=1)
        self.vector = nn.Parameter(torch.ones(5))

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, src: torch.Tensor, lengths: torch.Tensor, previous: torch.Tensor) -> Products:
        states = self.layers(torch.ones(1, src.shape[1], 6))[0]
        heads = states.unflatten(-1, (2, 4)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        self.convolved = self.convolution(attended.transpose(1, 2).flatten(2).transpose(1, 2)).transpose(1, 2)
        return self

    @property
    def vectors(self) -> torch.Tensor:
        return self.convolved

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ self.vector


def test_every_kind_of_product_is_counted(recwarn: pytest.WarningsRecorder) -> None:
    found = count(lambda: Products(), source_pieces=7, target_pieces=1)  # type: ignore[arg-type, return-value]
    lstm = 7 * 2 * 2 * (4 * 4) * ((6 + 4) + (8 + 4))  # directions, gates; the second layer reads both directions
    attention = 2 * 2 * 2 * 7 * 7 * 4  # scores and contexts of two heads
    assert found.forward == lstm + attention + 7 * 2 * 3 * 8 * 5 + 7 * 2 * 5
    assert not recwarn.list


VARIANTS = [(name, variant) for name in ARCHITECTURES for variant in architecture(name).variants]


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=[f"{name}-{variant.name}" for name, variant in VARIANTS])
def test_every_model_of_the_menu_can_be_counted_without_its_weights(name: str, variant: object) -> None:
    table = architecture(name).table.model_validate(dict(variant.keys))  # type: ignore[attr-defined]
    small = {key: value for key, value in SMALL.items() if key in type(table).model_fields}
    config = type(table).model_validate(table.model_dump() | small)
    found = cost(config, 3, 2, 50)
    model: Seq2Seq = build_model(config, 50, 50)
    assert found.parameters == model.num_parameters()
    assert found.forward >= 2 * 50 * config.embedding_dim  # the scores of the pieces at least
    listed = {name: shape.shape for shape in shapes(model) for name in shape.names}
    assert listed == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


SMALL = {"embedding_dim": 16, "hidden_dim": 16, "feed_forward_dim": 8, "attention_heads": 2}


def test_equal_layers_stand_in_one_line() -> None:
    layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
    model = nn.ModuleDict({"layers": layers, "last": nn.Linear(4, 1, bias=False)})
    lines = [line.split(maxsplit=1) for line in described(model).splitlines()]
    assert lines == [
        ["80", "parameters in 9 tensors"],
        ["layers.0.weight", "4 x 3"],
        ["layers.{0-3}.bias", "4, 4 times"],
        ["layers.{1-3}.weight", "4 x 4, 3 times"],
        ["last.weight", "1 x 4"],
    ]


def test_names_that_no_ranges_make_stand_alone() -> None:
    def layer(size: int) -> nn.Linear:
        return nn.Linear(2, size, bias=False)

    labels = [shape.label for shape in shapes(nn.ModuleList([layer(3), layer(1), layer(3)]))]
    assert labels == ["0.weight", "2.weight", "1.weight"]


def test_a_model_without_weights_has_the_shapes_of_one_with_them() -> None:
    config = RecurrentConfig(embedding_dim=6, hidden_dim=8)
    empty = without_weights(lambda: build_model(config, 11, 11))
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert shapes(empty) == shapes(build_model(config, 11, 11))
