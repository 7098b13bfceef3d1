"""Test sets that sacreBLEU knows: its URLs, its digests and its readers, the files copied out as lines.

    fetch_test_set("wmt20", ("en", "de"), Path("data"))

    data/wmt20.en-de.en, .de             source and first reference; further ones as .de.ref2 and so on
    data/wmt20.en-de.source.json         the record

sacreBLEU keeps what it has read in its own folder (the environment's SACREBLEU, or ~/.sacrebleu).
"""

from __future__ import annotations

import copy
import difflib
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.config import CorpusConfig
from pipelines.download import Digest, Progress, download, writing
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
from pipelines.stage import replacing

if TYPE_CHECKING:
    from sacrebleu.dataset.base import Dataset

log = logging.getLogger(__name__)


def fetch_test_set(
    test_set: str,
    languages: tuple[str, str],
    output: Path,
    *,
    licence: str | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Return a test set in `output`, as sacreBLEU reads it. What is there as its record says is not fetched again.

    Raises InputError for a test set or a direction that sacreBLEU does not know (naming those that it knows), as
    `download` does, and where sacreBLEU's own folder holds half of something.
    """
    import sacrebleu

    dataset = _dataset(test_set, languages)
    corpus = test_set.replace("/", "_")
    name = f"{corpus}.{'-'.join(languages)}"
    with working_alone(output, name):
        record = read_intact(output, name)
        reused = record is not None
        if record is None:
            archives = output / f".{name}.archives"
            sources = _bring_archives(dataset, archives, progress)
            files = _copy_out(_texts(dataset, languages), output / name, dataset.name)
            record = SourceRecord(
                name=name,
                version=f"sacrebleu {sacrebleu.__version__}",
                licence=licence or NOT_STATED,
                sources=sources,
                files=files,
                fetched_at=now(),
            )
            write_record(output, record)
            shutil.rmtree(archives, ignore_errors=True)  # sacreBLEU has copies of its own
        record = restated(output, record, licence)
    source, target = (str(output / f"{name}.{language}") for language in languages)
    stated = CorpusConfig(name=corpus, source=source, target=target, licence=one_line(record.licence))
    return Fetched(record, record_path(output, name), stated, reused)


def _dataset(test_set: str, languages: tuple[str, str]) -> Dataset:
    """Return a copy of sacreBLEU's description of a test set that has this direction."""
    from sacrebleu.dataset import DATASETS

    where = f"sacrebleu:{test_set}"
    if test_set not in DATASETS:
        near = difflib.get_close_matches(test_set, DATASETS, n=MAX_NAMED, cutoff=0.5)
        raise InputError(
            "sacreBLEU knows no such test set", where=where, remedy=f"There are: {listed(near or sorted(DATASETS))}"
        )
    dataset = copy.copy(DATASETS[test_set])
    if "-".join(languages) not in dataset.langpairs:
        pairs = ", ".join(sorted(dataset.langpairs))
        raise InputError(f"the test set has no {'-'.join(languages)}", where=where, remedy=f"There are: {pairs}")
    return dataset


def _bring_archives(dataset: Dataset, folder: Path, progress: Progress | None) -> tuple[Source, ...]:
    """Return what a test set is made of, downloaded to `folder` unless sacreBLEU has kept it.

    sacreBLEU is pointed to those files: it verifies, unpacks and keeps them as if it had downloaded them itself, but
    the transfer is `download`'s, which goes on where it was and tries again.
    """
    md5s: Sequence[str | None] = dataset.md5 or [None] * len(dataset.data)
    sources = [Source(url=url, bytes=None, sha256=None, md5=md5) for url, md5 in zip(dataset.data, md5s, strict=True)]
    kept, prefix = _sacrebleu_folder(dataset.name) / "raw", dataset.name.replace("/", "_")
    if all((kept / f"{prefix}.{_file_name(source.url)}").is_file() for source in sources):
        return tuple(sources)
    paths = [folder / _file_name(source.url) for source in sources]
    for number, (source, path) in enumerate(zip(sources, paths, strict=True)):
        log.info("%s: from %s", dataset.name, source.url)
        digest = None if source.md5 is None else Digest("md5", source.md5)
        downloaded = download(source.url, path, digest, progress=progress)
        sources[number] = source.model_copy(update={"bytes": downloaded.bytes, "sha256": downloaded.sha256})
    dataset.data = [path.absolute().as_uri() for path in paths]
    return tuple(sources)


def _texts(dataset: Dataset, languages: tuple[str, str]) -> dict[str, Path]:
    """Return sacreBLEU's files of lines, by the suffix that they get."""
    src, tgt = languages
    folder = _sacrebleu_folder(dataset.name)
    with writing(folder):
        try:
            source = dataset.get_source_file(f"{src}-{tgt}")
            first, *others = dataset.get_reference_files(f"{src}-{tgt}")
        except FileNotFoundError as error:
            raise _not_whole(str(error.filename), dataset.name) from error
    texts = {src: source, tgt: first}
    texts |= {f"{tgt}.ref{number}": path for number, path in enumerate(others, start=2)}
    return {suffix: Path(path) for suffix, path in texts.items()}


def _copy_out(texts: Mapping[str, Path], stem: Path, dataset: str) -> tuple[FetchedFile, ...]:
    files = []
    with writing(stem.parent), ExitStack() as stack:
        for suffix, text in texts.items():
            path = stem.with_name(f"{stem.name}.{suffix}")
            temporary = stack.enter_context(replacing(path))
            with text.open("rb") as lines:
                files.append(described(temporary, path, copy_lines(lines, temporary)))
        if len({file.lines for file in files}) > 1 or not files[0].lines:
            raise _not_whole(", ".join(f"{file.path} of {file.lines:,} lines" for file in files), dataset)
    return tuple(files)


def _not_whole(what: str, dataset: str) -> InputError:
    folder = _sacrebleu_folder(dataset)
    return InputError(
        f"what sacreBLEU has kept is not whole: {what}",
        where=str(folder),
        remedy="Remove this folder, and fetch the test set again",
    )


def _sacrebleu_folder(test_set: str) -> Path:
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / test_set


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name
