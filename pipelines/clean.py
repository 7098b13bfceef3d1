"""Stage 2: scored rows -> clean/ and rejects/, with a reason for each row that goes, and what explains them (Beam).

    clean(recipe.languages, recipe.corpora, recipe.clean, scored, profile.beam, root, rated=...)

Inputs: the stages `score` and, where there is one, `rate`. Output:

    clean/train/part-00000.parquet               row_id, corpus, src, tgt, each score
    clean/{dev,test}/part-00000.parquet          row_id, corpus, src, tgt, src_raw, tgt_raw
    clean/monolingual/part-00000.parquet         as train, one of src and tgt null
    rejects/<split>/part-00000.parquet           row_id, corpus, src, tgt, rule, score, match
    explanations/{waterfall,histograms,samples}.parquet      see `pipelines/explanations.py`

Rows are in the order of row_id, within a file and over the files. A row has one reason, the first of `reasons`. What
is in the corpora of dev and test is never judged by score: only rows go that cannot be read or have an empty side.

Three passes over each part: what the rules and leakage say of its rows; then, for each partition of the keys, which
rows repeat better ones; then what stays is written. Between the passes keys lie in files of the stage's folder, so
memory does not grow with the corpus on any runner; Beam carries the numbers of parts, and the ids of rows that repeat
others.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.config import (
    ALL_SPLITS,
    SPLITS,
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    LanguagesConfig,
    Split,
)
from pipelines.decisions import (
    HELD_OUT_REASONS,
    LENGTH_EDGES,
    REJECTS_SCHEMA,
    WHEN,
    Job,
    Part,
    find_repeats,
    hold_out,
    judge_part,
    merge_held_out,
    read_counts,
    reasons,
    write_parquet,
    write_part,
)
from pipelines.errors import InputError
from pipelines.explanations import Explanations, histogram_table, sample_table, waterfall_table
from pipelines.leakage import LEAKAGE_REASONS
from pipelines.runner import Each, beam, local_processes, run_pipeline
from pipelines.scoring import HELD_OUT, Scoring
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.verdict import INPUT, RATINGS, Criterion, corpus_criteria

STAGE_VERSION = 2
# Of those that are judged.
_JUDGED: tuple[Split, ...] = ("train", "monolingual")
# Rows whose keys are looked at together: what a worker holds in memory, 28 bytes for each of them and kind.
_ROWS_PER_PARTITION = 250_000

log = logging.getLogger(__name__)


def clean(
    languages: LanguagesConfig,
    corpora: CorporaConfig,
    config: CleanConfig,
    scored: StageRun,
    beam: BeamConfig,
    root: Path,
    *,
    rated: StageRun | None = None,
) -> StageRun:
    """Return the finished stage: see the module for its files, ARCHITECTURE.md for its counters.

    Raises InputError for a train of which too much or all is rejected or leaks, a dev or test set without a row, and a
    `duplicates.keep` that no row has. RuntimeError: rows were lost, by a fault of ours.
    """
    scoring = Scoring.of(languages, corpora, config)
    _check_keep(config, scoring, rated is not None)
    criteria = {
        f"{split}/{corpus.name}": corpus_criteria(
            config.rules, corpus, one_side=split == "monolingual", rated=rated is not None and split == "train"
        )
        for split in _JUDGED
        for corpus in corpora.of(split)
    }
    decides = {
        "criteria": {corpus: [asdict(criterion) for criterion in found] for corpus, found in criteria.items()},
        "duplicates": config.duplicates.model_dump(mode="json"),
        "leakage": config.leakage.model_dump(mode="json"),
        "max_reject_rate": config.max_reject_rate,
        "languages": languages.model_dump(mode="json"),
        # What translation does to its input, too.
        "normalize": config.normalize.model_dump(mode="json"),
    }
    inputs = {"scored": scored.manifest.digest()}
    if rated is not None:
        inputs["rated"] = rated.manifest.digest()

    def body(folder: Path) -> StageResult:
        parts = _parts(scored, rated)
        rows = sum(part.rows for part in parts if part.split in _JUDGED)
        work = (folder / "work").absolute()
        partitions = max(1, -(-rows // _ROWS_PER_PARTITION))
        signatures = {part.index: part.signatures for part in parts if part.signatures is not None}
        job = Job(scoring, config, criteria, rated is not None, work, partitions, signatures)
        job.make_folders()
        for left_over in ("clean", "rejects", "explanations"):
            shutil.rmtree(folder / left_over, ignore_errors=True)
        processes = local_processes(beam, sum(part.split in _JUDGED for part in parts))
        run_pipeline(partial(_build, job=job, parts=parts, processes=processes), beam)
        counts = {part.index: read_counts(job, part.index) for part in parts}
        explained = _explained(parts, counts, criteria)
        waterfall = _waterfall(corpora, parts, counts, explained)
        _check_counts(waterfall, config)
        outputs = _published(job, parts, counts, folder)
        outputs += _explanations(job, parts, waterfall, explained, folder)
        _check_conservation(waterfall, folder, outputs)
        shutil.rmtree(job.work)
        return StageResult(outputs, {"waterfall": waterfall, "lengths": _lengths(counts)})

    return run_stage("clean", STAGE_VERSION, decides, inputs, root, body, keeps_partial_output=True)


def _check_keep(config: CleanConfig, scoring: Scoring, rated: bool) -> None:
    keep = config.duplicates.keep
    known = ["first", *scoring.rules, *(INPUT + name for name in scoring.inputs), *(RATINGS if rated else ())]
    if keep not in known:
        raise InputError(
            f"no row has a score {keep!r}",
            where="clean.duplicates.keep",
            remedy=f"Use one of {', '.join(known)}" + ("" if rated else "; quality needs clean.quality"),
        )


def _parts(scored: StageRun, rated: StageRun | None) -> list[Part]:
    parts = []
    for index, part in enumerate(scored.manifest.counters["parts"]):
        path, signatures = part["path"], part["signatures"]
        rating = None
        if rated is not None and part["split"] == "train":
            rating = str((rated.folder / path.replace("scored/", "rated/", 1)).absolute())
        parts.append(
            Part(
                index,
                str((scored.folder / path).absolute()),
                rating,
                None if signatures is None else str((scored.folder / signatures).absolute()),
                part["split"],
                part["corpus"],
                part["side"],
                part["rows"],
            )
        )
    return parts


# --- The graph -----------------------------------------------------------------------------------------------------


def _build(pipeline: beam.Pipeline, job: Job, parts: list[Part], processes: int) -> None:
    judged = [part for part in parts if part.split in _JUDGED]
    held_out = [part for part in parts if part.split in HELD_OUT or (part.split == "train" and job.scoring.held_out)]
    indexes = [part.index for part in judged]
    verdicts = (
        pipeline
        | "Dev and test" >> beam.Create(held_out, reshuffle=False)
        | "Hold out" >> Each(partial(hold_out, job), processes)
        | "To all held out" >> beam.Map(_under_one_key)
        | "All held out" >> beam.GroupByKey()
        | "Merge the index" >> beam.FlatMapTuple(partial(_merge, job, judged))
        | "Judge" >> Each(partial(judge_part, job), processes)
    )
    repeats = (
        verdicts
        | "To all judged" >> beam.Map(_under_one_key)
        | "All judged" >> beam.GroupByKey()
        | "Partitions" >> beam.FlatMapTuple(partial(_partitions, job.partitions))
        | "Find repeats" >> Each(partial(find_repeats, job, indexes), processes)
        | "By the part that they are in" >> beam.FlatMap(_themselves)
    )
    # Each part comes here by its number, with or without rows that repeat others.
    numbers = verdicts | "Part numbers" >> beam.Map(lambda index: (index, b""))
    _ = (
        (numbers, repeats)
        | "Numbers and repeats" >> beam.Flatten()
        | "By part" >> beam.GroupByKey()
        | "With the part" >> beam.MapTuple(partial(_with_part, {part.index: part for part in judged}))
        | "Write" >> Each(partial(write_part, job), processes)
    )


def _under_one_key(index: int) -> tuple[int, int]:
    return 0, index


def _merge(job: Job, judged: Sequence[Part], _: int, indexes: Iterable[int]) -> Iterator[Part]:
    """Write the whole index; then it is the turn of the parts that are judged by it."""
    merge_held_out(job, indexes)
    yield from judged


def _partitions(partitions: int, _: int, indexes: Iterable[int]) -> Iterator[int]:
    yield from range(partitions)


def _themselves(found: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield from found


def _with_part(parts: Mapping[int, Part], index: int, repeated: Iterable[bytes]) -> tuple[Part, list[bytes]]:
    return parts[index], list(repeated)


# --- What the stage makes of the parts -----------------------------------------------------------------------------


def _explained(
    parts: Sequence[Part], counts: Mapping[int, Mapping[str, Any]], criteria: Mapping[str, tuple[Criterion, ...]]
) -> dict[str, Explanations]:
    """Return what explains the cleaning of each judged corpus, by "split/name"."""
    explained = {corpus: Explanations(found) for corpus, found in criteria.items()}
    for part in parts:
        if part.split in _JUDGED:
            corpus = f"{part.split}/{part.corpus}"
            explained[corpus].add(Explanations.from_dict(criteria[corpus], counts[part.index]["explanations"]))
    return explained


def _waterfall(
    corpora: CorporaConfig,
    parts: Sequence[Part],
    counts: Mapping[int, Mapping[str, Any]],
    explained: Mapping[str, Explanations],
) -> list[dict[str, Any]]:
    waterfall = []
    for split in ALL_SPLITS:
        # Rows of train that became dev or test stand there, under the name of their corpus.
        names = [corpus.name for corpus in (corpora.of(split) or (corpora.train if split in HELD_OUT else ()))]
        for name in names:
            entry = _waterfall_entry(split, name, parts, counts, explained)
            waterfall.append(entry)
            most = _most(entry["rejected"]) or "none"
            log.info("%s/%s: %d rows read, %d kept, rejected %s", split, name, entry["read"], entry["kept"], most)
    return waterfall


def _waterfall_entry(
    split: Split,
    name: str,
    parts: Sequence[Part],
    counts: Mapping[int, Mapping[str, Any]],
    explained: Mapping[str, Explanations],
) -> dict[str, Any]:
    kept, rejected = 0, Counter[str]()
    own = False
    for part in parts:
        own |= part.split == split
        if part.corpus == name and split in counts[part.index]["splits"]:
            kept += counts[part.index]["splits"][split]["kept"]
            rejected.update(counts[part.index]["splits"][split]["rejected"])
    explanations = explained.get(f"{split if own else 'train'}/{name}")
    every = HELD_OUT_REASONS if explanations is None else reasons(explanations.criteria)
    entry: dict[str, Any] = {
        "split": split,
        "corpus": name,
        "read": kept + rejected.total(),
        "kept": kept,
        "rejected": {reason: rejected[reason] for reason in every},
    }
    if explanations is not None and own:
        # A score with two bounds is two criteria of one name.
        alone, only = Counter[str](), Counter[str]()
        for criterion, by_itself, by_no_other in zip(explanations.criteria, explanations.alone, explanations.only):
            alone[criterion.name] += int(by_itself)
            only[criterion.name] += int(by_no_other)
        entry |= {"alone": dict(alone), "only": dict(only)}
    return entry


def _lengths(counts: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    lengths = {when: {side: np.zeros(len(LENGTH_EDGES) - 1, np.int64) for side in ("src", "tgt")} for when in WHEN}
    for found in counts.values():
        for when, sides in (found["lengths"] or {}).items():
            for side, rows in sides.items():
                lengths[when][side] += rows
    return {
        when: {side: {"edges": list(LENGTH_EDGES), "rows": rows.tolist()} for side, rows in sides.items()}
        for when, sides in lengths.items()
    }


def _check_counts(waterfall: list[dict[str, Any]], config: CleanConfig) -> None:
    """Raise InputError where what is left cannot be used, or where more went than the config allows."""
    for entry in waterfall:
        if entry["split"] in HELD_OUT and entry["kept"] == 0:
            gone = f"all {entry['read']} rows of {entry['corpus']!r} are rejected: {_most(entry['rejected'])}"
            raise InputError(
                gone if entry["read"] else f"no row of {entry['corpus']!r} falls into {entry['split']}",
                where=f"corpora.{entry['split']}",
                remedy="Give a corpus in UTF-8 with text on both sides"
                if entry["read"]
                else f"Raise corpora.held_out.{entry['split']}",
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
    max_rate = config.leakage.max_rate
    if max_rate is not None and leaked / read > max_rate:
        raise InputError(
            f"{leaked} of {read} rows of train occur in dev or test, more than {max_rate:.2%}",
            where="clean.leakage.max_rate",
            remedy="Take other dev and test sets, or raise the rate",
        )


def _most(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {rows}" for reason, rows in Counter(rejected).most_common(4) if rows)


def _published(job: Job, parts: Sequence[Part], counts: Mapping[int, Mapping[str, Any]], folder: Path) -> list[str]:
    """Move the pieces that have rows to their final names; return these. Each split has at least one part."""
    outputs: list[str] = []
    for split in ALL_SPLITS:
        pieces = [part.index for part in parts if split in counts[part.index]["splits"]]
        if not pieces and split not in SPLITS:
            continue
        kept = [job.file(f"kept/{split}", index) for index in pieces]
        rejected = [job.file(f"rejected/{split}", index) for index in pieces]
        outputs += _moved(kept, folder, f"clean/{split}", job.kept_schema(split))
        outputs += _moved(rejected, folder, f"rejects/{split}", REJECTS_SCHEMA)
    return outputs


def _moved(files: list[Path], folder: Path, into: str, schema: Any) -> list[str]:
    (folder / into).mkdir(parents=True)
    filled = [file for file in files if pq.read_metadata(file).num_rows]
    names = [f"{into}/part-{number:05d}.parquet" for number in range(max(len(filled), 1))]
    for file, name in zip(filled, names):
        file.replace(folder / name)
    if not filled:
        write_parquet(folder / names[0], schema.empty_table())
    return names


def _explanations(
    job: Job,
    parts: Sequence[Part],
    waterfall: Sequence[Mapping[str, Any]],
    explained: Mapping[str, Explanations],
    folder: Path,
) -> list[str]:
    (folder / "explanations").mkdir()
    samples = [job.file("samples", part.index) for part in parts if part.split in _JUDGED]
    tables = {
        "waterfall": waterfall_table(waterfall),
        "histograms": histogram_table(explained),
        "samples": sample_table(samples),
    }
    for name, table in tables.items():
        write_parquet(folder / f"explanations/{name}.parquet", table)
    return [f"explanations/{name}.parquet" for name in tables]


def _check_conservation(waterfall: list[dict[str, Any]], folder: Path, outputs: list[str]) -> None:
    """Raise RuntimeError unless, for each split, the rows read are those in the files of clean/ and rejects/."""
    written: Counter[str] = Counter()
    for path in outputs:
        kind, split, _ = path.split("/") if path.count("/") == 2 else ("", "", "")
        if kind in ("clean", "rejects"):
            written[split] += pq.read_metadata(folder / path).num_rows
    for split in ALL_SPLITS:
        read = sum(entry["read"] for entry in waterfall if entry["split"] == split)
        if read != written[split]:
            raise RuntimeError(f"{split}: {read} rows read, {written[split]} written")
