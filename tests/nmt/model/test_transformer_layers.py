"""The layers of a transformer against torch's own, with their weights copied."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.embeddings import keep_mask
from nmt.model.multi_head_attention import CrossAttention, SelfAttention, look_back
from nmt.model.positions import sinusoids
from nmt.model.transformer_config import TransformerConfig
from nmt.model.transformer_layers import DecoderLayer, EncoderLayer, FeedForward, Inputs, Residual

Layer = TypeVar("Layer", bound=nn.Module)

E, HEADS, HIDDEN = 12, 3, 20
MASK = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
KINDS = list(itertools.product(["pre", "post"], ["relu", "gelu"]))


def table(**keys: Any) -> TransformerConfig:
    sizes = {"embedding_dim": E, "attention_heads": HEADS, "feed_forward_dim": HIDDEN}
    return TransformerConfig.model_validate({**sizes, **keys})


def drawn(layer: Layer) -> Layer:
    """The layer in float64, with biases and norms that are not those it began with."""
    for parameter in layer.double().parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.5)
    return layer


def states(seed: int, steps: int) -> Tensor:
    return torch.randn(3, steps, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def copy_attention(attention: SelfAttention | CrossAttention, to: nn.MultiheadAttention) -> None:
    if isinstance(attention, SelfAttention):
        products = [attention.queries_keys_values]
    else:
        products = [attention.queries, attention.keys_values]
    to.in_proj_weight.copy_(torch.cat([product.weight for product in products]))
    to.in_proj_bias.copy_(torch.cat([product.bias for product in products]))
    to.out_proj.load_state_dict(attention.output.state_dict())


def torchs_encoder_layer(layer: EncoderLayer, config: TransformerConfig) -> nn.TransformerEncoderLayer:
    reference = nn.TransformerEncoderLayer(
        E, HEADS, HIDDEN, 0.0, config.activation, norm_first=config.norm == "pre", batch_first=True
    ).double()
    copy_attention(layer.attention, reference.self_attn)
    for name, part in {
        "linear1": layer.feed_forward.inner,
        "linear2": layer.feed_forward.outer,
        "norm1": layer.around_attention.norm,
        "norm2": layer.around_feed_forward.norm,
    }.items():
        reference.get_submodule(name).load_state_dict(part.state_dict())
    return reference


def torchs_decoder_layer(layer: DecoderLayer, config: TransformerConfig) -> nn.TransformerDecoderLayer:
    reference = nn.TransformerDecoderLayer(
        E, HEADS, HIDDEN, 0.0, config.activation, norm_first=config.norm == "pre", batch_first=True
    ).double()
    assert isinstance(layer.so_far, SelfAttention)
    copy_attention(layer.so_far, reference.self_attn)
    copy_attention(layer.cross_attention, reference.multihead_attn)
    for name, part in {
        "linear1": layer.feed_forward.inner,
        "linear2": layer.feed_forward.outer,
        "norm1": layer.around_so_far.norm,
        "norm2": layer.around_cross_attention.norm,
        "norm3": layer.around_feed_forward.norm,
    }.items():
        reference.get_submodule(name).load_state_dict(part.state_dict())
    return reference


@pytest.mark.parametrize("norm, activation", KINDS)
def test_an_encoder_layer_is_torchs_with_its_gradients(norm: str, activation: str) -> None:
    config = table(norm=norm, activation=activation)
    layer, x = drawn(EncoderLayer(config)), states(1, 6).requires_grad_()
    reference = torchs_encoder_layer(layer, config)
    found = layer(x, MASK[:, None, None], None, None)
    expected = reference(x, src_key_padding_mask=~MASK)
    # Behind a source's end torch's layer may give anything.
    close(found[MASK], expected[MASK])
    close(torch.autograd.grad(found[MASK].pow(3).sum(), x)[0], torch.autograd.grad(expected[MASK].pow(3).sum(), x)[0])


@pytest.mark.parametrize("norm, activation", KINDS)
def test_a_decoder_layer_is_torchs_with_its_gradients(norm: str, activation: str) -> None:
    config = table(norm=norm, activation=activation)
    layer, x, source = drawn(DecoderLayer(config)), states(2, 5).requires_grad_(), states(3, 6).requires_grad_()
    reference = torchs_decoder_layer(layer, config)
    memory = layer.cross_attention.memory(source)
    found, _, _ = layer(x, layer.so_far.start(3, x), memory, MASK[:, None, None], None, None, need_weights=False)
    causal = ~look_back(5, 0, x.device)[0, 0]
    expected = reference(x, source, tgt_mask=causal, memory_key_padding_mask=~MASK)
    close(found, expected)
    pairs = zip(
        torch.autograd.grad(found.pow(3).sum(), (x, source)), torch.autograd.grad(expected.pow(3).sum(), (x, source))
    )
    for gradient, reference_gradient in pairs:
        close(gradient, reference_gradient)


def test_the_gated_network_is_the_papers_formula() -> None:
    torch.manual_seed(4)
    network, x = drawn(FeedForward(table(activation="gated"))), states(4, 5)
    gate, linear = network.inner.weight.chunk(2)
    expected = (F.silu(x @ gate.T) * (x @ linear.T)) @ network.outer.weight.T
    close(network(x, None), expected)
    assert gate.shape == linear.shape == (HIDDEN, E)
    assert network.inner.bias is None
    assert network.outer.bias is None


def test_inputs_are_embeddings_times_the_root_of_their_size_and_positions() -> None:
    embedded = states(5, 4)
    scaled = embedded * E**0.5
    close(Inputs(table())(embedded, 3, None), scaled + sinusoids(7, E, embedded.device, dtype=torch.float64)[3:])
    learned = Inputs(table(positions="learned", max_positions=9)).double()
    close(learned(embedded, 3, None), scaled + learned.positions.table.weight[3:7])
    close(Inputs(table(positions="rotary"))(embedded, 3, None), scaled)


def test_only_rotary_positions_rotate() -> None:
    x = states(6, 4)
    assert Inputs(table()).rotation(x, 0) is None
    by = Inputs(table(positions="rotary")).rotation(x, 5)
    assert by is not None
    close(by[2, 0].angle(), torch.tensor([7.0 - 2 * torch.pi, 7.0 / 100.0], dtype=torch.float64))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_what_a_sublayer_adds_is_dropped_by_the_generators_noise(norm: str) -> None:
    around, x, added = drawn(Residual(table(norm=norm, dropout=0.5))), states(7, 4), states(8, 4)
    keep = keep_mask(x.shape, 0.5, torch.Generator().manual_seed(1), like=x)
    found = around.after(x, added, torch.Generator().manual_seed(1))
    expected, kept = (x + added * keep, x + added)
    close(found, expected if norm == "pre" else around.norm(expected))
    close(around.after(x, added, None), kept if norm == "pre" else around.norm(kept))
    close(around.before(x), around.norm(x) if norm == "pre" else x)


def test_units_between_the_products_are_dropped_at_their_own_rate() -> None:
    network, x = drawn(FeedForward(table(activation_dropout=0.5, dropout=0.0))), states(9, 4)
    units = F.relu(network.inner(x))
    keep = keep_mask(units.shape, 0.5, torch.Generator().manual_seed(2), like=units)
    close(network(x, torch.Generator().manual_seed(2)), network.outer(units * keep))
    close(network(x, None), network.outer(units))
