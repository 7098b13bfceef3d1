"""Attention against a plain loop written from the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch

from nmt.model.attention import Attention


@pytest.mark.parametrize("kind", ["additive", "dot", "general"])
def test_attention_is_the_papers_equations_in_a_plain_loop(kind: str) -> None:
    torch.manual_seed(5)
    attention = Attention(kind, 4).double().requires_grad_(False)
    states, queries = torch.randn(2, 5, 4).double(), torch.randn(2, 3, 4).double()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    contexts, weights = attention(queries, attention.memory(states, mask))

    def score(query: torch.Tensor, state: torch.Tensor) -> float:
        if kind == "dot":
            return float(query @ state)
        if kind == "general":
            return float(query @ (attention.key.weight @ state))
        hidden = torch.tanh(attention.query.weight @ query + attention.key.weight @ state + attention.key.bias)
        return float(attention.energy.weight[0] @ hidden)

    for b in range(2):
        length = int(mask[b].sum())
        for t in range(3):
            scores = [math.exp(score(queries[b, t], states[b, s])) for s in range(length)]
            expected = [value / sum(scores) for value in scores] + [0.0] * (5 - length)
            assert weights[b, t].tolist() == pytest.approx(expected, abs=1e-12)
            context = sum(weight * states[b, s] for s, weight in enumerate(expected))
            torch.testing.assert_close(contexts[b, t], context, rtol=1e-10, atol=1e-12)


def test_a_padded_position_has_exactly_no_weight() -> None:
    attention = Attention("general", 4)
    states = torch.full((1, 3, 4), 1e4)
    _, weights = attention(torch.randn(1, 1, 4), attention.memory(states, torch.tensor([[True, False, False]])))
    assert weights.tolist() == [[[1.0, 0.0, 0.0]]]
