"""Input files: patterns, URIs, compression, and what is refused."""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from compressed import COMPRESS
from hypothesis import given
from hypothesis import strategies as st

from pipelines import files
from pipelines.config import is_uri
from pipelines.errors import InputError
from pipelines.files import (
    can_seek,
    check_unchanged,
    compression,
    is_gzip,
    matching,
    opened,
    sha256_of,
    version,
)

SUFFIXES = sorted(COMPRESS)
KINDS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}


def content(path: Path | str) -> bytes:
    with opened(path) as file:
        return file.read()


def refusal(path: Path | str) -> InputError:
    with pytest.raises(InputError) as caught:
        content(path)
    return caught.value


# --- Compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compression_is_told_by_the_name_or_by_the_first_bytes(tmp_path: Path, suffix: str) -> None:
    for name in (f"a{suffix}", "a.txt", "a"):
        (tmp_path / name).write_bytes(COMPRESS[suffix](b"text"))
        assert compression(str(tmp_path / name)) == KINDS[suffix]
        assert content(tmp_path / name) == b"text"
        assert is_gzip(tmp_path / name) == (suffix == ".gz")


@pytest.mark.parametrize("data", [b"", b"B", b"BZh is a text\n", b"PK", b"(\xb5/", b"P*M\n", "ý7z\n".encode()])
def test_text_is_not_taken_for_compressed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    assert compression(str(tmp_path / "a")) is None
    assert content(tmp_path / "a") == data


def test_zstd_may_begin_with_a_skippable_frame(tmp_path: Path) -> None:
    skippable = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    (tmp_path / "a").write_bytes(skippable + COMPRESS[".zst"](b"text"))
    assert content(tmp_path / "a") == b"text"


@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4), block=st.integers(1, 400))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_members_are_read_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, parts: list[bytes], block: int
) -> None:
    path = tmp_path_factory.mktemp("members") / f"a{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](part) for part in parts))
    with opened(path) as file:
        blocks = list(iter(lambda: file.read(block), b""))
    assert b"".join(blocks) == b"".join(parts)
    assert all(len(found) == block for found in blocks[:-1])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("members", [1, 2])
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, suffix: str, members: int) -> None:
    last = COMPRESS[suffix](b"some text that is compressed\n" * 20)
    whole = last * members
    path = tmp_path / f"a{suffix}"
    for cut in range(1, len(last) + (members == 1)):
        path.write_bytes(whole[:-cut])
        error = refusal(path)
        assert error.where == str(path)
        assert error.what.startswith(f"broken {KINDS[suffix]}: ")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_anything_else_behind_a_member_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](b"text") + b"garbage that is longer than a header")
    assert refusal(path).what.startswith(f"broken {KINDS[suffix]}: ")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_with_the_name_of_an_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"plain text, and enough of it to be told apart\n")
    error = refusal(path)
    assert error.what.startswith(f"broken {KINDS[suffix]}: ")
    assert "tests it" in error.remedy


def test_zeros_between_xz_streams_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.xz"
    path.write_bytes(COMPRESS[".xz"](b"a") + bytes(8) + COMPRESS[".xz"](b"b") + bytes(2**21))
    assert content(path) == b"ab"


def test_lines_can_be_iterated(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(COMPRESS[".zst"](b"a\nb\r\nc"))
    with opened(path) as file:
        assert list(file) == [b"a\n", b"b\r\n", b"c"]


def test_memory_does_not_grow_with_what_a_file_unpacks_to(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        (tmp_path / f"a{suffix}").write_bytes(COMPRESS[suffix](bytes(2**20)) * 150)
    program = """
import resource, sys
from pipelines.files import opened
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak_mib()
for path in sys.argv[1:]:
    size = 0
    with opened(path) as file:
        while block := file.read(2**20):
            size += len(block)
    assert size == 150 * 2**20, (path, size)
    assert peak_mib() - before < 60, (path, peak_mib() - before)
"""
    paths = [str(tmp_path / f"a{suffix}") for suffix in SUFFIXES]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- Which files -----------------------------------------------------------------------------------------------------


def test_a_pattern_gives_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.en", "a.en", "c.de", ".d.en", "e.en/f.en"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert matching(f"{tmp_path}/*.en", "") == [f"{tmp_path}/a.en", f"{tmp_path}/b.en"]
    assert matching(f"{tmp_path}/**/*.en", "") == [f"{tmp_path}/{name}" for name in ("a.en", "b.en", "e.en/f.en")]


def test_only_the_star_is_special(tmp_path: Path) -> None:
    for name in ("a[1]?.en", "a1b.en"):
        (tmp_path / name).write_bytes(b"")
    assert matching(f"{tmp_path}/a[1]?.en", "") == [f"{tmp_path}/a[1]?.en"]
    assert matching(f"{tmp_path}/a[1]*.en", "") == [f"{tmp_path}/a[1]?.en"]


@pytest.mark.parametrize(
    ("name", "what"), [("none", "no such file"), ("*.fr", "no file fits this pattern"), ("", "a folder, not a file")]
)
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, what: str) -> None:
    fsspec.filesystem("memory").pipe("/refused/a.en", b"")
    for folder in (str(tmp_path), f"file://{tmp_path}", "memory://refused"):
        with pytest.raises(InputError) as caught:
            matching(f"{folder}/{name}".removesuffix("/"), "Do something")
        assert (caught.value.what, caught.value.remedy) == (what, "Do something")


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path).where == str(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens but cannot be read")
def test_a_fault_of_the_disk_is_not_taken_for_a_broken_archive(tmp_path: Path) -> None:
    for name in ("a", "a.gz", "a.xz"):
        (tmp_path / name).symlink_to("/proc/self/mem")
        assert refusal(tmp_path / name).what == "cannot be read (Input/output error)"


def test_a_file_without_rights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "a text that repeats the path")

    (tmp_path / "a").write_bytes(b"text")
    monkeypatch.setattr(files.pa, "OSFile", denied)
    assert refusal(tmp_path / "a").what == "cannot be read (Permission denied)"
    with pytest.raises(InputError, match="Permission denied"):
        sha256_of(str(tmp_path / "a"))


def test_a_digest_is_of_the_bytes_as_they_are_stored(tmp_path: Path) -> None:
    data = COMPRESS[".gz"](b"text")
    (tmp_path / "a.gz").write_bytes(data)
    fsspec.filesystem("memory").pipe("/digest/a.gz", data)
    assert sha256_of(str(tmp_path / "a.gz")) == hashlib.sha256(data).hexdigest()
    assert sha256_of("memory://digest/a.gz") == hashlib.sha256(data).hexdigest()


def test_a_file_that_changes_is_told_by_its_size_or_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"text")
    known = version(str(path))
    check_unchanged(str(path), known)
    later = path.stat().st_mtime_ns + 1
    for data in (b"next", b"longer"):
        path.write_bytes(data)
        files.os.utime(path, ns=(later, later))
        with pytest.raises(InputError, match="the file changed while it was read"):
            check_unchanged(str(path), known)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        check_unchanged(str(path), known)


def test_a_file_that_changes_while_its_digest_is_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"text")
    sha256 = hashlib.sha256

    def writing() -> object:
        path.write_bytes(b"another text")
        return sha256()

    monkeypatch.setattr(files.hashlib, "sha256", writing)
    with pytest.raises(InputError, match="the file changed while it was read"):
        sha256_of(str(path))


# --- URIs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["s3://b/a", "memory://a", "file:///a", "simplecache::s3://b/a"])
def test_what_is_a_uri(path: str) -> None:
    assert is_uri(path)


@pytest.mark.parametrize("path", ["a", "/a/b", "a:b", "C:\\a", "./a/*.en"])
def test_what_is_none(path: str) -> None:
    assert not is_uri(path)


def test_a_uri_of_this_machine_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"text")
    assert matching(f"file://{tmp_path}/a.en", "") == [f"{tmp_path}/a.en"]
    assert matching(f"file://{tmp_path}/*.en", "") == [f"{tmp_path}/a.en"]
    assert content(f"file://{tmp_path}/a.en") == b"text"


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_a_uri_is_opened_by_its_file_system(suffix: str) -> None:
    data = COMPRESS[suffix](b"text") if suffix else b"text"
    memory = fsspec.filesystem("memory")
    for name in ("b", "a"):
        memory.pipe(f"/opened{suffix}/{name}.en{suffix}", data)
    names = [f"memory:///opened{suffix}/{name}.en{suffix}" for name in ("a", "b")]
    assert matching(f"memory://opened{suffix}/*.en{suffix}", "") == names
    assert content(names[0]) == b"text"
    assert can_seek(names[0]) == (suffix == "")
    known = version(names[0])
    memory.pipe(f"/opened{suffix}/a.en{suffix}", data + b"more")
    with pytest.raises(InputError, match="changed"):
        check_unchanged(names[0], known)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError) as caught:
        matching("s3://bucket/*.en", "")
    assert caught.value.what == "nothing is installed that opens s3://"
    assert caught.value.remedy == "Install the package s3fs (pip install s3fs)"


def test_an_unknown_protocol_is_refused() -> None:
    assert "Protocol not known: nowhere" in refusal("nowhere://a/b").what


class Web(BaseHTTPRequestHandler):
    """Serves one file; Range is heeded where the path says so."""

    data = b"line\n" * 3_000_000  # more than fsspec's block of five MiB

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        if "none" in self.path:
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        part = self.data
        if asked and "ranges" in self.path:
            last = min(int(asked[2] or len(part) - 1), len(part) - 1)
            part = part[int(asked[1]) : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{last}/{len(self.data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            try:
                self.wfile.write(part)
            except ConnectionError:
                self.close_connection = True  # who wanted the first bytes only has gone

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def web_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_web_is_read_in_parts_where_the_server_gives_parts() -> None:
    with web_server() as server:
        for path, seeks in ((f"{server}/ranges/a.en", True), (f"{server}/a.en", False)):
            assert matching(path, "") == [path]
            assert version(path) == str(len(Web.data))
            assert can_seek(path) is seeks
            assert sha256_of(path) == hashlib.sha256(Web.data).hexdigest()
            with opened(path) as file:
                assert file.seekable() is seeks
                if seeks:
                    file.seek(7_000_000)
                assert file.read() == Web.data[7_000_000 if seeks else 0 :]
        with pytest.raises(InputError, match="no such file"):
            matching(f"{server}/none", "")


def test_a_server_that_is_not_there_is_bad_input() -> None:
    with web_server() as server:
        pass
    assert "Connect call failed" in refusal(f"{server}/a.en").what
