"""How good the weights are on dev: the loss of teacher forcing, and real translations. Every worker does its share.

A language model translates nothing: of it there is the loss alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from nmt.batches import collate, packed
from nmt.config import Side, TrainConfig, TranslateConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.supervised import supervised
from nmt.precision import autocast
from nmt.published import describe_references
from nmt.search import search
from nmt.training.step import World
from pipelines.shards import ShardColumns
from pipelines.tokenizer import Tokenizer


def score_rows(
    model: Seq2Seq, shards: ShardColumns, tokenizer: Tokenizer, config: TrainConfig, world: World
) -> tuple[float, list[str]]:
    """Return the negative log-likelihood per target piece (nats) and the translations of all rows, in order.

    Of a language model there are no translations.

    The same on every worker and for every number of workers: batches are dealt out, and their sums are added in the
    batches' order.
    """
    decoding = TranslateConfig(method="beam", beam_size=config.validation_beam_size)
    src_lengths, tgt_lengths = shards.src_lengths(), shards.tgt_lengths()
    order = np.lexsort((tgt_lengths, src_lengths))
    batches = packed(order, np.maximum(src_lengths, tgt_lengths)[order], config.microbatch_tokens)
    losses: dict[int, float] = {}
    found: dict[int, list[int]] = {}
    for number in range(world.rank, len(batches), world.size):
        rows = batches[number]
        batch = collate(shards, rows).to(world.device)
        with torch.inference_mode(), autocast(config.precision, world.device):
            losses[number] = float(supervised(model, batch, None, label_smoothing=0.0).nll)
            hypotheses = search(model, batch.src, batch.src_lengths, decoding) if model.config.has_source else []
        found |= {int(row): hypothesis.ids for row, hypothesis in zip(rows, hypotheses)}
    shares: list[Any] = [(losses, found)]
    if world.size > 1:
        shares = [None] * world.size
        dist.all_gather_object(shares, (losses, found))
    every_loss = {number: nll for share, _ in shares for number, nll in share.items()}
    every_row = {row: ids for _, share in shares for row, ids in share.items()}
    nll = sum(every_loss[number] for number in range(len(batches)))
    translations = [every_row[row] for row in range(len(shards))] if model.config.has_source else []
    return nll / int(tgt_lengths.sum()), tokenizer.decode_target(translations)


def describe_dev(loss: float, shards: ShardColumns, folder: Path, side: Side) -> dict[str, Any]:
    """Return what a language model has reached on dev, and what dev is: so that another model can be compared with it.

    `loss` is per piece (nats) of `shards`, whose target is that side; `folder` has the texts, as they were encoded. A
    model of other pieces is compared by perplexity per character (code point).
    """
    names = {"source": "src", "target": "tgt"}
    tables = [pq.read_table(path, columns=[names[side]]) for path in sorted(folder.glob("part-*.parquet"))]
    texts = [text for table in tables for text in table[names[side]].to_pylist()]
    pieces, characters = int(shards.tgt_lengths().sum()), sum(len(text) for text in texts)
    return {
        "best_perplexity": perplexity(loss * pieces, pieces),
        "best_perplexity_per_character": perplexity(loss * pieces, characters),
        "dev_rows": len(texts),
        "dev_pieces": pieces,
        "dev_characters": characters,
        "dev_sha256": describe_references(texts).sha256,
    }


def perplexity(nll: float, number: int) -> float | None:
    """Return exp(nll / number) of a summed negative log-likelihood (nats), at most e^700; None of nothing."""
    return math.exp(min(nll / number, 700.0)) if number else None
