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


_LUONG = 'Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation"'
_BAHDANAU = {
    "cell": "gru",
    "attention": "additive",
    "attention_query": "previous",
    "decoder_start": "bridge",
    "input_feeding": False,
    "output": "deep",
}

VARIANTS = (
    Variant(
        "sutskever",
        'Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks"',
        {
            "cell": "lstm",
            "encoder_layers": 2,
            "bidirectional": False,
            "reverse_source": True,
            "decoder_layers": 2,
            "decoder_start": "last",
            "attention": "none",
            "input_feeding": False,
        },
    ),
    Variant(
        "cho",
        'Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine '
        'Translation"',
        _BAHDANAU | {"bidirectional": False, "attention": "none"},
    ),
    Variant(
        "bahdanau",
        'Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate"',
        _BAHDANAU,
    ),
    Variant("luong-dot", _LUONG, {"cell": "lstm", "attention": "dot", "input_feeding": False}),
    Variant("luong-general", _LUONG, {"cell": "lstm", "attention": "general", "input_feeding": False}),
    Variant("luong-concat", _LUONG, {"cell": "lstm", "attention": "concat", "input_feeding": False}),
    Variant(
        "luong-local",
        f"{_LUONG}, section 3.2",
        {"cell": "lstm", "attention": "general", "attention_window": 10, "input_feeding": False},
    ),
    Variant(
        "luong-feeding",
        f"{_LUONG}, section 3.3",
        {"cell": "lstm", "attention": "general", "input_feeding": True},
    ),
    Variant(
        "additive-feeding",
        f"The scores of Bahdanau et al. 2015 with the input feeding of {_LUONG}",
        {"cell": "lstm", "attention": "additive", "input_feeding": True},
    ),
    Variant(
        "normed-additive",
        'Salimans and Kingma 2016, "Weight Normalization", on the scores of Bahdanau et al. 2015, as in '
        'Luong, Brevdo and Zhao 2017, "Neural Machine Translation (seq2seq) Tutorial"',
        {"cell": "lstm", "attention": "normed_additive", "input_feeding": True},
    ),
    Variant(
        "multi-head",
        'Chen et al. 2018, "The Best of Both Worlds: Combining Recent Advances in Neural Machine Translation", '
        'with the heads of Vaswani et al. 2017, "Attention Is All You Need"',
        {"cell": "lstm", "attention": "multi_head", "input_feeding": False},
    ),
    Variant(
        "gnmt",
        'Wu et al. 2016, "Google\'s Neural Machine Translation System"',
        {
            "cell": "lstm",
            "residual": True,
            "encoder_layers": 2,
            "bidirectional": True,
            "decoder_layers": 2,
            "attention": "additive",
            "attention_feeds": "layers",
            "input_feeding": False,
        },
    ),
    Variant(
        "coverage",
        'Tu et al. 2016, "Modeling Coverage for Neural Machine Translation"',
        _BAHDANAU | {"coverage": True},
    ),
    Variant(
        "pyramidal",
        'Chan et al. 2016, "Listen, Attend and Spell"',
        {
            "cell": "lstm",
            "encoder_layers": 2,
            "bidirectional": True,
            "pyramid_layers": 1,
            "attention": "general",
            "input_feeding": True,
        },
    ),
    Variant(
        "position-scaled",
        'States scaled by the sinusoids of Vaswani et al. 2017, "Attention Is All You Need"',
        {"cell": "lstm", "position_scaling": "sinusoidal"},
    ),
    Variant("layer-normalised", 'Ba et al. 2016, "Layer Normalization"', {"cell": "lstm", "layer_norm": True}),
    Variant(
        "batch-normalised",
        'Laurent et al. 2016, "Batch Normalized Recurrent Neural Networks"',
        {"cell": "lstm", "batch_norm": True},
    ),
    Variant(
        "peephole",
        'Gers and Schmidhuber 2000, "Recurrent Nets that Time and Count"',
        {"cell": "peephole_lstm"},
    ),
    Variant("vanilla", 'Elman 1990, "Finding Structure in Time"', {"cell": "tanh"}),
)

ARCHITECTURE = Architecture("recurrent", RecurrentConfig, build, VARIANTS)
