"""Raw corpora: the scan before any work starts, the pieces that they are cut into, and the reader of a piece.

Moses pairs (two aligned files) and TSV, plain or gzip. A line is what ends with the byte \\n; a carriage return before
it is taken off, a byte-order mark at the file's start too; any other separator stays inside the line. The last line
may lack its end.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import SPLITS, CorporaConfig, CorpusConfig, LanguagesConfig, Split
from pipelines.errors import InputError
from pipelines.stage import file_sha256

ROW_ID_STRIDE = 2**40  # row_id = ordinal of the corpus * stride + line number
MALFORMED = "malformed"
INVALID_UTF8 = "invalid_utf8"

_SCAN_BYTES = 8 * 2**20
_READ_BYTES = 2**20
_UNPACK_ROWS = 4096
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
_BROKEN_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True)
class Piece:
    """Some lines of one corpus: what a worker reads at once.

    Offsets are bytes in the (uncompressed) files; `target` is None for TSV, whose columns are `columns`.
    `index` numbers the pieces of a run, in the order of their rows.
    """

    index: int
    split: Split
    corpus: str
    ordinal: int
    first_line: int
    rows: int
    source: str
    source_offset: int
    target: str | None
    target_offset: int
    columns: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the way between processes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Piece:
        """Return the piece of what `to_dict` gave."""
        return cls(**{**values, "columns": tuple(values["columns"])})


@dataclass(frozen=True)
class Corpus:
    """A scanned corpus: its pieces in order, how many rows they have, and whether they lie in compressed files."""

    split: Split
    name: str
    rows: int
    compressed: bool
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class RawBatch:
    """Lines as read. A row with a reason has its text escaped (invalid UTF-8), or its whole line as source (malformed).

    row_id [rows] int64; src, tgt, reason string [rows], `tgt` null where malformed and `reason` null where all is well.
    """

    row_id: npt.NDArray[np.int64]
    src: pa.StringArray
    tgt: pa.StringArray
    reason: pa.StringArray


# --- Before any worker starts --------------------------------------------------------------------------------------


def input_digests(corpora: CorporaConfig) -> dict[str, str]:
    """Return the sha256 of each input file, by names like "train/multi30k/source" that hold no path.

    Raises InputError for a file that is missing or no file.
    """
    digests: dict[str, str] = {}
    for split in SPLITS:
        for corpus in corpora.of(split):
            for role, path in _files(corpus).items():
                digests[f"{split}/{corpus.name}/{role}"] = file_sha256(_checked_file(path, split, corpus, role))
    return digests


def scan(corpora: CorporaConfig, languages: LanguagesConfig, rows_per_piece: int) -> list[Corpus]:
    """Return all corpora in the order of the splits, cut into pieces; memory does not grow with the files.

    Raises InputError for whatever of the files cannot be used: missing, broken gzip, sides of unequal length, no row,
    a side without any text, a column that the header does not name.
    """
    scanned: list[Corpus] = []
    first_index = 0
    ordinal = 0
    for split in SPLITS:
        for corpus in corpora.of(split):
            found = _scan_corpus(corpus, split, ordinal, languages, rows_per_piece)
            pieces = (replace(piece, index=first_index + place) for place, piece in enumerate(found.pieces))
            scanned.append(replace(found, pieces=tuple(pieces)))
            first_index += len(found.pieces)
            ordinal += 1
    return scanned


def _files(corpus: CorpusConfig) -> dict[str, str]:
    roles = {"source": corpus.source, "target": corpus.target, "tsv": corpus.tsv}
    return {role: path for role, path in roles.items() if path is not None}


def _checked_file(path: str, split: str, corpus: CorpusConfig, role: str) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    raise InputError(
        "a folder, not a file" if file.is_dir() else "no such file",
        where=path,
        remedy=f"Correct the {role} of the corpus {corpus.name!r} in corpora.{split}",
    )


def _scan_corpus(
    corpus: CorpusConfig, split: Split, ordinal: int, languages: LanguagesConfig, rows_per_piece: int
) -> Corpus:
    paths = [_checked_file(path, split, corpus, role) for role, path in _files(corpus).items()]
    skip = 1 if corpus.header else 0
    scans = [_scan_lines(path, rows_per_piece, skip) for path in paths]
    rows = scans[0].lines - skip
    if scans[-1].lines != scans[0].lines:
        raise InputError(
            f"{scans[0].lines} lines in the source, {scans[-1].lines} lines in the target {paths[-1]}",
            where=str(paths[0]),
            remedy=f"Line n of both files must be one pair; align the corpus {corpus.name!r} of {split} again",
        )
    if rows <= 0:
        raise InputError(
            f"the corpus {corpus.name!r} of {split} has no row",
            where=str(paths[0]),
            remedy="Give a file with text, or take the corpus out of the recipe",
        )
    columns = _columns(corpus, paths[0])
    target = None if corpus.tsv is not None else str(paths[1])
    whole = Piece(
        0,
        split,
        corpus.name,
        ordinal,
        skip,
        rows,
        str(paths[0]),
        scans[0].starts[0],
        target,
        scans[-1].starts[0],
        columns,
    )
    _check_text(whole, languages)
    # Nothing can be found in the middle of a compressed file: its pieces keep the offset of the first.
    compressed = any(is_gzip(path) for path in paths)
    pieces = tuple(
        replace(
            whole,
            first_line=skip + place * rows_per_piece,
            rows=min(rows_per_piece, rows - place * rows_per_piece),
            source_offset=scans[0].starts[0 if compressed else place],
            target_offset=scans[-1].starts[0 if compressed else place],
        )
        for place in range(-(-rows // rows_per_piece))
    )
    return Corpus(split, corpus.name, rows, compressed, pieces)


@dataclass(frozen=True)
class _LineScan:
    lines: int
    starts: list[int]  # where lines skip, skip + rows_per_piece, ... start, in bytes


def _scan_lines(path: Path, rows_per_piece: int, skip: int) -> _LineScan:
    lines, position, last = 0, 0, b"\n"
    starts: list[int] = []
    with opened(path) as file:
        while block := file.read(_SCAN_BYTES):
            if position == 0 and skip == 0:
                starts.append(len(_BOM) if block.startswith(_BOM) else 0)
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            # The end of line n is the start of line n + 1.
            following = np.arange(lines + 1, lines + 1 + len(ends))
            wanted = ((following - skip) % rows_per_piece == 0) & (following >= skip)
            starts.extend((position + ends[wanted] + 1).tolist())
            lines, position, last = lines + len(ends), position + len(block), block[-1:]
    if last != b"\n":
        lines += 1
    return _LineScan(lines, starts or [0])


def _columns(corpus: CorpusConfig, path: Path) -> tuple[int, int]:
    wanted = (corpus.source_column, corpus.target_column)
    names: list[str] = []
    if corpus.header:
        with opened(path) as file:
            first = _Lines(file).take(1).removeprefix(_BOM).rstrip(b"\r\n")
        names = first.decode("utf-8", "backslashreplace").split("\t")
    for column in wanted:
        if isinstance(column, str) and column not in names:
            raise InputError(
                f"the header has no column {column!r}, but {', '.join(names)}",
                where=str(path),
                remedy=f"Correct source_column or target_column of the corpus {corpus.name!r}",
            )
    src, tgt = (names.index(column) if isinstance(column, str) else column for column in wanted)
    return src, tgt


def _check_text(whole: Piece, languages: LanguagesConfig) -> None:
    """Raise InputError where one side of a corpus has nothing but white space; most are told by their first lines."""
    missing = {"src": languages.source, "tgt": languages.target}
    for batch in read_batches(whole, 1000):
        for side in tuple(missing):
            texts = getattr(batch, side).filter(pc.is_null(batch.reason))
            if pc.any(pc.match_substring_regex(texts, r"\S")).as_py():
                del missing[side]
        if not missing:
            return
    side, language = next(iter(missing.items()))
    file = whole.target if side == "tgt" and whole.target is not None else whole.source
    column = "" if whole.target is not None else f" in column {whole.columns[0 if side == 'src' else 1]}"
    raise InputError(
        f"a language without text: no line of {whole.corpus!r} of {whole.split} has readable {language} text{column}",
        where=file,
        remedy="Give the right file or column, in UTF-8",
    )


# --- Reading -------------------------------------------------------------------------------------------------------


def is_gzip(path: Path) -> bool:
    """Return whether a file is to be read as gzip: by its name, or by its first bytes, which no text starts with."""
    with path.open("rb") as file:
        return path.suffix == ".gz" or file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def read_batches(piece: Piece, batch_rows: int) -> Iterator[RawBatch]:
    """Yield the rows of a piece, at most `batch_rows` at once.

    Raises InputError for a broken gzip, RuntimeError when the files have become shorter than they were.
    """
    with ExitStack() as stack:
        source = stack.enter_context(_lines_from(piece.source, piece.source_offset))
        target = stack.enter_context(_lines_from(piece.target, piece.target_offset)) if piece.target else None
        for start in range(0, piece.rows, batch_rows):
            rows = min(batch_rows, piece.rows - start)
            first = piece.ordinal * ROW_ID_STRIDE + piece.first_line + start
            row_id = np.arange(first, first + rows, dtype=np.int64)
            lines = [_decoded(reader.take(rows)) for reader in (source, target) if reader is not None]
            if any(len(texts) != rows for texts, _ in lines):
                raise RuntimeError(f"{piece.source} or its target has fewer lines than at the start of the run")
            yield _pairs(row_id, *lines) if target else _tsv_pairs(row_id, *lines[0], piece.columns)


def unpacked(pieces: Sequence[Piece], folder: Path) -> Iterator[Piece]:
    """Yield all pieces of a compressed corpus, each once its lines lie in plain files in `folder`.

    The files are streamed: memory holds one read block and one line, whatever they unpack to.
    """
    first = pieces[0]
    with ExitStack() as stack:
        source = stack.enter_context(_lines_from(first.source, first.source_offset))
        target = stack.enter_context(_lines_from(first.target, first.target_offset)) if first.target else None
        for piece in pieces:
            source_file = _write_lines(source, piece.rows, folder / f"{piece.index:06d}.source")
            target_file = _write_lines(target, piece.rows, folder / f"{piece.index:06d}.target") if target else None
            yield replace(piece, source=source_file, source_offset=0, target=target_file, target_offset=0)


def _write_lines(lines: _Lines, rows: int, path: Path) -> str:
    with path.open("wb") as file:
        for start in range(0, rows, _UNPACK_ROWS):
            file.write(lines.take(min(_UNPACK_ROWS, rows - start)))
    return str(path)


class _Lines:
    """The lines of a binary file, some at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rest = b""

    def take(self, rows: int) -> bytes:
        r"""Return the next lines, each with its \n, which a last line gets if it lacks it; fewer at the file's end."""
        blocks = [self._rest]
        missing = rows - self._rest.count(b"\n")
        while missing > 0 and (block := self._file.read(_READ_BYTES)):
            blocks.append(block)
            missing -= block.count(b"\n")
        data = b"".join(blocks)
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
        if len(ends) >= rows:
            cut = int(ends[rows - 1]) + 1
            self._rest = data[cut:]
            return data[:cut]
        self._rest = b""
        return data if data.endswith(b"\n") or not data else data + b"\n"


@contextmanager
def _lines_from(path: str, offset: int) -> Iterator[_Lines]:
    with opened(Path(path)) as file:
        file.seek(offset)
        yield _Lines(file)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file's uncompressed bytes; a fault of gzip anywhere in the block becomes an InputError with its name."""
    try:
        if is_gzip(path):
            with gzip.open(path, "rb") as file:
                yield cast(IO[bytes], file)
        else:
            with path.open("rb") as file:
                yield file
    except _BROKEN_GZIP as error:
        raise InputError(
            f"broken gzip: {error}", where=str(path), remedy="Fetch or compress the file again; `gzip -t` tests it"
        ) from error


def _decoded(data: bytes) -> tuple[pa.StringArray, pa.BooleanArray]:
    """Return the lines of whole-line bytes as texts, and which of them are valid UTF-8; others are escaped."""
    lines = _split(data)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        # \n is never part of a character, so a line is valid or not whatever its neighbours are.
        texts = [line.decode("utf-8", "backslashreplace") for line in lines.to_pylist()]
        valid = [_is_utf8(line) for line in lines.to_pylist()]
        return pa.array(texts, type=pa.string()), pa.array(valid)
    return lines.view(pa.string()), pa.array(np.ones(len(lines), dtype=np.bool_))


def _split(data: bytes) -> pa.BinaryArray:
    data = data.replace(b"\r\n", b"\n")
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
    offsets = np.zeros(len(ends) + 1, dtype=np.int32)
    offsets[1:] = ends - np.arange(len(ends))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data.translate(None, b"\n"))]
    return pa.Array.from_buffers(pa.binary(), len(ends), buffers)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _pairs(
    row_id: npt.NDArray[np.int64],
    source: tuple[pa.StringArray, pa.BooleanArray],
    target: tuple[pa.StringArray, pa.BooleanArray],
) -> RawBatch:
    valid = pc.and_(source[1], target[1])
    return RawBatch(row_id, source[0], target[0], pc.if_else(valid, _NO_REASON, INVALID_UTF8))


_NO_REASON = pa.scalar(None, type=pa.string())


def _tsv_pairs(
    row_id: npt.NDArray[np.int64], lines: pa.StringArray, valid: pa.BooleanArray, columns: tuple[int, int]
) -> RawBatch:
    fields = pc.split_pattern(lines, "\t")
    whole = pc.greater(pc.list_value_length(fields), max(columns))
    starts = fields.offsets.to_numpy()[:-1]

    def column(number: int, otherwise: pa.Array | pa.Scalar) -> pa.StringArray:
        places = pa.array(starts + number, mask=~np.asarray(whole))
        return pc.if_else(whole, fields.values.take(places), otherwise)

    reason = pc.if_else(whole, pc.if_else(valid, _NO_REASON, INVALID_UTF8), MALFORMED)
    return RawBatch(row_id, column(columns[0], lines), column(columns[1], _NO_REASON), reason)
