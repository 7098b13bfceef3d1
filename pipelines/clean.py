"""Stage 1: raw corpora -> clean/ and rejects/, with a reason for each row that goes.

    clean(recipe.languages, recipe.corpora, recipe.clean, recipe.shards, profile.beam, root)

Inputs: the corpora of the recipe. Output:

    clean/train/part-00000.parquet               row_id, corpus, src, tgt, score_<rule> for each rule
    clean/{dev,test}/part-00000.parquet          row_id, corpus, src, tgt, src_raw, tgt_raw
    rejects/{train,dev,test}/part-00000.parquet  row_id, corpus, src, tgt, rule, score

Rows are in the order of row_id, within a file and over the files. A row has one reason, the first of `reasons`. What is
in dev and test is never judged by score: there only rows go that cannot be read or have an empty side.

Beam carries descriptions of pieces, and 24 bytes of keys for each row; each step reads its piece from the stage's
folder and writes it back. So the output is the same for every runner and every number of workers. Time: 35 seconds of
one core for a million captions, half of it language identification.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.config import (
    SPLITS,
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    LanguagesConfig,
    ShardConfig,
)
from pipelines.corpus import (
    INVALID_UTF8,
    MALFORMED,
    Corpus,
    Piece,
    RawBatch,
    input_digests,
    read_batches,
    scan,
    unpacked,
)
from pipelines.dedup import duplicates, pair_keys, text_keys
from pipelines.errors import InputError
from pipelines.filters import RULES, Pairs, judge
from pipelines.language_id import is_known
from pipelines.leakage import LEAKAGE_REASONS, NO_LEAK, HeldOutKeys, held_out_keys, leaks, merged
from pipelines.normalize import normalize
from pipelines.runner import beam, run_pipeline
from pipelines.stage import StageResult, StageRun, replacing, run_stage, write_atomically

STAGE_VERSION = 1

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"
TRAIN_REASONS = (
    MALFORMED,
    INVALID_UTF8,
    *(rule.name for rule in RULES),
    *LEAKAGE_REASONS,
    DUPLICATE,
    NEAR_DUPLICATE,
)
HELD_OUT_REASONS = (MALFORMED, INVALID_UTF8, "empty")

# Bins of ten characters; the last one also holds whatever is longer.
LENGTH_EDGES = tuple(range(0, 501, 10))

# Rows that a worker looks at in one go: their code points fit into a core's cache.
_BATCH_ROWS = 8192
# Parts of the key space that duplicates are looked for in, each by itself. More of them need less memory each.
_KEY_PARTITIONS = 64
_KEYS = np.dtype([("row_id", "<i8"), ("exact", "<u8"), ("near", "<u8")])
_REPEATS = np.dtype([("row_id", "<i8"), ("near", "?")])

_ROW_FIELDS = (
    pa.field("row_id", pa.int64(), nullable=False),
    pa.field("corpus", pa.string(), nullable=False),
    pa.field("src", pa.string()),
    pa.field("tgt", pa.string()),
)
_SCORE_FIELDS = tuple(pa.field(f"score_{rule.name}", pa.float32()) for rule in RULES)
_RAW_FIELDS = (pa.field("src_raw", pa.string()), pa.field("tgt_raw", pa.string()))
_REASON_FIELDS = (pa.field("rule", pa.string()), pa.field("score", pa.float32()))
_KEY_FIELDS = (pa.field("src_key", pa.uint64()), pa.field("tgt_key", pa.uint64()))

TRAIN_SCHEMA = pa.schema([*_ROW_FIELDS, *_SCORE_FIELDS])
HELD_OUT_SCHEMA = pa.schema([*_ROW_FIELDS, *_RAW_FIELDS])
REJECTS_SCHEMA = pa.schema([*_ROW_FIELDS, *_REASON_FIELDS])
_SCORED_SCHEMA = pa.schema([*_ROW_FIELDS, *_SCORE_FIELDS, *_REASON_FIELDS, *_KEY_FIELDS])

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every step needs: the config, and the folder in which pieces of work lie until the stage ends."""

    languages: LanguagesConfig
    config: CleanConfig
    work: Path

    def file(self, kind: str, index: int) -> Path:
        """Return where a piece lies in one of its states."""
        return self.work / kind / f"{index:06d}"


def clean(
    languages: LanguagesConfig,
    corpora: CorporaConfig,
    config: CleanConfig,
    shards: ShardConfig,
    beam: BeamConfig,
    root: Path,
) -> StageRun:
    """Return the finished stage: see the module for its files, ARCHITECTURE.md for its counters.

    Raises InputError for files that cannot be used, a language that the language rule does not know, a train of which
    too much or all is rejected, and a dev or test set without a row. RuntimeError: rows were lost, by a fault of ours.
    """
    _check_languages(languages, config)
    inputs = input_digests(corpora)
    decides = {
        "languages": languages.model_dump(mode="json"),
        "corpora": {split: [_identity(corpus) for corpus in corpora.of(split)] for split in SPLITS},
        "clean": config.model_dump(mode="json"),
        "rows_per_shard": shards.rows_per_shard,
    }

    def body(folder: Path) -> StageResult:
        scanned = scan(corpora, languages, shards.rows_per_shard)
        job = Job(languages, config, folder / "work")
        for kind in ("lines", "scored", "kept", "rejected", "counts"):
            (job.work / kind).mkdir(parents=True)
        run_pipeline(partial(_build, job=job, corpora=scanned), beam)
        counters = _counters(job, scanned)
        _check_counts(counters["waterfall"], config)
        outputs = _published(job, scanned, folder)
        _check_conservation(counters["waterfall"], folder, outputs)
        shutil.rmtree(job.work)
        return StageResult(outputs, counters)

    return run_stage("clean", STAGE_VERSION, decides, inputs, root, body)


def _check_languages(languages: LanguagesConfig, config: CleanConfig) -> None:
    for language in (languages.source, languages.target):
        if config.rules.language is not None and not is_known(language):
            raise InputError(
                f"the language model does not know {language!r}",
                where="clean.rules.language",
                remedy="Correct the language's code, or set clean.rules.language to null",
            )


def _identity(corpus: CorpusConfig) -> dict[str, Any]:
    """Return what of a corpus' config decides the output: paths do not, the files' digests are in the key."""
    if corpus.tsv is None:
        return {"name": corpus.name, "form": "pair", "header": corpus.header}
    columns = [corpus.source_column, corpus.target_column]
    return {"name": corpus.name, "form": "tsv", "header": corpus.header, "columns": columns}


# --- The graph -----------------------------------------------------------------------------------------------------


def _build(pipeline: beam.Pipeline, job: Job, corpora: list[Corpus]) -> None:
    train = [corpus for corpus in corpora if corpus.split == "train"]
    held_out = [corpus for corpus in corpora if corpus.split != "train"]
    held_out_keys = pipeline | "Held out" >> _HeldOut(job, held_out)
    scored = pipeline | "Train" >> _Scored(job, train)
    repeats = scored | "Duplicates" >> _Repeats()
    # Each piece comes here by its number, with or without rows that repeat others.
    numbers = scored | "Piece numbers" >> beam.MapTuple(lambda index, _: (index, b""))
    _ = (
        (numbers, repeats)
        | "Numbers and repeats" >> beam.Flatten()
        | "By piece" >> beam.GroupByKey()
        | "Decide and write" >> beam.Map(partial(_decide, job), held_out=beam.pvalue.AsSingleton(held_out_keys))
    )


class _Pieces(beam.PTransform):  # type: ignore[misc]
    """Corpora -> descriptions of their pieces (dicts); what is compressed and longer than a piece is unpacked first."""

    def __init__(self, job: Job, corpora: list[Corpus]) -> None:
        super().__init__()
        self._job, self._corpora = job, corpora

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        in_pieces = [c for c in self._corpora if not c.compressed or len(c.pieces) == 1]
        streams = [corpus for corpus in self._corpora if corpus not in in_pieces]
        unpacked_pieces = (
            begin
            | "Streams" >> beam.Create([[piece.to_dict() for piece in corpus.pieces] for corpus in streams])
            | "Spread the streams" >> beam.Reshuffle()
            | "Unpack" >> beam.FlatMap(partial(_unpack, self._job))
        )
        pieces = begin | "Pieces" >> beam.Create([piece.to_dict() for c in in_pieces for piece in c.pieces])
        return (pieces, unpacked_pieces) | beam.Flatten() | "Spread the pieces" >> beam.Reshuffle()


class _HeldOut(beam.PTransform):  # type: ignore[misc]
    """Dev and test: pieces are written -> one mapping from split to the keys that must not occur in train."""

    def __init__(self, job: Job, corpora: list[Corpus]) -> None:
        super().__init__()
        self._job, self._corpora = job, corpora

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | _Pieces(self._job, self._corpora)
            | "Normalise and write" >> beam.Map(partial(_hold_out, self._job))
            | "Together" >> beam.GroupByKey()
            | "Merge the keys" >> beam.MapTuple(_merge)
        )


class _Scored(beam.PTransform):  # type: ignore[misc]
    """Train: pieces are normalised, scored and written -> (piece number, keys of the rows that no rule drops)."""

    def __init__(self, job: Job, corpora: list[Corpus]) -> None:
        super().__init__()
        self._job, self._corpora = job, corpora

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        pieces = begin | _Pieces(self._job, self._corpora)
        return pieces | "Normalise and score" >> beam.Map(partial(_score, self._job))


class _Repeats(beam.PTransform):  # type: ignore[misc]
    """(piece number, keys) -> (piece number, rows of it that repeat earlier ones), for each partition that has some."""

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        return (
            scored
            | "Partition the keys" >> beam.FlatMapTuple(_partitioned)
            | "By partition" >> beam.GroupByKey()
            | "Find repeats" >> beam.FlatMapTuple(_find_repeats)
        )


# --- The steps -----------------------------------------------------------------------------------------------------


def _unpack(job: Job, pieces: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for piece in unpacked([Piece.from_dict(piece) for piece in pieces], job.work / "lines"):
        yield piece.to_dict()


def _hold_out(job: Job, description: dict[str, Any]) -> tuple[int, tuple[str, dict[str, bytes]]]:
    """Write a piece of dev or test, kept and rejected rows; return its split and keys, all under one key."""
    piece = Piece.from_dict(description)
    kept: list[pa.Table] = []
    rejected: list[pa.Table] = []
    keys: list[dict[str, bytes]] = []
    for raw in read_batches(piece, _BATCH_ROWS):
        src, tgt = _normalized(job, raw)
        pairs = Pairs.of(src, tgt, job.languages)
        is_empty = pc.or_(pc.equal(src, ""), pc.equal(tgt, ""))
        reason = pc.coalesce(raw.reason, pc.if_else(is_empty, "empty", pa.scalar(None, pa.string())))
        alive = np.flatnonzero(np.asarray(reason.is_null()))
        table = _rows(raw, piece, src, tgt).append_column("src_raw", raw.src).append_column("tgt_raw", raw.tgt)
        kept.append(table.take(alive))
        rejected.append(_rejects(table, reason, pa.nulls(len(table), pa.float32())))
        left = pairs.take(alive)
        keys.append(held_out_keys(left.src.keys, left.tgt.keys, job.config.min_leak_characters).to_bytes())
    _write_piece(job, piece.index, kept, rejected, HELD_OUT_SCHEMA, {})
    return (0, (piece.split, merged(keys).to_bytes()))


def _merge(_: int, parts: Iterable[tuple[str, dict[str, bytes]]]) -> dict[str, dict[str, bytes]]:
    by_split: dict[str, list[dict[str, bytes]]] = {}
    for split, keys in parts:
        by_split.setdefault(split, []).append(keys)
    return {split: merged(keys).to_bytes() for split, keys in by_split.items()}


def _score(job: Job, description: dict[str, Any]) -> tuple[int, bytes]:
    """Write a piece of train with its scores; return its number and the keys of the rows that no rule drops."""
    piece = Piece.from_dict(description)
    keys: list[bytes] = []
    path = job.file("scored", piece.index)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, _SCORED_SCHEMA) as writer,
    ):
        for raw in read_batches(piece, _BATCH_ROWS):
            table = _scored(job, piece, raw)
            writer.write_table(table)
            keys.append(_pair_keys_of(job, table))
    return piece.index, b"".join(keys)


def _scored(job: Job, piece: Piece, raw: RawBatch) -> pa.Table:
    """Return rows after _SCORED_SCHEMA: rows that could not be read have no score, and the others all but language."""
    src, tgt = _normalized(job, raw)
    readable = np.flatnonzero(np.asarray(raw.reason.is_null()))
    places = np.full(len(src), -1, dtype=np.int64)
    places[readable] = np.arange(len(readable))
    rows = pa.array(places, mask=places < 0)
    pairs = Pairs.of(
        src.take(readable),
        tgt.take(readable),
        job.languages,
        src_raw=raw.src.take(readable),
        tgt_raw=raw.tgt.take(readable),
    )
    verdict = judge(pairs, job.config.rules)
    table = _rows(raw, piece, src, tgt)
    columns = {
        **{f"score_{name}": scores.take(rows) for name, scores in verdict.scores.items()},
        "rule": pc.coalesce(raw.reason, verdict.rule.take(rows)),
        "score": verdict.score.take(rows),
        "src_key": pa.array(pairs.src.keys.keys).take(rows),
        "tgt_key": pa.array(pairs.tgt.keys.keys).take(rows),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.select(_SCORED_SCHEMA.names).cast(_SCORED_SCHEMA)


def _normalized(job: Job, raw: RawBatch) -> tuple[pa.StringArray, pa.StringArray]:
    """Return both sides normalised; those of rows that could not be read stay as they are."""
    config, languages = job.config.normalize, job.languages
    bad = raw.reason.is_valid()
    src = pc.if_else(bad, raw.src, normalize(raw.src, languages.source, config))
    tgt = pc.if_else(bad, raw.tgt, normalize(raw.tgt, languages.target, config))
    return src, tgt


def _rows(raw: RawBatch, piece: Piece, src: pa.Array, tgt: pa.Array) -> pa.Table:
    corpus = pa.repeat(pa.scalar(piece.corpus, pa.string()), len(raw.row_id))
    return pa.table({"row_id": pa.array(raw.row_id), "corpus": corpus, "src": src, "tgt": tgt})


def _pair_keys_of(job: Job, table: pa.Table) -> bytes:
    if job.config.duplicates == "keep":
        return b""
    alive = table.filter(pc.is_null(table["rule"])).combine_chunks()
    pairs = Pairs.of(_flat(alive["src"]), _flat(alive["tgt"]), job.languages)
    keys = np.empty(len(alive), dtype=_KEYS)
    keys["row_id"] = alive["row_id"].to_numpy()
    keys["exact"] = pair_keys(text_keys(pairs.src.code_points), text_keys(pairs.tgt.code_points))
    near = pair_keys(alive["src_key"].to_numpy(), alive["tgt_key"].to_numpy())
    keys["near"] = near if job.config.duplicates == "near" else keys["exact"]
    return keys.tobytes()


def _partitioned(index: int, keys: bytes) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """Yield (partition, (piece number, keys)): rows that may repeat each other meet in one partition."""
    rows = np.frombuffer(keys, dtype=_KEYS)
    partition = (rows["near"] % np.uint64(_KEY_PARTITIONS)).astype(np.int64)
    for number in np.unique(partition).tolist():
        yield number, (index, rows[partition == number].tobytes())


def _find_repeats(_: int, parts: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield (piece number, rows to drop after _REPEATS), for the pieces that have some."""
    arrays = [(index, np.frombuffer(keys, dtype=_KEYS)) for index, keys in parts]
    rows = np.concatenate([keys for _, keys in arrays])
    piece = np.repeat([index for index, _ in arrays], [len(keys) for _, keys in arrays])
    exact, near = duplicates(rows["row_id"], rows["exact"], rows["near"])
    for index in np.unique(piece[exact | near]).tolist():
        mine = (piece == index) & (exact | near)
        repeats = np.empty(int(mine.sum()), dtype=_REPEATS)
        repeats["row_id"], repeats["near"] = rows["row_id"][mine], near[mine]
        yield index, repeats.tobytes()


def _decide(job: Job, piece: tuple[int, Iterable[bytes]], held_out: dict[str, dict[str, bytes]]) -> int:
    """Write a piece of train: kept rows, rejected rows with their reasons, and its counts; return its number."""
    index, repeats = piece
    repeated = np.sort(np.frombuffer(b"".join(repeats), dtype=_REPEATS), order="row_id")
    keys = {split: merged([parts]) for split, parts in held_out.items()}
    kept: list[pa.Table] = []
    rejected: list[pa.Table] = []
    lengths = {when: {side: np.zeros(len(LENGTH_EDGES) - 1, np.int64) for side in ("src", "tgt")} for when in _WHEN}
    with pa.memory_map(str(job.file("scored", index))) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            table = pa.Table.from_batches([reader.get_batch(number)])
            reason = _final_reasons(table, repeated, keys)
            kept.append(table.filter(reason.is_null()))
            rejected.append(_rejects(table, reason, table["score"].combine_chunks()))
            readable = table.filter(pc.invert(pc.is_in(reason, _UNREADABLE)))
            for when, rows in (("before", readable), ("after", kept[-1])):
                for side in lengths[when]:
                    lengths[when][side] += _length_histogram(rows[side])
        counts = {when: {side: bins.tolist() for side, bins in sides.items()} for when, sides in lengths.items()}
        _write_piece(job, index, kept, rejected, TRAIN_SCHEMA, counts)
    return index


_WHEN = ("before", "after")
_UNREADABLE = pa.array([MALFORMED, INVALID_UTF8])


def _final_reasons(
    table: pa.Table, repeated: npt.NDArray[np.void], held_out: Mapping[str, HeldOutKeys]
) -> pa.StringArray:
    """Return why each row goes [rows], null where it stays: a rule's verdict, else leakage, else that it repeats."""
    reason = _flat(table["rule"])
    alive = np.asarray(reason.is_null())
    src, tgt = (_flat(table[name].fill_null(0)).to_numpy() for name in ("src_key", "tgt_key"))
    leak = leaks(src, tgt, held_out)
    leakage = pa.array(LEAKAGE_REASONS).take(pa.array(leak, mask=(leak == NO_LEAK) | ~alive))
    row_id = table["row_id"].to_numpy()
    place = np.minimum(np.searchsorted(repeated["row_id"], row_id), max(len(repeated) - 1, 0))
    repeats, near = np.zeros(len(table), dtype=np.bool_), np.zeros(len(table), dtype=np.int64)
    if len(repeated):
        repeats, near = repeated["row_id"][place] == row_id, repeated["near"][place].astype(np.int64)
    repetition = pa.array([DUPLICATE, NEAR_DUPLICATE]).take(pa.array(near, mask=~repeats))
    return pc.coalesce(reason, leakage, repetition)


def _length_histogram(texts: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    lengths = np.minimum(_flat(pc.utf8_length(texts)).to_numpy(), LENGTH_EDGES[-1])
    return np.histogram(lengths, bins=LENGTH_EDGES)[0].astype(np.int64)


def _rejects(table: pa.Table, reason: pa.StringArray, score: pa.FloatArray) -> pa.Table:
    rows = table.select([field.name for field in _ROW_FIELDS])
    return rows.append_column("rule", reason).append_column("score", score).filter(reason.is_valid())


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


# --- What a piece leaves, and what the stage makes of it -----------------------------------------------------------


def _write_piece(
    job: Job,
    index: int,
    kept: list[pa.Table],
    rejected: list[pa.Table],
    schema: pa.Schema,
    lengths: dict[str, dict[str, list[int]]],
) -> None:
    clean_rows = pa.concat_tables([table.select(schema.names) for table in kept])
    reject_rows = pa.concat_tables(rejected)
    _write_parquet(job.file("kept", index), clean_rows.cast(schema))
    _write_parquet(job.file("rejected", index), reject_rows.cast(REJECTS_SCHEMA))
    reasons = Counter(reject_rows["rule"].to_pylist())
    counts = {"kept": len(clean_rows), "rejected": dict(reasons), "lengths": lengths}
    write_atomically(job.file("counts", index), json.dumps(counts))


def _write_parquet(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table.combine_chunks(), temporary, compression="zstd")


def _counters(job: Job, corpora: list[Corpus]) -> dict[str, Any]:
    waterfall = []
    lengths = {when: {side: np.zeros(len(LENGTH_EDGES) - 1, np.int64) for side in ("src", "tgt")} for when in _WHEN}
    for corpus in corpora:
        kept, rejected = 0, Counter[str]()
        for piece in corpus.pieces:
            counts = json.loads(job.file("counts", piece.index).read_text(encoding="utf-8"))
            kept += counts["kept"]
            rejected.update(counts["rejected"])
            for when, sides in counts["lengths"].items():
                for side, rows in sides.items():
                    lengths[when][side] += rows
        reasons = TRAIN_REASONS if corpus.split == "train" else HELD_OUT_REASONS
        waterfall.append(
            {
                "split": corpus.split,
                "corpus": corpus.name,
                "read": corpus.rows,
                "kept": kept,
                "rejected": {reason: rejected[reason] for reason in reasons},
            }
        )
        most = _most(rejected) or "none"
        log.info("%s/%s: %d rows read, %d kept, rejected %s", corpus.split, corpus.name, corpus.rows, kept, most)
    histograms = {
        when: {side: {"edges": list(LENGTH_EDGES), "rows": rows.tolist()} for side, rows in sides.items()}
        for when, sides in lengths.items()
    }
    return {"waterfall": waterfall, "lengths": histograms}


def _check_counts(waterfall: list[dict[str, Any]], config: CleanConfig) -> None:
    """Raise InputError where what is left cannot be used, or where more went than the config allows."""
    for entry in waterfall:
        if entry["split"] != "train" and entry["kept"] == 0:
            raise InputError(
                f"all {entry['read']} rows of {entry['corpus']!r} are rejected: {_most(entry['rejected'])}",
                where=f"corpora.{entry['split']}",
                remedy="Give a corpus in UTF-8 with text on both sides",
            )
    train = [entry for entry in waterfall if entry["split"] == "train"]
    read, kept = sum(entry["read"] for entry in train), sum(entry["kept"] for entry in train)
    rejected = sum((Counter(entry["rejected"]) for entry in train), Counter[str]())
    leaked = sum(rejected[reason] for reason in LEAKAGE_REASONS)
    if kept == 0 or (read - kept) / read > config.max_reject_rate:
        raise InputError(
            f"{read - kept} of {read} rows of train are rejected: {_most(rejected)}",
            where="corpora.train",
            remedy="Look at a few such lines: give better text, or raise the thresholds under clean.rules"
            + ("" if kept == 0 else " (or clean.max_reject_rate)"),
        )
    if config.max_leakage_rate is not None and leaked / read > config.max_leakage_rate:
        raise InputError(
            f"{leaked} of {read} rows of train occur in dev or test, more than {config.max_leakage_rate:.2%}",
            where="clean.max_leakage_rate",
            remedy="Take other dev and test sets, or raise the rate",
        )


def _most(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {rows}" for reason, rows in Counter(rejected).most_common(4) if rows)


def _published(job: Job, corpora: list[Corpus], folder: Path) -> list[str]:
    """Move the pieces that have rows to their final names; return these. Each split has at least one part."""
    outputs: list[str] = []
    for split in SPLITS:
        schema = TRAIN_SCHEMA if split == "train" else HELD_OUT_SCHEMA
        pieces = [piece.index for corpus in corpora if corpus.split == split for piece in corpus.pieces]
        outputs += _moved([job.file("kept", index) for index in pieces], folder, f"clean/{split}", schema)
        outputs += _moved([job.file("rejected", index) for index in pieces], folder, f"rejects/{split}", REJECTS_SCHEMA)
    return outputs


def _moved(files: list[Path], folder: Path, into: str, schema: pa.Schema) -> list[str]:
    (folder / into).mkdir(parents=True)
    filled = [file for file in files if pq.read_metadata(file).num_rows]
    names = [f"{into}/part-{number:05d}.parquet" for number in range(max(len(filled), 1))]
    for file, name in zip(filled, names):
        file.replace(folder / name)
    if not filled:
        _write_parquet(folder / names[0], schema.empty_table())
    return names


def _check_conservation(waterfall: list[dict[str, Any]], folder: Path, outputs: list[str]) -> None:
    """Raise RuntimeError unless, for each split, the rows read are those in the files of clean/ and rejects/."""
    written: Counter[str] = Counter()
    for path in outputs:
        _, split, _ = path.split("/")
        written[split] += pq.read_metadata(folder / path).num_rows
    for split in SPLITS:
        entries = [entry for entry in waterfall if entry["split"] == split]
        read = sum(entry["read"] for entry in entries)
        counted = sum(entry["kept"] + sum(entry["rejected"].values()) for entry in entries)
        if not read == counted == written[split]:
            raise RuntimeError(f"{split}: {read} rows read, {counted} counted, {written[split]} written")
