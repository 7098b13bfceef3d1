"""Stage 3: cleaned pairs + tokeniser -> shards of piece ids (Beam).

    encode(recipe.shards, cleaned, tokenizer, profile.beam, root)

Inputs: clean/{train,dev,test}/part-*.parquet of the stage clean; the tokeniser of the stage fit_tokenizer.
Outputs, one shard for each part, of the same name and with the same rows in the same order:

    shards/{train,dev,test}/part-00000.parquet      row_id, corpus, src, tgt (see `pipelines/shards.py`); those of train
                                                    with their text where training changes it (`with_text`)

Takes about a second for 50,000 pairs on one core.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.config import SPLITS, BeamConfig, ShardConfig
from pipelines.runner import beam, run_pipeline
from pipelines.shards import SCHEMA, SHARD_FORMAT, TEXT_SCHEMA, write_shard
from pipelines.stage import StageResult, StageRun, run_stage, write_atomically
from pipelines.tokenizer import UNK_ID, Tokenizer

STAGE_VERSION = 1

# What is counted of each split, in the order of the numbers that go through Beam. Pieces include EOS.
COUNTS = ("rows", "src_pieces", "tgt_pieces", "src_unknown", "tgt_unknown")
_COUNTS_FOLDER = ".counts"
# Rows that are encoded in one go: their ids are Python numbers for a while, which takes ten times their memory.
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class _Part:
    """One piece of work: a part of clean/ and the shard that it becomes. Paths are absolute."""

    split: str
    cleaned: str
    shard: str
    with_text: bool


class _EncodePart(beam.DoFn):  # type: ignore[misc]
    """_Part -> (split, counts); the shard is written on the way."""

    def __init__(self, tokenizer_folder: str) -> None:
        self._tokenizer_folder = tokenizer_folder

    def setup(self) -> None:
        self._tokenizer = Tokenizer.load(Path(self._tokenizer_folder))

    def process(self, part: _Part) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield part.split, encode_part(Path(part.cleaned), Path(part.shard), self._tokenizer, with_text=part.with_text)


def encode(
    config: ShardConfig,
    cleaned: StageRun,
    tokenizer: StageRun,
    beam: BeamConfig,
    root: Path,
    *,
    with_text: bool = False,
) -> StageRun:
    """Return the stage whose folder holds the shards. Counters: for each split the COUNTS.

    `with_text`: the shards of train hold their text too, which augmentation changes (`AugmentConfig.changes_text`).
    Raises InputError when the tokeniser cannot be read, RuntimeError when a split has not as many rows as in clean/.
    """

    def body(folder: Path) -> StageResult:
        Tokenizer.load(tokenizer.folder)  # here, since an error inside a worker comes back as the runner's own
        parts = _parts(cleaned, folder, with_text)
        for split in SPLITS:
            (folder / "shards" / split).mkdir(parents=True)
        counters = _run(parts, tokenizer.folder, beam, folder)
        _check_rows(cleaned, parts, counters)
        return StageResult([str(Path(part.shard).relative_to(folder.absolute())) for part in parts], counters)

    decides: dict[str, Any] = {"shards": config.model_dump(mode="json"), "shard_format": SHARD_FORMAT}
    if with_text:  # only then, so that shards without text keep the key that they have always had
        decides["with_text"] = True
    inputs = {"cleaned": cleaned.manifest.digest(), "tokenizer": tokenizer.manifest.digest()}
    return run_stage("encode", STAGE_VERSION, decides, inputs, root, body)


def encode_part(cleaned: Path, shard: Path, tokenizer: Tokenizer, *, with_text: bool = False) -> tuple[int, ...]:
    """Write the shard of one part of clean/, with its text or without, and return its COUNTS."""
    schema = TEXT_SCHEMA if with_text else SCHEMA
    chunks, unknown = [schema.empty_table()], np.zeros(2, dtype=np.int64)
    with pq.ParquetFile(cleaned) as file:
        for batch in file.iter_batches(_CHUNK_ROWS, columns=["row_id", "corpus", "src", "tgt"]):
            src, src_unknown = _id_lists(tokenizer.encode_source(batch["src"].to_pylist()))
            tgt, tgt_unknown = _id_lists(tokenizer.encode_target(batch["tgt"].to_pylist()))
            columns = {"row_id": batch["row_id"], "corpus": batch["corpus"], "src": src, "tgt": tgt}
            if with_text:
                columns |= {"src_text": batch["src"], "tgt_text": batch["tgt"]}
            chunks.append(pa.table(columns).cast(schema))
            unknown += (src_unknown, tgt_unknown)
    # In one piece, so that the file's bytes do not depend on the chunks.
    table = pa.concat_tables(chunks).combine_chunks()
    write_shard(shard, table, tokenizer.digest, with_text=with_text)
    src_pieces, tgt_pieces = (pc.sum(pc.list_value_length(table[side])).as_py() or 0 for side in ("src", "tgt"))
    return len(table), src_pieces, tgt_pieces, *unknown.tolist()


def _id_lists(rows: Sequence[Sequence[int]]) -> tuple[pa.ListArray, int]:
    """Return list<int32> of the rows' piece ids, and how many of them are UNK_ID."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids: npt.NDArray[np.int32] = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)), int(np.count_nonzero(ids == UNK_ID))


def _parts(cleaned: StageRun, folder: Path, with_text: bool) -> list[_Part]:
    parts = []
    for split in SPLITS:
        # From the manifest, so that a stray file in the folder is no input.
        for path in sorted(output.path for output in cleaned.manifest.outputs):
            if path.startswith(f"clean/{split}/"):
                shard = folder.absolute() / "shards" / split / Path(path).name
                cleaned_path = str((cleaned.folder / path).absolute())
                parts.append(_Part(split, cleaned_path, str(shard), with_text and split == "train"))
    return parts


def _run(parts: Sequence[_Part], tokenizer_folder: Path, config: BeamConfig, folder: Path) -> dict[str, dict[str, int]]:
    # Counts come back through files: not every runner reports its counters to the launcher.
    counts_folder = folder.absolute() / _COUNTS_FOLDER
    counts_folder.mkdir()

    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | "parts" >> beam.Create(parts)
            | "spread" >> beam.Reshuffle()
            | "encode" >> beam.ParDo(_EncodePart(str(tokenizer_folder.absolute())))
            | "add up" >> beam.CombinePerKey(_added)
            | "write counts" >> beam.Map(_write_counts, str(counts_folder))
        )

    run_pipeline(build, config)
    counters: dict[str, dict[str, int]] = {split: dict.fromkeys(COUNTS, 0) for split in SPLITS}
    for path in counts_folder.iterdir():
        counters[path.stem] = dict(zip(COUNTS, json.loads(path.read_text(encoding="utf-8")), strict=True))
    shutil.rmtree(counts_folder)
    return counters


def _added(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    total = (0,) * len(COUNTS)
    for count in counts:
        total = tuple(left + right for left, right in zip(total, count, strict=True))
    return total


def _write_counts(counts: tuple[str, tuple[int, ...]], folder: str) -> None:
    split, numbers = counts
    write_atomically(Path(folder) / f"{split}.json", json.dumps(numbers))


def _check_rows(cleaned: StageRun, parts: Sequence[_Part], counters: dict[str, dict[str, int]]) -> None:
    for split in SPLITS:
        rows_in = sum(
            output.rows or 0 for output in cleaned.manifest.outputs if output.path.startswith(f"clean/{split}/")
        )
        rows_out = sum(pq.read_metadata(part.shard).num_rows for part in parts if part.split == split)
        if not rows_in == rows_out == counters[split]["rows"]:
            raise RuntimeError(
                f"{split}: {rows_in} rows in, {rows_out} in the shards, {counters[split]['rows']} counted as written"
            )
