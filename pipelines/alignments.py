"""Word alignments of training pairs: the Parquet contract between aligning and training, and the step that writes it.

    alignments/train/part-00000.parquet     row_id int64, src list<uint16>, tgt list<uint16>

A file for each shard of train, of its name, with its rows in their order. The places of a link, src[k] and tgt[k],
count the row's pieces from 0; the EOS of either side has none. Links are in the order of `tgt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.bags import Bags, KeyIndex
from pipelines.characters import Counts
from pipelines.diagonal import Aligner, links
from pipelines.errors import InputError
from pipelines.stage import replacing

ALIGNMENT_FORMAT = 1
_FORMAT_KEY = b"seqloom.alignment_format"
# A longer row, on either side, is neither learned from nor aligned: what it costs grows with the product of both.
MAX_PIECES = 500
SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("src", pa.list_(pa.uint16()), nullable=False),
        pa.field("tgt", pa.list_(pa.uint16()), nullable=False),
    ]
)
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class AlignPart:
    """One piece of work: a shard and its alignments. Paths are absolute."""

    shard: str
    aligned: str


class PartLinks(NamedTuple):
    """The links of a file's rows, which are in the order of row_id [rows]: row i has first[i] to first[i + 1] of them.

    src, tgt [links] uint16: places.
    """

    row_id: npt.NDArray[np.int64]
    first: Counts
    src: npt.NDArray[np.uint16]
    tgt: npt.NDArray[np.uint16]


def pair_batches(shard: Path) -> Iterator[tuple[pa.Array, Bags, Bags]]:
    """Yield row_id and both sides' pieces, without EOS, of a shard's rows in order; none of rows beyond MAX_PIECES."""
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["row_id", "src", "tgt"]):
            lengths = [np.diff(batch[side].offsets.to_numpy()) - 1 for side in ("src", "tgt")]
            short = np.maximum(*lengths) <= MAX_PIECES
            src, tgt = (_pieces(batch[side], short) for side in ("src", "tgt"))
            yield batch["row_id"], src, tgt


def _pieces(column: pa.ListArray, wanted: npt.NDArray[np.bool_]) -> Bags:
    """Return the pieces of the rows that are wanted, and none of the others; without the last, which is EOS."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy()[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    kept = np.repeat(wanted, lengths)
    kept[offsets[1:] - offsets[0] - 1] = False
    first = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.where(wanted, lengths - 1, 0))])
    ids = values[kept].astype(np.int32)
    return Bags(ids, np.ones(len(ids), dtype=np.float32), first)


@cache
def _aligner(path: str) -> tuple[Aligner, KeyIndex]:
    aligner = Aligner.load(Path(path))
    return aligner, KeyIndex(aligner.keys)


def align_part(aligner_path: str, part: AlignPart) -> tuple[int, int, int, int]:
    """Write the alignments of a shard; return its rows, source and target pieces, and links.

    A file that is there is whole, and of a run that was killed: it is left as it is.
    """
    aligner, index = _aligner(aligner_path)
    tables = [SCHEMA.empty_table()]
    num_src = num_tgt = 0
    for row_id, src, tgt in pair_batches(Path(part.shard)):
        found = links(aligner, index, src, tgt)
        first = np.searchsorted(found.row, np.arange(len(row_id) + 1)).astype(np.int32)
        columns = [pa.ListArray.from_arrays(pa.array(first), pa.array(side.astype(np.uint16))) for side in found[1:]]
        tables.append(pa.table([row_id, *columns], schema=SCHEMA))
        num_src, num_tgt = num_src + len(src.ids), num_tgt + len(tgt.ids)
    # In one piece, so that the file's bytes do not depend on the batches.
    table = (
        pa.concat_tables(tables).combine_chunks().replace_schema_metadata({_FORMAT_KEY: str(ALIGNMENT_FORMAT).encode()})
    )
    with replacing(Path(part.aligned)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return len(table), num_src, num_tgt, sum(len(chunk.flatten()) for chunk in table["src"].chunks)


def alignment_ranges(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the lowest and the highest row_id of each file of a folder that has rows, in order, without reading them.

    Raises InputError when there is no file, or one of another format.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise InputError("no alignments (part-*.parquet) here", where=str(folder), remedy="Run the align stage first")
    ranges = {}
    for path in paths:
        with pq.ParquetFile(path) as file:
            found = (file.schema_arrow.metadata or {}).get(_FORMAT_KEY, b"none").decode()
            if found != str(ALIGNMENT_FORMAT):
                raise InputError(
                    f"alignment format {found}, this version reads {ALIGNMENT_FORMAT}",
                    where=str(path),
                    remedy="Run the align stage again with this version",
                )
            groups = [file.metadata.row_group(number).column(0).statistics for number in range(file.num_row_groups)]
            if file.metadata.num_rows:
                ranges[path] = (min(group.min for group in groups), max(group.max for group in groups))
    return ranges


def read_alignments(path: Path) -> PartLinks:
    """Return the links of a file."""
    table = pq.read_table(path, columns=SCHEMA.names).combine_chunks()
    src, tgt = (table[side].combine_chunks() for side in ("src", "tgt"))
    first = src.offsets.to_numpy().astype(np.int64)
    return PartLinks(table["row_id"].to_numpy(), first, src.values.to_numpy(), tgt.values.to_numpy())
