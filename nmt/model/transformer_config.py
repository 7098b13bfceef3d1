"""The keys of a transformer: every default, unit and range check, once."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nmt.config import ModelTable, Probability


class TransformerConfig(ModelTable):
    """A transformer. `dropout` acts on embeddings with their positions, and on what each sublayer adds."""

    architecture: Literal["transformer"] = "transformer"
    embedding_dim: int = Field(default=512, ge=1)  # the width of every layer
    encoder_layers: int = Field(default=6, ge=1, le=64)
    decoder_layers: int = Field(default=6, ge=1, le=64)
    attention_heads: int = Field(default=8, ge=1)  # must divide embedding_dim
    feed_forward_dim: int = Field(default=2048, ge=1)  # units between the two products, gated or not
    norm: Literal["pre", "post"] = "pre"  # pre trains at any depth; post needs a slow warm-up
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    max_positions: int = Field(default=512, ge=1)  # of learned: pieces, EOS counted; a longer sequence is an error
    activation: Literal["relu", "gelu", "gated"] = "relu"  # gated: SwiGLU
    decoder: Literal["self_attention", "ssru"] = "self_attention"  # what reads the earlier target pieces
    attention_dropout: Probability = 0.0  # of attention weights
    activation_dropout: Probability = 0.0  # of the units between the two products

    def most_pieces(self) -> int | None:
        """Return the positions that are learned, None where they are computed."""
        return self.max_positions if self.positions == "learned" else None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.embedding_dim % self.attention_heads:
            raise ValueError(
                f"attention_heads {self.attention_heads} must divide embedding_dim {self.embedding_dim}: change either"
            )
        if self.positions == "sinusoidal" and self.embedding_dim % 2:
            raise ValueError(f"embedding_dim {self.embedding_dim} must be even for sinusoidal positions")
        if self.positions == "rotary" and self.embedding_dim // self.attention_heads % 2:
            raise ValueError(
                f"rotary positions need an even embedding_dim / attention_heads, "
                f"{self.embedding_dim} / {self.attention_heads} is odd: take fewer attention_heads"
            )
        return self
