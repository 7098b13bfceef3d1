"""The Parquet contract between encoding and training: schema, version, write, check, read. pyarrow alone.

    shards/train/part-00000.parquet     row_id int64, corpus string, src list<int32>, tgt list<int32>
                                        and, where training changes the text, src_text string, tgt_text string

`src` and `tgt` are piece ids of the tokeniser whose digest stands in the file's metadata, and end with its EOS.
Rows are in the order of `row_id` within a file, and files in the order of their names. Text is what the ids encode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.stage import replacing

SHARD_FORMAT = 1
_FORMAT_KEY = b"seqloom.shard_format"
_TOKENIZER_KEY = b"seqloom.tokenizer"

SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("src", pa.list_(pa.int32()), nullable=False),
        pa.field("tgt", pa.list_(pa.int32()), nullable=False),
    ]
)
TEXT_SCHEMA = SCHEMA.append(pa.field("src_text", pa.string(), nullable=False)).append(
    pa.field("tgt_text", pa.string(), nullable=False)
)


@dataclass(frozen=True)
class ShardColumns:
    """Rows of one split in memory: flat token arrays with offsets, so that a row is two slices.

    row_id [rows] int64; src and tgt flat int32; src_offsets and tgt_offsets [rows + 1] int64.
    """

    row_id: npt.NDArray[np.int64]
    src: npt.NDArray[np.int32]
    src_offsets: npt.NDArray[np.int64]
    tgt: npt.NDArray[np.int32]
    tgt_offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_id)

    def src_lengths(self) -> npt.NDArray[np.int64]:
        """Return the pieces of each source, EOS counted: [rows]."""
        return np.diff(self.src_offsets)

    def tgt_lengths(self) -> npt.NDArray[np.int64]:
        """Return the pieces of each target, EOS counted: [rows]."""
        return np.diff(self.tgt_offsets)

    def sources(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int32]]:
        """Return the source ids of each of these rows."""
        return _slices(self.src, self.src_offsets, rows)

    def targets(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int32]]:
        """Return the target ids of each of these rows."""
        return _slices(self.tgt, self.tgt_offsets, rows)


def columns_of(
    row_id: npt.NDArray[np.int64], src: Sequence[npt.NDArray[np.int32]], tgt: Sequence[npt.NDArray[np.int32]]
) -> ShardColumns:
    """Return rows given one by one as columns."""
    sides = []
    for rows in (src, tgt):
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        sides += [np.concatenate([np.empty(0, dtype=np.int32), *rows]), offsets]
    return ShardColumns(row_id, *sides)


def joined(columns: Sequence[ShardColumns]) -> ShardColumns:
    """Return the rows of all, one after another; of at least one."""

    def offsets(lengths: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(lengths))])

    return ShardColumns(
        row_id=np.concatenate([part.row_id for part in columns]),
        src=np.concatenate([part.src for part in columns]),
        src_offsets=offsets([part.src_lengths() for part in columns]),
        tgt=np.concatenate([part.tgt for part in columns]),
        tgt_offsets=offsets([part.tgt_lengths() for part in columns]),
    )


def _slices(
    values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int32]]:
    return [values[offsets[row] : offsets[row + 1]] for row in rows.tolist()]


def write_shard(path: Path, table: pa.Table, tokenizer_digest: str, *, with_text: bool = False) -> None:
    """Write one shard under its final name only when it is whole; the same rows give the same bytes.

    Raises KeyError when a column is missing, and pa.ArrowInvalid when one does not fit SCHEMA (TEXT_SCHEMA).
    """
    schema = TEXT_SCHEMA if with_text else SCHEMA
    metadata = {_FORMAT_KEY: str(SHARD_FORMAT).encode(), _TOKENIZER_KEY: tokenizer_digest.encode()}
    table = table.select(schema.names).cast(schema).replace_schema_metadata(metadata)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", store_schema=True)


def check_shard(path: Path, tokenizer_digest: str | None = None) -> int:
    """Return the number of rows of a shard whose format, schema and tokeniser are as expected.

    Raises InputError naming the file where one of them is not.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"not a readable Parquet file ({error})", where=str(path), remedy="Run the encode stage again"
        ) from error
    with file:
        metadata = file.schema_arrow.metadata or {}
        found = metadata.get(_FORMAT_KEY, b"none").decode()
        if found != str(SHARD_FORMAT):
            raise InputError(
                f"shard format {found}, this version reads {SHARD_FORMAT}",
                where=str(path),
                remedy="Encode the corpus again with this version",
            )
        if file.schema_arrow.remove_metadata() not in (SCHEMA, TEXT_SCHEMA):
            raise InputError(
                f"columns {file.schema_arrow.names} do not fit the shard schema",
                where=str(path),
                remedy="Encode the corpus again with this version",
            )
        encoded_by = metadata.get(_TOKENIZER_KEY, b"").decode()
        if tokenizer_digest is not None and encoded_by != tokenizer_digest:
            raise InputError(
                f"encoded by the tokeniser {encoded_by[:12]}, expected {tokenizer_digest[:12]}",
                where=str(path),
                remedy="Encode the corpus again with the tokeniser of the model",
            )
        return int(file.metadata.num_rows)


def shard_paths(folder: Path) -> list[Path]:
    """Return the shards of one split in their order. Raises InputError when there is none."""
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise InputError("no shard (part-*.parquet) here", where=str(folder), remedy="Run `seqloom prepare` first")
    return paths


def read_shards(folder: Path, tokenizer_digest: str | None = None) -> ShardColumns:
    """Return all rows of one split, files in order. Raises InputError as `check_shard` and `shard_paths` do."""
    return of_table(pa.concat_tables(_checked_tables(folder, tokenizer_digest)))


def of_table(table: pa.Table) -> ShardColumns:
    """Return the columns of rows that were read from a shard."""
    src, src_offsets = _flat(table["src"])
    tgt, tgt_offsets = _flat(table["tgt"])
    return ShardColumns(table["row_id"].to_numpy(), src, src_offsets, tgt, tgt_offsets)


def read_corpora(folder: Path) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return the corpora's names, and for each row of one split the place of its corpus among them: [rows]."""
    tables = [pq.read_table(path, columns=["corpus"], read_dictionary=["corpus"]) for path in shard_paths(folder)]
    column = pa.concat_tables(tables)["corpus"].unify_dictionaries().combine_chunks()
    return column.dictionary.to_pylist(), column.indices.to_numpy()


def check_texts(folder: Path) -> None:
    """Raise InputError naming the file when a shard of this split was written without text."""
    for path in shard_paths(folder):
        if not pq.read_schema(path).remove_metadata().equals(TEXT_SCHEMA):
            raise InputError(
                "the shard holds no text for `augment` to change",
                where=str(path),
                remedy="Encode the corpus again with this recipe",
            )


def shard_sizes(folder: Path) -> list[int]:
    """Return the rows of each shard of one split, in the shards' order."""
    return [pq.read_metadata(path).num_rows for path in shard_paths(folder)]


def _checked_tables(folder: Path, tokenizer_digest: str | None) -> Iterator[pa.Table]:
    for path in shard_paths(folder):
        check_shard(path, tokenizer_digest)
        yield pq.read_table(path, columns=SCHEMA.names)


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    lengths = [0]
    values = [np.empty(0, dtype=np.int32)]
    for chunk in column.chunks:
        lengths.extend(np.diff(chunk.offsets.to_numpy()).tolist())
        values.append(chunk.flatten().to_numpy())
    return np.concatenate(values), np.cumsum(np.asarray(lengths, dtype=np.int64))
