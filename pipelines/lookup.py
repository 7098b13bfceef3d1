"""A row by its number: where it stands in its corpus, as it was read, and what the finished stages hold of it.

Parts are ordered by row_id, within a file and over the files: a row is looked for by halves, and one part is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.config import ALL_SPLITS, CorporaConfig, CorpusConfig, LanguagesConfig, Split
from pipelines.corpus import ROW_ID_STRIDE, RawBatch, read_batches, scan
from pipelines.errors import InputError
from pipelines.explanations import BORDERLINE_KEPT, KEPT
from pipelines.scoring import HELD_OUT
from pipelines.stage import StageRun

_PIECE_ROWS = 4096  # what is read at most to come to one row of plain text


class Origin(NamedTuple):
    """Where a row comes from: a corpus of a split, and its line, counted from 1 over all files of the corpus."""

    split: Split
    corpus: str
    line: int

    def __str__(self) -> str:
        return f"{self.split}/{self.corpus}:{self.line}"


def numbered(corpora: CorporaConfig) -> list[tuple[Split, CorpusConfig]]:
    """Return the corpora of a recipe, each at the place that is its number in a row_id."""
    return [(split, corpus) for split in ALL_SPLITS for corpus in corpora.of(split)]


def origin_of(corpora: CorporaConfig, row_id: int) -> Origin:
    """Return where the row of a number comes from."""
    ordinal, line = divmod(row_id, ROW_ID_STRIDE)
    split, corpus = numbered(corpora)[ordinal]
    return Origin(split, corpus.name, line + 1)


def row_id_of(corpora: CorporaConfig, origin: Origin) -> int:
    """Return the number of a row; whether its corpus has so many lines is not asked."""
    names = [(split, corpus.name) for split, corpus in numbered(corpora)]
    return names.index((origin.split, origin.corpus)) * ROW_ID_STRIDE + origin.line - 1


# --- In the corpora ------------------------------------------------------------------------------------------------


def raw_row(corpora: CorporaConfig, languages: LanguagesConfig, origin: Origin) -> RawBatch | None:
    """Return one row as it is read from its corpus; None where the corpus has no such line, or it is a header."""
    of_split = tuple(corpus for corpus in corpora.of(origin.split) if corpus.name == origin.corpus)
    alone: dict[str, Any] = {split: of_split if split == origin.split else () for split in ALL_SPLITS}
    (corpus,) = scan(corpora.model_copy(update=alone), languages, _PIECE_ROWS)
    for piece in corpus.pieces:
        place = origin.line - 1 - piece.first_line
        if 0 <= place < piece.rows:
            *_, last = read_batches(replace(piece, rows=place + 1), _PIECE_ROWS)
            return taken(last, pa.array([len(last.row_id) - 1]))
    return None


def taken(raw: RawBatch, rows: pa.Array) -> RawBatch:
    """Return some rows of a batch."""
    src, tgt, reason = (column.take(rows) for column in (raw.src, raw.tgt, raw.reason))
    scores = {name: column.take(rows) for name, column in raw.scores.items()}
    return RawBatch(raw.row_id[rows.to_numpy()], src, tgt, reason, scores)


# --- In the stages -------------------------------------------------------------------------------------------------


def scored_row(scored: StageRun, split: Split, corpus: str, row_id: int) -> pa.Table | None:
    """Return what the stage `score` holds of a row; None where the corpus has no such line, or it is a header."""
    return _arrow_row(_parts(scored, split, corpus), row_id)


def rated_row(scored: StageRun, rated: StageRun, corpus: str, row_id: int) -> pa.Table | None:
    """Return what the stage `rate` holds of a row of train; None where it has none."""
    parts = [part.relative_to(scored.folder / "scored") for part in _parts(scored, "train", corpus)]
    return _arrow_row([rated.folder / "rated" / part for part in parts], row_id)


def last_row_id(scored: StageRun, split: Split, corpus: str) -> int:
    """Return the number of the last row of a corpus."""
    with pa.memory_map(str(_parts(scored, split, corpus)[-1])) as file:
        reader = pa.ipc.open_file(file)
        last: int = reader.get_batch(reader.num_record_batches - 1)["row_id"][-1].as_py()
    return last


def _parts(scored: StageRun, split: Split, corpus: str) -> list[Path]:
    parts = scored.manifest.counters["parts"]
    return [scored.folder / part["path"] for part in parts if (part["split"], part["corpus"]) == (split, corpus)]


def _arrow_row(parts: Sequence[Path], row_id: int) -> pa.Table | None:
    place = bisect_right(parts, row_id, key=_first_row_id_of_arrow) - 1
    if place < 0:
        return None
    with pa.memory_map(str(parts[place])) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            if batch["row_id"][-1].as_py() >= row_id:
                found = pa.Table.from_batches([batch]).filter(pc.equal(batch["row_id"], row_id))
                # A copy, since the file is closed.
                return found.take(pa.array([0])) if len(found) else None
    return None


def _first_row_id_of_arrow(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        first: int = pa.ipc.open_file(file).get_batch(0)["row_id"][0].as_py()
    return first


@dataclass(frozen=True)
class Fate:
    """What the stage `clean` has made of a row: the file, relative to its folder, and all columns of the row there."""

    kept: bool
    path: str
    row: dict[str, Any]


def fate(cleaned: StageRun, split: Split, row_id: int) -> Fate | None:
    """Return what became of a row of a split, also where it was held out of train; None where there is no such row."""
    return fates(cleaned, split, [row_id]).get(row_id)


def fates(cleaned: StageRun, split: Split, row_ids: Iterable[int]) -> dict[int, Fate]:
    """Return what became of rows of a split, by their numbers; those that the stage does not have are missing."""
    found: dict[int, Fate] = {}
    left = set(row_ids)
    for kind in ("clean", "rejects"):
        # Rows of train may have become dev or test.
        for place in (split, *(HELD_OUT if split == "train" else ())):
            for path, rows in _parquet_rows(cleaned, f"{kind}/{place}", left):
                found |= {row["row_id"]: Fate(kind == "clean", path, row) for row in rows}
            left -= found.keys()
    return found


def _parquet_rows(run: StageRun, folder: str, row_ids: Iterable[int]) -> list[tuple[str, list[dict[str, Any]]]]:
    paths = sorted(output.path for output in run.manifest.outputs if output.path.startswith(f"{folder}/"))
    files = [run.folder / path for path in paths]
    if not files or not pq.read_metadata(files[0]).num_rows:
        return []
    wanted: dict[int, list[int]] = {}
    for row_id in row_ids:
        place = bisect_right(files, row_id, key=_first_row_id_of_parquet) - 1
        if place >= 0:
            wanted.setdefault(place, []).append(row_id)
    return [
        (paths[place], pq.read_table(files[place], filters=[("row_id", "in", ids)]).to_pylist())
        for place, ids in sorted(wanted.items())
    ]


def _first_row_id_of_parquet(path: Path) -> int:
    first: int = pq.read_metadata(path).row_group(0).column(0).statistics.min
    return first


# --- Samples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """The row that a row repeats or leaks: where it comes from, and its texts."""

    origin: Origin
    src: str | None
    tgt: str | None


@dataclass(frozen=True)
class Sample:
    """One row of explanations/samples.parquet, with the row that it repeats or leaks where there is one."""

    rule: str | None
    kind: str
    origin: Origin
    src: str | None
    tgt: str | None
    score: float | None
    threshold: float | None
    match: Match | None


def samples(cleaned: StageRun, corpora: CorporaConfig) -> list[Sample]:
    """Return the examples of the stage `clean`, in its order: by rule and kind, and from the first to show on."""
    rows = pq.read_table(cleaned.folder / "explanations" / "samples.parquet").to_pylist()
    matches = _matches(cleaned, corpora, [row["row_id"] for row in rows if row["rule"] is not None])
    names = ("rule", "kind", "src", "tgt", "score", "threshold")
    return [
        Sample(
            origin=origin_of(corpora, row["row_id"]),
            match=matches.get(row["row_id"]) if row["kind"] not in (KEPT, BORDERLINE_KEPT) else None,
            **{name: row[name] for name in names},
        )
        for row in rows
    ]


def match_of(cleaned: StageRun, corpora: CorporaConfig, row_id: int) -> Match:
    """Return a row that another repeats or leaks, by its number. Raises InputError where the stage does not have it."""
    origin = origin_of(corpora, row_id)
    found = fate(cleaned, origin.split, row_id)
    if found is None:
        raise InputError(
            f"the row {origin} is in none of its files",
            where=str(cleaned.folder),
            remedy="Remove this folder, and the stage will run again",
        )
    return Match(origin, found.row["src"], found.row["tgt"])


def _matches(cleaned: StageRun, corpora: CorporaConfig, row_ids: Sequence[int]) -> dict[int, Match]:
    """Return what rejected rows repeat or leak, by the numbers of those that do."""
    found = _of_splits(cleaned, corpora, row_ids)
    match_ids = {row_id: fate.row["match"] for row_id, fate in found.items() if not fate.kept}
    match_ids = {row_id: match for row_id, match in match_ids.items() if match is not None}
    matched = _of_splits(cleaned, corpora, set(match_ids.values()))
    return {
        row_id: Match(origin_of(corpora, match), matched[match].row["src"], matched[match].row["tgt"])
        for row_id, match in match_ids.items()
    }


def _of_splits(cleaned: StageRun, corpora: CorporaConfig, row_ids: Iterable[int]) -> dict[int, Fate]:
    by_split: dict[Split, list[int]] = {}
    for row_id in row_ids:
        by_split.setdefault(origin_of(corpora, row_id).split, []).append(row_id)
    found: dict[int, Fate] = {}
    for split, ids in by_split.items():
        found |= fates(cleaned, split, ids)
    return found
