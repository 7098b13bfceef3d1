"""Corpora of OPUS: found by its API, fetched as Moses zips, unzipped to aligned files.

    fetch_opus("Tatoeba", ("en", "de"), Path("data"), version="v2023-04-12")

    data/Tatoeba.en-de.en, .de                two aligned files
    data/Tatoeba.en-de.LICENSE, .README       where the zip has them
    data/Tatoeba.en-de.source.json            the record

Source: https://opus.nlpl.eu/opusapi/ (parameters and answers as its client Helsinki-NLP/OpusTools uses them).
"""

from __future__ import annotations

import difflib
import errno
import logging
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from pipelines.config import CorpusConfig
from pipelines.download import (
    Digest,
    Downloaded,
    NotFound,
    Progress,
    check_room,
    download,
    public_url,
    read_json,
    writing,
)
from pipelines.errors import InputError
from pipelines.source_record import (
    MAX_NAMED,
    NOT_STATED,
    Fetched,
    FetchedFile,
    Source,
    SourceRecord,
    copy_lines,
    described,
    listed,
    now,
    one_line,
    read_intact,
    record_path,
    restated,
    working_alone,
    write_record,
)
from pipelines.stage import file_sha256, replacing

OPUS_API = "https://opus.nlpl.eu/opusapi/"
MAX_DOCUMENT_BYTES = 1 << 20  # of a licence or a README: one that is longer is none
DOCUMENTS = ("LICENSE", "README")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a corpus and of a version: they become parts of files' names

Answer = TypeVar("Answer", bound=BaseModel)

log = logging.getLogger(__name__)


class OpusFile(BaseModel):
    """One file in an answer of the API. It says more (size, alignment pairs, tokens), which is not read."""

    corpus: str
    source: str
    target: str
    preprocessing: str
    version: str = Field(pattern=NAME)
    url: str


class _Files(BaseModel):
    corpora: tuple[OpusFile, ...]


class _Names(BaseModel):
    corpora: tuple[str, ...]


class _Unusable(Exception):
    """An archive that is not what it should be."""


def fetch_opus(
    corpus: str,
    languages: tuple[str, str],
    output: Path,
    *,
    version: str | None = None,
    digest: Digest | None = None,
    licence: str | None = None,
    api: str = OPUS_API,
    progress: Progress | None = None,
) -> Fetched:
    """Return a corpus of OPUS in `output`: its newest version, or the one that is named.

    `digest` is that of the zip, which OPUS itself does not give. Nothing is fetched where the version is there as its
    record says; the API is then asked only for which version is the newest.

    Raises InputError when OPUS has not the corpus, the pair or the version (naming what it has), as `download` does,
    and as `unzip_aligned` does.
    """
    if not re.fullmatch(NAME, corpus):
        raise InputError("not the name of a corpus of OPUS", where=f"opus:{corpus}", remedy="As in opus:Tatoeba")
    catalogue = Catalogue(api, corpus, languages)
    name = f"{corpus}.{'-'.join(languages)}"
    with working_alone(output, name):
        record = read_intact(output, name)
        reused = record is not None and version is not None and _is(record, version, digest)
        if not reused:
            file = catalogue.find(version)
            reused = record is not None and _is(record, file.version, digest)
        if record is None or not reused:
            if record is not None:
                log.info("%s: version %s takes the place of %s", name, file.version, record.version)
            archive = output / f"{name}.{file.version}.zip"
            downloaded = _downloaded(file, archive, digest, catalogue, progress)
            files = _unzipped(archive, file, languages, output / name)
            record = SourceRecord(
                name=name,
                version=file.version,
                licence=licence or _licence(output / f"{name}.LICENSE", files),
                sources=(Source(url=public_url(file.url), bytes=downloaded.bytes, sha256=downloaded.sha256),),
                files=files,
                fetched_at=now(),
            )
            write_record(output, record)
            archive.unlink()
        record = restated(output, record, licence)
    source, target = (str(output / f"{name}.{language}") for language in languages)
    stated = CorpusConfig(name=corpus, source=source, target=target, licence=one_line(record.licence))
    return Fetched(record, record_path(output, name), stated, reused)


@dataclass(frozen=True)
class Catalogue:
    """What the API says of one corpus in one pair of languages."""

    api: str
    corpus: str
    languages: tuple[str, str]

    @property
    def pair(self) -> tuple[str, str]:
        """Return the languages as OPUS orders them: by the alphabet."""
        first, second = sorted(self.languages)
        return first, second

    def find(self, version: str | None) -> OpusFile:
        """Return the zip of a version, by default of the newest. Raises InputError that names what there is instead."""
        found = self._files({"version": version or "latest"})
        if not found:
            raise self._missing(version)
        # The answer came so that nobody could change it; so must the file, for which there is no digest.
        if urlsplit(self.api).scheme == "https" and urlsplit(found[0].url).scheme == "http":
            raise InputError(
                "the OPUS API names a file without encryption",
                where=public_url(found[0].url),
                remedy="Fetch this URL with its sha256",
            )
        return found[0]

    def versions(self) -> list[str]:
        """Return the versions that have this pair, the newest first."""
        return [file.version for file in self._files({})]

    def _files(self, parameters: Mapping[str, str]) -> list[OpusFile]:
        source, target = self.pair
        asked = {"corpus": self.corpus, "source": source, "target": target, "preprocessing": "moses", **parameters}
        wanted = (parameters.get("version", "latest"), self.corpus, "moses", *self.pair)
        files = [
            file
            for file in self._answer(_Files, asked).corpora
            if (file.corpus, file.preprocessing, *sorted((file.source, file.target))) == wanted[1:]
            and wanted[0] in ("latest", file.version)
        ]
        return sorted(files, key=lambda file: _natural(file.version), reverse=True)

    def _missing(self, version: str | None) -> InputError:
        pair, where = "-".join(self.pair), f"opus:{self.corpus}"
        if versions := self.versions():
            return InputError(
                f"OPUS has no version {version} for {pair}", where=where, remedy=f"There are: {listed(versions)}"
            )
        names = list(self._answer(_Names, {"corpora": "True", "source": self.pair[0], "target": self.pair[1]}).corpora)
        if not names:
            return InputError(f"OPUS has nothing for {pair}", where=where, remedy="Look at the codes of the languages")
        by_lower = {name.lower(): name for name in names}
        near = difflib.get_close_matches(self.corpus.lower(), by_lower, n=MAX_NAMED, cutoff=0.5)
        remedy = f"There are: {listed([by_lower[name] for name in near] or sorted(names))}"
        return InputError(f"OPUS has no such corpus for {pair}", where=where, remedy=remedy)

    def _answer(self, model: type[Answer], parameters: Mapping[str, str]) -> Answer:
        try:
            return model.model_validate(read_json(self.api, parameters))
        except ValidationError as error:
            raise InputError(
                "not an answer of the OPUS API", where=public_url(self.api), remedy="Look at --opus-api"
            ) from error


def unzip_aligned(archive: Path, texts: Mapping[str, Path], documents: Mapping[str, Path]) -> tuple[FetchedFile, ...]:
    """Return the files unzipped: the members `texts`, of as many lines each, and what there is of `documents`.

    Members are found by their exact names and written to the paths that they are mapped to, so no path that stands in
    the archive is ever used. All files appear, or none; an archive that is not what it should be is removed.

    Raises InputError for what is no zip, is damaged or encrypted, lacks one of the texts, or has texts that are not
    aligned, and for a disk that is full.
    """
    output = next(iter(texts.values())).parent
    try:
        with writing(output), _reading(), zipfile.ZipFile(archive) as zipped, ExitStack() as stack:
            members = {info.filename: info for info in zipped.infolist()}
            for name in texts:
                if name not in members:
                    raise _Unusable(f"the archive has no {name}; it has {listed(sorted(members)) or 'nothing'}")
            check_room(output, sum(members[name].file_size for name in texts))
            files = []
            for name, path in {**texts, **documents}.items():
                if name in texts or (name in members and members[name].file_size <= MAX_DOCUMENT_BYTES):
                    temporary = stack.enter_context(replacing(path))
                    with zipped.open(members[name]) as member:
                        lines = copy_lines(member, temporary)
                    files.append(described(temporary, path, lines if name in texts else None))
            aligned = [file for file in files if file.lines is not None]
            if len({file.lines for file in aligned}) > 1:
                counts = ", ".join(f"{file.path} {file.lines:,}" for file in aligned)
                raise _Unusable(f"the texts have not as many lines each ({counts})")
    except _Unusable as error:
        archive.unlink()
        raise InputError(
            f"{error}; the archive has been removed", where=str(archive), remedy="Fetch it again, or another version"
        ) from error
    return tuple(files)


@contextmanager
def _reading() -> Iterator[None]:
    """In this context, what `zipfile` and the decompressors say of a damaged archive is _Unusable."""
    try:
        yield
    # RuntimeError: an encrypted member; NotImplementedError, which is one: a compression that is not known.
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, UnicodeDecodeError) as error:
        raise _Unusable(f"not a zip that can be read ({error})") from error
    except OSError as error:
        # A place before the beginning of the file, or bz2's damaged data; a full disk has another number.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _Unusable(f"not a zip that can be read ({error})") from error


def _is(record: SourceRecord, version: str, digest: Digest | None) -> bool:
    return record.version == version and digest in (None, Digest("sha256", str(record.sources[0].sha256)))


def _downloaded(
    file: OpusFile, archive: Path, digest: Digest | None, catalogue: Catalogue, progress: Progress | None
) -> Downloaded:
    if archive.is_file():  # whole, since it bears its name; an earlier call found no room to unzip it
        found = Downloaded(file_sha256(archive), archive.stat().st_size)
        if digest in (None, Digest("sha256", found.sha256)):
            return found
    log.info("%s: from %s", archive.name, public_url(file.url))
    try:
        return download(file.url, archive, digest, progress=progress)
    except NotFound as error:
        others = [version for version in catalogue.versions() if version != file.version]
        remedy = f"OPUS names these versions too: {listed(others)}" if others else "OPUS names no other version"
        raise InputError(error.what, where=error.where, remedy=remedy) from error


def _unzipped(archive: Path, file: OpusFile, languages: tuple[str, str], stem: Path) -> tuple[FetchedFile, ...]:
    member = f"{file.corpus}.{'-'.join(sorted(languages))}"
    texts = {f"{member}.{language}": _beside(stem, language) for language in languages}
    documents = {name: _beside(stem, name) for name in DOCUMENTS}
    files = unzip_aligned(archive, texts, documents)
    for path in documents.values():  # an earlier version may have left one
        if path.name not in {file.path for file in files}:
            path.unlink(missing_ok=True)
    return files


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


def _licence(path: Path, files: tuple[FetchedFile, ...]) -> str:
    if path.name not in {file.path for file in files}:
        return NOT_STATED
    return path.read_text(encoding="utf-8", errors="replace").strip() or NOT_STATED


def _natural(version: str) -> list[int | str]:
    """Return the key that sorts v9 before v10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", version)]
