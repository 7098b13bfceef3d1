"""The recurrent encoder.

Shapes: B batch, S source length, S' length of the states (less than S with a pyramid), E embedding_dim, H hidden_dim,
L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.batch_norm import BatchNorm
from nmt.model.cells import GATES, CellState, RecurrentLayer, make_layer, run_layer
from nmt.model.embeddings import dropout, dropout_mask
from nmt.model.positions import sinusoids
from nmt.model.recurrent_config import RecurrentConfig

LEARNED_POSITIONS = 256  # of `position_scaling: learned`; states further on are not scaled


class EncoderOutput(NamedTuple):
    """What a decoder needs of encoded sources; both directions side by side, H units in all.

    states [B, S', H] in the order of the source, and a mask [B, S'], True at the real ones; final [B, H], the last
    layer's final hidden state; finals_hidden [L, B, H] and finals_cell [L, B, H], the final state of every layer, the
    cell [L, B, 0] of a kind without one, and where `decoder_start` is not last. A direction's final state is the one
    after the last piece that it reads.
    A state stands for `scale` source positions: state s for those from s * scale on, fewer at a source's end; `pieces`
    [B, S] is True at the real ones of the source.
    """

    states: Tensor
    mask: Tensor
    final: Tensor
    finals_hidden: Tensor
    finals_cell: Tensor
    scale: int
    pieces: Tensor


class Encoder(nn.Module):
    """Recurrent layers of any kind, in one direction or both.

    A direction that reads backwards reads each source reversed within its own length, so that no padding is ever before
    a piece, and hands its states out in the order of the source. It is the second of two (Schuster and Paliwal 1997),
    or the only one with `reverse_source` (Sutskever et al. 2014, section 3.3).
    Dropout acts on what each layer reads. With `residual` each layer but the first adds its input, as it was before
    that dropout, to its output (Wu et al. 2016, eq. 6). The last `pyramid_layers` layers read pairs of states (Chan et
    al. 2016, "Listen, Attend and Spell", section 3.1); they have no residual connection, since their input is wider.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.reads_backwards = (False, True) if config.bidirectional else (config.reverse_source,)
        self.first_of_pyramid = config.encoder_layers - config.pyramid_layers
        each = config.hidden_dim // len(self.reads_backwards)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                make_layer(config.cell, self._input_dim(depth), each, layer_norm=config.layer_norm)
                for _ in self.reads_backwards
            )
            for depth in range(config.encoder_layers)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(BatchNorm(GATES[config.cell] * each) for _ in self.reads_backwards)
            for _ in range(config.encoder_layers if config.batch_norm else 0)
        )
        if config.position_scaling == "learned":
            self.position_scales = nn.Parameter(torch.ones(LEARNED_POSITIONS, config.hidden_dim))

    def _input_dim(self, depth: int) -> int:
        if depth == 0:
            return self.config.embedding_dim
        return self.config.hidden_dim * (2 if depth >= self.first_of_pyramid else 1)

    def forward(self, embedded: Tensor, lengths: Tensor, generator: torch.Generator | None) -> EncoderOutput:
        """Return the states of the last layer, and the final states of all.

        `embedded` [B, S, E]; `lengths` [B] counts the real pieces and is at least 1. The generator is the switch of
        dropout and of the batch's own statistics in batch norm; None is evaluation.
        """
        states, scale, finals = embedded, 1, []
        mask = pieces = _real(states, lengths)
        for depth in range(len(self.layers)):
            below = dropout(states, self.config.dropout, generator)
            is_pyramid = depth >= self.first_of_pyramid
            if is_pyramid:
                below, lengths, scale = _in_pairs(below, mask), (lengths + 1) // 2, 2 * scale
                mask = _real(below, lengths)
            above, final = self._read(depth, below, lengths, mask, generator)
            states = above + states if self.config.residual and depth > 0 and not is_pyramid else above
            finals.append(final)
        hidden, cell = (torch.stack(parts) for parts in zip(*finals))
        return EncoderOutput(self._scaled(states), mask, hidden[-1], hidden, cell, scale, pieces)

    def _read(
        self, depth: int, below: Tensor, lengths: Tensor, mask: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, CellState]:
        """Return what a layer makes of its input [B, S', *], and its final state, both directions side by side."""
        positions = torch.arange(below.shape[1], device=below.device)[None, :]
        mirrored = torch.where(mask, lengths[:, None] - 1 - positions, positions)
        outputs, finals = [], []
        for direction, backwards in enumerate(self.reads_backwards):
            layer = cast(RecurrentLayer, cast(nn.ModuleList, self.layers[depth])[direction])
            output, final = run_layer(
                layer,
                _reordered(below, mirrored) if backwards else below,
                None,
                dropout_mask((len(below), layer.hidden_size), self.config.recurrent_dropout, generator, like=below),
                lengths=lengths,
                needs_cell=self.config.decoder_start == "last",
                normed=self._norm(depth, direction, mask, training=generator is not None),
            )
            outputs.append(_reordered(output, mirrored) if backwards else output)
            finals.append(final)
        hidden, cell = (torch.cat(parts, dim=-1) for parts in zip(*finals))
        return torch.cat(outputs, dim=-1), CellState(hidden, cell)

    def _norm(self, depth: int, direction: int, mask: Tensor, *, training: bool) -> Callable[[Tensor], Tensor] | None:
        if not self.config.batch_norm:
            return None
        norm = cast(nn.ModuleList, self.norms[depth])[direction]
        return lambda product: norm(product, mask, training=training)

    def _scaled(self, states: Tensor) -> Tensor:
        """Return the states multiplied by a factor for their position, so that a decoder can tell positions apart.

        sinusoidal: 1 + the sinusoids of `positions.py`; learned: a table, initialised at 1, of LEARNED_POSITIONS
        positions, and 1 for those beyond it.
        """
        length, dim = states.shape[1:]
        match self.config.position_scaling:
            case "none":
                return states
            case "sinusoidal":
                scales = 1.0 + sinusoids(length, dim, states.device)
            case "learned":
                scales = F.pad(self.position_scales[:length], (0, 0, 0, max(0, length - LEARNED_POSITIONS)), value=1.0)
        return (states * scales).to(states.dtype)


def _real(states: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(states.shape[1], device=states.device)[None, :] < lengths[:, None]


def _reordered(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(1, order[:, :, None].expand_as(states))


def _in_pairs(states: Tensor, mask: Tensor) -> Tensor:
    """Return neighbours of states [B, S, H] side by side, [B, ceil(S / 2), 2H]; an odd last one is beside zeros."""
    states = states.masked_fill(~mask[:, :, None], 0.0)
    states = F.pad(states, (0, 0, 0, states.shape[1] % 2))
    return states.reshape(len(states), -1, 2 * states.shape[2])
