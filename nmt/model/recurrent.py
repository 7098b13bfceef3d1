"""The recurrent encoder and decoder.

Shapes: B batch, S source length, T target length, E embedding_dim, H hidden_dim, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config import ModelTable
from nmt.model.architecture import Architecture, Variant
from nmt.model.attention import Attention, Memory
from nmt.model.embeddings import dropout, keep_mask, wide
from nmt.model.seq2seq import Decoded, Encoded, Seq2Seq

RecurrentLayer = nn.LSTM | nn.GRU


class RecurrentConfig(ModelTable):
    """A recurrent encoder-decoder. Dropout acts on embeddings, between layers and on the attentional vector."""

    architecture: Literal["recurrent"] = "recurrent"
    cell: Literal["lstm", "gru"] = "lstm"
    encoder_layers: int = Field(default=1, ge=1, le=16)
    decoder_layers: int = Field(default=1, ge=1, le=16)
    bidirectional: bool = True
    attention: Literal["additive", "dot", "general"] = "additive"
    input_feeding: bool = True
    hidden_dim: int = Field(default=512, ge=2)  # of the decoder; a bidirectional encoder has half of it each way

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.bidirectional and self.hidden_dim % 2:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be even for a bidirectional encoder")
        return self


class CellState(NamedTuple):
    """The state of one recurrent layer: hidden [B, H]; cell [B, H] of an LSTM, [B, 0] of a GRU."""

    hidden: Tensor
    cell: Tensor


class DecoderState(NamedTuple):
    """All that a decoder carries from step to step: hidden and cell [L, B, H], the last attentional vector [B, E]."""

    hidden: Tensor
    cell: Tensor
    feed: Tensor

    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of these rows of the batch, in this order."""
        return DecoderState(self.hidden[:, rows], self.cell[:, rows], self.feed[rows])


def make_layer(cell: str, input_dim: int, hidden_dim: int) -> RecurrentLayer:
    """Return one recurrent layer, batch first: orthogonal recurrent weights, Xavier inputs, an LSTM's forget bias 1.

    Source: Saxe et al. 2014 (orthogonal); Glorot and Bengio 2010; Jozefowicz et al. 2015 (forget bias).
    """
    is_lstm = cell == "lstm"
    layer: RecurrentLayer = (nn.LSTM if is_lstm else nn.GRU)(input_dim, hidden_dim, batch_first=True)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.all_weights[0]
    for block in weight_ih.chunk(4 if is_lstm else 3):
        nn.init.xavier_uniform_(block)
    for block in weight_hh.chunk(4 if is_lstm else 3):
        nn.init.orthogonal_(block)
    nn.init.zeros_(bias_ih)
    nn.init.zeros_(bias_hh)
    if is_lstm:
        with torch.no_grad():
            bias_ih[hidden_dim : 2 * hidden_dim].fill_(1.0)
    return layer


def run_layer(layer: RecurrentLayer, inputs: Tensor, start: CellState | None) -> tuple[Tensor, CellState]:
    """Return the outputs [B, T, H] of torch's fused layer over inputs [B, T, *], and its state after the last of them.

    A start of None is zeros.
    """
    if isinstance(layer, nn.LSTM):
        given = None if start is None else (start.hidden[None].to(inputs.dtype), start.cell[None].to(inputs.dtype))
        outputs, (hidden, cell) = layer(inputs, given)
        return outputs, CellState(hidden[0], wide(cell[0]))
    outputs, hidden = layer(inputs, None if start is None else start.hidden[None].to(inputs.dtype))
    return outputs, CellState(hidden[0], hidden.new_empty(hidden.shape[1], 0))


def lstm_step(gates: Tensor, cell: Tensor) -> CellState:
    """Return the state after one step from the summed gates [B, 4H], in torch's order i, f, g, o, and the cell [B, H].

    Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000. The cell is float32 or wider.
    """
    inputs, forget, candidate, output = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(inputs) * torch.tanh(candidate)
    return CellState(torch.sigmoid(output) * torch.tanh(cell).to(gates.dtype), cell)


def gru_step(from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> Tensor:
    """Return the hidden state [B, H] after one step from both projections [B, 3H], in torch's order r, z, n.

    Source: Cho et al. 2014, in the form of torch.nn.GRU (the reset gate acts after the product with the hidden state).
    """
    reset_x, update_x, new_x = from_input.chunk(3, dim=-1)
    reset_h, update_h, new_h = from_hidden.chunk(3, dim=-1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


class EncoderOutput(NamedTuple):
    """States [B, S, H], a mask [B, S], True at real pieces, and the last layer's final hidden state [B, H]."""

    states: Tensor
    mask: Tensor
    final: Tensor


class Encoder(nn.Module):
    """Layers of LSTM or GRU in one direction or both, H units in all.

    The backward direction reads each source reversed within its own length, so no padding is ever before a piece.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        directions = 2 if config.bidirectional else 1
        each = config.hidden_dim // directions
        self.dropout = config.dropout
        self.layers = nn.ModuleList(
            nn.ModuleList(
                make_layer(config.cell, config.embedding_dim if depth == 0 else config.hidden_dim, each)
                for _ in range(directions)
            )
            for depth in range(config.encoder_layers)
        )

    def forward(self, embedded: Tensor, lengths: Tensor, generator: torch.Generator | None) -> EncoderOutput:
        """Return the states of the last layer, both directions side by side.

        `embedded` [B, S, E]; `lengths` [B] counts the real pieces and is at least 1.
        """
        positions = torch.arange(embedded.shape[1], device=embedded.device)[None, :]
        mirrored = torch.where(positions < lengths[:, None], lengths[:, None] - 1 - positions, positions)
        last = (lengths - 1)[:, None, None]
        states = dropout(embedded, self.dropout, generator)
        final = states[:, 0]
        for depth, directions in enumerate(self.layers):
            if depth > 0:
                states = dropout(states, self.dropout, generator)
            outputs, finals = [], []
            for direction, layer in enumerate(cast(Iterable[RecurrentLayer], directions)):
                output, _ = run_layer(layer, states if direction == 0 else _reordered(states, mirrored), None)
                finals.append(output.gather(1, last.expand(-1, 1, output.shape[2])).squeeze(1))
                outputs.append(output if direction == 0 else _reordered(output, mirrored))
            states, final = torch.cat(outputs, dim=-1), torch.cat(finals, dim=-1)
        return EncoderOutput(states, positions < lengths[:, None], final)


def _reordered(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(1, order[:, :, None].expand_as(states))


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
            _StepCell(layer, self.config.embedding_dim if depth == 0 else 0)
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


class _StepCell:
    """One layer, step by step, over the weights of torch's fused layer.

    The product with what is known before the first step (the embeddings) is done once for all steps by `project`;
    what is left of the input is side by side with the hidden state, so that a step is one product for an LSTM.
    """

    def __init__(self, layer: RecurrentLayer, known: int) -> None:
        self.is_lstm = isinstance(layer, nn.LSTM)
        weight_ih, self.hidden, self.bias_ih, self.bias_hh = cast(list[Tensor], layer.all_weights[0])
        self.known, self.step = weight_ih[:, :known], weight_ih[:, known:]
        if torch.is_autocast_enabled(weight_ih.device.type):
            # Cast once here: autocast would cast what is no parameter again at each step.
            dtype = torch.get_autocast_dtype(weight_ih.device.type)
            self.step, self.hidden = self.step.to(dtype), self.hidden.to(dtype)
        if self.is_lstm:
            self.both = torch.cat([self.step, self.hidden], dim=1)

    def project(self, embedded: Tensor) -> Tensor:
        bias = self.bias_ih + self.bias_hh if self.is_lstm else self.bias_ih
        return F.linear(embedded, self.known, bias)

    def __call__(self, projected: Tensor | None, inputs: Tensor, state: CellState) -> CellState:
        if self.is_lstm:
            inputs = torch.cat([inputs.to(self.both.dtype), state.hidden.to(self.both.dtype)], dim=-1)
            gates = F.linear(inputs, self.both)
            gates = gates + (self.bias_ih + self.bias_hh if projected is None else projected)
            return lstm_step(gates, state.cell)
        from_input = F.linear(inputs, self.step)
        from_input = from_input + (self.bias_ih if projected is None else projected)
        from_hidden = F.linear(state.hidden, self.hidden) + self.bias_hh
        return CellState(gru_step(from_input, from_hidden, state.hidden), state.cell)


def build(config: RecurrentConfig, source_size: int, target_size: int) -> Seq2Seq:
    """Return a new recurrent encoder-decoder."""
    return Seq2Seq(config, source_size, target_size, Encoder(config), Decoder(config))


ARCHITECTURE = Architecture(
    "recurrent",
    RecurrentConfig,
    build,
    (
        Variant(
            "luong-general",
            'Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation"',
            {"cell": "lstm", "attention": "general", "input_feeding": False},
        ),
    ),
)
