"""How good the weights are on dev: the loss of teacher forcing, and real translations. Every worker does its share.

A language model translates nothing: of it there is the loss alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from nmt.batches import Rows, collate, one_sided, packed
from nmt.config import Side, TrainConfig, TranslateConfig
from nmt.evaluate import corpus_bleu, corpus_chrf
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.supervised import supervised
from nmt.precision import autocast
from nmt.published import describe_references
from nmt.search import max_target_pieces, search
from nmt.training.attention_maps import attention_maps
from nmt.training.job import TrainJob
from nmt.training.memory import fits
from nmt.training.step import World
from pipelines.errors import InputError
from pipelines.shards import ShardColumns, read_shards
from pipelines.tokenizer import Tokenizer

_NUM_SAMPLES = 3


class RowScores(NamedTuple):
    """Of all rows: the negative log-likelihood per target piece (nats), and the translations, in order.

    The seconds are those of the worker that took longest, of its loss and of its search.
    """

    loss: float
    translations: list[str]
    loss_seconds: float
    search_seconds: float


@dataclass(frozen=True)
class Scores:
    """What a validation finds. `dev` has loss (nats per target piece), and of translations bleu and chrf (0 to 100).

    `seconds` is the whole of it; `samples` are a few rows: source, reference and hypothesis, `attention` their maps.
    """

    dev: dict[str, float]
    seconds: float
    loss_seconds: float
    search_seconds: float
    samples: list[dict[str, str]]
    attention: list[dict[str, Any]]


def read_dev(job: TrainJob, tokenizer: Tokenizer) -> tuple[ShardColumns, list[str]]:
    """Return the rows of dev, and the references of their translations: of a language model none.

    Raises InputError when the shards belong to another tokeniser.
    """
    dev = dev_rows(Path(job.shards), job.model.only_side(), tokenizer.digest)
    return dev, _references(Path(job.references), dev) if job.model.has_source else []


def dev_rows(shards: Path, side: Side | None, tokenizer_digest: str | None = None) -> ShardColumns:
    """Return the rows of dev, of a language model its side alone. Raises InputError as `read_shards` does."""
    return one_sided(read_shards(shards / "dev", tokenizer_digest), side)


def score_model(
    model: Seq2Seq, dev: ShardColumns, references: list[str], tokenizer: Tokenizer, job: TrainJob, world: World
) -> Scores:
    """Return how good a model is on dev, on every worker: each of `world` must call it with the same weights."""
    started = time.monotonic()
    found = score_rows(model, dev, tokenizer, job.train, world)
    scores = {"loss": found.loss}
    if model.config.has_source:
        scores["bleu"] = corpus_bleu(found.translations, references, job.bleu_tokenize)
        scores["chrf"] = corpus_chrf(found.translations, references)
    samples = _samples(found.translations, dev, references, tokenizer)
    return Scores(
        dev=scores,
        seconds=round(time.monotonic() - started, 3),
        loss_seconds=round(found.loss_seconds, 3),
        search_seconds=round(found.search_seconds, 3),
        samples=samples,
        attention=attention_maps(model, samples, tokenizer, world.device),
    )


def metric_of(config: TrainConfig, dev: Mapping[str, float]) -> float:
    """Return what models are compared by, of their scores on dev: the higher, the better.

    For perplexity that is the loss too, in whose order it is.
    """
    metric = config.early_stopping_metric
    return dev[metric] if metric in ("bleu", "chrf") else -dev["loss"]


def score_rows(
    model: Seq2Seq, shards: ShardColumns, tokenizer: Tokenizer, config: TrainConfig, world: World
) -> RowScores:
    """Return the loss and the translations of all rows; of a language model there are no translations.

    The same on every worker and for every number of workers: batches of rows of like length are dealt out, and their
    sums are added in the batches' order. Search computes with the precision of training. A batch that does not fit into
    memory is computed in halves; raises InputError of a single row that does not.
    """
    batches = dev_batches(shards, config)
    mine = {
        number: _score_batch(model, shards, batches[number], config, world.device)
        for number in range(world.rank, len(batches), world.size)
    }
    shares = [mine]
    if world.size > 1:
        shares = [{}] * world.size
        dist.all_gather_object(shares, mine)
    scored = {number: batch for share in shares for number, batch in share.items()}
    found = {row: ids for batch in scored.values() for row, ids in batch.translations.items()}
    nll = sum(scored[number].nll for number in range(len(batches)))
    translations = [found[row] for row in range(len(shards))] if model.config.has_source else []
    return RowScores(
        loss=nll / int(shards.tgt_lengths().sum()),
        translations=tokenizer.decode_target(translations),
        loss_seconds=max(sum(batch.loss_seconds for batch in share.values()) for share in shares),
        search_seconds=max(sum(batch.search_seconds for batch in share.values()) for share in shares),
    )


def dev_batches(shards: ShardColumns, config: TrainConfig) -> list[Rows]:
    """Return the rows of each batch, of like length; worker r of n scores each n-th."""
    src_lengths, tgt_lengths = shards.src_lengths(), shards.tgt_lengths()
    order = np.lexsort((tgt_lengths, src_lengths))
    return packed(order, np.maximum(src_lengths, tgt_lengths)[order], config.microbatch_tokens)


class _Batch(NamedTuple):
    nll: float
    translations: dict[int, list[int]]  # pieces, by the number of the row
    loss_seconds: float
    search_seconds: float


def _score_batch(model: Seq2Seq, shards: ShardColumns, rows: Rows, config: TrainConfig, device: torch.device) -> _Batch:
    found: list[_Batch] = []

    def compute() -> None:
        started = time.monotonic()
        batch, hypotheses = collate(shards, rows).to(device), []
        with torch.inference_mode(), autocast(config.precision, device):
            nll = float(supervised(model, batch, None, label_smoothing=0.0).nll)
            between = time.monotonic()
            if model.config.has_source:
                hypotheses = search(model, batch.src, batch.src_lengths, _decoding(config))
        translations = {int(row): hypothesis.ids for row, hypothesis in zip(rows, hypotheses)}
        found.append(_Batch(nll, translations, between - started, time.monotonic() - between))

    if fits(compute):
        return found[0]
    if len(rows) == 1:
        raise InputError(
            f"row {shards.row_id[rows[0]]} of dev does not fit into memory by itself",
            where="train.validation_beam_size",
            remedy="Lower it, or take the row out of dev, or train where there is more memory",
        )
    first, second = (
        _score_batch(model, shards, half, config, device) for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    )
    return _Batch(
        first.nll + second.nll,
        first.translations | second.translations,
        first.loss_seconds + second.loss_seconds,
        first.search_seconds + second.search_seconds,
    )


def _decoding(config: TrainConfig) -> TranslateConfig:
    return TranslateConfig(method="beam", beam_size=config.validation_beam_size)


def check_dev(job: TrainJob, tokenizer: Tokenizer) -> None:
    """Raise InputError where a validation would go beyond the positions that a model learns: dev's rows are not cut."""
    bound = job.model.most_pieces()
    if bound is None:
        return
    dev = dev_rows(Path(job.shards), job.model.only_side(), tokenizer.digest)
    source, target = (int(lengths.max(initial=0)) for lengths in (dev.src_lengths(), dev.tgt_lengths()))
    longest = max(target, max_target_pieces(_decoding(job.train), source) if job.model.has_source else 0)
    if longest > bound:
        raise InputError(
            f"a row of dev of {source} source or {target} target pieces needs up to {longest} positions as it is "
            f"translated, and the model learns {bound}",
            where="model.max_positions",
            remedy=f"Set it to {longest} or more, or take the longest rows out of dev",
        )


def _references(folder: Path, dev: ShardColumns) -> list[str]:
    tables = [pq.read_table(path, columns=["row_id", "tgt_raw"]) for path in sorted(folder.glob("part-*.parquet"))]
    row_ids = np.concatenate([table["row_id"].to_numpy() for table in tables])
    if not np.array_equal(row_ids, dev.row_id):
        raise RuntimeError(f"the rows of {folder} are not those of the dev shards")
    return [text for table in tables for text in table["tgt_raw"].to_pylist()]


def _samples(
    translations: list[str], dev: ShardColumns, references: list[str], tokenizer: Tokenizer
) -> list[dict[str, str]]:
    """Return a few rows, spread over all of dev."""
    spread = np.linspace(0, len(translations) - 1, num=min(_NUM_SAMPLES, len(translations))).astype(int)
    sources = [dev.src[dev.src_offsets[i] : dev.src_offsets[i + 1]].tolist() for i in spread]
    return [
        {"source": source, "reference": references[i], "hypothesis": translations[i]}
        for source, i in zip(tokenizer.decode_source(sources), spread)
    ]


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
