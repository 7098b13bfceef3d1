"""Multi-head attention of a transformer: of a sequence over itself, and of a decoder over an encoder's states.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
Shapes: B batch, S source length, T positions of this call, P positions before them, E embedding_dim, N heads,
D = E / N units of a head, K keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.embeddings import dropout, wide
from nmt.model.positions import rotated


class KeysValues(NamedTuple):
    """What queries attend to: keys and values [B, N, K, D]."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Tensor) -> KeysValues:
        """Return those of these rows of the batch, in this order."""
        return KeysValues(self.keys[rows], self.values[rows])

    def after(self, earlier: KeysValues) -> KeysValues:
        """Return the earlier ones and these."""
        if earlier.keys.shape[2] == 0:
            return self
        return KeysValues(torch.cat([earlier.keys, self.keys], dim=2), torch.cat([earlier.values, self.values], dim=2))


class SelfAttention(nn.Module):
    """Attention of a sequence over itself: over all of it in an encoder, over what is not later in a decoder."""

    def __init__(self, dim: int, heads: int, weight_dropout: float) -> None:
        super().__init__()
        self.heads, self.weight_dropout = heads, weight_dropout
        self.queries_keys_values = projection(dim, dim, blocks=3)
        self.output = projection(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, rotation: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Return [B, T, E] of x [B, T, E], each position attending to all where `mask` [B, 1, 1, T] is True."""
        queries, these = self._heads(x, rotation)
        attended: Tensor = self.output(attend(queries, these, mask, self.weight_dropout, generator))
        return attended

    def start(self, batch: int, like: Tensor) -> KeysValues:
        """Return the keys and values of no position."""
        none = like.new_empty(batch, self.heads, 0, self.output.in_features // self.heads)
        return KeysValues(none, none)

    def continued(
        self, x: Tensor, earlier: KeysValues, rotation: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, KeysValues]:
        """Return [B, T, E] of x, each position attending to the P earlier ones and to those of x up to itself.

        Also the keys and values of all P + T positions. There is no mask of padding: what is behind a target's end
        changes nothing before it, and the loss leaves it out.
        """
        steps, before = x.shape[1], earlier.keys.shape[2]
        queries, these = self._heads(x, rotation)
        both = these.after(earlier)
        mask = look_back(steps, before, x.device) if steps > 1 and before > 0 else None
        causal = steps > 1 and before == 0  # what fast kernels know by themselves
        return self.output(attend(queries, both, mask, self.weight_dropout, generator, causal=causal)), both

    def _heads(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, KeysValues]:
        three = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = three.unbind(2)
        if rotation is not None:
            queries, keys = rotated(queries, rotation), rotated(keys, rotation)
        return queries.transpose(1, 2), KeysValues(keys.transpose(1, 2), values.transpose(1, 2))


class CrossAttention(nn.Module):
    """Attention of a decoder over an encoder's states."""

    def __init__(self, dim: int, heads: int, weight_dropout: float) -> None:
        super().__init__()
        self.heads, self.weight_dropout = heads, weight_dropout
        self.queries = projection(dim, dim)
        self.keys_values = projection(dim, dim, blocks=2)
        self.output = projection(dim, dim)

    def memory(self, states: Tensor) -> KeysValues:
        """Return keys and values of encoder states [B, S, E], computed once for all steps."""
        keys, values = self.keys_values(states).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return KeysValues(keys.transpose(1, 2), values.transpose(1, 2))

    def forward(
        self, x: Tensor, memory: KeysValues, mask: Tensor, generator: torch.Generator | None, *, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return [B, T, E] of x [B, T, E] and, where asked for, the weights [B, T, S], their mean over the heads.

        `mask` [B, 1, 1, S] is True at real pieces.
        """
        queries = self.queries(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        weights = attention_weights(queries, memory.keys, mask).mean(dim=1) if need_weights else None
        return self.output(attend(queries, memory, mask, self.weight_dropout, generator)), weights


def attend(
    queries: Tensor,
    to: KeysValues,
    mask: Tensor | None,
    weight_dropout: float,
    generator: torch.Generator | None,
    *,
    causal: bool = False,
) -> Tensor:
    """Return the weighted means of values, heads side by side [B, T, E], for queries [B, N, T, D].

    `mask`, of 4 dimensions that broadcast to [B, N, T, K], is True where a query may look; `causal` stands for the mask
    of T = K positions that do not look ahead.
    """
    if _is_fused(queries, weight_dropout, generator):
        means = F.scaled_dot_product_attention(queries, *to, attn_mask=mask, is_causal=causal)
    else:
        mask = look_back(queries.shape[2], 0, queries.device) if causal else mask
        weights = attention_weights(queries, to.keys, mask).to(to.values.dtype)
        means = dropout(weights, weight_dropout, generator) @ to.values
    return means.transpose(1, 2).flatten(2)


def _is_fused(queries: Tensor, weight_dropout: float, generator: torch.Generator | None) -> bool:
    """Return whether torch's fused attention will do: not with dropout, which it draws from torch's global generator.

    On CPU it loses by its many small products in bfloat16, which those in float32 become at matmul precision medium:
    forward and backward take twice to five times as long as the plain products of whole batches.
    """
    if generator is not None and weight_dropout > 0.0:
        return False
    rounds = queries.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
    return queries.device.type != "cpu" or not (rounds or queries.dtype == torch.bfloat16)


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q k / sqrt(D)) [B, N, T, K], float32 or wider, of queries [B, N, T, D] and keys [B, N, K, D].

    `mask` is that of `attend`.
    """
    batch, heads, steps, dim = queries.shape
    added = queries.new_zeros(1, 1, 1, 1 if mask is None else mask.shape[3])
    if mask is not None:
        added = added.expand(mask.shape).masked_fill(~mask, float("-inf"))
    # Expanded over the queries last, so that a mask of keys alone is not copied for each of them.
    added = added.expand(batch, heads, -1, keys.shape[2]).flatten(0, 1).expand(-1, steps, -1)
    scores = torch.baddbmm(added, queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), alpha=dim**-0.5)
    return wide(scores).softmax(dim=-1).view(batch, heads, steps, -1)


def look_back(steps: int, before: int, device: torch.device) -> Tensor:
    """Return a mask [1, 1, T, P + T]: each of T positions may look at the P before them and at those up to itself."""
    return torch.ones(1, 1, steps, before + steps, dtype=torch.bool, device=device).tril(before)


def projection(inputs: int, outputs: int, *, blocks: int = 1, bias: bool = True) -> nn.Linear:
    """Return a linear layer of so many blocks of `outputs` units, each drawn from half the range of Xavier uniform.

    Biases are 0. Where layers add little at first, a decoder learns sooner to look at the source: with the whole range,
    small models with `norm: post` tell for a thousand updates only what follows from the target so far.
    Source: Glorot and Bengio 2010, "Understanding the Difficulty of Training Deep Feedforward Neural Networks", eq. 16,
    for the range; Wang et al. 2022, "DeepNet: Scaling Transformers to 1,000 Layers", for smaller ones. The half was
    found by trial.
    """
    linear = nn.Linear(inputs, blocks * outputs, bias=bias)
    for block in linear.weight.chunk(blocks):
        nn.init.xavier_uniform_(block, gain=0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
