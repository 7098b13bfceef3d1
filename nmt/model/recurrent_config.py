"""The keys of a recurrent encoder-decoder: every default, unit and range check, once."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nmt.config import ModelTable, Probability


class RecurrentConfig(ModelTable):
    """A recurrent encoder-decoder. `dropout` acts on embeddings, between layers and on the scoring vector."""

    architecture: Literal["recurrent"] = "recurrent"
    cell: Literal["tanh", "relu", "leaky_relu", "gru", "lstm", "peephole_lstm"] = "lstm"
    hidden_dim: int = Field(default=512, ge=2)  # of the decoder; a bidirectional encoder has half of it each way
    layer_norm: bool = False  # of the gates and the cell of every recurrent layer
    residual: bool = False  # each layer but the first adds its input to its output
    recurrent_dropout: Probability = 0.0  # on the hidden state before each step, one mask over time

    encoder_layers: int = Field(default=1, ge=1, le=16)
    bidirectional: bool = True
    reverse_source: bool = False
    batch_norm: bool = False  # of the input products of the encoder's layers, over real positions
    pyramid_layers: int = Field(default=0, ge=0, le=4)  # of the encoder's upper layers, each halves the time scale
    position_scaling: Literal["none", "sinusoidal", "learned"] = "none"  # of the encoder's states, by their position

    decoder_layers: int = Field(default=1, ge=1, le=16)
    decoder_start: Literal["last", "mean", "bridge", "zeros"] = "bridge"
    attention: Literal[
        "none", "additive", "normed_additive", "dot", "scaled_dot", "general", "scaled_general", "concat", "multi_head"
    ] = "additive"
    attention_heads: int = Field(default=8, ge=1)  # of multi_head
    attention_query: Literal["current", "previous"] = "current"  # the decoder's state after a step, or before it
    attention_feeds: Literal["output", "layers"] = "output"  # layers: the first layer attends, those above read it
    attention_window: int = Field(default=0, ge=0)  # positions each side of a predicted centre; 0: all positions
    coverage: bool = False  # attention sees how much it has attended to each position
    input_feeding: bool = True  # the last vector is part of the next step's input
    output: Literal["attentional", "deep"] = "attentional"

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.bidirectional and self.hidden_dim % 2:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be even for a bidirectional encoder")
        return self
