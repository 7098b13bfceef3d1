"""The transformer, and the models of the literature that it can be.

Shapes: B batch, S source length, T target steps, E embedding_dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nmt.model.architecture import Architecture, Variant
from nmt.model.multi_head_attention import KeysValues
from nmt.model.seq2seq import Decoded, Encoded, Seq2Seq
from nmt.model.transformer_config import TransformerConfig
from nmt.model.transformer_layers import DecoderLayer, EncoderLayer, Inputs, LayerState


class EncoderOutput(NamedTuple):
    """States [B, S, E] and a mask [B, 1, 1, S], True at real pieces."""

    states: Tensor
    mask: Tensor


class Memory(NamedTuple):
    """What the decoder's layers attend to: keys and values of each, and a mask [B, 1, 1, S], True at real pieces."""

    layers: tuple[KeysValues, ...]
    mask: Tensor

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of these rows of the batch, in this order."""
        return Memory(tuple(layer.select(rows) for layer in self.layers), self.mask[rows])


class DecoderState(NamedTuple):
    """The number of pieces decoded so far, and each layer's own state of them."""

    steps: int
    layers: tuple[LayerState, ...]

    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of these rows of the batch, in this order."""
        selected = (layer.select(rows) if isinstance(layer, KeysValues) else layer[rows] for layer in self.layers)
        return DecoderState(self.steps, tuple(selected))


class Encoder(nn.Module):
    """Layers of self-attention and feed-forward networks over the source."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inputs = Inputs(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = _final_norm(config)

    def forward(self, embedded: Tensor, lengths: Tensor, generator: torch.Generator | None) -> EncoderOutput:
        """Return the states of the last layer, of `embedded` [B, S, E] with `lengths` [B] real pieces each."""
        mask = (torch.arange(embedded.shape[1], device=embedded.device) < lengths[:, None])[:, None, None, :]
        rotation = self.inputs.rotation(embedded, 0)
        x = self.inputs(embedded, 0, generator)
        for layer in self.layers:
            x = layer(x, mask, rotation, generator)
        return EncoderOutput(self.norm(x), mask)


class Decoder(nn.Module):
    """Layers that read the target so far, attend to the source and pass through a feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.output_dim = config.embedding_dim
        self.inputs = Inputs(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = _final_norm(config)

    def start(self, encoder_output: EncoderOutput) -> Encoded:
        """Return the keys and values of the source, for each layer its own, and the state before the first piece."""
        states, mask = encoder_output
        layers = tuple(cast(Iterable[DecoderLayer], self.layers))
        memory = Memory(tuple(layer.cross_attention.memory(states) for layer in layers), mask)
        return Encoded(memory, DecoderState(0, tuple(layer.so_far.start(len(states), states) for layer in layers)))

    def forward(
        self, embedded: Tensor, encoded: Encoded, generator: torch.Generator | None, *, need_weights: bool = False
    ) -> Decoded:
        """Return vectors [B, T, E] of the previous pieces `embedded` [B, T, E], and the state after them.

        Weights are those of the last layer's attention over the source, the mean over its heads.
        """
        memory, state = cast(tuple[Memory, DecoderState], encoded)
        rotation = self.inputs.rotation(embedded, state.steps)
        x, weights, after = self.inputs(embedded, state.steps, generator), None, []
        for depth, layer in enumerate(self.layers):
            asked = need_weights and depth == len(self.layers) - 1
            x, layer_state, weights = layer(
                x, state.layers[depth], memory.layers[depth], memory.mask, rotation, generator, need_weights=asked
            )
            after.append(layer_state)
        return Decoded(self.norm(x), DecoderState(state.steps + embedded.shape[1], tuple(after)), weights)


def _final_norm(config: TransformerConfig) -> nn.Module:
    """Return the norm after the last layer where the layers have theirs before: Xiong et al. 2020, table 1."""
    return nn.LayerNorm(config.embedding_dim) if config.norm == "pre" else nn.Identity()


def build(config: TransformerConfig, source_size: int, target_size: int) -> Seq2Seq:
    """Return a new transformer."""
    return Seq2Seq(config, source_size, target_size, Encoder(config), Decoder(config))


def _layers(model: Seq2Seq) -> Iterator[nn.Module]:
    yield from cast(Encoder, model.encoder).layers
    for layer in cast(Iterable[DecoderLayer], cast(Decoder, model.decoder).layers):
        yield layer.cross_attention.keys_values  # called for all layers before the first one is
        yield layer


ARCHITECTURE = Architecture(
    "transformer",
    TransformerConfig,
    build,
    (
        Variant(
            "transformer",
            'Vaswani et al. 2017, "Attention Is All You Need"',
            {"norm": "post", "positions": "sinusoidal", "activation": "relu"},
        ),
        Variant(
            "transformer-pre-norm",
            'Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"',
            {"norm": "pre"},
        ),
        Variant(
            "transformer-learned-positions",
            'Gehring et al. 2017, "Convolutional Sequence to Sequence Learning", section 3.1',
            {"positions": "learned"},
        ),
        Variant(
            "transformer-rotary",
            'Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding"',
            {"positions": "rotary"},
        ),
        Variant(
            "transformer-gelu",
            'Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)"',
            {"activation": "gelu"},
        ),
        Variant(
            "transformer-gated",
            'Shazeer 2020, "GLU Variants Improve Transformer"',
            {"activation": "gated"},
        ),
        Variant(
            "transformer-ssru",
            'Kim et al. 2019, "From Research to Production and Back: Ludicrously Fast Neural Machine Translation"',
            {"decoder": "ssru"},
        ),
        Variant(
            "transformer-deep-shallow",
            'Kasai et al. 2021, "Deep Encoder, Shallow Decoder: Reevaluating Non-autoregressive Machine Translation"',
            {"encoder_layers": 12, "decoder_layers": 1},
        ),
    ),
    _layers,
)
