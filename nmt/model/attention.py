"""Attention of a decoder over an encoder's states: scores, a softmax over the real ones, and their weighted mean.

Shapes: B batch, S source length, N states of a source (S, or fewer from a pyramidal encoder), T target steps,
H hidden_dim (of encoder states and decoder states alike), D attention_window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.embeddings import wide
from nmt.model.recurrent_config import RecurrentConfig


class Memory(NamedTuple):
    """What a decoder attends to: values and keys [B, N, H], and a mask [B, N], True at real states.

    State n stands for the pieces from n * scale to (n + 1) * scale, as far as they are real: True in `pieces` [B, S].
    """

    values: Tensor
    keys: Tensor
    mask: Tensor
    pieces: Tensor
    scale: int

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of these rows of the batch, in this order."""
        return Memory(self.values[rows], self.keys[rows], self.mask[rows], self.pieces[rows], self.scale)


class Attended(NamedTuple):
    """Contexts [B, T, H], weights [B, T, N] (of heads [B, heads, T, N]), and coverage [B, N] after the last step.

    Weights are float32 or wider, and exactly 0 at padding and outside a window; a window's do not sum to 1.
    """

    contexts: Tensor
    weights: Tensor
    coverage: Tensor


class Window(NamedTuple):
    """Which states [B, T, N] are inside the windows of T steps, and the Gaussian around the windows' centres there."""

    inside: Tensor
    gaussian: Tensor


def over_pieces(weights: Tensor, memory: Memory) -> Tensor:
    """Return weights as a model hands them out: [B, T, S], each row a distribution over the real source pieces.

    The mean over heads; what a window's Gaussian has taken is given back in proportion; a state that stands for
    several pieces shares its weight out evenly.
    """
    if weights.dim() == 4:
        weights = weights.mean(1)
    weights = weights / weights.sum(-1, keepdim=True)
    if memory.scale == 1:
        return weights
    pieces, scale = memory.pieces, memory.scale
    counts = F.pad(pieces, (0, -pieces.shape[1] % scale)).view(len(pieces), -1, scale).sum(-1)
    shares = (weights / counts.clamp(min=1)[:, None]).repeat_interleave(scale, dim=-1)
    return shares[..., : pieces.shape[1]].masked_fill(~pieces[:, None], 0.0)


def align(scores: Tensor, mask: Tensor, window: Window | None) -> Tensor:
    """Return weights [*, N] of scores [*, N]: their softmax over what `mask` has, times the window's Gaussian.

    With a window the softmax is over the real states inside it, and the product is not normalised again.
    Source: Luong et al. 2015, eq. 7 and 10 and, for the softmax over 2D + 1 states, section 3.2.
    """
    inside = mask if window is None else mask & window.inside
    weights = wide(scores).masked_fill(~inside, float("-inf")).softmax(-1)
    return weights if window is None else weights * window.gaussian


def mean_of(values: Tensor, weights: Tensor) -> Tensor:
    """Return the sums [B, T, H] of values [B, N, H], weighted by [B, T, N]."""
    return torch.bmm(weights.to(values.dtype), values)


class LocalWindow(nn.Module):
    """A window of D positions each side of a centre that is predicted from the decoder's state: local-p attention.

    Source: Luong et al. 2015, eq. 9 (the centre S sigmoid(v tanh(W h)), S the source's own number of states, here
    with positions counted from 0) and eq. 10 (the Gaussian, its deviation D / 2).
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.reach = config.attention_window
        self.hidden = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.centre = nn.Linear(config.hidden_dim, 1, bias=False)

    def forward(self, queries: Tensor, mask: Tensor) -> Window:
        """Return the windows of decoder states `queries` [B, T, H] over states with this mask [B, N].

        A centre lies from 0 to the number of states and D is at least 1, so that no window is empty. Centres learn
        through the Gaussian: which states are inside is not differentiable.
        """
        relative = torch.sigmoid(wide(self.centre(torch.tanh(self.hidden(queries)))))
        centres = relative * mask.sum(-1)[:, None, None]
        distances = torch.arange(mask.shape[1], device=mask.device) - centres
        return Window(distances.abs() <= self.reach, torch.exp(-2.0 * (distances / self.reach) ** 2))


def make_window(config: RecurrentConfig) -> LocalWindow | None:
    """Return the window that the config asks for, None for attention over all states."""
    return LocalWindow(config) if config.attention_window > 0 else None


class ProductAttention(nn.Module):
    """Scores that are a product of query and key.

    dot: q k. scaled_dot: q k / sqrt(H). general: q W k. scaled_general: g q W k, the scalar g learned from 1.
    Source: Luong et al. 2015, eq. 8 (dot, general); Vaswani et al. 2017, "Attention Is All You Need", eq. 1
    (scaled_dot); Luong, Brevdo and Zhao 2017, "Neural Machine Translation (seq2seq) Tutorial" (scaled_general).
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        kind, dim = config.attention, config.hidden_dim
        self.factor = dim**-0.5 if kind == "scaled_dot" else 1.0
        self.key = nn.Linear(dim, dim, bias=False) if kind in ("general", "scaled_general") else None
        self.gain = nn.Parameter(torch.ones(1)) if kind == "scaled_general" else None
        self.window = make_window(config)

    def memory(self, states: Tensor, mask: Tensor) -> Memory:
        """Return the memory of encoder states [B, N, H], one for each piece; keys carry all that scales a score."""
        keys = states if self.key is None else self.key(states)
        if self.factor != 1.0:
            keys = keys * self.factor
        if self.gain is not None:
            keys = keys * self.gain.to(keys.dtype)
        return Memory(states, keys, mask, mask, 1)

    def forward(self, queries: Tensor, memory: Memory, coverage: Tensor) -> Attended:
        """Return what decoder states `queries` [B, T, H] attend to; coverage [B, 0] is handed on."""
        window = None if self.window is None else self.window(queries, memory.mask)
        scores = torch.bmm(queries.to(memory.keys.dtype), memory.keys.transpose(1, 2))
        weights = align(scores, memory.mask[:, None], window)
        return Attended(mean_of(memory.values, weights), weights, coverage)


class AdditiveAttention(nn.Module):
    """Scores of a layer of tanh units over query and key, and with `coverage` over the sum c of a state's past weights.

    additive: v tanh(W q + U k + b). normed_additive: g v/|v| in the place of v, the scalar g learned from 1/sqrt(H).
    concat: v tanh(W [q; k]), which is the additive score without b. Coverage adds u c inside the tanh.
    Source: Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate", A.1.2;
    Salimans and Kingma 2016, "Weight Normalization", eq. 2, with the g of the tutorial of Luong, Brevdo and Zhao 2017;
    Luong et al. 2015, eq. 8; See et al. 2017, "Get To The Point", eq. 10 and 11, after Tu et al. 2016, "Modeling
    Coverage for Neural Machine Translation".
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        kind, dim = config.attention, config.hidden_dim
        self.key = nn.Linear(dim, dim, bias=kind != "concat")
        self.query = nn.Linear(dim, dim, bias=False)
        self.energy = nn.Linear(dim, 1, bias=False)
        self.gain = nn.Parameter(torch.full((1,), dim**-0.5)) if kind == "normed_additive" else None
        self.covered = nn.Linear(1, dim, bias=False) if config.coverage else None
        self.window = make_window(config)

    def memory(self, states: Tensor, mask: Tensor) -> Memory:
        """Return the memory of encoder states [B, N, H], one for each piece; keys are computed once for all steps."""
        return Memory(states, self.key(states), mask, mask, 1)

    def forward(self, queries: Tensor, memory: Memory, coverage: Tensor) -> Attended:
        """Return what decoder states `queries` [B, T, H] attend to, after the steps whose weights sum to `coverage`.

        Step by step: all steps at once would hold [B, T, N, H].
        """
        windows = None if self.window is None else self.window(queries, memory.mask)
        weights = []
        for t, query in enumerate(self.query(queries).unbind(1)):
            window = None if windows is None else Window(windows.inside[:, t], windows.gaussian[:, t])
            weights.append(align(self._scores(query, memory.keys, coverage), memory.mask, window))
            if self.covered is not None:
                coverage = coverage + weights[-1]
        stacked = torch.stack(weights, dim=1)
        return Attended(mean_of(memory.values, stacked), stacked, coverage)

    def _scores(self, query: Tensor, keys: Tensor, coverage: Tensor) -> Tensor:
        inner = keys + query[:, None, :]
        if self.covered is not None:
            inner = inner + self.covered(coverage[:, :, None])
        scores: Tensor = self.energy(torch.tanh(inner)).squeeze(-1)
        if self.gain is None:
            return scores
        length: Tensor = torch.linalg.vector_norm(self.energy.weight)
        return wide(scores) * (self.gain / length)


class MultiHeadAttention(nn.Module):
    """Several scaled products side by side, each over maps of its own, and a map of what they found.

    Source: Vaswani et al. 2017, section 3.2.2, without biases; the query is a recurrent decoder's state.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.heads = config.attention_heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.window = make_window(config)

    def memory(self, states: Tensor, mask: Tensor) -> Memory:
        """Return the memory of encoder states [B, N, H], one for each piece: scaled keys, values, head by head."""
        keys = self.key(states) * (states.shape[-1] // self.heads) ** -0.5
        return Memory(self.value(states), keys, mask, mask, 1)

    def forward(self, queries: Tensor, memory: Memory, coverage: Tensor) -> Attended:
        """Return what decoder states `queries` [B, T, H] attend to, weights by head; coverage [B, 0] is handed on.

        All heads have the same window.
        """
        window = None if self.window is None else self.window(queries, memory.mask)
        if window is not None:
            window = Window(window.inside[:, None], window.gaussian[:, None])
        keys, values = self._by_head(memory.keys), self._by_head(memory.values)
        scores = self._by_head(self.query(queries)) @ keys.transpose(2, 3)
        weights = align(scores, memory.mask[:, None, None], window)
        found = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        return Attended(self.output(found), weights, coverage)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


Attention = ProductAttention | AdditiveAttention | MultiHeadAttention


def make_attention(config: RecurrentConfig) -> Attention | None:
    """Return the attention that the config asks for, None for a decoder without."""
    match config.attention:
        case "none":
            return None
        case "additive" | "normed_additive" | "concat":
            return AdditiveAttention(config)
        case "multi_head":
            return MultiHeadAttention(config)
        case _:
            return ProductAttention(config)
