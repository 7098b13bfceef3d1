"""Where a fetched corpus comes from: the record beside its files, and whether they are still what it says.

data/Tatoeba.en-de.en, .de           the files
data/Tatoeba.en-de.source.json       the record: URL, version, licence, sha256 of what came and of what was written
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.config import CorpusConfig
from pipelines.download import writing
from pipelines.stage import acquired, file_sha256, write_atomically

RECORD_FORMAT: Literal[1] = 1
NOT_STATED = "not stated"
MAX_LICENCE_CHARACTERS = 120  # in a recipe; the record has the whole text
MAX_NAMED = 12  # versions, corpora and the like that a message names
COPY_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Source(BaseModel):
    """What came over the net: its URL without credentials, its size and digests; null where they are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    bytes: int | None
    sha256: str | None
    md5: str | None = None


class FetchedFile(BaseModel):
    """A file of a corpus: its path inside the folder, bytes, sha256, and its lines where it is one of aligned texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    sha256: str
    lines: int | None


class SourceRecord(BaseModel):
    """`<name>.source.json`. `licence` is the whole text; `fetched_at` is UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = RECORD_FORMAT
    name: str
    version: str | None
    licence: str
    sources: tuple[Source, ...]
    files: tuple[FetchedFile, ...]
    fetched_at: str


@dataclass(frozen=True)
class Fetched:
    """A corpus in its folder. `corpus` is what a recipe says of it; None for a file that no recipe can name."""

    record: SourceRecord
    record_path: Path
    corpus: CorpusConfig | None
    reused: bool  # it was there before


def record_path(folder: Path, name: str) -> Path:
    """Return where the record of a corpus stands."""
    return folder / f"{name}.source.json"


def read_intact(folder: Path, name: str) -> SourceRecord | None:
    """Return the record of a corpus whose files are all there with the content that it names; else None."""
    path = record_path(folder, name)
    if not path.is_file():
        return None
    try:
        record = SourceRecord.model_validate_json(path.read_bytes())
    except ValidationError:
        log.warning("%s: not a record of format %s; fetched anew", path, RECORD_FORMAT)
        return None
    for file in record.files:
        there = folder / file.path
        if not there.is_file() or there.stat().st_size != file.bytes or file_sha256(there) != file.sha256:
            log.warning("%s: not the file that was fetched; fetched anew", there)
            return None
    return record


def write_record(folder: Path, record: SourceRecord) -> None:
    """Write the record, whole or not at all."""
    path = record_path(folder, record.name)
    with writing(path):
        write_atomically(path, record.model_dump_json(indent=1) + "\n")


def restated(folder: Path, record: SourceRecord, licence: str | None) -> SourceRecord:
    """Return the record with the licence that the user states, if any, and write it where that is another one."""
    if licence in (None, record.licence):
        return record
    changed = record.model_copy(update={"licence": licence})
    write_record(folder, changed)
    return changed


def now() -> str:
    """Return the time for `fetched_at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def described(content: Path, path: Path, lines: int | None) -> FetchedFile:
    """Return what a record says of the file that is, or will be, at `path`; its content lies at `content`."""
    return FetchedFile(path=path.name, bytes=content.stat().st_size, sha256=file_sha256(content), lines=lines)


def copy_lines(stream: IO[bytes], path: Path) -> int:
    """Write a stream to a file as it is, and return how many lines it has."""
    lines, last = 0, b"\n"
    with path.open("wb") as file:
        while chunk := stream.read(COPY_BYTES):
            file.write(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines + (last != b"\n")


def one_line(licence: str) -> str:
    """Return a licence as a recipe states it: on one line, shortened."""
    line = " ".join(licence.split())
    return line if len(line) <= MAX_LICENCE_CHARACTERS else line[: MAX_LICENCE_CHARACTERS - 3].rstrip() + "..."


def listed(names: list[str]) -> str:
    """Return the first names for a message."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


@contextmanager
def working_alone(folder: Path, name: str) -> Iterator[None]:
    """Make the folder, and let one process at a time work on a corpus. Raises InputError for a second one."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquired(
            folder / f".{name}.lock",
            "another process is fetching it",
            where=str(folder / name),
            remedy="Wait for it to end",
        )
    try:
        yield
    finally:
        lock.release()
