from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import download as download_module
from pipelines.download import Digest, Downloaded, NotFound, Retries, download, public_url, read_json, writing
from pipelines.errors import InputError
from tests.pipelines.web_server import Resource, WebServer, web_server, write_certificate

BODY = random.Random(7).randbytes(3_000_000)  # three chunks
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, none of which is waited for. No proxy stands before the loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    seconds: list[float] = []
    monkeypatch.setattr(download_module.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "corpus.bin"


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def fails(server: WebServer, target: Path, digest: Digest | None = None, path: str = "/corpus.bin") -> InputError:
    with pytest.raises(InputError) as raised:
        download(server.url(path), target, digest)
    return raised.value


def break_off(server: WebServer, target: Path, arrived: int, retries: int = 1) -> None:
    """Leave the first `arrived` bytes of /corpus.bin in the part of the target."""
    server.resources["/corpus.bin"].break_after = [arrived]
    with pytest.raises(InputError, match=f"{arrived:,} bytes"):
        download(server.url("/corpus.bin"), target, retries=Retries(attempts=retries))
    assert target.with_name("corpus.bin.part").stat().st_size == arrived
    server.requests.clear()


def test_a_file_arrives_whole_with_nothing_left_beside_it(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    assert download(server.url("/corpus.bin"), target, Digest("sha256", SHA256)) == Downloaded(SHA256, len(BODY))
    assert target.read_bytes() == BODY
    assert files(target) == ["corpus.bin"]
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_an_md5_is_checked_too_and_an_empty_file_is_a_file(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    digest = Digest("md5", "d41d8cd98f00b204e9800998ecf8427e")
    assert download(server.url("/corpus.bin"), target, digest) == Downloaded(empty, 0)
    server.resources["/corpus.bin"].body = b"x"
    assert "not the expected md5: expected d41d8cd98f00b204e9800998ecf8427e, found 9dd4e461" in str(
        fails(server, target, digest)
    )
    assert target.read_bytes() == b""


def test_progress_counts_up_to_the_whole(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    seen: list[tuple[int, int | None]] = []
    download(server.url("/corpus.bin"), target, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 3_000_000)
    assert seen[-1] == (3_000_000, 3_000_000)
    assert seen == sorted(seen)


def test_a_transfer_that_breaks_off_is_continued_in_the_same_call(
    server: WebServer, target: Path, waits: list[float]
) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, break_after=[1000, 500])
    download(server.url("/corpus.bin"), target, Digest("sha256", SHA256))
    assert server.ranges() == [None, "bytes=1000-", "bytes=1500-"]
    assert [request.headers.get("If-Range") for request in server.requests] == [None, '"1"', '"1"']
    assert waits == [1, 2]


def test_a_later_call_continues_where_an_earlier_one_ended(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    break_off(server, target, 1_500_000)
    assert files(target) == ["corpus.bin.part", "corpus.bin.part.json"]
    seen: list[int] = []
    download(server.url("/corpus.bin"), target, progress=lambda done, _total: seen.append(done))
    assert target.read_bytes() == BODY
    assert server.ranges() == ["bytes=1500000-"]
    assert seen[0] == 1_500_000


def test_attempts_that_bring_much_do_not_use_up_the_retries(server: WebServer, target: Path) -> None:
    body = BODY + BODY
    server.resources["/corpus.bin"] = Resource(body, break_after=[1 << 20] * 5)
    download(server.url("/corpus.bin"), target, retries=Retries(attempts=2))
    assert target.read_bytes() == body
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "changed",
    [
        Resource(BODY[::-1], etag='"2"'),
        Resource(BODY[::-1], etag=None, last_modified="Tue, 02 Jan 2024 00:00:00 GMT"),
        Resource(BODY[::-1], ranges=False),
        Resource(b"much shorter", etag='"2"'),
    ],
)
def test_another_file_or_a_server_without_ranges_is_begun_anew(
    server: WebServer, target: Path, changed: Resource
) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    break_off(server, target, 1000)
    server.resources["/corpus.bin"] = changed
    download(server.url("/corpus.bin"), target)
    assert target.read_bytes() == changed.body
    assert server.ranges() == ["bytes=1000-"]


def test_the_date_serves_where_the_tag_is_weak_and_without_either_nothing_is_continued(
    server: WebServer, target: Path
) -> None:
    date = "Mon, 01 Jan 2024 00:00:00 GMT"
    server.resources["/corpus.bin"] = Resource(BODY, etag='W/"1"', last_modified=date)
    break_off(server, target, 1000)
    download(server.url("/corpus.bin"), target)
    assert [request.headers.get("If-Range") for request in server.requests] == [date]
    server.resources["/corpus.bin"] = Resource(BODY, etag=None)
    break_off(server, target, 1000)
    download(server.url("/corpus.bin"), target)
    assert server.ranges() == [None]


def test_a_server_that_continues_another_file_is_not_believed(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    break_off(server, target, 1000)
    # It looks at no If-Range: 206 with another tag, then 206 from another place.
    lies = {"Content-Range": f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"}
    server.resources["/corpus.bin"].first = [(206, {**lies, "ETag": '"2"'})]
    download(server.url("/corpus.bin"), target)
    assert target.read_bytes() == BODY
    assert server.ranges() == ["bytes=1000-", None]
    target.unlink()
    break_off(server, target, 1000)
    server.resources["/corpus.bin"].first = [(206, {"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"})]
    download(server.url("/corpus.bin"), target)
    assert target.read_bytes() == BODY


def test_a_part_of_another_url_or_with_a_note_that_is_none_is_begun_anew(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = server.resources["/other.bin"] = Resource(BODY)
    break_off(server, target, 1000)
    download(server.url("/other.bin"), target)
    break_off(server, target, 1000)
    target.with_name("corpus.bin.part.json").write_text("{", encoding="utf-8")
    download(server.url("/corpus.bin"), target)
    assert server.ranges() == [None]
    assert target.read_bytes() == BODY


def test_a_part_that_is_whole_already_takes_its_place(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    break_off(server, target, 1000)
    target.with_name("corpus.bin.part").write_bytes(BODY)
    download(server.url("/corpus.bin"), target)
    assert server.ranges() == ["bytes=3000000-"]
    assert target.read_bytes() == BODY


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    break_off(server, target, 1000)
    target.with_name("corpus.bin.part").write_bytes(BODY + b"x")
    download(server.url("/corpus.bin"), target)
    assert server.ranges() == ["bytes=3000001-", None]
    assert target.read_bytes() == BODY


def test_a_truncated_file_never_takes_its_place(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, break_after=[10] * 9)
    target.parent.mkdir()
    target.write_bytes(b"what was there")
    error = fails(server, target)
    assert "50 bytes of 3,000,000 have arrived (attempt 5 of 5)" in error.what
    assert target.read_bytes() == b"what was there"


def test_a_body_of_unknown_length_is_taken_as_it_comes(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, length=False)
    assert download(server.url("/corpus.bin"), target, Digest("sha256", SHA256)).bytes == 3_000_000


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_passes_is_waited_for_ever_longer(
    server: WebServer, target: Path, waits: list[float], status: int
) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, first=[(status, {})] * 4)
    download(server.url("/corpus.bin"), target)
    assert target.read_bytes() == BODY
    assert waits == [1, 2, 4, 8]


def test_the_retries_have_an_end(server: WebServer, target: Path, waits: list[float]) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, first=[(503, {})] * 9)
    assert fails(server, target).what == "the server answers 503 Service Unavailable (attempt 5 of 5)"
    assert len(server.requests) == 5
    assert waits == [1, 2, 4, 8]
    assert files(target) == []


def test_retry_after_is_obeyed_up_to_a_bound(server: WebServer, target: Path, waits: list[float]) -> None:
    server.resources["/corpus.bin"] = Resource(
        BODY, first=[(429, {"Retry-After": "17"}), (503, {"Retry-After": "soon"}), (429, {"Retry-After": "3600"})]
    )
    error = fails(server, target)
    assert waits == [17, 2]
    assert error.what == "the server answers 429 Too Many Requests; the server asks to come back in 3600 s"


@pytest.mark.parametrize(
    ("status", "says"),
    [(403, "403 Forbidden"), (401, "401 Unauthorized"), (418, "418"), (400, "400 Bad Request"), (299, "299")],
)
def test_a_refusal_is_told_at_once(server: WebServer, target: Path, waits: list[float], status: int, says: str) -> None:
    server.resources["/corpus.bin"] = Resource(first=[(status, {})])
    assert fails(server, target).what.startswith(f"the server answers {says}")
    assert waits == []


def test_what_is_not_there_is_an_error_of_its_own(server: WebServer, target: Path) -> None:
    with pytest.raises(NotFound, match="the server answers 404 Not Found"):
        download(server.url("/corpus.bin"), target)
    assert files(target) == []


def test_another_digest_names_both_and_leaves_nothing(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    target.parent.mkdir()
    target.write_bytes(b"what was there")
    error = fails(server, target, Digest("sha256", "0" * 64))
    assert f"expected {'0' * 64}, found {SHA256}; what has arrived has been removed" in error.what
    assert target.read_bytes() == b"what was there"
    assert files(target) == ["corpus.bin"]


@pytest.mark.parametrize(
    "page",
    [
        Resource(b"<p>Please log in</p>", kind="text/html; charset=utf-8"),
        Resource(b"\xef\xbb\xbf\n <!DOCTYPE HTML><title>Sorry</title>"),
        Resource(b"<html lang='en'></html>", kind="application/zip"),
    ],
)
def test_an_html_page_is_no_file(server: WebServer, target: Path, page: Resource) -> None:
    server.resources["/corpus.bin"] = page
    assert fails(server, target).what == "the server answers with an HTML page, not with a file"
    assert files(target) == []


def test_an_html_page_that_is_asked_for_is_a_file(server: WebServer, tmp_path: Path) -> None:
    server.resources["/page.html"] = Resource(b"<html></html>", kind="text/html")
    download(server.url("/page.html"), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == b"<html></html>"


def test_a_compressed_transfer_is_refused_but_for_a_compressed_file(server: WebServer, tmp_path: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, headers={"Content-Encoding": "gzip"})
    assert "the server sends the file compressed (gzip)" in fails(server, tmp_path / "corpus.bin").what
    download(server.url("/corpus.bin"), tmp_path / "corpus.gz")
    assert (tmp_path / "corpus.gz").read_bytes() == BODY


def test_redirects_are_followed_and_continued(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, break_after=[1000])
    moved = (302, {"Location": "/corpus.bin"})
    server.resources["/moved"] = Resource(first=[(307, {"Location": server.url("/twice moved")})] * 2)
    server.resources["/twice%20moved"] = Resource(first=[moved] * 2)
    download(server.url("/moved"), target, Digest("sha256", SHA256))
    assert server.ranges() == [None, None, None, "bytes=1000-", "bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize("location", ["", "ftp://host/x", "file:///etc/hostname", "http://[bad/x", "\xe4"])
def test_a_redirect_elsewhere_is_refused(server: WebServer, target: Path, location: str) -> None:
    server.resources["/corpus.bin"] = Resource(first=[(302, {"Location": location} if location else {})])
    assert fails(server, target).what == "the server redirects to no address"


def test_redirects_have_an_end(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(first=[(301, {"Location": "/corpus.bin"})] * 20)
    assert fails(server, target).what == "more than 10 redirects"
    assert len(server.requests) == 11


def test_an_encrypted_connection_stays_encrypted(
    server: WebServer, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "certificate.pem"
    write_certificate(certificate)
    server.resources["/corpus.bin"] = Resource(BODY)
    with web_server(certificate) as secure:
        secure.resources["/corpus.bin"] = Resource(BODY)
        secure.resources["/down"] = Resource(first=[(302, {"Location": server.url("/corpus.bin")})])
        assert fails(secure, target).what == "the server's certificate is not trusted"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert download(secure.url("/corpus.bin"), target).sha256 == SHA256
        assert "redirects from https to http" in fails(secure, target, path="/down").what
        server.resources["/up"] = Resource(first=[(302, {"Location": secure.url("/corpus.bin")})])
        assert download(server.url("/up"), target).sha256 == SHA256


def test_user_and_password_are_sent_to_their_server_only_and_stored_nowhere(server: WebServer, target: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY, break_after=[1000])
    server.resources["/moved"] = Resource(first=[(302, {"Location": "/corpus.bin"})])
    secret = server.url("/moved").replace("://", "://me:s3cret@")
    with pytest.raises(InputError) as raised:
        download(secret, target, retries=Retries(attempts=1))
    assert [request.headers["Authorization"] for request in server.requests] == ["Basic bWU6czNjcmV0"] * 2
    note = json.loads(target.with_name("corpus.bin.part.json").read_text(encoding="utf-8"))
    assert note == {"url": server.url("/moved"), "etag": '"1"', "last_modified": None, "length": 3_000_000}
    assert "s3cret" not in str(raised.value)
    with web_server() as other:
        other.resources["/corpus.bin"] = Resource(BODY)
        server.resources["/moved"].first = [(302, {"Location": other.url("/corpus.bin")})]
        download(secret, target)
        assert "Authorization" not in other.requests[0].headers


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://me:pw@host:8080/a.zip", "https://host:8080/a.zip"),
        ("https://host/a?X-Amz-Signature=f00&b=1", "https://host/a?X-Amz-Signature=***&b=1"),
        ("https://host/a?access_token=x&design=2&KEY=3", "https://host/a?access_token=***&design=2&KEY=***"),
        ("https://host/a?sig=x%26y&sigma=4", "https://host/a?sig=***&sigma=4"),
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url: str, public: str) -> None:
    assert public_url(url) == public


@given(st.text(max_size=30))
def test_what_is_no_url_is_refused_without_being_repeated(text: str) -> None:
    try:
        assert public_url(text).startswith(("http://", "https://"))
    except InputError as error:
        assert error.where == "the URL"


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "http://", "https://:80/a", "http://host:99999/a", "http://a b/c", "x"]
)
def test_only_http_and_https_are_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an address of HTTP or HTTPS"):
        download(url, tmp_path / "a")


def test_a_refused_connection_is_tried_again_and_then_told(tmp_path: Path, waits: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
    with pytest.raises(InputError, match=r"the server refuses the connection \(attempt 5 of 5\)"):
        download(url, tmp_path / "a")
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("number", "says", "waited"),
    [
        (socket.EAI_NONAME, "no such host", []),
        (socket.EAI_AGAIN, "cannot be resolved; is there a network?", [1, 2, 4, 8]),
    ],
)
def test_a_name_that_cannot_be_resolved_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], number: int, says: str, waited: list[float]
) -> None:
    def unresolved(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(number, "unresolved")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    with pytest.raises(InputError, match=says):
        download("http://corpora.invalid/a", tmp_path / "a")
    assert waits == waited


def test_a_server_that_falls_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT_S", (0.05, 0.05))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(InputError, match="does not answer in time"):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/a", tmp_path / "a")


def test_a_full_disk_is_told_and_what_has_arrived_is_continued(
    server: WebServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            if self.tell() > 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)  # type: ignore[arg-type]

    opened = Path.open

    def open_full(path: Path, mode: str = "r", **options: object) -> object:
        return Full(path, mode) if mode == "ab" else opened(path, mode, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_full)
    error = fails(server, target)
    assert error.what == "the disk is full"
    assert error.remedy == "Make room and call again: what has arrived is continued"
    monkeypatch.setattr(Path, "open", opened)
    server.requests.clear()
    download(server.url("/corpus.bin"), target, Digest("sha256", SHA256))
    assert server.ranges() == ["bytes=1048576-"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    server: WebServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(100, 0, 2_999_999))  # type: ignore[attr-defined]
    assert "3,000,000 bytes are to be written, 2,999,999 are free" in fails(server, target).what


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EDQUOT, "the disk is full. Make room"),
        (errno.EACCES, "Permission denied). Give a folder where you may write"),
        (errno.EROFS, "Read-only file system). Give a folder where you may write"),
        (errno.ENAMETOOLONG, "File name too long). Look at the path"),
    ],
)
def test_what_the_file_system_refuses_is_told(number: int, says: str) -> None:
    with pytest.raises(InputError) as raised, writing(Path("data")):
        raise OSError(number, os.strerror(number), "data/x")
    assert says in str(raised.value)
    assert raised.value.where == "data/x"


def test_a_folder_that_is_a_file_or_a_file_that_is_a_folder_is_told(server: WebServer, tmp_path: Path) -> None:
    server.resources["/corpus.bin"] = Resource(BODY)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "cannot be written" in fails(server, tmp_path / "file" / "corpus.bin").what
    assert "a folder stands in the place of the file" in fails(server, tmp_path).what
    assert server.requests == []


def test_json_is_read_with_its_parameters(server: WebServer) -> None:
    server.json_answers["/api"] = lambda query: {"asked": query}
    assert read_json(server.url("/api"), {"a": "x y", "b": "&"}) == {"asked": {"a": "x y", "b": "&"}}


def test_json_is_asked_for_again_and_what_is_none_is_refused(
    server: WebServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.resources["/api"] = Resource(b"[1]", first=[(503, {})])
    assert read_json(server.url("/api"), {}) == [1]
    assert waits == [1]
    server.resources["/api"] = Resource(b"<html>", kind="text/html")
    with pytest.raises(InputError, match="the answer is no JSON"):
        read_json(server.url("/api"), {})
    server.resources["/api"] = Resource(b"[1, 2, 3]")
    monkeypatch.setattr(download_module, "MAX_JSON_BYTES", 8)
    with pytest.raises(InputError, match="the answer is no JSON"):
        read_json(server.url("/api"), {})
