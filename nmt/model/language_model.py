"""A recurrent language model of one side: it scores text, and satisfies the interface of the models that translate.

Its encoder looks at nothing, and its decoder reads the previous pieces alone.
Source: Mikolov et al. 2010, "Recurrent neural network based language model"; Merity et al. 2018, "Regularizing and
Optimizing LSTM Language Models" (tied weights, dropout between the steps).
Shapes: B batch, S source length, T steps, E embedding_dim, H hidden_dim, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from nmt.config import ModelTable, Probability, Side
from nmt.model.architecture import Architecture, Variant
from nmt.model.cells import CellKind, CellState, RecurrentLayer, has_cell, make_layer, run_layer
from nmt.model.embeddings import dropout, dropout_mask, wide
from nmt.model.seq2seq import Decoded, Encoded, Seq2Seq


class RecurrentLanguageModelConfig(ModelTable):
    """A recurrent language model. `dropout` acts on embeddings, between layers and on the scoring vector."""

    has_source: ClassVar[bool] = False
    compiles: ClassVar[bool] = False  # as of recurrent models

    architecture: Literal["recurrent_lm"] = "recurrent_lm"
    side: Side = "target"  # of the corpora, that it is a model of
    cell: CellKind = "lstm"
    layers: int = Field(default=2, ge=1, le=16)
    hidden_dim: int = Field(default=512, ge=1)
    layer_norm: bool = False  # of the gates and the cell of every layer
    residual: bool = False  # each layer but the first adds its input to its output
    recurrent_dropout: Probability = 0.0  # on the hidden state before each step, one mask over time
    share_embeddings: Literal[False] = False  # there is one embedding; tie_target_embeddings shares it with the output

    def only_side(self) -> Side:
        """Return the side that the model is of."""
        return self.side

    @model_validator(mode="after")
    def _vectors_are_of_the_target(self) -> Self:
        if self.source_vectors is not None:
            raise ValueError("source_vectors: a language model has no source embedding; leave source_vectors out")
        if self.target_vectors is not None and self.side == "source":
            raise ValueError("target_vectors are of target pieces, but side is source; leave target_vectors out")
        return self


class NoEncoder(nn.Module):
    """An encoder that looks at nothing."""

    def forward(self, embedded: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return `lengths` [B], which say how many rows there are."""
        return lengths


class NoMemory(NamedTuple):
    """What a language model attends to."""

    def select(self, rows: Tensor) -> NoMemory:
        """Return nothing, of whatever rows."""
        return self


class LanguageModelState(NamedTuple):
    """What a language model carries from step to step: hidden [L, B, H], and cell [L, B, H], or [L, B, 0]."""

    hidden: Tensor
    cell: Tensor

    def select(self, rows: Tensor) -> LanguageModelState:
        """Return the state of these rows of the batch, in this order."""
        return LanguageModelState(self.hidden[:, rows], self.cell[:, rows])


class LanguageModelDecoder(nn.Module):
    """Recurrent layers over the previous pieces.

    Where the output layer is tied to an embedding of another size, a linear map stands before it.
    """

    def __init__(self, config: RecurrentLanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.embedding_dim if config.tie_target_embeddings else config.hidden_dim
        self.layers = nn.ModuleList(
            make_layer(
                config.cell,
                config.embedding_dim if depth == 0 else config.hidden_dim,
                config.hidden_dim,
                layer_norm=config.layer_norm,
            )
            for depth in range(config.layers)
        )
        self.projection: nn.Module = nn.Identity()
        if self.output_dim != config.hidden_dim:
            self.projection = nn.Linear(config.hidden_dim, self.output_dim)

    def start(self, encoder_output: Tensor) -> Encoded:
        """Return no memory, and a state of zeros for as many rows as `encoder_output` [B] has."""
        shape = (self.config.layers, len(encoder_output), self.config.hidden_dim)
        hidden = next(self.parameters()).new_zeros(shape)
        cell = wide(hidden) if has_cell(self.config.cell) else hidden[..., :0]
        return Encoded(NoMemory(), LanguageModelState(hidden, cell))

    def forward(
        self, embedded: Tensor, encoded: Encoded, generator: torch.Generator | None, *, need_weights: bool = False
    ) -> Decoded:
        """Return vectors [B, T, E], or [B, T, H] of an untied model, and the state after the last step; no weights."""
        state, config = cast(LanguageModelState, encoded.state), self.config
        states, hidden, cells = dropout(embedded, config.dropout, generator), [], []
        for depth, layer in enumerate(cast(Iterable[RecurrentLayer], self.layers)):
            inputs = states if depth == 0 else dropout(states, config.dropout, generator)
            before = CellState(state.hidden[depth], state.cell[depth])
            shape = len(embedded), config.hidden_dim
            mask = dropout_mask(shape, config.recurrent_dropout, generator, like=embedded)
            found, after = run_layer(layer, inputs, before, hidden_mask=mask)
            states = found + states if config.residual and depth > 0 else found
            hidden.append(after.hidden)
            cells.append(after.cell)
        vectors = dropout(self.projection(states), config.dropout, generator)
        return Decoded(vectors, LanguageModelState(torch.stack(hidden), torch.stack(cells)), None)


def build(config: RecurrentLanguageModelConfig, source_size: int, target_size: int) -> Seq2Seq:
    """Return a new language model of its side's pieces, which to it are the target's."""
    size = source_size if config.side == "source" else target_size
    return Seq2Seq(config, size, size, NoEncoder(), LanguageModelDecoder(config))


ARCHITECTURE = Architecture(
    "recurrent_lm",
    RecurrentLanguageModelConfig,
    build,
    (
        Variant(
            "rnn-lm",
            'Mikolov et al. 2010, "Recurrent neural network based language model", with tanh for its sigmoid',
            {"cell": "tanh", "layers": 1, "tie_target_embeddings": False},
        ),
        Variant(
            "lstm-lm",
            'Zaremba et al. 2014, "Recurrent Neural Network Regularization"',
            {"cell": "lstm", "layers": 2, "tie_target_embeddings": False},
        ),
        Variant(
            "tied-lstm-lm",
            'Merity et al. 2018, "Regularizing and Optimizing LSTM Language Models", its recurrent dropout on the '
            "hidden state, not on the weights",
            {"cell": "lstm", "layers": 3, "tie_target_embeddings": True, "recurrent_dropout": 0.3},
        ),
    ),
)
