"""The rows of one file, some at a time: from the bytes of each form to texts, faults and scores.

A reader's `take(rows)` returns the next rows, at most so many and at most 16 MiB of text a side (one row in any case),
and none only at the end; so memory does not grow with the file. What cannot be read of a row is its fault:

    line_too_long    a line or text of more than 10,000,000 bytes; its first 1,000 characters are kept
    malformed        too few columns, no JSON object, a side that is missing or no text
    invalid_utf8     the text is kept with its bad bytes escaped as \\xfc
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.tmx import Unit

Side = Literal["both", "src", "tgt"]
Column = int | str

LINE_TOO_LONG = "line_too_long"
MALFORMED = "malformed"
INVALID_UTF8 = "invalid_utf8"
READ_FAULTS = (LINE_TOO_LONG, MALFORMED, INVALID_UTF8)  # a row has one, the first

# A book of 1,500 pages has three million letters: what is longer is no line of text, and no rule would let it pass.
MAX_LINE_BYTES = 10_000_000
KEPT_CHARACTERS = 1000  # of a line that is too long: enough to find it again
# Far below the 2 GiB that an Arrow array of strings can hold, far above the usual 8192 rows.
BATCH_BYTES = 16 * 2**20

_TOO_LONG, _MALFORMED, _INVALID, _READABLE = range(len(READ_FAULTS) + 1)
_READ_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_CHUNK_ROWS = 8192  # read at once of a form that is no text file
_CHUNK_CHARACTERS = BATCH_BYTES // 4  # of a TMX
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_NO_TEXT = pa.scalar(None, type=pa.string())

Faults = npt.NDArray[np.uint8]  # [rows]: places in READ_FAULTS, or its length for a row that is readable


@dataclass(frozen=True)
class Rows:
    """Rows as read. src, tgt string [rows], a missing side all null; faults [rows]; scores float32 [rows] each."""

    src: pa.StringArray
    tgt: pa.StringArray
    faults: Faults
    scores: dict[str, pa.FloatArray]

    def __len__(self) -> int:
        return len(self.src)

    def reasons(self) -> pa.StringArray:
        """Return the names of the faults [rows], null where a row is readable."""
        if bool((self.faults == _READABLE).all()):
            return pa.nulls(len(self), pa.string())
        return pa.array(READ_FAULTS, pa.string()).take(pa.array(self.faults, mask=self.faults == _READABLE))

    def part(self, start: int, rows: int) -> Rows:
        """Return some of the rows, in arrays that begin where their buffers do."""
        if start == 0 and rows == len(self):
            return self
        scores = {name: _part(values, start, rows) for name, values in self.scores.items()}
        return Rows(
            _part(self.src, start, rows), _part(self.tgt, start, rows), self.faults[start : start + rows], scores
        )


@dataclass(frozen=True)
class Columns:
    """Where the sides and the scores stand: numbers (TSV) or names. A side that is not read is None."""

    src: Column | None
    tgt: Column | None
    scores: tuple[tuple[str, Column], ...] = ()


class Reader(Protocol):
    """A file that is being read."""

    def take(self, rows: int) -> Rows:
        """Return the next rows, at most so many; none at the end only."""
        ...


# --- Lines -----------------------------------------------------------------------------------------------------------


class Lines:
    r"""The lines of a binary file, some at a time. A line is what ends with \n; the last one may lack it.

    Of a line that is too long a little more than `MAX_LINE_BYTES` are held, so that it is told by its length.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._data = b""
        self._start = 0  # of the next line, in the data
        self._ends = np.empty(0, dtype=np.int64)  # places of \n in the data, from the next line on
        self._more = True  # whether the file may have more than the data
        self._skipping = False  # within a line of which enough is held

    def ready(self, rows: int) -> int:
        """Return how many lines can be taken, at most `rows`, and BATCH_BYTES where that is more than one line."""
        while self._more and len(self._ends) < rows and (self._held < BATCH_BYTES or not len(self._ends)):
            self._fill()
        fitting = int(np.searchsorted(self._ends[:rows], self._start + BATCH_BYTES))
        return min(len(self._ends), max(fitting, 1))

    def take(self, lines: int) -> bytes:
        r"""Return the next lines, each with its \n; they must be `ready`."""
        if lines == 0:
            return b""
        start, self._start = self._start, int(self._ends[lines - 1]) + 1
        self._ends = self._ends[lines:]
        return self._data[start : self._start]

    @property
    def _held(self) -> int:
        return len(self._data) - self._start

    def _fill(self) -> None:
        block = self._file.read(_READ_BYTES)
        if not block:
            self._more = False
            last_end = int(self._ends[-1]) + 1 if len(self._ends) else self._start
            block = b"\n" if len(self._data) > last_end else b""
        elif self._skipping:
            end = block.find(b"\n")
            if end < 0:
                return
            block = block[end:]
        self._skipping = False
        rest = self._data[self._start :]
        self._data = rest + block
        ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + len(rest)
        self._ends = np.concatenate([self._ends - self._start, ends])
        self._start = 0
        tail = int(self._ends[-1]) + 1 if len(self._ends) else 0
        # One more for a carriage return, one to be longer than allowed.
        if len(self._data) - tail > MAX_LINE_BYTES + 2:
            self._data = self._data[: tail + MAX_LINE_BYTES + 2]
            self._skipping = True


def discard(file: IO[bytes], size: int) -> None:
    """Move on in a file that cannot seek."""
    while size > 0 and (block := file.read(min(size, _READ_BYTES))):
        size -= len(block)


def bom_bytes(first: bytes) -> int:
    """Return the length of the byte-order mark that a file begins with, or 0."""
    return len(_BOM) if first.startswith(_BOM) else 0


class LineReader:
    """One file, or two aligned ones, whose lines are the texts."""

    def __init__(self, files: Sequence[IO[bytes]], side: Side) -> None:
        self._lines = [Lines(file) for file in files]
        self._side = side

    def take(self, rows: int) -> Rows:
        """Return the next rows, at most so many; none where either file ends."""
        ready = min(lines.ready(rows) for lines in self._lines)
        sides = [_texts(_split(lines.take(ready))) for lines in self._lines]
        if self._side == "both":
            (src, src_faults), (tgt, tgt_faults) = sides
            return Rows(src, tgt, np.minimum(src_faults, tgt_faults), {})
        texts, faults = sides[0]
        return _one_sided(texts, faults, self._side, {})


class TsvReader:
    """Lines with fields between tabs; no quoting."""

    def __init__(self, file: IO[bytes], columns: Columns) -> None:
        self._lines, self._columns = Lines(file), columns

    def take(self, rows: int) -> Rows:
        """Return the next rows, at most so many. A row that lacks one of the sides is malformed, its line is kept."""
        lines, faults = _texts(_split(self._lines.take(self._lines.ready(rows))))
        fields = pc.split_pattern(lines, "\t")
        lengths = np.asarray(pc.list_value_length(fields))
        starts = fields.offsets.to_numpy()[:-1]

        def field(column: Column | None) -> pa.StringArray:
            if column is None:
                return pa.nulls(len(lines), pa.string())
            number = int(column)
            return fields.values.take(pa.array(starts + number, mask=lengths <= number))

        src, tgt = self._columns.src, self._columns.tgt
        has_sides = lengths > max(int(column) for column in (src, tgt) if column is not None)
        faults = np.minimum(faults, _faults(~has_sides, _MALFORMED))
        scores = {name: numbers(field(column)) for name, column in self._columns.scores}
        is_whole = np.isin(faults, (_TOO_LONG, _MALFORMED))
        return _with_whole_lines(Rows(field(src), field(tgt), faults, scores), lines, is_whole, self._columns)


class JsonlReader:
    """Lines with a JSON object each; the texts are strings of it. Of a row with a fault the whole line is kept."""

    def __init__(self, file: IO[bytes], columns: Columns) -> None:
        self._lines, self._columns = Lines(file), columns

    def take(self, rows: int) -> Rows:
        """Return the next rows, at most so many. One that is no object, or lacks a text, is malformed."""
        raw = _split(self._lines.take(self._lines.ready(rows)))
        lines, faults = _texts(raw)
        texts: dict[Column, list[str | None]] = {
            name: [] for name in (self._columns.src, self._columns.tgt) if name is not None
        }
        scores: dict[str, list[float | None]] = {name: [] for name, _ in self._columns.scores}
        for line in raw.to_pylist():
            fields = _json_object(line)
            for name, found in texts.items():
                value = fields.get(name)
                found.append(value if type(value) is str else None)
            for name, field in self._columns.scores:
                scores[name].append(_json_number(fields.get(field)))
        sides: dict[Column | None, pa.StringArray] = {None: pa.nulls(len(raw), pa.string())}
        for name, found in texts.items():
            sides[name] = pa.array(found, pa.string())
            # A line that is no UTF-8 could not be read at all: of what there is in it nothing can be said.
            faults[np.asarray(sides[name].is_null()) & (faults == _READABLE)] = _MALFORMED
        rows_read = Rows(
            sides[self._columns.src],
            sides[self._columns.tgt],
            faults,
            {name: _finite(values) for name, values in scores.items()},
        )
        return _with_whole_lines(rows_read, lines, faults != _READABLE, self._columns)


def _json_object(line: bytes) -> dict[Any, Any]:
    """Return the fields of a line; none where it is no JSON object."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _json_number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None  # True is no number


# --- Tables ----------------------------------------------------------------------------------------------------------


class ChunkReader:
    """Rows that come in chunks of their own size."""

    def __init__(self, chunks: Iterator[Rows]) -> None:
        self._chunks = chunks
        self._chunk: Rows | None = None
        self._start = 0

    def take(self, rows: int) -> Rows:
        """Return the next rows, at most so many and none of two chunks; no row at the end only."""
        if self._chunk is None or self._start == len(self._chunk):
            self._chunk, self._start = next((chunk for chunk in self._chunks if len(chunk)), _no_rows()), 0
        start, chunk = self._start, self._chunk
        taken = min(rows, len(chunk) - start)
        self._start += _fitting(chunk, start, taken) if taken else 0
        return chunk.part(start, self._start - start)


def parquet_rows(file: pq.ParquetFile, path: str, columns: Columns, first_row: int, rows: int) -> Iterator[Rows]:
    """Yield rows of a Parquet file; those before the first in its row group are read and passed over.

    Memory holds the pages that are being read, and one batch: where texts are long on average, of fewer rows.
    Raises InputError for pages that are damaged.
    """
    metadata = file.metadata
    starts = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])
    first_group, last_group = np.searchsorted(starts, [first_row, first_row + rows - 1], side="right") - 1
    groups = list(range(int(first_group), int(last_group) + 1))
    wanted = sorted(
        {str(name) for name in (columns.src, columns.tgt, *dict(columns.scores).values()) if name is not None}
    )
    batches = file.iter_batches(
        batch_size=_rows_that_fit(metadata, groups, wanted), row_groups=groups, columns=wanted, use_threads=False
    )
    passed = first_row - int(starts[first_group])
    while (batch := _next_batch(batches, path)) is not None:
        if passed < len(batch):
            yield _parquet_rows(batch.slice(passed), columns)
        passed = max(passed - len(batch), 0)


def _rows_that_fit(metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str]) -> int:
    """Return a number of rows that on average have BATCH_BYTES, in the row group where rows are largest."""
    leaves = [metadata.schema.column(place).path for place in range(len(metadata.schema))]
    places = [leaves.index(name) for name in columns]
    row_bytes = 1.0
    for group in (metadata.row_group(number) for number in groups):
        group_bytes = sum(group.column(place).total_uncompressed_size for place in places)
        row_bytes = max(row_bytes, group_bytes / max(group.num_rows, 1))
    return max(1, min(_CHUNK_ROWS, int(BATCH_BYTES / row_bytes)))


def _next_batch(batches: Iterator[pa.RecordBatch], path: str) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"broken Parquet: {error}", where=path, remedy="Fetch or write the file again") from error


def _parquet_rows(batch: pa.RecordBatch, columns: Columns) -> Rows:
    faults = np.full(len(batch), _READABLE, dtype=np.uint8)
    sides: list[pa.StringArray] = []
    for name in (columns.src, columns.tgt):
        if name is None:
            sides.append(pa.nulls(len(batch), pa.string()))
            continue
        column = _plain(batch.column(name))
        texts, text_faults = _texts(column.cast(pa.binary()))
        missing = _faults(np.asarray(texts.is_null()), _MALFORMED)
        faults = np.minimum(np.minimum(faults, text_faults), missing)
        sides.append(texts)
    scores = {name: _number_column(_plain(batch.column(column))) for name, column in columns.scores}
    return Rows(_whole(sides[0]), _whole(sides[1]), faults, scores)


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _number_column(column: pa.Array) -> pa.FloatArray:
    if is_text(column.type):
        return numbers(_texts(column.cast(pa.binary()))[0])
    return _finite(column.cast(pa.float64(), safe=False))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds texts (bytes too: old writers do not say that they are text)."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    return kind in texts


def is_number(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def tmx_rows(units: Iterator[Unit], side: Side, scores: Sequence[str]) -> Iterator[Rows]:
    """Yield the units of a TMX as rows; one that lacks a side is malformed, with what there is of it."""
    while held := _held_units(units):
        faults = np.full(len(held), _READABLE, dtype=np.uint8)
        sides = {"src": [unit.src for unit in held], "tgt": [unit.tgt for unit in held]}
        found: dict[str, pa.StringArray] = {}
        for name, values in sides.items():
            encoded = [None if value is None else value.encode() for value in values]
            found[name], text_faults = _texts(pa.array(encoded, pa.binary()))
            if side in ("both", name):
                missing = _faults(np.asarray(found[name].is_null()), _MALFORMED)
                faults = np.minimum(np.minimum(faults, text_faults), missing)
        numbers_of = {
            name: numbers(pa.array([unit.properties[place] for unit in held], pa.string()))
            for place, name in enumerate(scores)
        }
        yield Rows(found["src"], found["tgt"], faults, numbers_of)


def _held_units(units: Iterator[Unit]) -> list[Unit]:
    held: list[Unit] = []
    characters = 0
    for unit in islice(units, _CHUNK_ROWS):
        held.append(unit)
        characters += len(unit.src or "") + len(unit.tgt or "")
        if characters >= _CHUNK_CHARACTERS:
            break
    return held


def arrow_rows(file: pa.NativeFile) -> Iterator[Rows]:
    """Yield the rows of a file that `arrow_batch` was written to."""
    reader = pa.ipc.open_file(file)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        scores = {name: batch.column(place) for place, name in enumerate(batch.schema.names) if place > 2}
        yield Rows(batch.column(0), batch.column(1), batch.column(2).to_numpy(), scores)


def arrow_batch(rows: Rows) -> pa.RecordBatch:
    """Return rows as one batch: src, tgt, fault, and the scores by their names."""
    names = ["src", "tgt", "fault", *rows.scores]
    return pa.record_batch([rows.src, rows.tgt, pa.array(rows.faults), *rows.scores.values()], names=names)


def arrow_schema(scores: Sequence[str]) -> pa.Schema:
    """Return the schema of `arrow_batch`."""
    fields = [("src", pa.string()), ("tgt", pa.string()), ("fault", pa.uint8())]
    return pa.schema([*fields, *((name, pa.float32()) for name in scores)])


# --- Bytes to texts and numbers --------------------------------------------------------------------------------------


def numbers(texts: pa.StringArray) -> pa.FloatArray:
    """Return the decimal numbers in texts, float32; null where a text is none, or none that float32 can hold."""
    good = pc.match_substring_regex(texts, _NUMBER)
    trimmed = pc.utf8_trim_whitespace(pc.if_else(good, texts, _NO_TEXT))
    return _finite(trimmed.cast(pa.float64()))


def _finite(values: pa.Array | list[float | None]) -> pa.FloatArray:
    column = pa.array(values, pa.float64()) if isinstance(values, list) else values
    floats = column.cast(pa.float32(), safe=False)
    return pc.if_else(pc.is_finite(floats), floats, pa.scalar(None, pa.float32()))


def _split(data: bytes) -> pa.BinaryArray:
    data = data.replace(b"\r\n", b"\n")
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
    offsets = np.zeros(len(ends) + 1, dtype=np.int32)
    offsets[1:] = ends - np.arange(len(ends))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data.translate(None, b"\n"))]
    return pa.Array.from_buffers(pa.binary(), len(ends), buffers)


def _texts(lines: pa.BinaryArray) -> tuple[pa.StringArray, Faults]:
    """Return bytes as texts: those that are no UTF-8 escaped, those that are too long cut; and which are which."""
    faults = np.full(len(lines), _READABLE, dtype=np.uint8)
    longest = pc.max(pc.binary_length(lines)).as_py()
    if longest is not None and longest > MAX_LINE_BYTES:
        rows = lines.to_pylist()
        faults[:] = [_TOO_LONG if row is not None and len(row) > MAX_LINE_BYTES else _READABLE for row in rows]
        kept = [_beginning(row) if fault == _TOO_LONG else row for row, fault in zip(rows, faults)]
        lines = pa.array(kept, pa.binary())
    texts = lines.view(pa.string())
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        # Told row by row: one file may hold lines of several encodings.
        rows = lines.to_pylist()
        escaped = [None if row is None else row.decode("utf-8", "backslashreplace") for row in rows]
        invalid = np.array([row is not None and not _is_utf8(row) for row in rows])
        return pa.array(escaped, pa.string()), np.minimum(faults, _faults(invalid, _INVALID))
    return texts, faults


def _faults(mask: npt.NDArray[np.bool_], fault: int) -> Faults:
    return np.where(mask, np.uint8(fault), np.uint8(_READABLE))


def _beginning(line: bytes) -> bytes:
    return line[: 4 * KEPT_CHARACTERS].decode("utf-8", "backslashreplace")[:KEPT_CHARACTERS].encode()


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _with_whole_lines(rows: Rows, lines: pa.StringArray, is_whole: npt.NDArray[np.bool_], columns: Columns) -> Rows:
    """Return the rows of a table, some of them with their whole line as source (target, where that alone is read)."""
    if not is_whole.any():
        return rows
    whole = pa.array(is_whole)
    if columns.src is None:
        return replace(rows, tgt=pc.if_else(whole, lines, rows.tgt))
    return replace(rows, src=pc.if_else(whole, lines, rows.src), tgt=pc.if_else(whole, _NO_TEXT, rows.tgt))


def _one_sided(texts: pa.StringArray, faults: Faults, side: Side, scores: dict[str, pa.FloatArray]) -> Rows:
    other = pa.nulls(len(texts), pa.string())
    return Rows(other, texts, faults, scores) if side == "tgt" else Rows(texts, other, faults, scores)


def _no_rows() -> Rows:
    empty = pa.array([], pa.string())
    return Rows(empty, empty, np.empty(0, dtype=np.uint8), {})


def _fitting(rows: Rows, start: int, wanted: int) -> int:
    """Return how many rows from `start` on have BATCH_BYTES a side, at least one."""
    fitting = wanted
    for texts in (rows.src, rows.tgt):
        lengths = pc.fill_null(pc.binary_length(texts.slice(start, wanted)), 0)
        fitting = min(fitting, int(np.searchsorted(np.cumsum(lengths.to_numpy(zero_copy_only=False)), BATCH_BYTES)))
    return max(fitting, 1)


def _part(array: pa.Array, start: int, rows: int) -> pa.Array:
    return _whole(array.slice(start, rows))


def _whole(array: pa.Array) -> pa.Array:
    """Return an array that begins where its buffers do."""
    return array if array.offset == 0 else pa.concat_arrays([array, array.slice(0, 0)])
