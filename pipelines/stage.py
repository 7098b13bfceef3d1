"""The stage contract: a key, an output folder, a manifest written last, and nothing done twice.

A stage is a function from a config and the digests of its inputs to a folder `<root>/<name>-<key>`. The key is the
digest of everything that decides the output: the stage's name, the version of its behaviour, the part of the config
that it reads, and its inputs' digests. `manifest.json` appears last and atomically: its presence is success.

    <root>/clean-3f2a91c04b7e/
    ├── manifest.json     config, inputs, each output file with rows, bytes and sha256, counters, times
    └── ...               what the stage wrote
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import filelock
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import InputError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT: Literal[1] = 1
KEY_DIGITS = 12
# The disk is full, the user's share of it, or the size that a file may have.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)
_planning: ContextVar[bool] = ContextVar("planning", default=False)


class OutputFile(BaseModel):
    """One file of a stage: its path inside the stage's folder, rows (Parquet only), bytes and sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    rows: int | None
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a finished stage did. `counters` holds the stage's own figures, JSON values only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = MANIFEST_FORMAT
    stage: str
    version: int
    key: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: tuple[OutputFile, ...]
    counters: dict[str, Any]
    started_at: str
    seconds: float

    def digest(self) -> str:
        """Return the sha256 of the outputs' paths and contents: what a later stage's key is made of."""
        return digest_of({output.path: output.sha256 for output in self.outputs})


@dataclass(frozen=True)
class StageResult:
    """What a stage's body returns: its output files, relative to its folder, and its figures."""

    outputs: Iterable[str]
    counters: dict[str, Any]


@dataclass(frozen=True)
class StageRun:
    """A finished stage: its folder and manifest, and whether it was there before."""

    folder: Path
    manifest: Manifest
    reused: bool


class WouldRun(Exception):
    """Raised inside `planning()` in place of a stage's work: the stage is not done, and this decides its key."""

    def __init__(
        self, name: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], folder: Path
    ) -> None:
        super().__init__(f"{name}: would run in {folder}")
        self.name = name
        self.version = version
        self.config = config
        self.inputs = inputs
        self.folder = folder


@contextmanager
def planning() -> Iterator[None]:
    """Look instead of work: in this context a finished stage is returned, any other raises WouldRun."""
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def digest_of(value: object) -> str:
    """Return the sha256, in hex, of a JSON-able value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_key(name: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the key of a stage: the first digits of the digest of all that decides its output."""
    decides = {"stage": name, "version": version, "config": config, "inputs": inputs}
    return digest_of(decides)[:KEY_DIGITS]


def stage_folder(root: Path, name: str, key: str) -> Path:
    """Return where a stage of that name and key lives under `root`."""
    return root / f"{name}-{key}"


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a finished stage, or None where the stage has not finished.

    Raises InputError when the file is there but cannot be read as a manifest, or an output that it names is gone.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"not a manifest of format {MANIFEST_FORMAT} ({error.error_count()} faults)",
            where=str(path),
            remedy="Remove this folder, and the stage will run again",
        ) from error
    for output in manifest.outputs:
        file = folder / output.path
        if not file.is_file() or file.stat().st_size != output.bytes:
            raise InputError(
                "an output of the finished stage is missing or has changed",
                where=str(file),
                remedy=f"Remove the folder {folder}, and the stage will run again",
            )
    return manifest


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new name beside `path`: what is written there takes the place of `path` at the end, whole.

    Where the block fails, `path` stays as it was and nothing is left over. Readers see all of a file or none of it, and
    a step that runs twice writes the same file twice.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, on the disk when this returns, so that a reader sees all of it or none of it."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def run_stage(
    name: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    root: Path,
    body: Callable[[Path], StageResult],
    *,
    keeps_partial_output: bool = False,
) -> StageRun:
    """Return the finished stage, running `body(folder)` only where no manifest says that it is done.

    `config` is the part of the config that decides the output, as JSON values. Left-overs of an earlier attempt are
    removed first, unless the stage continues from them (`keeps_partial_output`). One process at a time works in a
    folder: a second one waits for neither a day nor an hour, it is told so at once.

    Raises InputError when another process is at work in the folder, and WouldRun inside `planning()`.
    """
    key = stage_key(name, version, config, inputs)
    folder = stage_folder(root, name, key)
    finished = read_manifest(folder)
    if finished is not None:
        log.log(logging.DEBUG if _planning.get() else logging.INFO, "%s: unchanged, reused from %s", name, folder)
        return StageRun(folder, finished, reused=True)
    if _planning.get():
        raise WouldRun(name, version, config, inputs, folder)
    root.mkdir(parents=True, exist_ok=True)
    lock = acquired(
        root / f".{folder.name}.lock",
        f"another process is running the stage {name!r}",
        where=str(folder),
        remedy="Wait for it to end, or use another --workdir",
    )
    try:
        finished = read_manifest(folder)
        if finished is not None:
            return StageRun(folder, finished, reused=True)
        if folder.exists() and not keeps_partial_output:
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        log.info("%s: started in %s", name, folder)
        log.debug("%s: config %s", name, json.dumps(config, ensure_ascii=False))
        started_at, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        try:
            result = body(folder)
        except Exception as error:
            if _is_for_lack_of_space(error):
                raise InputError(
                    "there is no room to write the stage's files",
                    where=str(folder),
                    remedy="Make room on that disk, or use another --workdir, and run again",
                ) from error
            raise
        manifest = Manifest(
            stage=name,
            version=version,
            key=key,
            config=dict(config),
            inputs=dict(inputs),
            outputs=_all_described(folder, sorted(result.outputs)),
            counters=result.counters,
            started_at=started_at,
            seconds=round(time.monotonic() - start, 3),
        )
        write_atomically(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n")
    finally:
        lock.release()
    log.info("%s: done in %.1f s, output in %s", name, manifest.seconds, folder)
    return StageRun(folder, manifest, reused=False)


def acquired(path: Path, taken: str, *, where: str, remedy: str) -> filelock.BaseFileLock:
    """Return the lock of a file, held, at once. Raises InputError in the words given where another process holds it."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(taken, where=where, remedy=remedy) from error
    return lock


def _is_for_lack_of_space(error: BaseException | None) -> bool:
    """Return whether an error, or what it was raised in place of, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _all_described(folder: Path, paths: Iterable[str]) -> tuple[OutputFile, ...]:
    # Hashing lets other threads go on.
    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(partial(_described, folder), paths))


def _described(folder: Path, path: str) -> OutputFile:
    file = folder / path
    rows = pq.read_metadata(file).num_rows if file.suffix == ".parquet" else None
    return OutputFile(path=path, rows=rows, bytes=file.stat().st_size, sha256=file_sha256(file))
