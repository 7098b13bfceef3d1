from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import fetch as fetch_module
from pipelines.errors import InputError
from pipelines.fetch import fetch
from pipelines.source_record import Fetched
from tests.pipelines.web_server import Resource, WebServer, web_server

BODY = b"A cat\tEine Katze\n"
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with web_server() as server:
        server.resources["/toy.tsv"] = Resource(BODY)
        yield server


def test_a_file_comes_with_its_record(server: WebServer, tmp_path: Path) -> None:
    url = server.url("/toy.tsv")
    fetched = fetch(url, tmp_path, sha256=SHA256.upper(), licence="CC0", version="3")
    assert (tmp_path / "toy.tsv").read_bytes() == BODY
    assert not fetched.reused
    record = json.loads((tmp_path / "toy.tsv.source.json").read_text(encoding="utf-8"))
    assert record.pop("fetched_at").endswith("+00:00")
    assert record == {
        "format": 1,
        "name": "toy.tsv",
        "version": "3",
        "licence": "CC0",
        "sources": [{"url": url, "bytes": 17, "sha256": SHA256, "md5": None}],
        "files": [{"path": "toy.tsv", "bytes": 17, "sha256": SHA256, "lines": None}],
    }


def test_what_is_there_with_the_right_digest_is_not_fetched_again(server: WebServer, tmp_path: Path) -> None:
    fetch(server.url("/toy.tsv"), tmp_path, sha256=SHA256)
    before = (tmp_path / "toy.tsv.source.json").read_bytes()
    assert fetch(server.url("/toy.tsv"), tmp_path, sha256=SHA256).reused
    assert fetch(server.url("/toy.tsv"), tmp_path, unverified=True).reused
    assert fetch("http://mirror.invalid/toy.tsv", tmp_path, sha256=SHA256).reused
    assert len(server.requests) == 1
    assert (tmp_path / "toy.tsv.source.json").read_bytes() == before


def test_a_file_without_a_record_gets_one_when_its_digest_is_right(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "toy.tsv").write_bytes(BODY)
    fetched = fetch(server.url("/toy.tsv"), tmp_path, sha256=SHA256)
    assert fetched.reused
    assert fetched.record_path.is_file()
    assert server.requests == []


def test_a_file_that_is_another_is_replaced_by_the_right_one(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "toy.tsv").write_bytes(b"another")
    assert not fetch(server.url("/toy.tsv"), tmp_path, sha256=SHA256).reused
    assert (tmp_path / "toy.tsv").read_bytes() == BODY
    # Unverified, only what came from this URL is the same.
    server.resources["/v2/toy.tsv"] = Resource(b"B\tB\n")
    assert not fetch(server.url("/v2/toy.tsv"), tmp_path, unverified=True).reused
    assert (tmp_path / "toy.tsv").read_bytes() == b"B\tB\n"


def test_a_licence_and_a_version_can_be_stated_later(server: WebServer, tmp_path: Path) -> None:
    assert fetch(server.url("/toy.tsv"), tmp_path, sha256=SHA256).record.licence == "not stated"
    fetched = fetch(server.url("/toy.tsv"), tmp_path, sha256=SHA256, licence="CC0", version="2")
    assert fetched.reused
    record = json.loads(fetched.record_path.read_text(encoding="utf-8"))
    assert (record["licence"], record["version"]) == ("CC0", "2")


def test_an_unverified_file_is_taken_and_its_digest_recorded(server: WebServer, tmp_path: Path) -> None:
    fetched = fetch(server.url("/toy.tsv"), tmp_path, unverified=True)
    assert fetched.record.sources[0].sha256 == SHA256


def test_no_credentials_stand_in_the_record(server: WebServer, tmp_path: Path) -> None:
    url = server.url("/toy.tsv?token=t0ken").replace("://", "://me:s3cret@")
    fetched = fetch(url, tmp_path, sha256=SHA256)
    text = fetched.record_path.read_text(encoding="utf-8")
    assert "s3cret" not in text
    assert "t0ken" not in text
    assert fetched.record.sources[0].url == server.url("/toy.tsv?token=***")


@pytest.mark.parametrize(
    ("name", "languages", "form", "corpus"),
    [
        ("toy.tsv.gz", None, "tsv", "toy"),
        ("toy.v1.jsonl", None, "jsonl", "toy.v1"),
        ("toy.parquet", None, "parquet", "toy"),
        ("toy.tmx.zst", None, "tmx", "toy"),
        ("news.2020.en.gz", "en-de", "source", "news.2020"),
        ("news.2020.de.xz", "en-de", "target", "news.2020"),
        ("news.pt_BR", "en-pt_BR", "target", "news"),
        ("my%20news.txt", None, "source", "my-news"),
        ("news", None, "source", "news"),
        ("news.zip", None, None, None),
        ("news.tar.gz", None, None, None),
        ("news.csv", None, None, None),
    ],
)
def test_the_suffix_tells_what_a_recipe_says_of_it(
    server: WebServer, tmp_path: Path, name: str, languages: str | None, form: str | None, corpus: str | None
) -> None:
    server.resources[f"/{name}"] = Resource(BODY)
    fetched = fetch(server.url(f"/{name}"), tmp_path, languages=languages, sha256=SHA256)
    if form is None:
        assert fetched.corpus is None
        return
    assert fetched.corpus is not None
    assert fetched.corpus.model_dump(exclude_unset=True) == {
        "name": corpus,
        form: str(tmp_path / name.replace("%20", " ")),
        "licence": "not stated",
    }


@pytest.mark.parametrize("path", ["", "/", "/..", "/a/.hidden", "/a%2F..", "/a%00b", "/" + "x" * 201])
def test_a_url_without_a_files_name_is_refused(server: WebServer, tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="the URL ends in no file's name"):
        fetch(server.url(path), tmp_path / "data", unverified=True)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("what", "options", "says"),
    [
        ("Tatoeba", {}, "Tatoeba: neither opus:CORPUS, nor sacrebleu:TESTSET, nor a URL of HTTP or HTTPS"),
        ("ftp://me:pw@host/a", {}, "host/a: neither opus:CORPUS"),
        ("https://host/a", {}, "https://host/a: a URL needs either the sha256 of its file or --unverified"),
        ("https://host/a", {"sha256": SHA256, "unverified": True}, "a URL needs either the sha256"),
        ("https://host/a", {"sha256": "abc"}, "--sha256 abc: not a sha256"),
        ("opus:Toy", {}, "opus:Toy: the languages are missing. As in --languages en-de, source first"),
        ("opus:Toy", {"languages": "en"}, "--languages en: not two languages"),
        ("opus:Toy", {"languages": "en-en"}, "--languages en-en: not two languages"),
        ("opus:Toy", {"languages": "en-pt-BR"}, "--languages en-pt-BR: not two languages"),
        ("opus:Toy", {"languages": "../a-de"}, "not two languages"),
        ("opus:Toy", {"unverified": True}, "--unverified does not go with an OPUS corpus"),
        ("sacrebleu:wmt20", {"sha256": SHA256}, "--sha256 does not go with a test set"),
        ("sacrebleu:wmt20", {"version": "1"}, "--version does not go with a test set"),
    ],
)
def test_wrong_questions_are_answered_before_anything_happens(
    tmp_path: Path, what: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError) as raised:
        fetch(what, tmp_path / "data", **options)  # type: ignore[arg-type]
    assert says in str(raised.value)
    assert "pw" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_the_catalogues_get_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    answer = object.__new__(Fetched)

    def catalogue(*arguments: object, **options: object) -> Fetched:
        asked.append((arguments, options))
        return answer

    monkeypatch.setattr(fetch_module, "fetch_opus", catalogue)
    monkeypatch.setattr(fetch_module, "fetch_test_set", catalogue)
    assert fetch("opus:Toy", tmp_path, languages="en-pt_BR", version="v1", opus_api="http://api") is answer
    assert fetch("sacrebleu:wmt20/dev", tmp_path, languages="en-de", licence="CC0") is answer
    opus_options = {"version": "v1", "digest": None, "licence": None, "api": "http://api", "progress": None}
    assert asked == [
        (("Toy", ("en", "pt_BR"), tmp_path), opus_options),
        (("wmt20/dev", ("en", "de"), tmp_path), {"licence": "CC0", "progress": None}),
    ]
