"""One file over HTTP or HTTPS: resumed, tried again, verified, and renamed into place when it is whole.

    download("https://host/corpus.zip", Path("data/corpus.zip"), Digest("sha256", "9f86d081884c7d65..."))

    data/corpus.zip.part         what has arrived so far
    data/corpus.zip.part.json    of what it is a part: URL, ETag or Last-Modified, length
    data/corpus.zip              appears whole and verified; what stood there before stays until then

Sources: RFC 9110 (13.1.5 If-Range, 14.2 Range, 10.2.3 Retry-After, 15.4 redirection).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import requests
import urllib3
from pydantic import BaseModel, ConfigDict, ValidationError
from urllib3.util import Retry

from pipelines.errors import InputError
from pipelines.stage import file_sha256, write_atomically

T = TypeVar("T")
Progress = Callable[[int, int | None], None]  # bytes that are there, bytes of the whole where the server tells

CHUNK_BYTES = 1 << 20
TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces of the body
MAX_REDIRECTS = 10
MAX_JSON_BYTES = 16 << 20
LOG_EVERY_S = 30.0
# An attempt that brought this much was worth it: only attempts without any progress use up the retries.
WORTHWHILE_BYTES = 1 << 20

REDIRECTS = {301, 302, 303, 307, 308}
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
# Parameters of a query that are passwords by themselves: access tokens and the signatures of presigned URLs.
_SECRET = re.compile(
    r"((?:^|&)(?:[\w.-]*[_.-])?(?:token|sig|signature|secret|password|credential|key|apikey|accesskeyid)=)[^&]*",
    re.IGNORECASE,
)
_HTML = (b"<!doctype html", b"<html")

log = logging.getLogger(__name__)


class NotFound(InputError):
    """The server says that there is nothing under the URL (404, 410)."""


@dataclass(frozen=True)
class Digest:
    """What a file's content is to be: the digest in lower-case hex."""

    algorithm: Literal["sha256", "md5"]
    hex: str


@dataclass(frozen=True)
class Retries:
    """How often a transient fault is met, and for how long: the waits double from `backoff_s` on."""

    attempts: int = 5  # without progress, one after the other
    backoff_s: float = 1.0
    longest_wait_s: float = 120.0  # a server that asks for more is not waited for


RETRIES = Retries()


@dataclass(frozen=True)
class Downloaded:
    """A file that has arrived whole."""

    sha256: str
    bytes: int


class _Begun(BaseModel):
    """Of what resource a `.part` file is the beginning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    etag: str | None
    last_modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        """Return what If-Range takes: a strong ETag or else the date; None where the server gave neither."""
        return self.etag if self.etag is not None and not self.etag.startswith("W/") else self.last_modified


class _TransientFault(Exception):
    """What another attempt may heal."""

    def __init__(self, what: str, *, retry_after_s: float = 0.0, received: int = 0) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s
        self.received = received


def download(
    url: str,
    path: Path,
    digest: Digest | None = None,
    *,
    retries: Retries = RETRIES,
    progress: Progress | None = None,
) -> Downloaded:
    """Return what has been downloaded to `path`, whole, verified against `digest` where one is given.

    What an earlier call left in `<path>.part` is continued where the server still has the same file (If-Range), else it
    is begun anew. Without `progress`, a line is logged now and then. It is the caller who sees to it that no other
    process downloads to the same path.

    Raises NotFound for what is not there; InputError for any other refusal of the server, for a network that cannot be
    reached or fails in `retries.attempts` attempts, for another digest than the expected one (what has arrived is
    removed then), an HTML page in place of a file, a redirect from HTTPS to HTTP, and for a disk that is full or cannot
    be written.
    """
    public = public_url(url)
    part = _Part(path, public)
    with writing(path):
        if path.is_dir():
            raise InputError("a folder stands in the place of the file", where=str(path), remedy="Move it away")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Session() as session:
            _persistently(lambda: _transfer(session, url, part, progress or _logging(path.name)), public, retries)
        found = part.digests(digest)
        if digest is not None and found[digest.algorithm] != digest.hex:
            part.remove()
            raise InputError(
                f"not the expected {digest.algorithm}: expected {digest.hex}, found {found[digest.algorithm]}; "
                "what has arrived has been removed",
                where=public,
                remedy="Ask its publisher whether the file has changed, and give the digest of what you want",
            )
        size = part.size()
        part.finish()
    return Downloaded(found["sha256"], size)


def read_json(url: str, parameters: Mapping[str, str], *, retries: Retries = RETRIES) -> Any:
    """Return the JSON value that a server answers with, tried again as `download` does.

    Raises InputError as `download` does, and for an answer that is no JSON or has more than MAX_JSON_BYTES.
    """
    prepared = requests.Request("GET", _checked(url), params=dict(parameters)).prepare().url
    assert prepared is not None
    public = public_url(prepared)

    def attempt() -> bytes:
        with _Session() as session, closing(_get(session, prepared, {})) as response:
            _check_status(response, public)
            with _network(public):
                return response.raw.read(MAX_JSON_BYTES + 1, decode_content=True) or b""

    body = _persistently(attempt, public, retries)
    try:
        if len(body) > MAX_JSON_BYTES:
            raise ValueError("too long")
        return json.loads(body)
    except ValueError as error:
        raise InputError("the answer is no JSON", where=public, remedy="Is this the address of the service?") from error


def public_url(url: str) -> str:
    """Return the URL as it may be shown and stored: without user and password, secrets in the query masked.

    Raises InputError for what is not a URL of HTTP or HTTPS.
    """
    parts = urlsplit(_checked(url))
    return urlunsplit(parts._replace(netloc=_host(parts), query=_SECRET.sub(r"\1***", parts.query)))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """In this context, an error of the file system is an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        barred = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        what = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
        remedy = "Look at the path"
        if full:
            remedy = "Make room and call again: what has arrived is continued"
        elif barred:
            remedy = "Give a folder where you may write"
        raise InputError(what, where=str(error.filename or path), remedy=remedy) from error


def check_room(folder: Path, num_bytes: int) -> None:
    """Raise InputError when the disk of a folder has not room for so many bytes more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"the disk is too full: {num_bytes:,} bytes are to be written, {free:,} are free",
            where=str(folder),
            remedy="Make room, or give another folder",
        )


class _Session(requests.Session):
    """Follows no redirect by itself, nor looks one step ahead, for which it would read the redirect's whole body."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return that there is none."""


class _Part:
    """The file that grows, and beside it the note of what it is a part."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.data = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")

    def begun(self) -> _Begun | None:
        """Return the note, where there is a beginning of this URL's file that can be continued."""
        if not self.note.is_file() or self.size() == 0:
            return None
        try:
            note = _Begun.model_validate_json(self.note.read_bytes())
        except ValidationError:
            log.info("%s: no note of a download; begun anew", self.note)
            return None
        return note if note.url == self.url and note.validator is not None else None

    def size(self) -> int:
        """Return how many bytes have arrived."""
        return self.data.stat().st_size if self.data.is_file() else 0

    def begin(self, note: _Begun) -> None:
        """Forget what has arrived, and note what comes."""
        self.remove()
        write_atomically(self.note, note.model_dump_json(indent=1) + "\n")

    def digests(self, digest: Digest | None) -> dict[str, str]:
        """Return the file's sha256, and its digest by the algorithm of `digest`."""
        found = {"sha256": file_sha256(self.data)}
        if digest is not None and digest.algorithm != "sha256":
            with self.data.open("rb") as file:
                found[digest.algorithm] = hashlib.file_digest(file, digest.algorithm).hexdigest()
        return found

    def finish(self) -> None:
        """Put the whole file into its place."""
        self.data.replace(self.path)
        self.note.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove both files."""
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _transfer(session: _Session, url: str, part: _Part, progress: Progress) -> None:
    """Bring what is missing of the part; it is whole when this returns."""
    begun = part.begun()
    headers = {}
    if begun is not None and begun.validator is not None:
        headers = {"Range": f"bytes={part.size()}-", "If-Range": begun.validator}
    with closing(_get(session, url, headers)) as response:
        if begun is not None and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range", "") == f"bytes */{part.size()}":
                return  # nothing is missing: the process ended between the last byte and the rename
            part.remove()
            raise _TransientFault("the server has a shorter file than what has arrived")
        _check_status(response, part.url)
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            if begun is None or not _continues(response, part.size(), begun):
                part.remove()
                raise _TransientFault("the server sent another part of the file than was asked for")
            length = begun.length
        else:
            length = _length(response)
            _check_is_file(response, part)
            part.begin(_note(response, part.url, length))
        _receive(response, part, length, progress)


def _receive(response: requests.Response, part: _Part, length: int | None, progress: Progress) -> None:
    offset = done = part.size()
    if length is not None:
        check_room(part.path.parent, length - offset)
    try:
        with part.data.open("ab") as file, _network(part.url):
            progress(done, length)
            # As on the wire: what is counted is what Content-Length and Content-Range count.
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                if done == 0:
                    _check_not_html(chunk, part)
                file.write(chunk)
                done += len(chunk)
                progress(done, length)
            file.flush()
            os.fsync(file.fileno())
    except _TransientFault as fault:
        what = f"{fault}; {done:,} bytes" + (f" of {length:,}" if length is not None else "") + " have arrived"
        raise _TransientFault(what, received=done - offset) from fault
    if length is not None and done != length:
        if done > length:
            part.remove()
        raise _TransientFault(f"{done:,} bytes have arrived, {length:,} were announced", received=done - offset)


def _get(session: _Session, url: str, headers: Mapping[str, str]) -> requests.Response:
    """Return the answer to a GET, its body not yet read, redirects followed."""
    sent = {"User-Agent": "seqloom", "Accept-Encoding": "identity", **headers}
    for _ in range(MAX_REDIRECTS + 1):
        public = public_url(url)
        with _network(public):
            response = session.get(url, headers=sent, stream=True, timeout=TIMEOUT_S, allow_redirects=False)
        if response.status_code not in REDIRECTS:
            return response
        response.close()
        url = _redirected(url, response)
    raise InputError(f"more than {MAX_REDIRECTS} redirects", where=public, remedy="Give the address of the file itself")


def _redirected(url: str, response: requests.Response) -> str:
    public, old = public_url(url), urlsplit(url)
    location = response.headers.get("Location", "")
    try:
        # Headers are read as latin-1; a server that does not escape its URLs writes UTF-8.
        text = requests.utils.requote_uri(location.encode("latin-1").decode("utf-8"))
        new = urlsplit(urljoin(url, text) if text else "")
    except ValueError:
        new = urlsplit("")
    if new.scheme not in ("http", "https") or not new.netloc:
        raise InputError("the server redirects to no address", where=public, remedy="Give the address of the file")
    if (old.scheme, new.scheme) == ("https", "http"):
        raise InputError(
            "the server redirects from https to http, where anybody on the way could change the file",
            where=public,
            remedy="Give the address of the file itself, with its sha256",
        )
    if "@" not in new.netloc and (old.scheme, old.netloc.rpartition("@")[2]) == (new.scheme, new.netloc):
        new = new._replace(netloc=old.netloc)  # user and password stay with their own server
    return urlunsplit(new)


def _persistently(attempt: Callable[[], T], url: str, retries: Retries) -> T:
    """Return what `attempt` returns, called again after transient faults."""
    failures = 0
    while True:
        try:
            return attempt()
        except _TransientFault as fault:
            failures = 1 if fault.received >= WORTHWHILE_BYTES else failures + 1
            if failures >= retries.attempts:
                raise InputError(
                    f"{fault} (attempt {failures} of {retries.attempts})",
                    where=url,
                    remedy="Look at the network, and call again: a download continues where it was",
                ) from fault
            if fault.retry_after_s > retries.longest_wait_s:
                raise InputError(
                    f"{fault}; the server asks to come back in {fault.retry_after_s:.0f} s",
                    where=url,
                    remedy="Call again then",
                ) from fault
            backoff_s = min(retries.backoff_s * 2 ** (failures - 1), retries.longest_wait_s)
            wait_s = max(backoff_s, fault.retry_after_s)
            log.info("%s: %s; again in %.0f s", url, fault, wait_s)
            time.sleep(wait_s)


@contextmanager
def _network(url: str) -> Iterator[None]:
    """In this context, what the network does wrong is a transient fault, or an InputError where waiting heals nothing.

    The libraries' own messages hold whole URLs, so none of them is shown.
    """
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader) as error:
        raise InputError("not a URL that can be asked for", where=url, remedy="Look at the URL") from error
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise _TransientFault("the server does not answer in time") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        if _cause(error, ssl.SSLCertVerificationError) is not None:
            raise InputError(
                "the server's certificate is not trusted", where=url, remedy="Look at the URL and at the clock"
            ) from error
        unresolved = _cause(error, socket.gaierror)
        if unresolved is not None and unresolved.errno != socket.EAI_AGAIN:
            raise InputError("no such host", where=url, remedy="Look at the name and at the network") from error
        if unresolved is not None:
            raise _TransientFault("the host's name cannot be resolved; is there a network?") from error
        if _cause(error, ConnectionRefusedError) is not None:
            raise _TransientFault("the server refuses the connection") from error
        raise _TransientFault("the connection broke off") from error


E = TypeVar("E", bound=BaseException)


def _cause(error: BaseException | None, kind: type[E]) -> E | None:
    """Return the first error of a kind among those that led to `error`."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    known = status in HTTPStatus.__members__.values()
    what = f"the server answers {status}" + (f" {HTTPStatus(status).phrase}" if known else "")
    if status in TRANSIENT:
        raise _TransientFault(what, retry_after_s=_retry_after_s(response))
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise NotFound(what, where=url, remedy="Look at the URL")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise InputError(what, where=url, remedy="It may ask for an account or for consent: look at its page")
    raise InputError(what, where=url, remedy="Look at the URL in a browser")


def _retry_after_s(response: requests.Response) -> float:
    header = response.headers.get("Retry-After")
    try:
        return 0.0 if header is None else float(Retry().parse_retry_after(header))
    except urllib3.exceptions.InvalidHeader:
        return 0.0


def _continues(response: requests.Response, offset: int, begun: _Begun) -> bool:
    """Whether a 206 goes on at `offset` of the same file."""
    first, last, length = _content_range(response)
    same = all(
        response.headers.get(header, stored) == stored
        for header, stored in (("ETag", begun.etag), ("Last-Modified", begun.last_modified))
        if stored is not None
    )
    return same and first == offset and last >= offset and length in (None, begun.length)


def _content_range(response: requests.Response) -> tuple[int, int, int | None]:
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return -1, -1, None
    first, last, length = found.groups()
    return int(first), int(last), None if length == "*" else int(length)


def _length(response: requests.Response) -> int | None:
    header = response.headers.get("Content-Length", "")
    return int(header) if header.isdecimal() else None


def _note(response: requests.Response, url: str, length: int | None) -> _Begun:
    headers = response.headers
    return _Begun(url=url, etag=headers.get("ETag"), last_modified=headers.get("Last-Modified"), length=length)


def _check_is_file(response: requests.Response, part: _Part) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/html" and not _is_html(part.path):
        raise _html_page(part)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    # Some servers call a .gz so; any other file would arrive compressed under the name of one that is not.
    if encoding != "identity" and part.path.suffix not in (".gz", ".tgz"):
        raise InputError(
            f"the server sends the file compressed ({encoding}), though asked not to",
            where=part.url,
            remedy="Download it otherwise, and give its path in the recipe",
        )


def _check_not_html(beginning: bytes, part: _Part) -> None:
    if beginning[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML) and not _is_html(part.path):
        part.remove()
        raise _html_page(part)


def _is_html(path: Path) -> bool:
    return path.suffix.lower() in (".html", ".htm", ".xhtml")


def _html_page(part: _Part) -> InputError:
    return InputError(
        "the server answers with an HTML page, not with a file",
        where=part.url,
        remedy="Open it in a browser: it may ask for a login or for consent, or lead to the file",
    )


def _logging(name: str) -> Progress:
    """Return a progress that logs a line now and then."""
    last = time.monotonic()

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            log.info("%s: %.1f MB" + ("" if total is None else f" of {total / 1e6:.1f} MB"), name, done / 1e6)

    return progress


def _checked(url: str) -> str:
    """Return the URL. Raises InputError, which does not repeat it, for what is no URL of HTTP or HTTPS."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or re.search(r"[\x00-\x20\x7f]", url):
        raise InputError("not an address of HTTP or HTTPS", where="the URL", remedy="As in https://host/path/file")
    return url


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]
