"""The effect of a recipe's thresholds, from a sample of its corpora, in seconds and without a trace.

    preview(recipe.languages, recipe.corpora, recipe.clean, 20_000)

Rows are drawn in short runs that are spread evenly over each corpus, and go through the stages `score` and `clean`
themselves, in a temporary folder: what is decided of a row is decided of it in a run too, against the same dev and
test. What depends on all of the rows is only partly seen in some of them: a repetition needs both of its rows.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.characters import Counts
from pipelines.clean import clean
from pipelines.config import (
    ALL_SPLITS,
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    InputScoreConfig,
    LanguagesConfig,
    ShardConfig,
    Split,
)
from pipelines.corpus import ROW_ID_STRIDE, Corpus, Piece, RawBatch, read_batches, scan, unpacked
from pipelines.errors import InputError
from pipelines.explanations import DROPPED, SAMPLES
from pipelines.lookup import Origin, Sample, samples, taken
from pipelines.score import score
from pipelines.stage import StageRun
from pipelines.verdict import INPUT, RATINGS

_DRAWN_SPLITS: tuple[Split, ...] = ("train", "monolingual")
RUN_ROWS = 50  # drawn one after the other
MIN_ROWS = 200  # of a corpus, or all that it has: fewer tell nothing of it
# Other processes would not be up before this one is done.
_IN_PROCESS = BeamConfig(processes=1)
_PIECE_ROWS = 4096  # what is read at most to come to one run of plain text
_BATCH_ROWS = 8192
REPETITIONS_NOTE = "a repetition is found only where both of its rows are drawn: in a run there are more"
HELD_OUT_NOTE = "leakage from rows held out of train is found only where both rows are drawn: in a run there is more"
QUALITY_NOTE = "adequacy and quality are not rated in a preview: their thresholds drop nothing here"


@dataclass(frozen=True)
class Drawn:
    """How many rows of a corpus were drawn, and how many it has."""

    split: Split
    corpus: str
    rows: int
    total: int


@dataclass(frozen=True)
class Preview:
    """What the stages make of a sample. `waterfall` is as in the counters of `clean`, `criteria` as in its config.

    `samples` stand at the lines of the corpora themselves; `notes` say what is otherwise in a run.
    """

    drawn: tuple[Drawn, ...]
    waterfall: list[dict[str, Any]]
    criteria: dict[str, list[dict[str, Any]]]
    samples: list[Sample]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Sampled:
    """Corpora of rows drawn, in files of a folder, and the config to clean them with; `notes` as of a preview."""

    corpora: CorporaConfig
    clean: CleanConfig
    drawn: tuple[Drawn, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Faults:
    """Rows drawn that cannot be read: how many of each reason, and the first ones of each."""

    rows: Counter[str]
    samples: list[Sample]


def preview(languages: LanguagesConfig, corpora: CorporaConfig, config: CleanConfig, rows: int) -> Preview:
    """Return what cleaning makes of about `rows` rows of train, and as many monolingual ones where there are some.

    Raises InputError as the stages do, and where no row drawn from a corpus can be read.
    """
    previewed, notes = _previewed(config, corpora)
    with TemporaryDirectory(prefix="seqloom-preview-") as name, _quiet_stages():
        folder = Path(name)
        sample = _Sample(corpora, folder)
        for split in _DRAWN_SPLITS:
            sample.draw(split, languages, rows)
        with sample.named():
            scored = score(languages, sample.corpora, previewed, ShardConfig(), _IN_PROCESS, folder)
            cleaned = clean(languages, sample.corpora, previewed, scored, _IN_PROCESS, folder)
        return Preview(
            tuple(sample.drawn),
            sample.waterfall(cleaned),
            cleaned.manifest.config["criteria"],
            sample.samples(cleaned),
            notes,
        )


def sampled(
    languages: LanguagesConfig, corpora: CorporaConfig, config: CleanConfig, rows: int, folder: Path
) -> Sampled:
    """Return the corpora with about `rows` rows of train, and as many monolingual ones, drawn into files of `folder`.

    Dev and test are as they were, and so are weights, and the epochs that a corpus takes part in.
    Raises InputError as `preview` does.
    """
    clean_config, notes = _previewed(config, corpora)
    sample = _Sample(corpora, folder)
    for split in _DRAWN_SPLITS:
        sample.draw(split, languages, rows)
    kept = ("weight", "from_epoch", "until_epoch")
    changed: dict[str, Any] = {
        split: tuple(
            drawn.model_copy(update={key: getattr(config, key) for key in kept})
            for drawn, config in zip(sample.corpora.of(split), corpora.of(split))
        )
        for split in _DRAWN_SPLITS
    }
    return Sampled(sample.corpora.model_copy(update=changed), clean_config, tuple(sample.drawn), notes)


def spread(total: int, wanted: int) -> Counts:
    """Return the places of `wanted` of `total` rows, or all, in runs that are spread evenly: [wanted].

    Runs have RUN_ROWS rows, the last one what is left. What is between them is split evenly, half a share at each end.
    """
    wanted = min(wanted, total)
    rows = np.arange(wanted, dtype=np.int64)
    runs = max(-(-wanted // RUN_ROWS), 1)
    return rows + (2 * (rows // RUN_ROWS) + 1) * (total - wanted) // (2 * runs)


def _previewed(config: CleanConfig, corpora: CorporaConfig) -> tuple[CleanConfig, tuple[str, ...]]:
    """Return the config with which a sample is cleaned, and what that makes different from a run."""
    notes = [REPETITIONS_NOTE]
    if corpora.held_out:
        notes.append(HELD_OUT_NOTE)
    # What ends a run is rather to be seen here.
    leakage = config.leakage.model_copy(update={"max_rate": None})
    changes: dict[str, Any] = {"max_reject_rate": 1.0, "leakage": leakage}
    if config.quality is not None:
        notes.append(QUALITY_NOTE)
        changes["quality"] = None
        if config.duplicates.keep in RATINGS:
            notes.append(f"of repetitions the first row stays here, not the one of the best {config.duplicates.keep}")
            changes["duplicates"] = config.duplicates.model_copy(update={"keep": "first"})
    return config.model_copy(update=changes), tuple(notes)


@contextmanager
def _quiet_stages() -> Iterator[None]:
    """Keep the stages' lines of progress, which speak of the temporary folder, out of the log."""
    log = logging.getLogger("pipelines")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


class _Sample:
    """Corpora of drawn rows, in files of a folder, and the way back to the lines that they are.

    In the sample's files stand rows that can be read, raw. The others are dropped in any case, and are counted here.
    """

    def __init__(self, corpora: CorporaConfig, folder: Path) -> None:
        self.corpora = corpora
        self.drawn: list[Drawn] = []
        self._folder = folder
        self._lines: dict[tuple[Split, str], Counts] = {}
        self._faults: dict[tuple[Split, str], _Faults] = {}
        self._paths: dict[str, str] = {}

    def draw(self, split: Split, languages: LanguagesConfig, rows: int) -> None:
        """Write the sample of the corpora of a split, in proportion to their sizes, in the place of these."""
        others: dict[str, Any] = {other: () for other in ALL_SPLITS if other != split}
        scanned = scan(self.corpora.model_copy(update=others), languages, _PIECE_ROWS)
        total = sum(corpus.rows for corpus in scanned)
        written = []
        for corpus, config in zip(scanned, self.corpora.of(split)):
            wanted = max(-(-rows * corpus.rows // total), MIN_ROWS)
            written.append(self._write(corpus, config, spread(corpus.rows, wanted)))
        self.corpora = self.corpora.model_copy(update={split: tuple(written)})

    def _write(self, corpus: Corpus, config: CorpusConfig, places: Counts) -> CorpusConfig:
        raw = list(_drawn(corpus, places, self._folder))
        table = pa.concat_tables([_table(batch) for batch in raw])
        readable = table.filter(table["reason"].is_null())
        where = (corpus.split, corpus.name)
        self.drawn.append(Drawn(*where, len(table), corpus.rows))
        self._lines[where] = readable["line"].to_numpy()
        self._faults[where] = _faults(table.filter(table["reason"].is_valid()), *where)
        if not len(readable):
            faults = ", ".join(f"{fault} {rows}" for fault, rows in self._faults[where].rows.items())
            raise InputError(
                f"none of {len(table)} rows drawn from {corpus.name!r} of {corpus.split} can be read: {faults}",
                where=corpus.pieces[0].source,
                remedy="Look at its form and its columns",
            )
        path = self._folder / f"{len(self.drawn):05d}.parquet"
        self._paths[str(path)] = corpus.pieces[0].source
        pq.write_table(readable.drop_columns(["line", "reason"]), path)
        side = corpus.pieces[0].side
        inputs = {
            name: InputScoreConfig(column=INPUT + name, min=bounds.min, max=bounds.max)
            for name, bounds in config.scores.items()
        }
        return CorpusConfig(
            name=config.name,
            parquet=str(path),
            source_column=None if side == "tgt" else "src",
            target_column=None if side == "src" else "tgt",
            scores=inputs,
            rules=config.rules,
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors of the stages name the corpora's own files in the place of the sample's."""
        try:
            yield
        except InputError as error:
            if error.where.startswith(str(self._folder)) and error.where in self._paths:
                where = self._paths[error.where]
                what, remedy = f"in the rows drawn: {error.what}", f"{error.remedy}; or draw more rows"
                raise InputError(what, where=where, remedy=remedy) from error
            raise

    def waterfall(self, cleaned: StageRun) -> list[dict[str, Any]]:
        """Return the waterfall of the rows drawn, those that cannot be read among them."""
        entries = []
        for entry in cleaned.manifest.counters["waterfall"]:
            faults = self._faults.get((entry["split"], entry["corpus"]))
            if faults is not None:
                rejected = {reason: rows + faults.rows[reason] for reason, rows in entry["rejected"].items()}
                entry = entry | {"read": entry["read"] + faults.rows.total(), "rejected": rejected}
            entries.append(entry)
        return entries

    def samples(self, cleaned: StageRun) -> list[Sample]:
        """Return the stage's examples at their lines in the corpora, behind examples of rows that cannot be read."""
        unreadable = [sample for faults in self._faults.values() for sample in faults.samples]
        return unreadable + [self._at_its_line(sample) for sample in samples(cleaned, self.corpora)]

    def _at_its_line(self, sample: Sample) -> Sample:
        match = sample.match
        if match is not None:
            match = replace(match, origin=self._origin(match.origin))
        return replace(sample, origin=self._origin(sample.origin), match=match)

    def _origin(self, origin: Origin) -> Origin:
        lines = self._lines.get((origin.split, origin.corpus))
        return origin if lines is None else origin._replace(line=int(lines[origin.line - 1]))


def _drawn(corpus: Corpus, places: Counts, folder: Path) -> Iterator[RawBatch]:
    """Yield the rows at some places of a corpus; each compressed file is read once, and no further than needed."""
    start = 0
    for piece in unpacked(corpus.pieces, folder):
        first, last = np.searchsorted(places, [start, start + piece.rows])
        if first < last:
            yield from _taken(piece, places[first:last] - start)
        if piece.form == "arrow":
            Path(piece.source).unlink()
        start += piece.rows
        if last == len(places):
            return


def _taken(piece: Piece, places: Counts) -> Iterator[RawBatch]:
    start = 0
    for raw in read_batches(replace(piece, rows=int(places[-1]) + 1), _BATCH_ROWS):
        first, last = np.searchsorted(places, [start, start + len(raw.row_id)])
        if first < last:
            yield taken(raw, pa.array(places[first:last] - start))
        start += len(raw.row_id)


def _table(raw: RawBatch) -> pa.Table:
    columns = {"line": pa.array(raw.row_id % ROW_ID_STRIDE + 1), "reason": raw.reason, "src": raw.src, "tgt": raw.tgt}
    return pa.table(columns | {INPUT + name: scores for name, scores in raw.scores.items()})


def _faults(unreadable: pa.Table, split: Split, corpus: str) -> _Faults:
    shown: list[Sample] = []
    counted: Counter[str] = Counter()
    for row in unreadable.to_pylist():
        reason = row["reason"]
        counted[reason] += 1
        if counted[reason] <= SAMPLES:
            origin = Origin(split, corpus, row["line"])
            shown.append(Sample(reason, DROPPED, origin, row["src"], row["tgt"], None, None, None))
    return _Faults(counted, shown)
