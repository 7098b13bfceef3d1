"""The recurrent decoder: layers, attention over the encoder's states, and the vectors that score pieces.

Shapes: B batch, S source length, N encoder states of a source (S, or fewer from a pyramidal encoder), T target length,
E embedding_dim, H hidden_dim, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nmt.model.attention import Attended, Memory, make_attention, over_pieces
from nmt.model.cells import CellState, RecurrentLayer, StepCell, has_cell, make_layer, run_layer
from nmt.model.embeddings import dropout, dropout_mask, wide
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.recurrent_encoder import EncoderOutput
from nmt.model.seq2seq import Decoded, Encoded


class DecoderState(NamedTuple):
    """All that a decoder carries from step to step.

    hidden [L, B, H]; cell [L, B, H], of a kind without one [L, B, 0]; feed, what input feeding reads at the next step:
    the last vector [B, E], or the last context [B, H] where attention feeds layers, or [B, 0]; coverage, the sum [B, N]
    of past attention weights, or [B, 0].
    """

    hidden: Tensor
    cell: Tensor
    feed: Tensor
    coverage: Tensor

    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of these rows of the batch, in this order."""
        return DecoderState(self.hidden[:, rows], self.cell[:, rows], self.feed[rows], self.coverage[rows])

    def layers(self) -> list[CellState]:
        """Return the state of each layer."""
        return [CellState(hidden, cell) for hidden, cell in zip(self.hidden.unbind(0), self.cell.unbind(0))]


class Decoder(nn.Module):
    """Recurrent layers, attention over the encoder's states, and the vector that scores pieces.

    Of a step t, with y the embedding of the previous piece and c the context:

        query: current    h_t = layers(y), then c_t = attention(h_t): Luong et al. 2015, section 3
        query: previous   c_t = attention(h_{t-1}), then h_t = layers([y; c_t]): Bahdanau et al. 2015, A.1.2
        feeds: output     h is the last layer's, and the output reads the context
        feeds: layers     h is the first layer's, and the layers above it read the context, the output does not:
                          Wu et al. 2016, "Google's Neural Machine Translation System", section 3
        input_feeding     the first layer reads the vector of step t - 1 too: Luong et al. 2015, section 3.3
                          (with feeds: layers the context of step t - 1)
        attentional       vector = tanh(W [h_t; c_t]), h of the last layer: Luong et al. 2015, eq. 5
        deep              vector = maxout(U h_t + V y + C c_t), pairs of units: Bahdanau et al. 2015, A.2.2, which
                          writes h_{t-1} where its eq. 4 has h_t; Goodfellow et al. 2013, "Maxout Networks"

    h_t is the layer's output, with its residual; the query h_{t-1} is the layer's hidden state alone. Vectors have E
    units, so that the output layer can share the target embedding. Without attention there is no context (Sutskever
    et al. 2014, "Sequence to Sequence Learning with Neural Networks"), except with query: previous, where it is
    tanh(V h) at every step and in the map of the first state, h the encoder's final state (Cho et al. 2014, "Learning
    Phrase Representations using RNN Encoder-Decoder", A.1.2).

    Dropout acts on the embeddings, between layers (not on what a residual adds, nor on contexts) and on the vectors;
    recurrent dropout has one mask for all steps of a call (see `StepCell`).
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.embedding_dim
        embedding, dim, depth = config.embedding_dim, config.hidden_dim, config.decoder_layers
        self.asks_before = config.attention_query == "previous"
        self.feeds_layers = config.attention_feeds == "layers"
        self.feeds_output = not self.feeds_layers and (config.attention != "none" or self.asks_before)
        self.feeds_vector = config.input_feeding and not self.feeds_layers
        self.feeds_context = config.input_feeding and self.feeds_layers
        self.feed_dim = embedding if self.feeds_vector else dim if self.feeds_context else 0
        self.asking = 0 if self.feeds_layers else depth - 1
        self.needs_steps = config.input_feeding or (self.asks_before and config.attention != "none")

        mapped = depth if config.decoder_start in ("mean", "bridge") else 0
        self.bridge_hidden = nn.ModuleList(nn.Linear(dim, dim) for _ in range(mapped))
        self.bridge_cell = nn.ModuleList(nn.Linear(dim, dim) for _ in range(mapped if has_cell(config.cell) else 0))
        self.layers = nn.ModuleList(
            make_layer(config.cell, self._input_dim(number), dim, layer_norm=config.layer_norm)
            for number in range(depth)
        )
        self.attention = make_attention(config)
        self.summary = nn.Linear(dim, dim) if self.attention is None and self.asks_before else None
        read = dim + (dim if self.feeds_output else 0)
        if config.output == "attentional":
            self.combine = nn.Linear(read, embedding)
        else:
            self.maxout = nn.Linear(read + embedding, 2 * embedding)

    def _input_dim(self, depth: int) -> int:
        embedding, dim = self.config.embedding_dim, self.config.hidden_dim
        if depth == 0:
            return embedding + self.feed_dim + (dim if self.asks_before else 0)
        return dim + (dim if self.feeds_layers else 0)

    def start(self, encoder_output: EncoderOutput) -> Encoded:
        """Return the memory, and the state before the first step as `decoder_start` says.

        bridge: a learned map of the encoder's final hidden state (Bahdanau et al. 2015, A.2.2). mean: the same of the
        mean of its states (Sennrich et al. 2017, "Nematus", section 3). Either with a tanh for the hidden state and
        without for the cell. last: layer l has the final state of the encoder's layer l, layers beyond it that of the
        last (Sutskever et al. 2014). zeros.
        """
        final = encoder_output.final
        if self.summary is not None:
            final = torch.tanh(self.summary(final))
        hidden, cell = self._first_layers(encoder_output, final)
        memory = self._memory(encoder_output, final)
        feed = hidden.new_zeros(len(final), self.feed_dim)
        coverage = wide(hidden.new_zeros(memory.mask.shape if self.config.coverage else (len(final), 0)))
        return Encoded(memory, DecoderState(hidden, cell, feed, coverage))

    def _first_layers(self, encoder_output: EncoderOutput, final: Tensor) -> tuple[Tensor, Tensor]:
        depth = len(self.layers)
        if self.config.decoder_start == "last":
            top = len(encoder_output.finals_hidden) - 1
            chosen = [min(number, top) for number in range(depth)]
            hidden = torch.stack([encoder_output.finals_hidden[number] for number in chosen])
            return hidden, torch.stack([encoder_output.finals_cell[number] for number in chosen])
        if self.config.decoder_start == "zeros":
            hidden = final.new_zeros(depth, *final.shape)
            return hidden, wide(hidden) if has_cell(self.config.cell) else hidden[..., :0]
        if self.config.decoder_start == "mean":
            final = _mean(encoder_output.states, encoder_output.mask)
        hidden = torch.stack([torch.tanh(bridge(final)) for bridge in self.bridge_hidden])
        cells = [bridge(final) for bridge in self.bridge_cell]
        return hidden, wide(torch.stack(cells)) if cells else hidden[..., :0]

    def _memory(self, encoder_output: EncoderOutput, final: Tensor) -> Memory:
        if self.attention is None:
            # The fixed context stands where one state would.
            fixed = final[:, None]
            return Memory(fixed, fixed, encoder_output.mask[:, :1], encoder_output.pieces, encoder_output.scale)
        memory = self.attention.memory(encoder_output.states, encoder_output.mask)
        return memory._replace(pieces=encoder_output.pieces, scale=encoder_output.scale)

    def forward(
        self, embedded: Tensor, encoded: Encoded, generator: torch.Generator | None, *, need_weights: bool = False
    ) -> Decoded:
        """Return vectors [B, T, E], the state after the last step, and where asked for attention weights [B, T, S].

        `embedded` [B, T, E] are the previous target pieces; the state comes from `start` or from an earlier call, so
        that one step at a time gives what all steps at once give. Weights are as of `over_pieces`.
        """
        memory, state = cast(tuple[Memory, DecoderState], encoded)
        embedded = dropout(embedded, self.config.dropout, generator)
        noise = self._noise(embedded, generator)
        carried = _Carried(state.layers(), state.feed, state.coverage)
        run = self._step_by_step if self.needs_steps else self._at_once
        vectors, carried, weights = run(embedded, memory, carried, noise, need_weights)
        hidden, cell = (torch.stack(parts) for parts in zip(*carried.layers))
        state = DecoderState(hidden, cell, carried.feed, carried.coverage)
        return Decoded(vectors, state, None if weights is None else over_pieces(weights, memory))

    def _at_once(
        self, embedded: Tensor, memory: Memory, carried: _Carried, noise: _Noise, need_weights: bool
    ) -> tuple[Tensor, _Carried, Tensor | None]:
        layers = cast(Sequence[RecurrentLayer], self.layers)

        def run(depth: int, inputs: list[Tensor], state: CellState) -> tuple[Tensor, CellState]:
            return run_layer(layers[depth], _joined(inputs), state, hidden_mask=noise.hidden[depth])

        made = self._pass(embedded, run, memory, carried, noise)
        vectors = _masked(self._vectors(made.output, embedded, made.context), noise.vector)
        return vectors, made.carried, made.weights if need_weights else None

    def _step_by_step(
        self, embedded: Tensor, memory: Memory, carried: _Carried, noise: _Noise, need_weights: bool
    ) -> tuple[Tensor, _Carried, Tensor | None]:
        layers = cast(Iterable[RecurrentLayer], self.layers)
        cells = [StepCell(layer, self.output_dim if depth == 0 else 0) for depth, layer in enumerate(layers)]
        known = cells[0].project(embedded).unbind(1)
        outputs, contexts, vectors, weights = [], [], [], []
        for t in range(embedded.shape[1]):
            piece, at = embedded[:, t : t + 1], noise.at(t)

            def step(depth: int, inputs: list[Tensor], state: CellState, t: int = t) -> tuple[Tensor, CellState]:
                # Of the first layer's inputs the first, the embedding, is in `known`.
                rest = _joined(inputs if depth > 0 else inputs[1:]).squeeze(1)
                after = cells[depth](known[t] if depth == 0 else None, rest, state, hidden_mask=noise.hidden[depth])
                return after.hidden[:, None], after

            made = self._pass(piece, step, memory, carried, at)
            carried = made.carried
            if self.feeds_vector:
                vectors.append(_masked(self._vectors(made.output, piece, made.context), at.vector))
                carried = carried._replace(feed=vectors[-1].squeeze(1))
            outputs.append(made.output)
            contexts.append(made.context)
            weights.append(made.weights if need_weights else None)
        if self.feeds_vector:
            return torch.cat(vectors, dim=1), carried, _concatenated(weights, -2)
        # Vectors that no step reads: one product for all steps.
        together = self._vectors(torch.cat(outputs, dim=1), embedded, _concatenated(contexts, 1))
        return _masked(together, noise.vector), carried, _concatenated(weights, -2)

    def _pass(self, embedded: Tensor, run: _Run, memory: Memory, carried: _Carried, noise: _Noise) -> _Passed:
        """Return what layers and attention make of T steps: of one, where a step reads what the one before has made."""
        layers, (_, feed, coverage) = list(carried.layers), carried
        context, weights = self._fixed_context(memory, embedded.shape[1]), None
        if self.attention is not None and self.asks_before:
            query = layers[self.asking].hidden[:, None]
            context, weights, coverage = self._attend(query, memory, coverage)
        output = embedded
        for depth, state in enumerate(carried.layers):
            inputs = [_masked(output, noise.below[depth]), *self._beside(depth, feed, context)]
            hidden, layers[depth] = run(depth, inputs, state)
            output = hidden + output if self.config.residual and depth > 0 else hidden
            if self.attention is not None and not self.asks_before and depth == self.asking:
                context, weights, coverage = self._attend(output, memory, coverage)
        if self.feeds_context and context is not None:
            feed = context.squeeze(1)
        return _Passed(_Carried(layers, feed, coverage), output, context, weights)

    def _beside(self, depth: int, feed: Tensor, context: Tensor | None) -> list[Tensor]:
        """Return what a layer reads beside the output of the one below it, or beside the embedding."""
        fed = [feed[:, None]] if depth == 0 and self.config.input_feeding else []
        reads = self.asks_before if depth == 0 else self.feeds_layers
        return [*fed, context] if reads and context is not None else fed

    def _attend(self, queries: Tensor, memory: Memory, coverage: Tensor) -> Attended:
        attended: Attended = cast(nn.Module, self.attention)(queries, memory, coverage)
        return attended

    def _fixed_context(self, memory: Memory, steps: int) -> Tensor | None:
        return None if self.summary is None else memory.values.expand(-1, steps, -1)

    def _vectors(self, output: Tensor, embedded: Tensor, context: Tensor | None) -> Tensor:
        """Return the vectors [B, T, E] that score pieces."""
        read = [output, context] if self.feeds_output and context is not None else [output]
        if self.config.output == "attentional":
            return torch.tanh(self.combine(_joined(read)))
        pairs: Tensor = self.maxout(_joined([*read, embedded])).unflatten(-1, (self.output_dim, 2))
        return pairs.amax(-1)

    def _noise(self, embedded: Tensor, generator: torch.Generator | None) -> _Noise:
        """Return the masks of dropout of a whole call: all steps' noise at once costs a fraction of one draw a step."""
        (batch, steps), config = embedded.shape[:2], self.config
        depth = len(self.layers)

        def drawn(rate: float, *shape: int) -> Tensor | None:
            return dropout_mask(shape, rate, generator, like=embedded)

        vector = drawn(config.dropout, batch, steps, self.output_dim)
        below = [drawn(config.dropout, batch, steps, config.hidden_dim) for _ in range(depth - 1)]
        hidden = [drawn(config.recurrent_dropout, batch, config.hidden_dim) for _ in range(depth)]
        return _Noise([None, *below], hidden, vector)


class _Carried(NamedTuple):
    """A DecoderState with its layers apart."""

    layers: list[CellState]
    feed: Tensor
    coverage: Tensor


class _Passed(NamedTuple):
    """What is carried on; outputs of the last layer and contexts [B, T, H]; weights as of `Attended`."""

    carried: _Carried
    output: Tensor
    context: Tensor | None
    weights: Tensor | None


# From a layer's number, what it reads side by side [B, T, *] and its state to its output [B, T, H] and its next state.
_Run = Callable[[int, list[Tensor], CellState], tuple[Tensor, CellState]]


class _Noise(NamedTuple):
    """Masks of dropout, None for none: of what each layer reads from the one below it [B, T, H], of the layers' hidden
    states [B, H] (one mask for all steps), and of the vectors [B, T, E]."""

    below: list[Tensor | None]
    hidden: list[Tensor | None]
    vector: Tensor | None

    def at(self, t: int) -> _Noise:
        """Return the masks of one step."""
        below = [None if mask is None else mask[:, t : t + 1] for mask in self.below]
        return _Noise(below, self.hidden, None if self.vector is None else self.vector[:, t : t + 1])


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.to(x.dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _concatenated(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    real = [part for part in parts if part is not None]
    return torch.cat(real, dim=dim) if real else None


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean [B, H] of the real ones of states [B, N, H]."""
    total = wide(states).masked_fill(~mask[:, :, None], 0.0).sum(1)
    return (total / mask.sum(1, keepdim=True)).to(states.dtype)
