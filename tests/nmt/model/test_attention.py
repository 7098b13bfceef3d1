"""Attention against a plain loop written from the papers' equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nmt.model.attention import (
    AdditiveAttention,
    Attended,
    Attention,
    LocalWindow,
    Memory,
    MultiHeadAttention,
    ProductAttention,
    make_attention,
    over_pieces,
)
from nmt.model.recurrent_config import RecurrentConfig

DIM, HEADS = 4, 2
KINDS = ["additive", "normed_additive", "dot", "scaled_dot", "general", "scaled_general", "concat", "multi_head"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_window = pytest.mark.parametrize("window", [0, 1, 2])
LENGTHS = [5, 2]
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


def make(kind: str, **keys: Any) -> Attention:
    """Return an attention in float64, all its parameters away from their first values."""
    torch.manual_seed(5)
    attention = make_attention(
        RecurrentConfig.model_validate({"attention": kind, "hidden_dim": DIM, "attention_heads": HEADS, **keys})
    )
    assert attention is not None
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention.double().requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor]:
    """Return encoder states [2, 5, H] and queries [2, 3, H]."""
    generator = torch.Generator().manual_seed(6)
    drawn = torch.randn(2, 8, DIM, generator=generator, dtype=torch.float64)
    return drawn[:, :5], drawn[:, 5:]


def attend(attention: Attention, queries: Tensor, memory: Memory, coverage: Tensor | None = None) -> Attended:
    attended: Attended = attention(queries, memory, memory.values.new_zeros(2, 0) if coverage is None else coverage)
    return attended


# The papers' equations, one query, one state


def score(attention: Attention, query: Tensor, state: Tensor, covered: float = 0.0) -> float:
    if isinstance(attention, ProductAttention):
        key = state if attention.key is None else attention.key.weight @ state
        gain = 1.0 if attention.gain is None else float(attention.gain)
        return gain * attention.factor * float(query @ key)
    assert isinstance(attention, AdditiveAttention)
    inner = attention.query.weight @ query + attention.key.weight @ state
    if attention.key.bias is not None:
        inner = inner + attention.key.bias
    if attention.covered is not None:
        inner = inner + attention.covered.weight[:, 0] * covered
    energy = attention.energy.weight[0]
    if attention.gain is not None:
        energy = float(attention.gain) * energy / math.sqrt(sum(float(v) ** 2 for v in energy))
    return float(energy @ torch.tanh(inner))


def aligned(scores: list[float], window: LocalWindow | None, query: Tensor) -> list[float]:
    """Return the weights of Luong et al. 2015, eq. 7, and with a window of eq. 9 and 10."""
    length, centre, reach = len(scores), 0.0, math.inf
    if window is not None:
        predicted = float(window.centre.weight[0] @ torch.tanh(window.hidden.weight @ query))
        centre, reach = length / (1.0 + math.exp(-predicted)), window.reach
    powers = [math.exp(value) if abs(s - centre) <= reach else 0.0 for s, value in enumerate(scores)]
    deviation = reach / 2.0
    gaussian = [1.0 if window is None else math.exp(-((s - centre) ** 2) / (2 * deviation**2)) for s in range(length)]
    return [power / sum(powers) * factor for power, factor in zip(powers, gaussian)]


def weighted(weights: list[float], values: Tensor) -> Tensor:
    return sum((weight * value for weight, value in zip(weights, values)), torch.zeros_like(values[0]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "multi_head"])
@every_window
def test_attention_is_the_papers_equations_in_a_plain_loop(kind: str, window: int) -> None:
    attention = make(kind, attention_window=window)
    states, queries = inputs()
    contexts, weights, _ = attend(attention, queries, attention.memory(states, MASK))
    for b, length in enumerate(LENGTHS):
        for t in range(3):
            scores = [score(attention, queries[b, t], states[b, s]) for s in range(length)]
            expected = aligned(scores, attention.window, queries[b, t])
            assert weights[b, t].tolist() == pytest.approx(expected + [0.0] * (5 - length), abs=1e-12)
            torch.testing.assert_close(contexts[b, t], weighted(expected, states[b]), rtol=1e-10, atol=1e-12)


@every_window
def test_multi_head_attention_is_the_papers_equations_in_a_plain_loop(window: int) -> None:
    attention = make("multi_head", attention_window=window)
    assert isinstance(attention, MultiHeadAttention)
    states, queries = inputs()
    contexts, weights, _ = attend(attention, queries, attention.memory(states, MASK))
    assert weights.shape == (2, HEADS, 3, 5)
    for b, length in enumerate(LENGTHS):
        for t in range(3):
            found = []
            for head, rows in enumerate(torch.arange(DIM).chunk(HEADS)):
                query = attention.query.weight[rows] @ queries[b, t]
                keys = [attention.key.weight[rows] @ states[b, s] for s in range(length)]
                scores = [float(query @ key) / math.sqrt(DIM / HEADS) for key in keys]
                expected = aligned(scores, attention.window, queries[b, t])
                assert weights[b, head, t].tolist() == pytest.approx(expected + [0.0] * (5 - length), abs=1e-12)
                found.append(weighted(expected, states[b] @ attention.value.weight[rows].T))
            context = attention.output.weight @ torch.cat(found)
            torch.testing.assert_close(contexts[b, t], context, rtol=1e-10, atol=1e-12)


def test_multi_head_attention_is_torchs() -> None:
    attention = make("multi_head")
    assert isinstance(attention, MultiHeadAttention)
    reference = nn.MultiheadAttention(DIM, HEADS, bias=False, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(
            torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        )
        reference.out_proj.weight.copy_(attention.output.weight)
    states, queries = inputs()
    memory = attention.memory(states, MASK)
    contexts, weights, _ = attend(attention, queries, memory)
    expected, expected_weights = reference(queries, states, states, key_padding_mask=~MASK)
    torch.testing.assert_close(contexts, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(over_pieces(weights, memory), expected_weights, rtol=1e-10, atol=1e-12)


@every_kind
@every_window
def test_what_is_padding_or_outside_the_window_has_exactly_no_weight(kind: str, window: int) -> None:
    attention = make(kind, attention_window=window)
    states, queries = inputs()
    huge = torch.where(MASK[:, :, None], states, 1e4)
    memory = attention.memory(huge, MASK)
    weights = over_pieces(attend(attention, queries, memory).weights, memory)
    inside = MASK[:, None].expand(2, 3, 5)
    if attention.window is not None:
        inside = inside & attention.window(queries, MASK).inside
        assert bool(inside.any(-1).all())
    assert torch.equal(weights > 0.0, inside)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3).double(), rtol=0, atol=1e-12)
    # Nor does it change anything.
    again = attend(attention, queries, attention.memory(states, MASK))
    torch.testing.assert_close(attend(attention, queries, memory).contexts, again.contexts, rtol=0, atol=1e-12)


class Whole(nn.Module):
    """Keys, scores, weights and contexts in one call."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, queries: Tensor, states: Tensor, coverage: Tensor) -> Tensor:
        attended = attend(self.attention, queries, self.attention.memory(states, MASK), coverage)
        return torch.cat([part.flatten() for part in attended])


def assert_gradients_are_right(attention: Attention, coverage: Tensor) -> None:
    whole = Whole(attention)
    names, parameters = [name for name, _ in whole.named_parameters()], list(whole.parameters())

    def function(queries: Tensor, states: Tensor, coverage: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(whole, dict(zip(names, parameters)), (queries, states, coverage))

    states, queries = inputs()
    values = [value.detach().clone().requires_grad_() for value in (queries, states, coverage, *parameters)]
    assert torch.autograd.gradcheck(function, values)


@every_kind
@every_window
def test_gradients_are_right_of_queries_states_and_every_parameter(kind: str, window: int) -> None:
    assert_gradients_are_right(make(kind, attention_window=window), torch.zeros(2, 0).double())


# Local attention


def test_local_attention_has_the_weights_of_equation_10() -> None:
    attention = make("dot", attention_window=1)
    assert attention.window is not None
    with torch.no_grad():
        attention.window.centre.weight.zero_()  # the centre is S / 2
    states, queries = inputs()
    memory = attention.memory(torch.zeros_like(states), MASK)
    weights = attend(attention, queries, memory).weights[:, 0]
    # Centre 2.5, deviation a half: positions 2 and 3 are inside, each half a deviation of 1 away.
    half = 0.5 * math.exp(-0.5)
    assert weights[0].tolist() == pytest.approx([0.0, 0.0, half, half, 0.0], abs=1e-15)
    # Centre 1 of two states: positions 0 and 1 are inside, and 2 would be, were it real.
    assert weights[1].tolist() == pytest.approx([0.5 * math.exp(-2.0), 0.5, 0.0, 0.0, 0.0], abs=1e-15)
    handed_out = over_pieces(weights[:, None], memory)[:, 0]
    assert handed_out[0].tolist() == pytest.approx([0.0, 0.0, 0.5, 0.5, 0.0], abs=1e-15)
    share = math.exp(-2.0) / (1.0 + math.exp(-2.0))
    assert handed_out[1].tolist() == pytest.approx([share, 1.0 - share, 0.0, 0.0, 0.0], abs=1e-15)


@pytest.mark.parametrize("saturated", [-1e4, 1e4])
def test_a_centre_at_an_end_of_the_source_has_states_in_its_window(saturated: float) -> None:
    attention = make("dot", attention_window=1)
    assert attention.window is not None
    with torch.no_grad():
        attention.window.hidden.weight.copy_(torch.eye(DIM))
        attention.window.centre.weight.fill_(saturated)
    states, _ = inputs()
    weights = attend(attention, torch.ones(2, 1, DIM).double(), attention.memory(states, MASK)).weights
    assert bool((weights.sum(-1) > 0.1).all())
    if saturated > 0:
        # Of the row's own length: the last real state is inside.
        assert [row.nonzero().flatten().tolist() for row in weights[:, 0]] == [[4], [1]]


def test_the_predicted_centre_learns() -> None:
    attention = make("general", attention_window=2).requires_grad_()
    states, queries = inputs()
    attend(attention, queries, attention.memory(states, MASK)).contexts.sum().backward()
    assert attention.window is not None
    assert bool(attention.window.centre.weight.grad.any())
    assert bool(attention.window.hidden.weight.grad.any())


# Coverage


@pytest.mark.parametrize("kind", ["additive", "normed_additive"])
@every_window
def test_coverage_is_the_sum_of_past_weights_inside_the_score(kind: str, window: int) -> None:
    attention = make(kind, coverage=True, attention_window=window)
    states, queries = inputs()
    memory = attention.memory(states, MASK)
    contexts, weights, coverage = attend(attention, queries, memory, torch.zeros(2, 5).double())
    for b, length in enumerate(LENGTHS):
        covered = [0.0] * length
        for t in range(3):
            scores = [score(attention, queries[b, t], states[b, s], covered[s]) for s in range(length)]
            expected = aligned(scores, attention.window, queries[b, t])
            covered = [before + now for before, now in zip(covered, expected)]
            assert weights[b, t, :length].tolist() == pytest.approx(expected, abs=1e-12)
            torch.testing.assert_close(contexts[b, t], weighted(expected, states[b]), rtol=1e-10, atol=1e-12)
        assert coverage[b].tolist() == pytest.approx(covered + [0.0] * (5 - length), abs=1e-12)


def test_coverage_goes_on_where_it_was() -> None:
    attention = make("additive", coverage=True)
    states, queries = inputs()
    memory = attention.memory(states, MASK)
    together = attend(attention, queries, memory, torch.zeros(2, 5).double())
    coverage, weights = torch.zeros(2, 5).double(), []
    for query in queries.split(1, dim=1):
        _, weight, coverage = attend(attention, query, memory, coverage)
        weights.append(weight)
    torch.testing.assert_close(torch.cat(weights, dim=1), together.weights, rtol=0, atol=1e-15)
    torch.testing.assert_close(coverage, together.coverage, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["additive", "normed_additive"])
def test_gradients_are_right_through_coverage(kind: str) -> None:
    assert_gradients_are_right(make(kind, coverage=True), torch.rand(2, 5).double())


# First values, precision, what is handed out


def test_scaled_scores_start_as_their_papers_say() -> None:
    config = {"hidden_dim": DIM, "attention_heads": HEADS}
    normed = make_attention(RecurrentConfig.model_validate({"attention": "normed_additive", **config}))
    general = make_attention(RecurrentConfig.model_validate({"attention": "scaled_general", **config}))
    assert isinstance(normed, AdditiveAttention) and isinstance(general, ProductAttention)
    assert normed.gain is not None and general.gain is not None
    assert normed.gain.tolist() == [DIM**-0.5]
    assert general.gain.tolist() == [1.0]


def test_the_length_of_a_normed_energy_changes_nothing() -> None:
    attention = make("normed_additive")
    assert isinstance(attention, AdditiveAttention)
    states, queries = inputs()
    memory = attention.memory(states, MASK)
    expected = attend(attention, queries, memory).weights
    attention.energy.weight.mul_(7.0)
    torch.testing.assert_close(attend(attention, queries, memory).weights, expected, rtol=0, atol=1e-15)


@every_kind
def test_weights_are_wide_where_states_are_not(kind: str) -> None:
    attention = make(kind, attention_window=2).float()
    states, queries = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        memory = attention.memory(states.float(), MASK)
        contexts, weights, _ = attend(attention, queries.float(), memory)
    assert weights.dtype == torch.float32
    assert contexts.dtype == torch.bfloat16


def test_a_state_of_several_pieces_shares_its_weight_out_among_the_real_ones() -> None:
    states = torch.zeros(2, 2, DIM)
    pieces = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    memory = Memory(states, states, torch.tensor([[True, True], [True, False]]), pieces, 4)
    weights = torch.tensor([[[0.6, 0.4]], [[1.0, 0.0]]], dtype=torch.float64)
    handed_out = over_pieces(weights, memory)
    assert handed_out[0, 0].tolist() == pytest.approx([0.15] * 4 + [0.2] * 2, abs=1e-15)
    assert handed_out[1, 0].tolist() == pytest.approx([1 / 3] * 3 + [0.0] * 3, abs=1e-15)
    swapped = memory.select(torch.tensor([1, 0, 1]))
    assert torch.equal(over_pieces(weights[[1, 0, 1]], swapped), handed_out[[1, 0, 1]])


def test_heads_hand_out_their_mean() -> None:
    states = torch.zeros(1, 2, DIM)
    mask = torch.ones(1, 2, dtype=torch.bool)
    weights = torch.tensor([[[[0.2, 0.8]], [[0.6, 0.4]]]])
    assert over_pieces(weights, Memory(states, states, mask, mask, 1)).tolist() == [[pytest.approx([0.4, 0.6])]]


def test_no_attention_is_none() -> None:
    config = RecurrentConfig(attention="none", input_feeding=False)
    assert make_attention(config) is None
