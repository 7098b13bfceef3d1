"""The layers of a transformer: sublayers with what is around them, and the vectors that the first layer reads.

Shapes: B batch, S source length, T target positions, E embedding_dim, F feed_forward_dim.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.embeddings import dropout, wide
from nmt.model.multi_head_attention import CrossAttention, KeysValues, SelfAttention, projection
from nmt.model.positions import LearnedPositions, rotation, sinusoids
from nmt.model.ssru import Ssru
from nmt.model.transformer_config import TransformerConfig

LayerState = KeysValues | Tensor  # what a decoder layer carries: earlier keys and values, or the cells of an SSRU


class Inputs(nn.Module):
    """Embeddings times sqrt(E), and their positions. Source: Vaswani et al. 2017, sections 3.4 and 3.5."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        if config.positions == "learned":
            self.positions = LearnedPositions(config.max_positions, config.embedding_dim)

    def forward(self, embedded: Tensor, first: int, generator: torch.Generator | None) -> Tensor:
        """Return what the first layer reads [B, T, E]; the first of `embedded` [B, T, E] stands at position `first`."""
        steps, dim = embedded.shape[1:]
        match self.config.positions:
            case "rotary":
                x = embedded * math.sqrt(dim)
            case "learned":
                x = torch.add(self.positions(steps, first), embedded, alpha=math.sqrt(dim))
            case "sinusoidal":
                positions = sinusoids(steps, dim, embedded.device, first=first, dtype=wide(embedded).dtype)
                x = torch.add(positions, embedded, alpha=math.sqrt(dim))
        return dropout(x, self.config.dropout, generator)

    def rotation(self, like: Tensor, first: int) -> Tensor | None:
        """Return the rotation of the positions of `like` [B, T, E] from `first` on, None where positions are added."""
        if self.config.positions != "rotary":
            return None
        dim = self.config.embedding_dim // self.config.attention_heads
        return rotation(like.shape[1], dim, like.device, first=first, dtype=wide(like).dtype)


class Residual(nn.Module):
    """What is around a sublayer f. pre: x + dropout(f(norm(x))). post: norm(x + dropout(f(x))).

    Source: Vaswani et al. 2017, section 5.4 (post); Xiong et al. 2020, "On Layer Normalization in the Transformer
    Architecture", figure 1 (pre).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre, self.dropout = config.norm == "pre", config.dropout
        self.norm = nn.LayerNorm(config.embedding_dim)

    def before(self, x: Tensor) -> Tensor:
        """Return what the sublayer reads [B, T, E]."""
        read: Tensor = self.norm(x) if self.pre else x
        return read

    def after(self, x: Tensor, added: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return [B, T, E] of x and of what the sublayer adds to it."""
        x = x + dropout(added, self.dropout, generator)
        return x if self.pre else self.norm(x)


class FeedForward(nn.Module):
    """Two products with an activation between them, or a gated one: SwiGLU, (silu(x W) * x V) U, without biases.

    Source: Vaswani et al. 2017, section 3.3; Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation, self.dropout = config.activation, config.activation_dropout
        gated = config.activation == "gated"
        read, units = config.embedding_dim, config.feed_forward_dim
        self.inner = projection(read, units, blocks=2 if gated else 1, bias=not gated)
        self.outer = projection(units, read, bias=not gated)

    def forward(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return [B, T, E] of x [B, T, E]."""
        units = self.inner(x)
        match self.activation:
            case "relu":
                units = F.relu(units)
            case "gelu":
                units = F.gelu(units)
            case "gated":
                gate, linear = units.chunk(2, dim=-1)
                units = F.silu(gate) * linear
        outputs: Tensor = self.outer(dropout(units, self.dropout, generator))
        return outputs


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.embedding_dim, config.attention_heads, config.attention_dropout)
        self.around_attention = Residual(config)
        self.feed_forward = FeedForward(config)
        self.around_feed_forward = Residual(config)

    def forward(self, x: Tensor, mask: Tensor, rotation: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Return [B, S, E] of x [B, S, E]; `mask` [B, 1, 1, S] is True at real pieces."""
        added = self.attention(self.around_attention.before(x), mask, rotation, generator)
        x = self.around_attention.after(x, added, generator)
        added = self.feed_forward(self.around_feed_forward.before(x), generator)
        return self.around_feed_forward.after(x, added, generator)


class DecoderLayer(nn.Module):
    """Self-attention or an SSRU over the target pieces so far, attention over the source, a feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        sizes = config.embedding_dim, config.attention_heads, config.attention_dropout
        self.so_far: Ssru | SelfAttention
        self.so_far = Ssru(config.embedding_dim) if config.decoder == "ssru" else SelfAttention(*sizes)
        self.around_so_far = Residual(config)
        self.cross_attention = CrossAttention(*sizes)
        self.around_cross_attention = Residual(config)
        self.feed_forward = FeedForward(config)
        self.around_feed_forward = Residual(config)

    def forward(
        self,
        x: Tensor,
        state: LayerState,
        memory: KeysValues,
        mask: Tensor,
        rotation: Tensor | None,
        generator: torch.Generator | None,
        *,
        need_weights: bool,
    ) -> tuple[Tensor, LayerState, Tensor | None]:
        """Return [B, T, E] of x [B, T, E], the state after it, and weights [B, T, S] of the source where asked for."""
        added, state = self._so_far(self.around_so_far.before(x), state, rotation, generator)
        x = self.around_so_far.after(x, added, generator)
        read = self.around_cross_attention.before(x)
        added, weights = self.cross_attention(read, memory, mask, generator, need_weights=need_weights)
        x = self.around_cross_attention.after(x, added, generator)
        added = self.feed_forward(self.around_feed_forward.before(x), generator)
        return self.around_feed_forward.after(x, added, generator), state, weights

    def _so_far(
        self, x: Tensor, state: LayerState, rotation: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, LayerState]:
        if isinstance(self.so_far, Ssru):
            recurrent: tuple[Tensor, Tensor] = self.so_far(x, state)
            return recurrent
        return self.so_far.continued(x, cast(KeysValues, state), rotation, generator)
