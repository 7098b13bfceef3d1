"""The recurrent decoder: layers, attention over the encoder's states, and the vectors that score pieces.

Shapes: B batch, S source length, T target length, E embedding_dim, H hidden_dim, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nmt.model.attention import Attention, Memory
from nmt.model.cells import CellState, RecurrentLayer, StepCell, make_layer, run_layer
from nmt.model.embeddings import dropout, keep_mask, wide
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.recurrent_encoder import EncoderOutput
from nmt.model.seq2seq import Decoded, Encoded


class DecoderState(NamedTuple):
    """All that a decoder carries from step to step: hidden and cell [L, B, H], the last attentional vector [B, E]."""

    hidden: Tensor
    cell: Tensor
    feed: Tensor

    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of these rows of the batch, in this order."""
        return DecoderState(self.hidden[:, rows], self.cell[:, rows], self.feed[rows])


class Decoder(nn.Module):
    """Layers of LSTM or GRU, attention over the encoder's states, and the attentional vector that scores pieces.

    The attentional vector is tanh(W [h; context]) with E units, so that the output layer can share the target
    embedding; with input feeding it is part of the next step's input.
    Source: Luong et al. 2015, eq. 5 and section 3.3.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.embedding_dim
        fed = config.embedding_dim if config.input_feeding else 0
        self.bridge_hidden = nn.ModuleList(
            nn.Linear(config.hidden_dim, config.hidden_dim) for _ in range(config.decoder_layers)
        )
        self.bridge_cell = nn.ModuleList(
            nn.Linear(config.hidden_dim, config.hidden_dim)
            for _ in range(config.decoder_layers if config.cell == "lstm" else 0)
        )
        self.layers = nn.ModuleList(
            make_layer(config.cell, config.embedding_dim + fed if depth == 0 else config.hidden_dim, config.hidden_dim)
            for depth in range(config.decoder_layers)
        )
        self.attention = Attention(config.attention, config.hidden_dim)
        self.combine = nn.Linear(2 * config.hidden_dim, config.embedding_dim)

    def start(self, encoder_output: EncoderOutput) -> Encoded:
        """Return the memory, and as the first state a learned bridge from the encoder's final hidden state.

        Source: Bahdanau et al. 2015, A.2.2 (s_0 = tanh(W h)).
        """
        states, mask, final = encoder_output
        hidden = torch.stack([torch.tanh(bridge(final)) for bridge in self.bridge_hidden])
        cells = [bridge(final) for bridge in self.bridge_cell]
        cell = wide(torch.stack(cells)) if cells else hidden.new_empty(*hidden.shape[:2], 0)
        feed = hidden.new_zeros(hidden.shape[1], self.config.embedding_dim)
        return Encoded(self.attention.memory(states, mask), DecoderState(hidden, cell, feed))

    def forward(
        self, embedded: Tensor, encoded: Encoded, generator: torch.Generator | None, *, need_weights: bool = False
    ) -> Decoded:
        """Return attentional vectors [B, T, E], the state after the last step, and attention weights [B, T, S].

        `embedded` [B, T, E] are the previous target pieces; the state comes from `start` or from an earlier call, so
        that one step at a time gives what all steps at once give.
        """
        memory, state = cast(tuple[Memory, DecoderState], encoded)
        embedded = dropout(embedded, self.config.dropout, generator)
        if self.config.input_feeding:
            return self._with_feeding(embedded, memory, state, generator)
        states, hidden, cells = embedded, [], []
        for depth, layer in enumerate(cast(Iterable[RecurrentLayer], self.layers)):
            if depth > 0:
                states = dropout(states, self.config.dropout, generator)
            states, after = run_layer(layer, states, CellState(state.hidden[depth], state.cell[depth]))
            hidden.append(after.hidden)
            cells.append(after.cell)
        contexts, weights = self.attention(states, memory)
        vectors = torch.tanh(self.combine(torch.cat([states, contexts], dim=-1)))
        vectors = dropout(vectors, self.config.dropout, generator)
        return Decoded(vectors, DecoderState(torch.stack(hidden), torch.stack(cells), state.feed), weights)

    def _with_feeding(
        self, embedded: Tensor, memory: Memory, state: DecoderState, generator: torch.Generator | None
    ) -> Decoded:
        steps = embedded.shape[1]
        masks = self._feeding_masks(embedded, generator)
        cells = [
            StepCell(layer, self.config.embedding_dim if depth == 0 else 0)
            for depth, layer in enumerate(cast(Iterable[RecurrentLayer], self.layers))
        ]
        projected = cells[0].project(embedded).unbind(1)
        layers = [CellState(state.hidden[depth], state.cell[depth]) for depth in range(len(cells))]
        feed, vectors, weights = state.feed, [], []
        for t in range(steps):
            layers[0] = cells[0](projected[t], feed, layers[0])
            for depth in range(1, len(cells)):
                below = layers[depth - 1].hidden
                if masks is not None:
                    below = below * masks.between[depth - 1][:, t]
                layers[depth] = cells[depth](None, below, layers[depth])
            query = layers[-1].hidden
            context, weight = self.attention(query[:, None], memory)
            feed = torch.tanh(self.combine(torch.cat([query, context.squeeze(1)], dim=-1)))
            if masks is not None:
                feed = feed * masks.vector[:, t]
            vectors.append(feed)
            weights.append(weight)
        hidden, cell = torch.stack([s.hidden for s in layers]), torch.stack([s.cell for s in layers])
        return Decoded(torch.stack(vectors, dim=1), DecoderState(hidden, cell, feed), torch.cat(weights, dim=1))

    def _feeding_masks(self, embedded: Tensor, generator: torch.Generator | None) -> _Masks | None:
        rate, config = self.config.dropout, self.config
        if generator is None or rate == 0.0:
            return None
        # All steps' noise at once: one draw costs a fraction of one a step.
        batch, steps = embedded.shape[:2]
        vector = keep_mask((batch, steps, config.embedding_dim), rate, generator, like=embedded)
        between = [
            keep_mask((batch, steps, config.hidden_dim), rate, generator, like=embedded)
            for _ in range(config.decoder_layers - 1)
        ]
        return _Masks(vector, between)


class _Masks(NamedTuple):
    vector: Tensor
    between: list[Tensor]
