"""Text -> log probabilities: of pairs by a translation model that is led through them, of texts by a language model.

    score_texts(published_files(Path("runs/my/model")), Path("in.en"), Path("in.de"), Path("out.tsv"), config, ray)

As many rows as the input has lines, in its order: log probability (nats), pieces, perplexity. Lines are normalised as
in training; pieces count the end of the sentence (EOS), so that an empty line is EOS alone. A line that cannot be
decoded, or is longer than `max_pieces` or than the model itself allows, has no score, and is named with the reason.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nmt.batches import MicroBatch, Rows, collate, packed
from nmt.checkpoint import load_model
from nmt.config import RayConfig, ScoreConfig
from nmt.model.embeddings import wide
from nmt.published import load_published
from nmt.ray_session import check_gpus
from nmt.training.validation import perplexity
from nmt.translate import check_input, check_output, decoded_lines
from pipelines.config import LanguagesConfig, NormalizeConfig
from pipelines.corpus import opened
from pipelines.errors import InputError
from pipelines.normalize import normalize_lines
from pipelines.shards import ShardColumns, columns_of
from pipelines.stage import replacing, write_atomically
from pipelines.tokenizer import Tokenizer

OUTPUT_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("log_probability", pa.float64()),
        ("pieces", pa.int64()),
        ("characters", pa.int64()),
        ("perplexity", pa.float64()),
        ("error", pa.string()),
    ]
)
_POSITIONS = 1024  # of which the scores of all pieces are held at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """Where a model and its tokeniser are, and what its texts were like in training."""

    checkpoint: Path
    tokenizer: Path
    languages: LanguagesConfig
    normalize: NormalizeConfig


class LineScore(NamedTuple):
    """A line's log probability (nats), pieces and characters (of the normalised text); or why it has none."""

    log_probability: float | None
    pieces: int
    characters: int
    error: str | None = None

    @property
    def perplexity(self) -> float | None:
        """Return the perplexity per piece; None without a log probability."""
        return None if self.log_probability is None else perplexity(-self.log_probability, self.pieces)


def published_files(folder: Path) -> ModelFiles:
    """Return the files of a published model. Raises InputError as `load_published` does."""
    model = load_published(folder)
    return ModelFiles(model.checkpoint, model.tokenizer, model.translation.languages, model.translation.normalize)


class Scorer:
    """A model and its tokeniser on one device."""

    def __init__(self, files: ModelFiles, config: ScoreConfig, *, device: str = "cpu", threads: int = 1) -> None:
        """Load the model. Raises InputError when checkpoint and tokeniser do not belong together."""
        torch.set_num_threads(threads)
        self.files, self.config, self.device = files, config, torch.device(device)
        self.tokenizer = Tokenizer.load(files.tokenizer)
        model, _ = load_model(files.checkpoint, tokenizer=self.tokenizer.digest)
        self.model = model.to(self.device)

    @property
    def translates(self) -> bool:
        """Return whether the model scores pairs; a language model scores texts."""
        return self.model.config.has_source

    def score(self, sources: Sequence[str], targets: Sequence[str] | None = None) -> list[LineScore]:
        """Return log P(target | source) of each pair, or log P(text) of each of the `sources` of a language model."""
        languages, tokenizer = self.files.languages, self.tokenizer
        given: list[list[int]] = [[] for _ in sources]
        if targets is not None:
            given = tokenizer.encode_source(self._normalized(sources, languages.source))
            texts = self._normalized(targets, languages.target)
            pieces = tokenizer.encode_target(texts)
        elif self.model.config.only_side() == "source":
            texts = self._normalized(sources, languages.source)
            pieces = tokenizer.encode_source(texts)
        else:
            texts = self._normalized(sources, languages.target)
            pieces = tokenizer.encode_target(texts)
        src, tgt = ([np.asarray(row, dtype=np.int32) for row in side] for side in (given, pieces))
        found = self._log_probabilities(columns_of(np.arange(len(texts)), src, tgt))
        return [_line_score(value, len(ids), len(text)) for value, ids, text in zip(found, pieces, texts)]

    def _normalized(self, texts: Sequence[str], language: str) -> list[str]:
        return normalize_lines(texts, language, self.files.normalize)

    def _log_probabilities(self, columns: ShardColumns) -> list[float | str]:
        """Return the log probability of each row, or why it has none."""
        src, tgt = columns.src_lengths(), columns.tgt_lengths()
        longest, limit = np.maximum(src, tgt), self.config.max_pieces
        found: list[float | str] = [f"{length} pieces, more than score.max_pieces {limit}" for length in longest]
        fitting = np.flatnonzero(longest <= limit)
        if len(fitting):
            order = fitting[np.lexsort((tgt[fitting], src[fitting]))]
            for rows in packed(order, longest[order], self.config.batch_tokens):
                for row, value in zip(rows.tolist(), self._of_rows(columns, rows)):
                    found[row] = value
        return found

    def _of_rows(self, columns: ShardColumns, rows: Rows) -> list[float | str]:
        try:
            values: list[float | str] = self._of_batch(collate(columns, rows).to(self.device)).tolist()
        except ValueError as error:  # of a model that knows so many positions and no more
            if len(rows) == 1:
                return [str(error)]
            values = [self._of_rows(columns, row)[0] for row in rows[:, None]]
        return values

    @torch.inference_mode()
    def _of_batch(self, batch: MicroBatch) -> Tensor:
        """Return the log probability [B] of each target, float64."""
        vectors = self.model(batch.src, batch.src_lengths, batch.previous).vectors
        real = batch.target_mask()
        gains = [
            torch.log_softmax(wide(self.model.logits(part)), dim=-1).gather(1, ids[:, None]).squeeze(1)
            for part, ids in zip(*(torch.split(whole[real], _POSITIONS) for whole in (vectors, batch.target)))
        ]
        by_place = torch.zeros(real.shape, dtype=torch.float64, device=real.device)
        by_place[real] = torch.cat(gains).double()
        return by_place.sum(1)


def _line_score(value: float | str, pieces: int, characters: int) -> LineScore:
    if isinstance(value, str):
        return LineScore(None, 0, 0, value)
    return LineScore(value, pieces, characters)


def score_texts(
    files: ModelFiles, source: Path, target: Path | None, output: Path | None, config: ScoreConfig, ray: RayConfig
) -> dict[str, Any]:
    """Return the figures of the lines of text files (plain or .gz), scored in this process on the profile's device.

    `output` ends in .parquet (columns of OUTPUT_SCHEMA) or is text, a line a row: log probability, pieces and
    perplexity between tabs, `nan 0 nan` of a line without a score; errors of text are in `<output>.errors.jsonl`.
    It appears when it is whole. None writes the text to standard output.
    The figures: rows, errors, and over the lines with a score pieces, characters (code points of the normalised text),
    log_probability, perplexity (per piece) and perplexity_per_character.
    Raises InputError for a model or input that cannot be used, and where files do not fit the model or each other.
    """
    inputs = [source] if target is None else [source, target]
    for path in inputs:
        check_input(path)
    if output is not None:
        check_output(output)
    check_gpus(ray, 1)
    scorer = Scorer(files, config, device="cuda" if ray.use_gpu else "cpu", threads=ray.threads_per_worker)
    _check_sides(scorer, inputs)
    started, totals = time.monotonic(), _Totals()
    with _written(output) as write:
        for lines in _scored(scorer, inputs):
            write(totals.rows, lines)
            totals.add(lines)
            log.info("scored %d lines", totals.rows)
    _report(totals.faults, output)
    seconds = time.monotonic() - started
    return totals.figures() | {"seconds": round(seconds, 3), "output": None if output is None else str(output)}


def _check_sides(scorer: Scorer, inputs: Sequence[Path]) -> None:
    if scorer.translates and len(inputs) == 1:
        raise InputError(
            "a translation model scores pairs, and there is no file of targets",
            where=str(inputs[0]),
            remedy="Give a second file, of which each line is the translation of the first one's",
        )
    if not scorer.translates and len(inputs) == 2:
        raise InputError(
            "a language model scores texts, not pairs", where=str(inputs[1]), remedy="Give the file of texts alone"
        )
    counts = []
    for path in inputs:
        with opened(path) as file:
            counts.append(sum(1 for _ in file))
    if len(set(counts)) > 1:
        raise InputError(
            f"{counts[0]} lines, but {inputs[1]} has {counts[1]}",
            where=str(inputs[0]),
            remedy="Give two files whose lines stand for each other",
        )


def _scored(scorer: Scorer, inputs: Sequence[Path]) -> Iterator[list[LineScore]]:
    """Yield the scores of so many lines at once, all of them in order."""
    lines = zip(*(decoded_lines(path) for path in inputs), strict=True)
    while held := list(itertools.islice(lines, scorer.config.lines_at_once)):
        faults = [next((fault for _, fault in row if fault is not None), None) for row in held]
        readable = [[text for text, _ in row] for row, fault in zip(held, faults) if fault is None]
        scores = iter(scorer.score(*map(list, zip(*readable))) if readable else [])
        yield [next(scores) if fault is None else LineScore(None, 0, 0, fault) for fault in faults]


class _Totals:
    """What the lines come to: sums over those that have a score."""

    def __init__(self) -> None:
        self.rows = self.pieces = self.characters = 0
        self.log_probability = 0.0
        self.faults: list[dict[str, Any]] = []

    def add(self, lines: Sequence[LineScore]) -> None:
        for line in lines:
            self.rows += 1
            self.pieces += line.pieces
            self.characters += line.characters
            self.log_probability += line.log_probability or 0.0
            if line.error is not None:
                self.faults.append({"line": self.rows, "error": line.error})

    def figures(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "errors": len(self.faults),
            "pieces": self.pieces,
            "characters": self.characters,
            "log_probability": self.log_probability,
            "perplexity": perplexity(-self.log_probability, self.pieces),
            "perplexity_per_character": perplexity(-self.log_probability, self.characters),
        }


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[Callable[[int, Sequence[LineScore]], object]]:
    """Yield a function that writes the scores of lines from a row on; the output is there at the end, whole."""
    if output is None:
        yield lambda _first, lines: sys.stdout.writelines(map(_tsv, lines))
        return
    with replacing(output) as temporary:
        if output.suffix == ".parquet":
            with pq.ParquetWriter(temporary, OUTPUT_SCHEMA, compression="zstd") as writer:
                yield lambda first, lines: writer.write_table(_table(first, lines))
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                yield lambda _first, lines: file.writelines(map(_tsv, lines))


def _tsv(line: LineScore) -> str:
    if line.log_probability is None:
        return "nan\t0\tnan\n"
    return f"{line.log_probability:.6f}\t{line.pieces}\t{line.perplexity:.6g}\n"


def _table(first: int, lines: Sequence[LineScore]) -> pa.Table:
    columns = [
        range(first, first + len(lines)),
        [line.log_probability for line in lines],
        [line.pieces for line in lines],
        [line.characters for line in lines],
        [line.perplexity for line in lines],
        [line.error for line in lines],
    ]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, OUTPUT_SCHEMA)], OUTPUT_SCHEMA)


def _report(faults: Sequence[dict[str, Any]], output: Path | None) -> None:
    """Say which lines have no score: beside an output of text in a file, and in the log."""
    report = None
    if output is not None and output.suffix != ".parquet":
        report = output.with_name(output.name + ".errors.jsonl")
        report.unlink(missing_ok=True)
        if faults:
            write_atomically(report, "".join(json.dumps(fault, ensure_ascii=False) + "\n" for fault in faults))
    if faults:
        first, more = faults[0], "" if report is None else f"; see {report}"
        log.warning("%d lines have no score; line %d: %s%s", len(faults), first["line"], first["error"], more)
