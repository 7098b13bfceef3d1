"""The Parquet contract between encoding and training: schema, version, write, check, read. pyarrow alone.

    shards/train/part-00000.parquet     row_id int64, corpus string, src list<int32>, tgt list<int32>
                                        and, where training changes the text, src_text string, tgt_text string

`src` and `tgt` are piece ids of the tokeniser whose digest stands in the file's metadata, and end with its EOS.
Rows are in the order of `row_id` within a file, and files in the order of their names. Text is what the ids encode.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
    return ShardColumns(
        row_id=np.concatenate([part.row_id for part in columns]),
        src=np.concatenate([part.src for part in columns]),
        src_offsets=_offsets([part.src_lengths() for part in columns]),
        tgt=np.concatenate([part.tgt for part in columns]),
        tgt_offsets=_offsets([part.tgt_lengths() for part in columns]),
    )


def _offsets(lengths: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return where each row begins and the last one ends: [rows + 1]."""
    offsets = np.zeros(sum(map(len, lengths)) + 1, dtype=np.int64)
    np.cumsum(np.concatenate([np.empty(0, dtype=np.int64), *lengths]), out=offsets[1:])
    return offsets


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


class Shard(NamedTuple):
    """A shard, looked at without reading its rows: how many there are, of which corpora, and pieces of each side."""

    path: Path
    rows: int
    corpora: dict[str, int]
    src_pieces: int
    tgt_pieces: int


def check_shard(path: Path, tokenizer_digest: str | None = None) -> int:
    """Return the number of rows of a shard whose format, schema and tokeniser are as expected.

    Raises InputError naming the file where one of them is not.
    """
    with _opened(path, tokenizer_digest) as file:
        return int(file.metadata.num_rows)


def scan_shards(folder: Path, tokenizer_digest: str | None = None) -> list[Shard]:
    """Return the shards of one split in their order, in memory and time that rows do not add to.

    Raises InputError as `check_shard` and `shard_paths` do.
    """
    shards = []
    for path in shard_paths(folder):
        with _opened(path, tokenizer_digest) as file:
            pieces = (_values(file, "src"), _values(file, "tgt"))
            shards.append(Shard(path, int(file.metadata.num_rows), _corpora(file), *pieces))
    return shards


@contextlib.contextmanager
def _opened(path: Path, tokenizer_digest: str | None) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"not a readable Parquet file ({error})", where=str(path), remedy="Run the encode stage again"
        ) from error
    with file:
        _check(file, path, tokenizer_digest)
        yield file


def _check(file: pq.ParquetFile, path: Path, tokenizer_digest: str | None) -> None:
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


def _corpora(file: pq.ParquetFile) -> dict[str, int]:
    """Return the rows of each corpus: from the file's statistics where a group of rows is of one corpus alone."""
    rows: Counter[str] = Counter()
    column = SCHEMA.get_field_index("corpus")
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        statistics = group.column(column).statistics
        if statistics is not None and statistics.has_min_max and statistics.min == statistics.max:
            rows[statistics.min] += group.num_rows
        else:
            counts = file.read_row_group(number, columns=["corpus"])["corpus"].value_counts()
            rows.update({count["values"]: count["counts"] for count in counts.to_pylist()})
    return dict(sorted(rows.items()))


def _values(file: pq.ParquetFile, side: str) -> int:
    """Return how many pieces a side has; a row without any counts for one."""
    (column,) = [number for number, leaf in enumerate(file.schema) if leaf.path.partition(".")[0] == side]
    groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
    return sum(int(group.column(column).num_values) for group in groups)


def shard_paths(folder: Path) -> list[Path]:
    """Return the shards of one split in their order. Raises InputError when there is none."""
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise InputError("no shard (part-*.parquet) here", where=str(folder), remedy="Run `seqloom prepare` first")
    return paths


def read_shards(folder: Path, tokenizer_digest: str | None = None) -> ShardColumns:
    """Return all rows of one split, files in order. Raises InputError as `check_shard` and `shard_paths` do."""
    return joined(list(read_parts(folder, tokenizer_digest)))


def read_parts(folder: Path, tokenizer_digest: str | None = None) -> Iterator[ShardColumns]:
    """Yield the rows of one split shard by shard, files in order. Raises InputError as `read_shards` does."""
    for path in shard_paths(folder):
        check_shard(path, tokenizer_digest)
        yield of_table(pq.read_table(path, columns=SCHEMA.names))


def of_table(table: pa.Table) -> ShardColumns:
    """Return the columns of rows that were read from a shard."""
    src, src_offsets = _flat(table["src"])
    tgt, tgt_offsets = _flat(table["tgt"])
    return ShardColumns(table["row_id"].to_numpy(), src, src_offsets, tgt, tgt_offsets)


def read_rows(shards: Sequence[Shard], corpora: Sequence[str]) -> tuple[ShardColumns, npt.NDArray[np.int32]]:
    """Return all rows of shards that were looked at, and of each the place of its corpus in `corpora`: [rows].

    Beside the rows themselves no more than one shard is in memory at once.
    Raises ValueError where a row's corpus is none of them.
    """
    number = sum(shard.rows for shard in shards)
    row_id, corpus = np.empty(number, dtype=np.int64), np.empty(number, dtype=np.int32)
    src = _Filled(number, sum(shard.src_pieces for shard in shards))
    tgt = _Filled(number, sum(shard.tgt_pieces for shard in shards))
    first = 0
    for shard in shards:
        table = pq.read_table(shard.path, columns=SCHEMA.names, read_dictionary=["corpus"])
        names = table["corpus"].unify_dictionaries().combine_chunks()
        places = np.asarray([corpora.index(name) for name in names.dictionary.to_pylist()], dtype=np.int32)
        end = first + len(table)
        row_id[first:end], corpus[first:end] = table["row_id"].to_numpy(), places[names.indices.to_numpy()]
        src.add(table["src"])
        tgt.add(table["tgt"])
        first = end
    return ShardColumns(row_id, src.ids, src.offsets, tgt.ids, tgt.offsets), corpus


class _Filled:
    """One side of rows that are read shard by shard, in arrays that are made at once."""

    def __init__(self, rows: int, pieces: int) -> None:
        self._ids, self.offsets = np.empty(pieces, dtype=np.int32), np.zeros(rows + 1, dtype=np.int64)
        self._rows = 0

    def add(self, column: pa.ChunkedArray) -> None:
        """Add a column of rows."""
        for chunk in column.chunks:
            first, end, pieces = self._rows, self._rows + len(chunk), int(self.offsets[self._rows])
            offsets, ids = chunk.offsets.to_numpy(), chunk.flatten().to_numpy()
            self.offsets[first : end + 1] = offsets.astype(np.int64) - int(offsets[0]) + pieces
            self._ids[pieces : pieces + len(ids)] = ids
            self._rows = end

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """Return the pieces of all rows that were added."""
        return self._ids[: int(self.offsets[self._rows])]


def check_texts(folder: Path) -> None:
    """Raise InputError naming the file when a shard of this split was written without text."""
    for path in shard_paths(folder):
        if not pq.read_schema(path).remove_metadata().equals(TEXT_SCHEMA):
            raise InputError(
                "the shard holds no text for `augment` to change",
                where=str(path),
                remedy="Encode the corpus again with this recipe",
            )


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    values = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype=np.int32), *values]), _offsets(lengths)
