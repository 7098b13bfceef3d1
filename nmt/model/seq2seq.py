"""The encoder-decoder that training and search call, and the one place that knows every architecture.

Shapes: B batch, S source length, T target length, E embedding_dim, H hidden_dim, V target pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config import ModelConfig
from nmt.model.attention import Memory
from nmt.model.embeddings import Embedding
from nmt.model.recurrent import Decoder, DecoderState, Encoder
from pipelines.tokenizer import PAD_ID


class Encoded(NamedTuple):
    """A batch of sources, encoded: the memory, and the decoder's state before its first step."""

    memory: Memory
    state: DecoderState


class RecurrentSeq2Seq(nn.Module):
    """A recurrent encoder-decoder with attention: Bahdanau et al. 2015 and Luong et al. 2015, after the config."""

    def __init__(self, config: ModelConfig, source_size: int, target_size: int) -> None:
        super().__init__()
        if config.share_embeddings and source_size != target_size:
            raise ValueError(f"share_embeddings needs one vocabulary, found {source_size} and {target_size} pieces")
        self.config = config
        self.target_size = target_size
        self.source_embedding = Embedding(source_size, config.embedding_dim, PAD_ID)
        if config.share_embeddings:
            self.target_embedding = self.source_embedding
        else:
            self.target_embedding = Embedding(target_size, config.embedding_dim, PAD_ID)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.output_bias = nn.Parameter(torch.zeros(target_size))
        if not config.tie_target_embeddings:
            self.output_weight = nn.Parameter(torch.empty(target_size, config.embedding_dim))
            nn.init.xavier_uniform_(self.output_weight)

    def encode(self, src: Tensor, src_lengths: Tensor, generator: torch.Generator | None = None) -> Encoded:
        """Return the encoded batch of source ids [B, S], right-padded, with `src_lengths` [B] real pieces each."""
        config = self.config
        embedded = self.source_embedding(src, config.dropout, config.word_dropout, generator)
        states, final = self.encoder(embedded, src_lengths, generator)
        mask = torch.arange(src.shape[1], device=src.device)[None, :] < src_lengths[:, None]
        return Encoded(self.decoder.attention.memory(states, mask), self.decoder.start(final))

    def decode(
        self, previous: Tensor, encoded: Encoded, generator: torch.Generator | None = None
    ) -> tuple[Tensor, DecoderState, Tensor]:
        """Return vectors [B, T, E], the state after them and attention weights [B, T, S] for previous ids [B, T].

        `previous` starts with BOS, or goes on where the state of `encoded` ended. `logits` turns vectors into scores.
        """
        config = self.config
        embedded = self.target_embedding(previous, config.dropout, config.word_dropout, generator)
        vectors, state, weights = self.decoder(embedded, encoded.memory, encoded.state, generator)
        return vectors, state, weights

    def logits(self, vectors: Tensor) -> Tensor:
        """Return the scores [*, V] of every target piece for attentional vectors [*, E].

        With tied weights: Press and Wolf 2017, "Using the Output Embedding to Improve Language Models".
        """
        weight = self.target_embedding.table.weight if self.config.tie_target_embeddings else self.output_weight
        return F.linear(vectors, weight, self.output_bias)

    def forward(
        self, src: Tensor, src_lengths: Tensor, previous: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return vectors [B, T, E] and attention weights [B, T, S] of teacher forcing with `previous` [B, T]."""
        vectors, _, weights = self.decode(previous, self.encode(src, src_lengths, generator), generator)
        return vectors, weights

    def num_parameters(self) -> int:
        """Return the number of trained numbers, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def build_model(config: ModelConfig, source_size: int, target_size: int, *, seed: int = 1) -> RecurrentSeq2Seq:
    """Return a new model of the config's architecture, its weights drawn from `seed` alone.

    Raises ValueError when the vocabularies do not fit the config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config.architecture:
            case "recurrent":
                return RecurrentSeq2Seq(config, source_size, target_size)
