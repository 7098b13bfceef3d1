"""Stage 1: raw corpora -> every row, normalised, with its scores and keys (Beam). No threshold decides here.

    score(recipe.languages, recipe.corpora, recipe.clean, recipe.shards, profile.beam, root)

Inputs: the corpora of the recipe. Output, one part for each piece of the input, all rows in their order:

    scored/{train,dev,test,monolingual}/part-00000.arrow    see `scored_schema`
    signatures/train/part-00000.u32                          MinHash signatures of its rows, where like rows are wanted

A rule that costs much is scored only for rows that the other rules leave at their DEFAULT thresholds; the stage `clean`
scores it for the few more that a looser threshold lets through. So a recipe's thresholds play no part here, and moving
one scores nothing anew.

Beam carries descriptions of pieces; each step reads its piece from the files and writes its part. So the output is the
same for every runner and every number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.config import (
    ALL_SPLITS,
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    LanguagesConfig,
    ShardConfig,
)
from pipelines.corpus import Corpus, Piece, input_digests, scan, unpacked
from pipelines.errors import InputError
from pipelines.language_id import is_known
from pipelines.runner import Each, Spread, beam, local_processes, run_pipeline
from pipelines.scoring import ScoreJob, Scoring, score_piece
from pipelines.stage import StageResult, StageRun, run_stage

STAGE_VERSION = 1


def score(
    languages: LanguagesConfig,
    corpora: CorporaConfig,
    config: CleanConfig,
    shards: ShardConfig,
    beam: BeamConfig,
    root: Path,
) -> StageRun:
    """Return the finished stage. Counters: `parts`, a description of each part, in the order of their rows.

    Raises InputError for files that cannot be used, a language that the language rule does not know, and a rule's
    resource that cannot be read. RuntimeError: rows were lost, by a fault of ours.
    """
    scoring = Scoring.of(languages, corpora, config)
    _check_languages(scoring)
    inputs = input_digests(corpora) | {f"resource/{name}": digest for name, digest in scoring.digests}
    decides = {
        **scoring.identity(),
        "corpora": {split: [_identity(corpus) for corpus in corpora.of(split)] for split in ALL_SPLITS},
        "rows_per_shard": shards.rows_per_shard,
    }

    def body(folder: Path) -> StageResult:
        local_processes(beam, pieces=2)  # it takes a second until they can start; meanwhile the files are looked at
        scanned = scan(corpora, languages, shards.rows_per_shard)
        job = ScoreJob(scoring, str(folder.absolute()), _first_indexes(scanned))
        job.make_folders()
        pieces = [piece for corpus in scanned for piece in corpus.pieces]
        processes = local_processes(beam, len(pieces))
        run_pipeline(partial(_build, job=job, corpora=scanned, processes=processes), beam)
        shutil.rmtree(job.lines)
        parts = [_described(job, piece) for piece in pieces]
        _check_rows(parts, folder)
        outputs = [path for part in parts for path in (part["path"], part["signatures"]) if path is not None]
        return StageResult(outputs, {"parts": parts})

    return run_stage("score", STAGE_VERSION, decides, inputs, root, body, keeps_partial_output=True)


def _check_languages(scoring: Scoring) -> None:
    if "language" not in scoring.rules:
        return
    model = scoring.resources().language_model
    for language in (scoring.languages.source, scoring.languages.target):
        if not is_known(language, model):
            raise InputError(
                f"the language model does not know {language!r}",
                where="clean.rules.language",
                remedy="Correct the language's code, set clean.rules.language to null, or give another model in "
                "clean.resources.language_model",
            )


def _identity(corpus: CorpusConfig) -> dict[str, Any]:
    """Return what of a corpus' config decides the output: paths do not, the files' digests are in the key."""
    forms = [form for form in ("source", "target", "tsv", "jsonl", "parquet", "tmx") if getattr(corpus, form)]
    identity: dict[str, Any] = {"name": corpus.name, "forms": forms, "header": corpus.header}
    identity["columns"] = [corpus.source_column, corpus.target_column]
    identity["scores"] = {name: bounds.column for name, bounds in corpus.scores.items()}
    return identity


# --- The graph -----------------------------------------------------------------------------------------------------


def _first_indexes(corpora: Sequence[Corpus]) -> dict[str, int]:
    first: dict[str, int] = {}
    for corpus in corpora:
        first.setdefault(corpus.split, corpus.pieces[0].index)
    return first


def _described(job: ScoreJob, piece: Piece) -> dict[str, Any]:
    return {
        "path": job.part(piece),
        "signatures": job.signatures(piece),
        "split": piece.split,
        "corpus": piece.corpus,
        "side": piece.side,
        "rows": piece.rows,
    }


def _build(pipeline: beam.Pipeline, job: ScoreJob, corpora: list[Corpus], processes: int) -> None:
    pieces = [piece.to_dict() for corpus in corpora for piece in corpus.direct()]
    streams = [[piece.to_dict() for piece in stream] for corpus in corpora for stream in corpus.streams()]
    _ = (
        pipeline
        | "Pieces" >> beam.Create(pieces, reshuffle=False)
        | "Normalise and score" >> Each(partial(score_piece, job), processes)
    )
    if streams:
        _ = (
            pipeline
            | "Streams" >> beam.Create(streams)
            | "Spread the streams" >> Spread()
            | "Unpack" >> beam.FlatMap(partial(_unpack, job))
            | "Normalise and score the unpacked" >> Each(partial(score_piece, job), processes)
        )


def _unpack(job: ScoreJob, pieces: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for piece in unpacked([Piece.from_dict(piece) for piece in pieces], job.lines):
        yield piece.to_dict()


def _check_rows(parts: Sequence[dict[str, Any]], folder: Path) -> None:
    for part in parts:
        with pa.memory_map(str(folder / part["path"])) as file:
            reader = pa.ipc.open_file(file)
            written = sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
        if written != part["rows"]:
            raise RuntimeError(f"{part['path']}: {part['rows']} rows read, {written} written")
