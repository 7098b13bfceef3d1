"""Cells against torch's own layers, and the encoder against a plain loop over each sentence alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmt.model.cells import gru_step, lstm_step, make_layer
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.recurrent_encoder import Encoder


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.manual_seed(3)


def test_lstm_step_is_torchs_lstm_cell() -> None:
    cell = nn.LSTMCell(5, 7).double()
    x, h, c = torch.randn(4, 5).double(), torch.randn(4, 7).double(), torch.randn(4, 7).double()
    gates = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    state = lstm_step(gates, c)
    hidden, memory = cell(x, (h, c))
    torch.testing.assert_close(state.hidden, hidden, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.cell, memory, rtol=1e-12, atol=1e-12)


def test_gru_step_is_torchs_gru_cell() -> None:
    cell = nn.GRUCell(5, 7).double()
    x, h = torch.randn(4, 5).double(), torch.randn(4, 7).double()
    found = gru_step(x @ cell.weight_ih.T + cell.bias_ih, h @ cell.weight_hh.T + cell.bias_hh, h)
    torch.testing.assert_close(found, cell(x, h), rtol=1e-12, atol=1e-12)


def test_an_lstms_forget_bias_is_one_and_its_recurrent_weights_are_orthogonal() -> None:
    layer = make_layer("lstm", 3, 6)
    _, weight_hh, bias_ih, _ = layer.all_weights[0]
    assert bias_ih.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    for block in weight_hh.chunk(4):
        torch.testing.assert_close(block @ block.T, torch.eye(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_encoder_reads_each_sentence_as_if_it_were_alone(cell: str, bidirectional: bool) -> None:
    config = RecurrentConfig(
        cell=cell, bidirectional=bidirectional, encoder_layers=2, embedding_dim=6, hidden_dim=8, dropout=0.3
    )
    encoder = Encoder(config).double()
    embedded, lengths = torch.randn(3, 7, 6).double(), torch.tensor([7, 1, 4])
    states, _, final = encoder(embedded, lengths, None)
    for row, length in enumerate(lengths.tolist()):
        alone = embedded[row : row + 1, :length]
        ends = []
        for directions in encoder.layers:
            outputs = []
            for direction, layer in enumerate(directions):
                seen = alone if direction == 0 else alone.flip(1)
                output = layer(seen)[0]
                ends = ends[: direction * len(outputs)]
                outputs.append(output if direction == 0 else output.flip(1))
            ends = [outputs[0][:, -1]] + ([outputs[1][:, 0]] if bidirectional else [])
            alone = torch.cat(outputs, dim=-1)
        torch.testing.assert_close(states[row, :length], alone[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(final[row], torch.cat(ends, dim=-1)[0], rtol=1e-12, atol=1e-12)
