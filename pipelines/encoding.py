"""Cleaned pairs -> a shard of piece ids: the step of the stage `encode`. Nothing here knows Beam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.shards import SCHEMA, TEXT_SCHEMA, write_shard
from pipelines.tokenizer import UNK_ID, Tokenizer

# What is counted of each split. Pieces include EOS.
COUNTS = ("rows", "src_pieces", "tgt_pieces", "src_unknown", "tgt_unknown")
# Rows that are encoded in one go: their ids are Python numbers for a while, which takes ten times their memory.
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class CleanPart:
    """One piece of work: a part of clean/ and the shard that it becomes. Paths are absolute."""

    split: str
    cleaned: str
    shard: str
    with_text: bool


@cache
def _tokenizer(folder: str) -> Tokenizer:
    return Tokenizer.load(Path(folder))


def encode_clean_part(tokenizer_folder: str, part: CleanPart) -> tuple[str, tuple[int, ...]]:
    """Write the shard of a part, and return the split that it belongs to and its COUNTS."""
    tokenizer = _tokenizer(tokenizer_folder)
    return part.split, encode_part(Path(part.cleaned), Path(part.shard), tokenizer, with_text=part.with_text)


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
