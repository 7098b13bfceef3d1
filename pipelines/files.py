"""Input files: which ones a path names, whether they changed, and their bytes, compressed or not, here or far away.

A path may hold `*`, and may be a URI (`s3://`, `gs://`, `http://` ...), which fsspec opens. Compression (gzip, zstd,
bz2, xz, of any number of members) is told by the name's suffix, or else by the first bytes. Whatever cannot be opened
or read is an InputError that names the file.
"""

from __future__ import annotations

import bz2
import glob
import hashlib
import io
import lzma
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from pipelines.config import is_uri
from pipelines.errors import InputError

Compression = Literal["gzip", "zstd", "bz2", "xz"]

_SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
# First bytes that no text begins with; a zstd file may begin with a skippable frame, a bz2 file with its end.
_MAGIC: tuple[tuple[re.Pattern[bytes], Compression], ...] = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL), "bz2"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz"),
)
_MAGIC_BYTES = 10
_TESTS: dict[Compression, str] = {"gzip": "gzip -t", "zstd": "zstd -t", "bz2": "bzip2 -t", "xz": "xz -t"}
_BLOCK_BYTES = 2**20
# `xz -9` needs 65 MiB to unpack; a file may ask for gigabytes.
_XZ_MEMORY_BYTES = 256 * 2**20


def matching(path: str, remedy: str) -> list[str]:
    """Return the files that a path names: itself, or in the order of their names those that fit its `*`.

    Raises InputError with the remedy where there is none, for a folder, and for a file system that cannot be reached.
    """
    if path.startswith("file://"):
        path = _file_system(path)[1]
    if is_uri(path):
        return _matching_uri(path, remedy)
    if "*" in path:
        # Only * is special: brackets and question marks are parts of names.
        pattern = "*".join(glob.escape(part) for part in path.split("*"))
        # Path.glob would find hidden files too, such as those that a program is still writing.
        names = glob.glob(pattern, recursive=True)  # noqa: PTH207
        found = sorted(name for name in names if Path(name).is_file())
        if not found:
            raise InputError("no file fits this pattern", where=path, remedy=remedy)
        return found
    if not Path(path).is_file():
        what = "a folder, not a file" if Path(path).is_dir() else "no such file"
        raise InputError(what, where=path, remedy=remedy)
    return [path]


def version(path: str) -> str:
    """Return what tells that a file is still the same: size and time of change; of a URI the size, where it has one."""
    if is_uri(path):
        system, inner = _file_system(path)
        with _reaching(path):
            # A listing of before would tell the size of before.
            system.invalidate_cache()
            return str(system.info(inner).get("size"))
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return f"{stat.st_size} {stat.st_mtime_ns}"


def check_unchanged(path: str, known: str) -> None:
    """Raise InputError unless `version` of a file is still the one that is known."""
    if version(path) != known:
        raise changed(path)


def changed(path: str) -> InputError:
    """Return the error of a file that is not what it was a moment ago."""
    return InputError(
        "the file changed while it was read",
        where=path,
        remedy="Leave the corpora as they are until the run has ended, then start it again",
    )


def sha256_of(path: str) -> str:
    """Return the sha256 of a file's bytes as stored, in hex. Raises InputError, also where they change meanwhile."""
    known = version(path)
    digest = hashlib.sha256()
    with _stored(path, streaming=True) as file:
        source = _Source(path, file.read, None)
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
    check_unchanged(path, known)
    return digest.hexdigest()


def is_gzip(path: Path) -> bool:
    """Return whether a file is to be read as gzip: by its name, or by its first bytes, which no text starts with."""
    return compression(str(path)) == "gzip"


def compression(path: str) -> Compression | None:
    """Return how a file is compressed: by its name, or by its first bytes, which no text starts with."""
    suffix = posixpath.splitext(path)[1]
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    first = _first_bytes(path)
    return next((kind for magic, kind in _MAGIC if magic.match(first)), None)


def can_seek(path: str) -> bool:
    """Return whether a file can be read from any place: it is not compressed, and stored where that goes."""
    if compression(path) is not None:
        return False
    if not is_uri(path):
        return True
    with _stored(path) as file, _reaching(path):
        try:
            # A web server may well ignore which part of a file is asked for; then reading fails, not seeking.
            file.seek(1)
            file.read(1)
            file.seek(-1, os.SEEK_END)
            file.read(1)
        except (OSError, ValueError, NotImplementedError):
            return False
    return True


@contextmanager
def opened(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file's uncompressed bytes. What is wrong with it, now or at any read, becomes an InputError with its name.

    Memory holds a few blocks, whatever the file unpacks to.
    """
    name = str(path)
    kind = compression(name)
    with ExitStack() as stack:
        if kind is not None and not _first_bytes(name):
            raise _broken(name, kind, "the file is empty")
        seeking = kind is None and can_seek(name)
        stored = stack.enter_context(_stored(name, streaming=not seeking))
        if kind is None:
            source = _Source(name, stored.read, None, stored.seek if seeking else None)
        elif kind == "xz":
            source = _Source(name, _Members(stored, _xz, padding=b"\0").read, kind)
        elif kind == "bz2":
            source = _Source(name, _Members(stored, bz2.BZ2Decompressor, padding=b"").read, kind)
        else:
            # Arrow's decoders tell a file that was cut (zstandard's reader does not) and garbage behind a member.
            arrow = stored if isinstance(stored, pa.NativeFile) else pa.PythonFile(stored, mode="r")
            source = _Source(name, stack.enter_context(pa.CompressedInputStream(arrow, kind)).read, kind)
        yield cast(IO[bytes], io.BufferedReader(source, _BLOCK_BYTES))


@contextmanager
def random_access(path: str) -> Iterator[Any]:
    """Open a file for Arrow's own readers, which seek. Raises InputError where that cannot be done."""
    if not can_seek(path):
        raise InputError(
            "this form is read from several places of the file, which cannot be done with this one",
            where=path,
            remedy="Download or unpack the file, and give its path",
        )
    with _stored(path) as file:
        yield file


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Source(io.RawIOBase):
    """The bytes that a function gives. Faults of reading become InputErrors with the file's name."""

    def __init__(
        self,
        path: str,
        read: Callable[[int], bytes],
        kind: Compression | None,
        seek: Callable[[int, int], int] | None = None,
    ) -> None:
        super().__init__()
        self._path, self._read, self._kind, self._seek = path, read, kind, seek
        # The packages behind URIs each have exceptions of their own.
        self._faults = (Exception,) if is_uri(path) else (OSError, EOFError, lzma.LZMAError, pa.ArrowException)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether `seek` can be called."""
        return self._seek is not None

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to an offset, and return it."""
        if self._seek is None:
            raise io.UnsupportedOperation("not seekable")
        return self._seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as bytes come at once; return their number, 0 at the end. Raises InputError."""
        try:
            data = self._read(len(buffer))
        except InputError:
            raise
        except self._faults as error:
            raise self._fault(error) from error
        buffer[: len(data)] = data
        return len(data)

    def _fault(self, error: Exception) -> InputError:
        if self._kind is None or getattr(error, "errno", None) is not None:
            return _unreadable(self._path, error)
        return _broken(self._path, self._kind, str(error))


class _Decoder(Protocol):
    """One member of a compressed file, as the standard library's bz2 and lzma decode it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Members:
    """The uncompressed bytes of all members of a file. What is between them must be a member, or padding.

    The library's own files end silently at the first thing that is no member, and lose what is behind it.
    """

    def __init__(self, file: _Readable, decoder: Callable[[], _Decoder], padding: bytes) -> None:
        self._file, self._new_decoder, self._padding = file, decoder, padding
        self._rest = b""
        self._decoder: _Decoder | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end only. Raises what the decoder does, EOFError for a cut file."""
        while True:
            if self._decoder is None:
                self._rest = self._rest.lstrip(self._padding)
                if not self._rest:
                    self._rest = self._file.read(_BLOCK_BYTES)
                    if not self._rest:
                        return b""
                    continue
                self._decoder = self._new_decoder()
            if self._decoder.needs_input and not self._rest:
                self._rest = self._file.read(_BLOCK_BYTES)
                if not self._rest:
                    raise EOFError("the file ends too early")
            data = self._decoder.decompress(self._rest, size)
            self._rest = b""
            if self._decoder.eof:
                self._rest, self._decoder = self._decoder.unused_data, None
            if data:
                return data


def _xz() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)


@contextmanager
def _stored(path: str, *, streaming: bool = False) -> Iterator[Any]:
    """Open a file's bytes as they are stored: a binary file with `read`, and `seek` unless it is only streamed."""
    if is_uri(path):
        system, inner = _file_system(path)
        # Without blocks a web server is asked for the whole file, once.
        options = {"block_size": 0} if streaming and "http" in system.protocol else {}
        with _reaching(path):
            file = system.open(inner, "rb", **options)
    else:
        try:
            file = pa.OSFile(path, "rb")
        except OSError as error:
            raise _unreadable(path, error) from error
    with file:
        yield file


def _first_bytes(path: str) -> bytes:
    with _stored(path, streaming=True) as file:
        return _Source(path, file.read, None).read(_MAGIC_BYTES)


def _broken(path: str, kind: Compression, what: str) -> InputError:
    remedy = f"Fetch or compress the file again; `{_TESTS[kind]}` tests it"
    return InputError(f"broken {kind}: {what}", where=path, remedy=remedy)


def _unreadable(path: str, error: Exception) -> InputError:
    number = getattr(error, "errno", None)
    what = str(error) if number is None else os.strerror(number)  # Arrow's own text repeats the path
    return InputError(f"cannot be read ({what})", where=path, remedy="Look at the file and its rights")


def _matching_uri(path: str, remedy: str) -> list[str]:
    system, inner = _file_system(path)
    with _reaching(path, remedy):
        if "*" in path:
            found = sorted(name for name in system.glob(inner) if system.isfile(name))
            names = [str(system.unstrip_protocol(name)) for name in found]
        else:
            names = [path] if system.info(inner)["type"] == "file" else []
    if not names:
        what = "no file fits this pattern" if "*" in path else "a folder, not a file"
        raise InputError(what, where=path, remedy=remedy)
    return names


def _file_system(path: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URI, and the path in it. Raises InputError naming a package that is missing."""
    protocol = path.partition("://")[0].rpartition("::")[2]
    try:
        system, inner = url_to_fs(path)
    except ImportError as error:
        module = known_implementations[protocol]["class"].partition(".")[0]
        package = str(error) if module == "fsspec" else f"Install the package {module} (pip install {module})"
        raise InputError(f"nothing is installed that opens {protocol}://", where=path, remedy=package) from error
    except ValueError as error:
        raise InputError(
            f"cannot be opened ({error})",
            where=path,
            remedy="Correct the URI: s3://, gs://, http:// and others of fsspec",
        ) from error
    return system, str(inner)


@contextmanager
def _reaching(path: str, remedy: str = "Look at the URI, its rights and the network") -> Iterator[None]:
    """Turn what a file system far away raises into an InputError: each has exceptions of its own."""
    try:
        yield
    except FileNotFoundError as error:
        # What it wraps, if anything, tells that nobody answered.
        what = "no such file" + (f" ({error.__cause__})" if error.__cause__ else "")
        raise InputError(what, where=path, remedy=remedy) from error
    except Exception as error:
        raise InputError(f"cannot be opened ({error})", where=path, remedy=remedy) from error
