"""Named corpora from the net into a folder, each with a record of where it comes from.

    fetch("opus:Tatoeba", Path("data"), languages="en-de", version="v2023-04-12")
    fetch("sacrebleu:wmt20", Path("data"), languages="en-de")
    fetch("https://host/corpus.tsv.gz", Path("data"), sha256="9f86d081884c7d65...")

    data/corpus.tsv.gz                   the file of the URL; for the others see `opus.py`, `sacrebleu_sets.py`
    data/corpus.tsv.gz.source.json       the record, see `source_record.py`

What is there as its record says is not fetched again.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipelines.config import CorpusConfig
from pipelines.download import Digest, Downloaded, Progress, download, public_url
from pipelines.errors import InputError
from pipelines.opus import OPUS_API, fetch_opus
from pipelines.sacrebleu_sets import fetch_test_set
from pipelines.source_record import (
    NOT_STATED,
    Fetched,
    Source,
    SourceRecord,
    described,
    now,
    one_line,
    read_intact,
    record_path,
    working_alone,
    write_record,
)
from pipelines.stage import file_sha256

MAX_NAME_BYTES = 200  # file systems take 255, and `.part.json` and the like come behind
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
TABLES = ("tsv", "jsonl", "parquet", "tmx")
# Codes of the catalogues: letters, with a script or region behind an underscore (pt_BR, sr_Latn).
_CODE = r"[A-Za-z]{2,3}(?:_[A-Za-z0-9]+)*"

log = logging.getLogger(__name__)


def fetch(
    what: str,
    output: Path,
    *,
    languages: str | None = None,
    version: str | None = None,
    sha256: str | None = None,
    unverified: bool = False,
    licence: str | None = None,
    opus_api: str = OPUS_API,
    progress: Progress | None = None,
) -> Fetched:
    """Return the corpus that `what` names, fetched into the folder `output` where it is not there yet.

    `what` is `opus:CORPUS` or `sacrebleu:TESTSET`, both with `languages` as SOURCE-TARGET, or a URL with the `sha256`
    of its file or `unverified`. OPUS: the newest version unless one is named; `sha256` is that of its zip. `licence`
    stands in place of the one that comes with the corpus.

    Raises InputError for what cannot be asked for, is not there, or arrives as something else, and for a folder that
    cannot be written; the corpus that stood there before is then as it was.
    """
    digest = None if sha256 is None else _digest(sha256)
    scheme, _, name = what.partition(":")
    if scheme == "opus":
        _refuse("an OPUS corpus", {"--unverified": unverified})
        pair = _pair(languages, what)
        return fetch_opus(
            name, pair, output, version=version, digest=digest, licence=licence, api=opus_api, progress=progress
        )
    if scheme == "sacrebleu":
        options = {"--unverified": unverified, "--sha256": sha256 is not None, "--version": version is not None}
        _refuse("a test set, whose version and digests are those of sacreBLEU", options)
        return fetch_test_set(name, _pair(languages, what), output, licence=licence, progress=progress)
    if scheme.lower() in ("http", "https"):
        if (digest is None) != unverified:
            raise InputError(
                "a URL needs either the sha256 of its file or --unverified",
                where=public_url(what),
                remedy="Add --sha256 HEX as the publisher gives it, or --unverified to be told what arrived",
            )
        side = None if languages is None else _pair(languages, public_url(what))[1]
        return _fetch_url(what, output, digest, version, licence, side, progress)
    raise InputError(
        "neither opus:CORPUS, nor sacrebleu:TESTSET, nor a URL of HTTP or HTTPS",
        where=what.rpartition("@")[2],  # in front of it may stand a password
        remedy="As in `seqloom fetch opus:Tatoeba --languages en-de --output data`",
    )


def _fetch_url(
    url: str,
    output: Path,
    digest: Digest | None,
    version: str | None,
    licence: str | None,
    target: str | None,
    progress: Progress | None,
) -> Fetched:
    path, public = output / _file_name(url), public_url(url)
    with working_alone(output, path.name):
        known = _known(path, public, digest)
        record = known
        if record is None:
            log.info("%s: from %s", path.name, public)
            record = _record(path, public, download(url, path, digest, progress=progress))
        stated = {"licence": licence, "version": version}
        record = record.model_copy(update={key: value for key, value in stated.items() if value is not None})
        if record != known:
            write_record(output, record)
    return Fetched(record, record_path(output, path.name), _corpus(path, record, target), known is not None)


def _known(path: Path, url: str, digest: Digest | None) -> SourceRecord | None:
    """Return the record of a file that is there already: with the right digest, or as it came from this URL."""
    record = read_intact(path.parent, path.name)
    if digest is None:
        return record if record is not None and record.sources[0].url == url else None
    if not path.is_file() or file_sha256(path) != digest.hex:
        return None
    if record is None:
        record = _record(path, url, Downloaded(digest.hex, path.stat().st_size))
        write_record(path.parent, record)
    return record


def _record(path: Path, url: str, downloaded: Downloaded) -> SourceRecord:
    return SourceRecord(
        name=path.name,
        version=None,
        licence=NOT_STATED,
        sources=(Source(url=url, bytes=downloaded.bytes, sha256=downloaded.sha256),),
        files=(described(path, path, None),),
        fetched_at=now(),
    )


def _corpus(path: Path, record: SourceRecord, target: str | None) -> CorpusConfig | None:
    """Return what a recipe says of the file, by its suffix: a table, or one side of aligned text; None for others."""
    plain = Path(path.stem) if path.suffix in COMPRESSED else Path(path.name)
    kind = plain.suffix.removeprefix(".")
    if kind in TABLES:
        form = kind
    elif kind == target or re.fullmatch(r"|txt|[a-z]{2}", kind):
        form = "target" if kind == target else "source"
    else:
        return None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain.stem).lstrip("._-") or "corpus"
    return CorpusConfig.model_validate({"name": name, form: str(path), "licence": one_line(record.licence)})


def _file_name(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(public_url(url)).path)).name
    unusable = not name or name.startswith(".") or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES
    if unusable:
        raise InputError("the URL ends in no file's name", where=public_url(url), remedy="Give the address of a file")
    return name


def _digest(sha256: str) -> Digest:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError("not a sha256", where=f"--sha256 {sha256}", remedy="Give its 64 hexadecimal digits")
    return Digest("sha256", sha256.lower())


def _pair(languages: str | None, where: str) -> tuple[str, str]:
    if languages is None:
        raise InputError("the languages are missing", where=where, remedy="As in --languages en-de, source first")
    found = re.fullmatch(f"({_CODE})-({_CODE})", languages)
    if found is None or found[1] == found[2]:
        raise InputError(
            "not two languages", where=f"--languages {languages}", remedy="As in en-de or en-pt_BR, source first"
        )
    return found[1], found[2]


def _refuse(kind: str, options: dict[str, bool]) -> None:
    for option, given in options.items():
        if given:
            raise InputError(f"{option} does not go with {kind}", where="seqloom fetch", remedy="Leave it out")
