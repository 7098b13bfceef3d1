"""Multi-head attention against torch's own layer, with its weights copied."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from nmt.model.embeddings import keep_mask
from nmt.model.multi_head_attention import (
    CrossAttention,
    KeysValues,
    SelfAttention,
    attend,
    attention_weights,
    look_back,
    projection,
)

Layer = TypeVar("Layer", bound=nn.Module)

E, HEADS = 12, 3
LENGTHS = torch.tensor([6, 2, 4])
MASK = torch.arange(6) < LENGTHS[:, None]


def copied(attention: SelfAttention | CrossAttention) -> nn.MultiheadAttention:
    """Torch's layer with the weights of ours."""
    if isinstance(attention, SelfAttention):
        products = [attention.queries_keys_values]
    else:
        products = [attention.queries, attention.keys_values]
    reference = nn.MultiheadAttention(E, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([product.weight for product in products]))
        reference.in_proj_bias.copy_(torch.cat([product.bias for product in products]))
        reference.out_proj.weight.copy_(attention.output.weight)
        reference.out_proj.bias.copy_(attention.output.bias)
    return reference


def with_biases(layer: Layer) -> Layer:
    """The layer in float64, its biases no longer zero."""
    for name, parameter in layer.double().named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return layer


def states(seed: int, steps: int) -> Tensor:
    return torch.randn(3, steps, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_self_attention_is_torchs() -> None:
    attention, x = with_biases(SelfAttention(E, HEADS, 0.0)), states(1, 6)
    expected, _ = copied(attention)(x, x, x, key_padding_mask=~MASK)
    close(attention(x, MASK[:, None, None], None, None), expected)


def test_self_attention_of_a_decoder_is_torchs_with_a_causal_mask() -> None:
    attention, x = with_biases(SelfAttention(E, HEADS, 0.0)), states(2, 5)
    expected, _ = copied(attention)(x, x, x, attn_mask=~look_back(5, 0, x.device)[0, 0])
    found, after = attention.continued(x, attention.start(3, x), None, None)
    close(found, expected)
    assert after.keys.shape == after.values.shape == (3, HEADS, 5, E // HEADS)


def test_attention_over_the_source_is_torchs_and_so_are_its_weights() -> None:
    attention, source, x = with_biases(CrossAttention(E, HEADS, 0.0)), states(3, 6), states(4, 5)
    expected, expected_weights = copied(attention)(x, source, source, key_padding_mask=~MASK)
    found, weights = attention(x, attention.memory(source), MASK[:, None, None], None, need_weights=True)
    close(found, expected)
    close(weights, expected_weights)
    unasked, none = attention(x, attention.memory(source), MASK[:, None, None], None, need_weights=False)
    assert torch.equal(unasked, found)
    assert none is None


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 4], [1, 5, 1]])
def test_earlier_keys_and_values_give_what_all_steps_at_once_give(chunks: list[int]) -> None:
    attention, x = with_biases(SelfAttention(E, HEADS, 0.0)), states(5, 7)
    together, _ = attention.continued(x, attention.start(3, x), None, None)
    state, outputs = attention.start(3, x), []
    for chunk in x.split(chunks, dim=1):
        output, state = attention.continued(chunk, state, None, None)
        outputs.append(output)
    close(torch.cat(outputs, dim=1), together)


def test_a_mask_that_looks_back_shows_each_position_those_before_it_and_itself() -> None:
    assert look_back(3, 2, torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_weights_are_the_softmax_of_scaled_products_over_real_positions() -> None:
    generator = torch.Generator().manual_seed(6)
    queries, keys = torch.randn(2, 3, HEADS, 6, 4, dtype=torch.float64, generator=generator)
    weights = attention_weights(queries, keys, MASK[:, None, None])
    for row, head, t in [(b, n, t) for b in range(3) for n in range(HEADS) for t in range(6)]:
        length = int(LENGTHS[row])
        scores = [float(queries[row, head, t] @ keys[row, head, s]) / 2.0 for s in range(length)]
        exponentials = torch.tensor(scores, dtype=torch.float64).exp()
        close(weights[row, head, t, :length], exponentials / exponentials.sum())
        assert not weights[row, head, t, length:].any()


@pytest.mark.parametrize("causal", [True, False])
def test_dropout_acts_on_the_weights_and_its_noise_is_the_generators(causal: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    queries, keys, values = torch.randn(3, 3, HEADS, 6, 4, dtype=torch.float64, generator=generator)
    mask = None if causal else MASK[:, None, None]
    noise = torch.Generator().manual_seed(8)
    found = attend(queries, KeysValues(keys, values), mask, 0.4, noise, causal=causal)
    weights = attention_weights(queries, keys, look_back(6, 0, queries.device) if causal else mask)
    keep = keep_mask(weights.shape, 0.4, torch.Generator().manual_seed(8), like=weights)
    assert 0.0 < (keep == 0).double().mean() < 1.0
    close(found, (weights * keep @ values).transpose(1, 2).flatten(2))
    evaluated = attend(queries, KeysValues(keys, values), mask, 0.4, None, causal=causal)
    close(evaluated, (weights @ values).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_same_at_every_precision_of_products(causal: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    queries, keys, values = torch.randn(3, 3, HEADS, 6, 4, generator=generator)
    mask = None if causal else MASK[:, None, None]
    found = {}
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            found[precision] = attend(queries, KeysValues(keys, values), mask, 0.0, None, causal=causal)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found["medium"], found["highest"], rtol=0.02, atol=0.02)


def test_attention_in_bfloat16_is_near_that_in_float64_and_its_weights_are_float32() -> None:
    generator = torch.Generator().manual_seed(9)
    queries, keys, values = torch.randn(3, 3, HEADS, 6, 4, generator=generator).bfloat16()
    exact = attend(queries.double(), KeysValues(keys.double(), values.double()), MASK[:, None, None], 0.0, None)
    found = attend(queries, KeysValues(keys, values), MASK[:, None, None], 0.0, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)
    assert attention_weights(queries, keys, None).dtype == torch.float32


def test_blocks_of_a_product_are_initialised_each_as_a_matrix_of_its_own_from_half_of_xaviers_range() -> None:
    torch.manual_seed(10)
    linear = projection(200, 100, blocks=3)
    assert linear.weight.shape == (300, 200)
    bound = 0.5 * (6 / (200 + 100)) ** 0.5
    for block in linear.weight.chunk(3):
        assert 0.99 * bound < block.abs().max().item() <= bound
        assert block.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not linear.bias.any()
