"""Tiny models of each kind of architecture, and a micro-batch with padding on both sides."""

from __future__ import annotations

import torch

from nmt.architectures import build_model
from nmt.batches import MicroBatch
from nmt.config import ModelTable
from nmt.model.convolutional import ConvolutionalConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.model.transformer_config import TransformerConfig
from pipelines.tokenizer import BOS_ID, PAD_ID

PIECES = 19
_SIZES = {"embedding_dim": 8, "dropout": 0.3}
TRANSFORMER = TransformerConfig(
    encoder_layers=1, decoder_layers=2, attention_heads=2, feed_forward_dim=12, attention_dropout=0.2, **_SIZES
)
RECURRENT = RecurrentConfig(hidden_dim=8, recurrent_dropout=0.2, **_SIZES)
WINDOWED = RecurrentConfig(hidden_dim=8, attention="general", attention_window=1, input_feeding=False, **_SIZES)
CONVOLUTIONAL = ConvolutionalConfig.model_validate({"hidden_dim": 8, **_SIZES})
MODELS = {
    "transformer": TRANSFORMER,
    "recurrent": RECURRENT,
    "windowed": WINDOWED,
    "convolutional": CONVOLUTIONAL,
}


def model_of(table: ModelTable, *, seed: int = 1) -> Seq2Seq:
    return build_model(table, PIECES, PIECES, seed=seed).double()


def generator_of(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_batch(rows: int = 3, *, seed: int = 3) -> MicroBatch:
    """Return rows of 2 to 6 pieces on each side, the longest of them first."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        lengths = torch.randint(2, 6, (rows,), generator=generator)
        lengths[0] = 6
        ids = torch.randint(4, PIECES, (rows, 6), generator=generator)
        ids[torch.arange(6) >= lengths[:, None]] = PAD_ID
        sides.append((ids, lengths))
    (src, src_lengths), (target, target_lengths) = sides
    previous = torch.cat([torch.full((rows, 1), BOS_ID), target[:, :-1]], dim=1)
    return MicroBatch(src, src_lengths, previous, target, target_lengths)


def gradients_of(model: Seq2Seq, total: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found) if gradient is not None}
