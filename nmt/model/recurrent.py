"""The recurrent encoder-decoder, and the models of the literature that it can be."""

from __future__ import annotations

from nmt.model.architecture import Architecture, Variant
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.recurrent_decoder import Decoder
from nmt.model.recurrent_encoder import Encoder
from nmt.model.seq2seq import Seq2Seq


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
