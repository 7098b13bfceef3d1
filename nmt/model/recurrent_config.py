"""The keys of a recurrent encoder-decoder: every default, unit and range check, once."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from nmt.config import ModelTable, Probability
from nmt.model.cells import CellKind


class RecurrentConfig(ModelTable):
    """A recurrent encoder-decoder. `dropout` acts on embeddings, between layers and on the scoring vector."""

    compiles: ClassVar[bool] = False  # the weights of `deferred.py` would have no gradient

    architecture: Literal["recurrent"] = "recurrent"
    cell: CellKind = "lstm"
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
    # The decoder's state after a step, or before it: the step then reads the context, without attention a fixed one.
    attention_query: Literal["current", "previous"] = "current"
    attention_feeds: Literal["output", "layers"] = "output"  # layers: the first layer attends, those above read it
    attention_window: int = Field(default=0, ge=0)  # positions each side of a predicted centre; 0: all positions
    coverage: bool = False  # attention sees how much it has attended to each position
    # The last vector is part of the next step's input; with attention_feeds layers it is the last context.
    input_feeding: bool = True
    output: Literal["attentional", "deep"] = "attentional"  # deep: a maxout of state, previous embedding and context

    def attends(self) -> bool:
        """Return whether there is an attention."""
        return self.attention != "none"

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.bidirectional and self.hidden_dim % 2:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be even for a bidirectional encoder")
        return self

    @model_validator(mode="after")
    def _attention_fits(self) -> Self:
        if self.attention == "multi_head" and self.hidden_dim % self.attention_heads:
            raise ValueError(
                f"attention_heads {self.attention_heads} must divide hidden_dim {self.hidden_dim}: change one of them"
            )
        if self.coverage and self.attention not in ("additive", "normed_additive"):
            raise ValueError(
                f"coverage enters an additive score, but attention is {self.attention}: "
                "set attention to additive or normed_additive, or coverage to false"
            )
        if self.attention == "none" and self.attention_window > 0:
            raise ValueError("attention_window needs an attention, but attention is none: set it to 0, or an attention")
        if self.attention == "none" and self.attention_feeds == "layers":
            raise ValueError(
                "attention_feeds layers needs an attention, but attention is none: "
                "set attention_feeds to output, or an attention"
            )
        if self.attention == "none" and self.position_scaling != "none" and self.decoder_start != "mean":
            raise ValueError(
                f"position_scaling {self.position_scaling} is of states that nothing reads, as attention is none: "
                "set position_scaling to none, or an attention"
            )
        if self.attention_feeds == "layers" and self.decoder_layers == 1:
            raise ValueError(
                "attention_feeds layers needs a layer above the first: set decoder_layers to 2 or more, "
                "or attention_feeds to output"
            )
        return self

    @model_validator(mode="after")
    def _decoder_reads_the_source(self) -> Self:
        if self.attention != "none" or self.attention_query == "previous":
            return self
        if self.decoder_start == "zeros":
            raise ValueError(
                "attention none with decoder_start zeros lets the decoder see nothing of the source: "
                "set decoder_start to last, or attention_query to previous for a fixed context"
            )
        if self.decoder_start == "last" and self.decoder_layers < self.encoder_layers:
            raise ValueError(
                f"attention none with decoder_start last reads {self.decoder_layers} of {self.encoder_layers} "
                "encoder_layers: set decoder_layers to as many, or decoder_start to bridge"
            )
        return self

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        if self.reverse_source and self.bidirectional:
            raise ValueError(
                "reverse_source changes nothing beside bidirectional, which reads both ways: set one of them to false"
            )
        if self.pyramid_layers >= self.encoder_layers:
            raise ValueError(
                f"pyramid_layers {self.pyramid_layers} must be less than encoder_layers {self.encoder_layers}, as the "
                "first layer reads single pieces: set fewer pyramid_layers or more encoder_layers"
            )
        if self.batch_norm and self.layer_norm:
            raise ValueError("batch_norm and layer_norm both normalise the input products: set one of them to false")
        if self.position_scaling == "sinusoidal" and self.hidden_dim % 2:
            raise ValueError(
                f"position_scaling sinusoidal needs an even hidden_dim, found {self.hidden_dim}: make it even, "
                "or set position_scaling to learned"
            )
        return self
