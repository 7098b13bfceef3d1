"""The interface of every model: what training, search and scoring call.

A model is an encoder, a decoder, their embeddings and an output layer. What an encoder hands its decoder, and what a
decoder carries from step to step, is the two's own business: all others see that rows of it can be selected.
Shapes: B batch, S source length, T target length, E embedding_dim, D the decoder's output_dim, V target pieces.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config import ModelTable
from nmt.model.embeddings import Embedding
from pipelines.tokenizer import PAD_ID


class Selectable(Protocol):
    """Tensors that belong to the rows of a batch."""

    def select(self, rows: Tensor) -> Self:
        """Return the same of these rows of the batch, in this order; a row may come more than once, or not."""


class Encoded(NamedTuple):
    """A batch of sources, encoded: what the decoder attends to, and its state before its first step."""

    memory: Selectable
    state: Selectable

    def select(self, rows: Tensor) -> Encoded:
        """Return the same of these rows of the batch, in this order."""
        return Encoded(self.memory.select(rows), self.state.select(rows))


class Decoded(NamedTuple):
    """Vectors [B, T, D] for the output layer, the state after them, and attention weights [B, T, S] where asked for.

    Weights are float32 or wider, each row a distribution over the real source pieces; None where none were asked for,
    or where the model has no attention.
    """

    vectors: Tensor
    state: Selectable
    weights: Tensor | None


class Encoder(Protocol):
    """A module from embedded sources to whatever its decoder starts from."""

    def __call__(self, embedded: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Any:
        """Encode `embedded` [B, S, E], of which the first `lengths` [B] (at least 1) positions are real.

        What stands behind them changes nothing. The generator is the switch of dropout, None is evaluation.
        """


class Decoder(Protocol):
    """A module from embedded previous target pieces to vectors, all steps at once or some at a time."""

    output_dim: int

    def start(self, encoder_output: Any) -> Encoded:
        """Return what is computed once for all steps of a batch, and the state before the first."""

    def __call__(
        self, embedded: Tensor, encoded: Encoded, generator: torch.Generator | None, *, need_weights: bool
    ) -> Decoded:
        """Decode `embedded` [B, T, E]. T steps at once give what T calls of one step each give, state handed on."""


class Seq2Seq(nn.Module):
    """Embeddings, an encoder, a decoder and an output layer that may share its weight with the target embedding."""

    def __init__(
        self, config: ModelTable, source_size: int, target_size: int, encoder: nn.Module, decoder: nn.Module
    ) -> None:
        super().__init__()
        if config.share_embeddings and source_size != target_size:
            raise ValueError(f"share_embeddings needs one vocabulary, found {source_size} and {target_size} pieces")
        output_dim = cast(Decoder, decoder).output_dim
        if config.tie_target_embeddings and output_dim != config.embedding_dim:
            raise ValueError(
                f"tie_target_embeddings needs a decoder of embedding_dim units, {output_dim} != {config.embedding_dim}"
            )
        self.config = config
        self.target_size = target_size
        if config.has_source:
            self.source_embedding = Embedding(source_size, config.embedding_dim, PAD_ID)
        if config.share_embeddings:
            self.target_embedding = self.source_embedding
        else:
            self.target_embedding = Embedding(target_size, config.embedding_dim, PAD_ID)
        self.encoder = encoder
        self.decoder = decoder
        self.output_bias = nn.Parameter(torch.zeros(target_size))
        if not config.tie_target_embeddings:
            self.output_weight = nn.Parameter(torch.empty(target_size, output_dim))
            nn.init.xavier_uniform_(self.output_weight)

    def encode(self, src: Tensor, src_lengths: Tensor, generator: torch.Generator | None = None) -> Encoded:
        """Return the encoded batch of source ids [B, S], right-padded, with `src_lengths` [B] real pieces each.

        A model without a source has no embedding of one: its encoder is given [B, S, 0], and sees the number of rows.
        """
        if self.config.has_source:
            embedded = self.source_embedding(src, self.config.word_dropout, generator)
        else:
            embedded = self.output_bias.new_zeros(*src.shape, 0)
        return cast(Decoder, self.decoder).start(self.encoder(embedded, src_lengths, generator))

    def decode(
        self,
        previous: Tensor,
        encoded: Encoded,
        generator: torch.Generator | None = None,
        *,
        need_weights: bool = False,
    ) -> Decoded:
        """Return vectors, the state after them and, where asked for, attention weights, of previous ids [B, T].

        `previous` starts with BOS, or goes on where the state of `encoded` ended. `logits` turns vectors into scores.
        """
        embedded = self.target_embedding(previous, self.config.word_dropout, generator)
        decoded: Decoded = self.decoder(embedded, encoded, generator, need_weights=need_weights)
        return decoded

    @property
    def output_matrix(self) -> Tensor:
        """Return the output layer's weight [V, D].

        Tied: Press and Wolf 2017, "Using the Output Embedding to Improve Language Models".
        """
        return self.target_embedding.table.weight if self.config.tie_target_embeddings else self.output_weight

    def logits(self, vectors: Tensor) -> Tensor:
        """Return the scores [*, V] of every target piece for vectors [*, D]."""
        return F.linear(vectors, self.output_matrix, self.output_bias)

    def forward(
        self,
        src: Tensor,
        src_lengths: Tensor,
        previous: Tensor,
        generator: torch.Generator | None = None,
        *,
        need_weights: bool = False,
    ) -> Decoded:
        """Return what teacher forcing with `previous` [B, T] gives."""
        encoded = self.encode(src, src_lengths, generator)
        return self.decode(previous, encoded, generator, need_weights=need_weights)

    def num_parameters(self) -> int:
        """Return the number of parameters, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
