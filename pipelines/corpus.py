"""Raw corpora: the scan before any work starts, the pieces that they are cut into, and the reader of a piece.

Aligned files (Moses), TSV, JSONL, TMX and Parquet; text plain or compressed (gzip, zstd, bz2, xz); one file or those
that fit a pattern, here or behind a URI. A line is what ends with the byte \\n; a carriage return before it is taken
off, a byte-order mark at the file's start too; any other separator stays inside the line. The last line may lack its
end.

Plain text, JSONL and Parquet are read in pieces, many at a time. What can only be read from its start (compressed text,
TMX, a URI without ranges, a Parquet file of huge row groups) is read once by `unpacked`, which writes the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.config import ALL_SPLITS, CorporaConfig, CorpusConfig, LanguagesConfig, Split
from pipelines.errors import InputError
from pipelines.files import (
    can_seek,
    changed,
    check_unchanged,
    is_gzip,
    matching,
    opened,
    random_access,
    sha256_of,
    version,
)
from pipelines.readers import (
    INVALID_UTF8,
    LINE_TOO_LONG,
    MALFORMED,
    READ_FAULTS,
    ChunkReader,
    Column,
    Columns,
    JsonlReader,
    LineReader,
    Lines,
    Reader,
    Rows,
    Side,
    TsvReader,
    arrow_batch,
    arrow_rows,
    arrow_schema,
    bom_bytes,
    discard,
    is_number,
    is_text,
    parquet_rows,
    tmx_rows,
)
from pipelines.stage import replacing
from pipelines.tmx import survey, units

__all__ = [
    "INVALID_UTF8",
    "LINE_TOO_LONG",
    "MALFORMED",
    "READ_FAULTS",
    "ROW_ID_STRIDE",
    "Corpus",
    "Piece",
    "RawBatch",
    "input_digests",
    "is_gzip",
    "opened",
    "read_batches",
    "scan",
    "unpacked",
]

Form = Literal["lines", "tsv", "jsonl", "parquet", "tmx", "arrow"]

ROW_ID_STRIDE = 2**40  # row_id = ordinal of the corpus * stride + line number

_SCAN_BYTES = 8 * 2**20
_UNPACK_ROWS = 8192
# Row groups of more pieces than this are unpacked: reading a piece means reading what is before it in its group.
_PIECES_PER_ROW_GROUP = 16
_DEFAULT_COLUMNS: Mapping[Form, tuple[Column, Column]] = {
    "tsv": (0, 1),
    "jsonl": ("src", "tgt"),
    "parquet": ("src", "tgt"),
}


@dataclass(frozen=True)
class Piece:
    """Some rows of one file, or of two aligned ones: what a worker reads at once.

    `index` numbers the pieces of a run, in the order of their rows; `first_line` is the first row's number in its
    corpus, over all of its files, header lines included. Offsets say where the piece begins: bytes of the uncompressed
    text, units of a TMX, rows of Parquet and Arrow. `target` is None but for two aligned files; one file of lines has
    the side `side`. `columns` are those of source and target (numbers, names, language tags), None for a side that is
    not read, `scores` pairs of name and column. A `streamed` file can be read from its start only. The versions tell
    whether a file is still the one that was scanned; "" where it is one of ours.
    """

    index: int
    split: Split
    corpus: str
    ordinal: int
    first_line: int
    rows: int
    form: Form
    side: Side
    source: str
    source_offset: int
    source_version: str
    target: str | None
    target_offset: int
    target_version: str
    columns: tuple[Column | None, Column | None]
    scores: tuple[tuple[str, Column], ...]
    streamed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the way between processes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Piece:
        """Return the piece of what `to_dict` gave, also by way of JSON."""
        src, tgt = values["columns"]
        scores = tuple((name, column) for name, column in values["scores"])
        return cls(**{**values, "columns": (src, tgt), "scores": scores})


@dataclass(frozen=True)
class Corpus:
    """A scanned corpus: its pieces in order, how many rows they have, and whether some lie in files that are streamed.

    Pieces of such a file are for `unpacked`; read by themselves they are right too, but each reads from the start.
    """

    split: Split
    name: str
    rows: int
    compressed: bool
    pieces: tuple[Piece, ...]

    def streams(self) -> list[tuple[Piece, ...]]:
        """Return the pieces of each file that should go through `unpacked`: streamed, and more than one piece."""
        return [pieces for pieces in _by_file(self.pieces) if _is_stream(pieces)]

    def direct(self) -> tuple[Piece, ...]:
        """Return all other pieces: `read_batches` reads each by itself."""
        return tuple(piece for pieces in _by_file(self.pieces) if not _is_stream(pieces) for piece in pieces)


@dataclass(frozen=True)
class RawBatch:
    """Rows as read. A row with a reason has its text escaped (invalid UTF-8), cut (too long), or what there is of it.

    row_id [rows] int64; src, tgt, reason string [rows]: `reason` is null where all is well, else one of READ_FAULTS. A
    line of TSV or JSONL that could not be taken apart stands in src, and tgt is null; of other forms each side has what
    there is. In a monolingual corpus one side is all null, and such lines stand in the other. scores float32 [rows] by
    name, null where a cell holds no number.
    """

    row_id: npt.NDArray[np.int64]
    src: pa.StringArray
    tgt: pa.StringArray
    reason: pa.StringArray
    scores: dict[str, pa.FloatArray] = field(default_factory=dict)


# --- Before any worker starts --------------------------------------------------------------------------------------


def input_digests(corpora: CorporaConfig) -> dict[str, str]:
    """Return the sha256 of each input file, by names like "train/multi30k/source" that hold no path.

    Where a pattern fits several files, their number follows: "train/multi30k/source/00000". Raises InputError for a
    file that is missing, no file, or cannot be read.
    """
    paths: dict[str, str] = {}
    for split in ALL_SPLITS:
        for corpus in corpora.of(split):
            for role, files in _files(corpus, split).items():
                for number, file in enumerate(files):
                    place = f"/{number:05d}" if len(files) > 1 else ""
                    paths[f"{split}/{corpus.name}/{role}{place}"] = file
    # Hashing lets other threads go on.
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(sha256_of, paths.values())))


def scan(corpora: CorporaConfig, languages: LanguagesConfig, rows_per_piece: int) -> list[Corpus]:
    """Return all corpora in the order of the splits, cut into pieces; memory does not grow with the files.

    Raises InputError for whatever of the config or the files cannot be used: missing, broken, changed meanwhile, sides
    of unequal length, no row, a side without any text, a column that is not there, a score column without any number.
    """
    scanned: list[Corpus] = []
    first_index = 0
    ordinal = 0
    for split in ALL_SPLITS:
        for corpus in corpora.of(split):
            found = _scan_corpus(corpus, split, ordinal, languages, rows_per_piece)
            pieces = (replace(piece, index=first_index + place) for place, piece in enumerate(found.pieces))
            scanned.append(replace(found, pieces=tuple(pieces)))
            first_index += len(found.pieces)
            ordinal += 1
    return scanned


def _files(corpus: CorpusConfig, split: Split) -> dict[str, list[str]]:
    """Return the files of each role; those of source and target are as many. Raises InputError."""
    roles = {role: getattr(corpus, role) for role in ("source", "target", "tsv", "jsonl", "parquet", "tmx")}
    files = {
        role: matching(path, f"Correct the {role} of the corpus {corpus.name!r} in corpora.{split}")
        for role, path in roles.items()
        if path is not None
    }
    if len({len(names) for names in files.values()}) > 1:
        raise InputError(
            f"{len(files['source'])} files fit the source, {len(files['target'])} the target {corpus.target}",
            where=str(corpus.source),
            remedy=f"File n of both must hold one text; correct the corpus {corpus.name!r} in corpora.{split}",
        )
    return files


def _scan_corpus(
    corpus: CorpusConfig, split: Split, ordinal: int, languages: LanguagesConfig, rows_per_piece: int
) -> Corpus:
    layout = _Layout.of(corpus, split, languages)
    wholes: list[Piece] = []
    pieces: list[Piece] = []
    for paths in zip(*_files(corpus, split).values()):
        first_line = wholes[-1].first_line + wholes[-1].rows if wholes else 0
        whole = Piece(
            index=0,
            split=split,
            corpus=corpus.name,
            ordinal=ordinal,
            first_line=first_line,
            rows=0,
            form=layout.form,
            side=layout.side,
            source=paths[0],
            source_offset=0,
            source_version=version(paths[0]),
            target=paths[1] if len(paths) == 2 else None,
            target_offset=0,
            target_version=version(paths[1]) if len(paths) == 2 else "",
            columns=layout.columns,
            scores=layout.scores,
            streamed=False,
        )
        found = _SCANS[layout.form](whole, corpus.header, rows_per_piece)
        wholes.append(replace(found.whole, rows=found.rows))
        pieces.extend(found.cut(rows_per_piece))
    rows = sum(whole.rows for whole in wholes)
    if rows == 0:
        raise InputError(
            f"the corpus {corpus.name!r} of {split} has no row",
            where=wholes[0].source,
            remedy="Give a file with text, or take the corpus out of the recipe",
        )
    _check_content(wholes, languages)
    for whole in wholes:
        _check_unchanged(whole)
    return Corpus(split, corpus.name, rows, any(piece.streamed for piece in pieces), tuple(pieces))


@dataclass(frozen=True)
class _Layout:
    """What a corpus's config says of every file of it."""

    form: Form
    side: Side
    columns: tuple[Column | None, Column | None]
    scores: tuple[tuple[str, Column], ...]

    @classmethod
    def of(cls, corpus: CorpusConfig, split: Split, languages: LanguagesConfig) -> _Layout:
        """Return the layout. Raises InputError for keys that do not go together."""
        tables: tuple[Form, ...] = ("tsv", "jsonl", "parquet", "tmx")
        form: Form = next((form for form in tables if getattr(corpus, form) is not None), "lines")
        given = (corpus.source_column, corpus.target_column)
        scores = tuple((name, score.column) for name, score in corpus.scores.items())
        fault = _fault(corpus, split, form, given, scores)
        if fault is not None:
            what, remedy = fault
            raise InputError(what, where=f"corpora.{split}, {corpus.name!r}", remedy=remedy)
        if form == "lines":
            side: Side = "both" if corpus.target and corpus.source else "src" if corpus.source else "tgt"
            return cls(form, side, (None, None), ())
        if split == "monolingual":
            return cls(form, "src" if given[0] is not None else "tgt", given, scores)
        default = _tags(languages) if form == "tmx" else _DEFAULT_COLUMNS[form]
        src, tgt = (column if wanted is None else wanted for wanted, column in zip(given, default))
        return cls(form, "both", (src, tgt), scores)


def _fault(
    corpus: CorpusConfig,
    split: Split,
    form: Form,
    given: tuple[Column | None, Column | None],
    scores: Sequence[tuple[str, Column]],
) -> tuple[str, str] | None:
    """Return what is wrong with a corpus's keys, and the remedy; None for nothing."""
    columns = [column for column in (*given, *(column for _, column in scores)) if column is not None]
    if form == "lines" and columns:
        return "aligned files have no columns", "Take the columns and scores out, or give a tsv, jsonl, parquet or tmx"
    if form not in ("lines", "tsv") and corpus.header:
        return f"`header` means nothing for {form}", "Take it out"
    if form not in ("lines", "tsv") and any(isinstance(column, int) for column in columns):
        return f"a column of {form} is given by a number", "Give its name (of a tmx: the language, or the prop's type)"
    if form == "tsv" and not corpus.header and any(isinstance(column, str) for column in columns):
        return "a column is given by name", "Set `header: true` if the file's first line has the names"
    if any(isinstance(column, int) and column < 0 for column in columns):
        return "a column's number is below 0", "Count the columns from 0"
    if form != "lines" and split == "monolingual" and (given[0] is None) == (given[1] is None):
        return "a monolingual corpus has one side", "Give either source_column or target_column"
    return None


def _tags(languages: LanguagesConfig) -> tuple[str, str]:
    """Return the tags that a TMX is searched for: languages without region, unless that is all they differ in."""
    src, tgt = (language.partition("-")[0] for language in (languages.source, languages.target))
    return (src, tgt) if src != tgt else (languages.source, languages.target)


@dataclass(frozen=True)
class _Scanned:
    """A file, or two aligned ones: a piece that has all but the rows, these, and where the pieces start."""

    whole: Piece
    rows: int
    source_starts: Sequence[int]
    target_starts: Sequence[int]

    def cut(self, rows_per_piece: int) -> Iterator[Piece]:
        """Yield the pieces."""
        for place in range(-(-self.rows // rows_per_piece)):
            start = place * rows_per_piece
            yield replace(
                self.whole,
                first_line=self.whole.first_line + start,
                rows=min(rows_per_piece, self.rows - start),
                source_offset=self.source_starts[place],
                target_offset=self.target_starts[place] if self.whole.target else 0,
            )


def _scan_text(whole: Piece, header: bool, rows_per_piece: int) -> _Scanned:
    skip = 1 if header else 0
    paths = [path for path in (whole.source, whole.target) if path is not None]
    scans = [_scan_lines(path, rows_per_piece, skip) for path in paths]
    if scans[-1].lines != scans[0].lines:
        raise InputError(
            f"{scans[0].lines} lines in the source, {scans[-1].lines} lines in the target {paths[-1]}",
            where=paths[0],
            remedy=f"Line n of both files must be one pair; align the corpus {whole.corpus!r} of {whole.split} again",
        )
    found = replace(
        whole,
        first_line=whole.first_line + min(skip, scans[0].lines),
        source_offset=scans[0].starts[0],
        target_offset=scans[-1].starts[0] if whole.target else 0,
        streamed=not all(can_seek(path) for path in paths),
    )
    if header and whole.form == "tsv" and scans[0].lines:
        found = _with_numbers(found)
    return _Scanned(found, max(scans[0].lines - skip, 0), scans[0].starts, scans[-1].starts)


@dataclass(frozen=True)
class _LineScan:
    lines: int
    starts: list[int]  # where lines skip, skip + rows_per_piece, ... start, in bytes


def _scan_lines(path: str, rows_per_piece: int, skip: int) -> _LineScan:
    lines, position, last = 0, 0, b"\n"
    starts: list[int] = []
    with opened(path) as file:
        while block := file.read(_SCAN_BYTES):
            if position == 0 and skip == 0:
                starts.append(bom_bytes(block))
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            # The end of line n is the start of line n + 1.
            following = np.arange(lines + 1, lines + 1 + len(ends))
            wanted = ((following - skip) % rows_per_piece == 0) & (following >= skip)
            starts.extend((position + ends[wanted] + 1).tolist())
            lines, position, last = lines + len(ends), position + len(block), block[-1:]
    if last != b"\n":
        lines += 1
    return _LineScan(lines, starts or [0])


def _with_numbers(whole: Piece) -> Piece:
    """Return a piece of a TSV with numbers for names, after the file's header line."""
    with opened(whole.source) as file:
        lines = Lines(file)
        first = lines.take(lines.ready(1))
    names = first[bom_bytes(first) :].rstrip(b"\r\n").decode("utf-8", "backslashreplace").split("\t")

    def number(column: Column) -> Column:
        if isinstance(column, str) and column not in names:
            raise _no_column(whole, f"the header has no column {column!r}, but {', '.join(names)}")
        return names.index(column) if isinstance(column, str) else column

    src, tgt = (None if column is None else number(column) for column in whole.columns)
    return replace(whole, columns=(src, tgt), scores=tuple((name, number(column)) for name, column in whole.scores))


def _no_column(whole: Piece, what: str) -> InputError:
    return InputError(
        what,
        where=whole.source,
        remedy=f"Correct source_column, target_column or scores of the corpus {whole.corpus!r} of {whole.split}",
    )


def _scan_tmx(whole: Piece, header: bool, rows_per_piece: int) -> _Scanned:
    with opened(whole.source) as file:
        found = survey(file, whole.source, _language_tags(whole))
    for has_side, tag in zip((found.has_src, found.has_tgt), whole.columns):
        if tag is not None and found.units and not has_side:
            raise _no_column(whole, f"no unit has a segment in {tag!r}; the languages are {', '.join(found.languages)}")
    starts = range(0, max(found.units, 1), rows_per_piece)
    return _Scanned(replace(whole, streamed=True), found.units, starts, starts)


def _scan_parquet(whole: Piece, header: bool, rows_per_piece: int) -> _Scanned:
    with random_access(whole.source) as stored:
        file = _parquet_file(stored, whole.source)
        metadata, schema = file.metadata, file.schema_arrow
    texts = [column for column in whole.columns if column is not None]
    for column in (*texts, *dict(whole.scores).values()):
        if column not in schema.names:
            raise _no_column(whole, f"there is no column {column!r}, but {', '.join(schema.names)}")
        kind = schema.field(column).type
        if not is_text(kind) and (column in texts or not is_number(kind)):
            wanted = "text" if column in texts else "numbers"
            raise _no_column(whole, f"the column {column!r} holds {kind}, not {wanted}")
    groups = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    streamed = max(groups, default=0) > _PIECES_PER_ROW_GROUP * rows_per_piece
    starts = range(0, max(metadata.num_rows, 1), rows_per_piece)
    return _Scanned(replace(whole, streamed=streamed), metadata.num_rows, starts, starts)


_SCANS = {"lines": _scan_text, "tsv": _scan_text, "jsonl": _scan_text, "tmx": _scan_tmx, "parquet": _scan_parquet}


def _check_content(wholes: Sequence[Piece], languages: LanguagesConfig) -> None:
    """Raise InputError where a side has nothing but white space, or a score no number; the first rows tell mostly."""
    sides = {"src": languages.source, "tgt": languages.target}
    missing = {side: language for side, language in sides.items() if wholes[0].side in ("both", side)}
    numberless = dict(wholes[0].scores)
    for whole in wholes:
        for batch in read_batches(whole, 1000):
            readable = pc.is_null(batch.reason)
            for side in tuple(missing):
                texts = getattr(batch, side).filter(readable)
                if pc.any(pc.match_substring_regex(texts, r"\S")).as_py():
                    del missing[side]
            for name in tuple(numberless):
                if batch.scores[name].null_count < len(batch.row_id):
                    del numberless[name]
            if not missing and not numberless:
                return
    whole = wholes[0]
    for side, language in missing.items():
        file = whole.target if side == "tgt" and whole.target is not None else whole.source
        column = whole.columns[0 if side == "src" else 1]
        raise InputError(
            f"a language without text: no line of {whole.corpus!r} of {whole.split} has readable {language} text"
            + ("" if column is None else f" in column {column}"),
            where=file,
            remedy="Give the right file or column, in UTF-8",
        )
    for name, column in numberless.items():
        raise _no_column(whole, f"no row has a number for the score {name!r} in column {column!r}")


# --- Reading -------------------------------------------------------------------------------------------------------


def read_batches(piece: Piece, batch_rows: int) -> Iterator[RawBatch]:
    """Yield the rows of a piece, at most `batch_rows` at once; fewer where they hold much text.

    Raises InputError for a file that is broken, or has changed since it was scanned.
    """
    with _opened_piece(piece) as reader:
        for done, rows in _taken(reader, piece, batch_rows):
            first = piece.ordinal * ROW_ID_STRIDE + piece.first_line + done
            row_id = np.arange(first, first + len(rows), dtype=np.int64)
            yield RawBatch(row_id, rows.src, rows.tgt, rows.reasons(), rows.scores)
    _check_unchanged(piece)


def unpacked(pieces: Sequence[Piece], folder: Path) -> Iterator[Piece]:
    """Yield the pieces, in order all of one or more files; those of streamed files once their rows lie in `folder`.

    Each file is read once: memory holds one batch, whatever it unpacks to. Raises InputError for a file that is broken,
    or has changed since it was scanned.
    """
    for of_file in _by_file(pieces):
        if not of_file[0].streamed:
            yield from of_file
            continue
        with _opened_piece(replace(of_file[0], rows=sum(piece.rows for piece in of_file))) as reader:
            for piece in of_file:
                path = folder / f"{piece.index:06d}.arrow"
                _write_rows(reader, piece, path)
                # The end of the file has the checksums of all that was read.
                if piece is of_file[-1] and len(reader.take(1)):
                    raise changed(piece.source)
                _check_unchanged(piece)
                yield replace(
                    piece,
                    form="arrow",
                    source=str(path),
                    source_offset=0,
                    source_version="",
                    target=None,
                    target_offset=0,
                    target_version="",
                    streamed=False,
                )


def _write_rows(reader: Reader, piece: Piece, path: Path) -> None:
    schema = arrow_schema([name for name, _ in piece.scores])
    with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for _, rows in _taken(reader, piece, _UNPACK_ROWS):
            writer.write_batch(arrow_batch(rows))


def _by_file(pieces: Sequence[Piece]) -> list[tuple[Piece, ...]]:
    return [tuple(of_file) for _, of_file in groupby(pieces, key=lambda piece: (piece.source, piece.target))]


def _is_stream(of_file: Sequence[Piece]) -> bool:
    return len(of_file) > 1 and of_file[0].streamed


def _taken(reader: Reader, piece: Piece, batch_rows: int) -> Iterator[tuple[int, Rows]]:
    """Yield the rows of a piece, and how many came before. Raises InputError where there are fewer than there were."""
    done = 0
    while done < piece.rows:
        rows = reader.take(min(batch_rows, piece.rows - done))
        if not len(rows):
            raise changed(piece.source)
        yield done, rows
        done += len(rows)


def _check_unchanged(piece: Piece) -> None:
    for path, known in ((piece.source, piece.source_version), (piece.target, piece.target_version)):
        if path is not None and known:
            check_unchanged(path, known)


@contextmanager
def _opened_piece(piece: Piece) -> Iterator[Reader]:
    """Open the files of a piece, at its beginning. Raises InputError where they have changed since the scan."""
    _check_unchanged(piece)
    columns = Columns(*piece.columns, piece.scores)
    with ExitStack() as stack:
        match piece.form:
            case "arrow":
                yield ChunkReader(arrow_rows(stack.enter_context(pa.memory_map(piece.source))))
            case "parquet":
                file = _parquet_file(stack.enter_context(random_access(piece.source)), piece.source)
                yield ChunkReader(parquet_rows(file, piece.source, columns, piece.source_offset, piece.rows))
            case "tmx":
                text = stack.enter_context(opened(piece.source))
                found = units(text, piece.source, _language_tags(piece), [str(column) for _, column in piece.scores])
                for _ in range(piece.source_offset):
                    next(found)
                yield ChunkReader(tmx_rows(found, piece.side, [name for name, _ in piece.scores]))
            case "lines":
                files = [stack.enter_context(_text_from(piece.source, piece.source_offset))]
                if piece.target is not None:
                    files.append(stack.enter_context(_text_from(piece.target, piece.target_offset)))
                yield LineReader(files, piece.side)
            case "tsv":
                yield TsvReader(stack.enter_context(_text_from(piece.source, piece.source_offset)), columns)
            case "jsonl":
                yield JsonlReader(stack.enter_context(_text_from(piece.source, piece.source_offset)), columns)


@contextmanager
def _text_from(path: str, offset: int) -> Iterator[IO[bytes]]:
    with opened(path) as file:
        if file.seekable():
            file.seek(offset)
        else:
            discard(file, offset)
        yield file


def _language_tags(piece: Piece) -> tuple[str | None, str | None]:
    src, tgt = (None if tag is None else str(tag) for tag in piece.columns)
    return src, tgt


def _parquet_file(stored: Any, path: str) -> pq.ParquetFile:
    try:
        # Pages are read one after the other, not whole column chunks of a row group at once.
        return pq.ParquetFile(stored, pre_buffer=False, buffer_size=2**20)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"broken Parquet, or none: {error}", where=path, remedy="Fetch or write the file again"
        ) from error
