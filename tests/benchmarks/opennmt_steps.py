"""Updates of OpenNMT-py on given batches, timed. Runs in OpenNMT-py's own virtual environment: see peers_training.py.

    python opennmt_steps.py BATCHES --system rnn-mlp [--matmul-precision medium] [--threads 1]

An update is what its Trainer does with the batches of an update: forward, loss, statistics, backward, optimiser.
"""

from __future__ import annotations

import logging
import sys
import types
import warnings
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

# Imported by its filters of training text and not used here.
for unused in ("spacy", "fasttext"):
    sys.modules.setdefault(unused, types.ModuleType(unused))
warnings.filterwarnings("ignore", category=FutureWarning)

import onmt.opts  # noqa: E402
import pyonmttok  # noqa: E402
import torch  # noqa: E402
from onmt.constants import DefaultTokens  # noqa: E402
from onmt.model_builder import build_model  # noqa: E402
from onmt.trainer import Trainer, build_trainer  # noqa: E402
from onmt.utils import Statistics  # noqa: E402
from onmt.utils.optimizers import Optimizer  # noqa: E402
from onmt.utils.parse import ArgumentParser  # noqa: E402
from step_timing import Padded, cast, parser, prepare, read_batches, report, target_pieces, timed  # noqa: E402

BOS_ID = 2
_RNN = [
    "-encoder_type=brnn", "-decoder_type=rnn", "-rnn_type=LSTM", "-layers=1", "-hidden_size=512",
    "-word_vec_size=256", "-dropout=0.3", "-share_embeddings",
]  # fmt: skip
SYSTEMS = {
    "rnn-mlp-feeding": [*_RNN, "-global_attention=mlp", "-input_feed=1"],
    "rnn-general-feeding": [*_RNN, "-global_attention=general", "-input_feed=1"],
    "rnn-general": [*_RNN, "-global_attention=general", "-input_feed=0"],
    "transformer": [
        "-encoder_type=transformer", "-decoder_type=transformer", "-layers=3", "-heads=4", "-hidden_size=256",
        "-word_vec_size=256", "-transformer_ff=1024", "-position_encoding", "-share_embeddings",
        "-share_decoder_embeddings", "-dropout=0.1", "-attention_dropout=0", "-param_init=0", "-param_init_glorot",
    ],
}  # fmt: skip


def main() -> None:
    chosen = parser(__doc__, list(SYSTEMS)).parse_args()
    logging.disable(logging.WARNING)
    prepare(chosen)
    vocabulary, updates = read_batches(chosen.batches)
    vocabs = vocabularies(vocabulary)
    options = settings(SYSTEMS[chosen.system], len(updates[0]))
    model = build_model(options, options, vocabs, None, -1)
    model.train()
    trainer = build_trainer(options, -1, model, vocabs, Optimizer.from_opt(model, options))
    batches = [list(map(as_batch, update)) for update in updates]
    tokens = list(map(target_pieces, updates))

    def update(number: int) -> tuple[int, float]:
        place = number % len(batches)
        return tokens[place], trained(trainer, batches[place], tokens[place])

    timings = timed(cast(update, chosen.precision), warmup=chosen.warmup, updates=chosen.updates)
    report(timings, model.parameters())


def settings(model: Sequence[str], accumulated: int) -> Namespace:
    """Return the options that OpenNMT-py's own command line makes."""
    arguments = ArgumentParser()
    onmt.opts.train_opts(arguments)
    options = arguments.parse_args(
        [
            *model, "-data=none", "-src_vocab=none", "-share_vocab", "-optim=adam", "-learning_rate=0.001",
            "-adam_beta2=0.98", "-max_grad_norm=1.0", "-label_smoothing=0.1", "-normalization=tokens",
            f"-accum_count={accumulated}",
        ]
    )  # fmt: skip
    ArgumentParser.update_model_opts(options)
    ArgumentParser.validate_model_opts(options)
    options.data = {}
    return options


def vocabularies(size: int) -> dict[str, Any]:
    """Return its vocabulary of this size, with the special pieces in our order."""
    special = [DefaultTokens.PAD, DefaultTokens.UNK, DefaultTokens.BOS, DefaultTokens.EOS]
    pieces = special + [f"piece{number}" for number in range(size - len(special))]
    vocabulary = pyonmttok.build_vocab_from_tokens(pieces)
    assert vocabulary.ids_to_tokens == pieces
    vocabulary.default_id = vocabulary[DefaultTokens.UNK]
    return {"src": vocabulary, "tgt": vocabulary, "data_task": "seq2seq", "decoder_start_token": DefaultTokens.BOS}


def as_batch(batch: Padded) -> dict[str, torch.Tensor]:
    """Return a micro-batch as OpenNMT-py's: [B, S, 1] and [B, 1 + T, 1], BOS before the target."""
    bos = torch.full((len(batch.tgt), 1), BOS_ID)
    return {
        "src": batch.src[:, :, None],
        "srclen": batch.src_lengths,
        "tgt": torch.cat([bos, batch.tgt], dim=1)[:, :, None],
    }


def trained(trainer: Trainer, batches: Sequence[dict[str, torch.Tensor]], tokens: int) -> float:
    """Do one update as its training loop does; return the loss per target piece (nats)."""
    statistics = Statistics()
    trainer.accum_count = len(batches)
    trainer._gradient_accumulation(batches, tokens, Statistics(), statistics)
    return float(statistics.loss) / tokens


if __name__ == "__main__":
    main()
