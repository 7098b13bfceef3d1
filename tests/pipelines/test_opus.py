from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import opus
from pipelines.download import Digest
from pipelines.errors import InputError
from pipelines.opus import fetch_opus, unzip_aligned
from pipelines.source_record import Fetched, copy_lines
from tests.pipelines.web_server import Resource, WebServer, web_server

EN = "A small cat.\nThe dog.\n"
DE = "Eine kleine Katze.\nDer Hund.\n"
MEMBERS = {
    "Toy.de-en.de": DE,
    "Toy.de-en.en": EN,
    "LICENSE": "CC BY 4.0,\n  by nobody\n",
    "README": "Two lines.\n",
    "Toy.de-en.xml": "<links/>",
}


def zipped(members: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)  # without the time of day
    return buffer.getvalue()


class Opus:
    """OPUS in small: an API and zips, `releases` being those of the corpus Toy in de-en."""

    def __init__(self, server: WebServer) -> None:
        self.server = server
        self.releases: list[str] = []
        self.api = server.url("/opusapi/")
        server.json_answers["/opusapi/"] = self.answer

    def release(self, version: str, members: Mapping[str, str]) -> None:
        self.releases.append(version)
        self.server.resources[self.path(version)] = Resource(zipped(members))

    def path(self, version: str) -> str:
        return f"/OPUS-Toy/{version}/moses/de-en.txt.zip"

    def answer(self, query: dict[str, str]) -> object:
        if query.get("corpora") == "True":
            return {"corpora": ["Toy", "Toybox", "Books"] if query["target"] == "en" else []}
        assert query["preprocessing"] == "moses"
        if (query["corpus"], query["source"], query["target"]) != ("Toy", "de", "en"):
            return {"corpora": []}
        asked = query.get("version")
        versions = self.releases[-1:] if asked == "latest" else [v for v in self.releases if asked in (None, v)]
        return {"corpora": [self.entry(version) for version in versions]}

    def entry(self, version: str) -> dict[str, object]:
        pair = {"corpus": "Toy", "source": "de", "target": "en", "preprocessing": "moses", "version": version}
        figures = {"id": 7, "latest": "False", "size": 1, "documents": "", "alignment_pairs": 2, "source_tokens": 5}
        return {**pair, **figures, "target_tokens": 5, "url": self.server.url(self.path(version))}

    def fetch(self, output: Path, version: str | None = None, **options: object) -> Fetched:
        arguments = {"corpus": "Toy", "languages": ("en", "de"), **options}
        return fetch_opus(output=output, version=version, api=self.api, **arguments)  # type: ignore[arg-type]

    def asked(self) -> list[str]:
        """What was asked for since the last time: `api`, or a path."""
        paths = [request.path.partition("?")[0] for request in self.server.requests]
        self.server.requests.clear()
        return ["api" if path == "/opusapi/" else path for path in paths]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opus]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with web_server() as server:
        opus_server = Opus(server)
        opus_server.release("v9", {**MEMBERS, "Toy.de-en.de": "Alt.\nAlt.\n"})
        opus_server.release("v10", MEMBERS)
        yield opus_server


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_newest_version_becomes_two_aligned_files_with_a_record(toy: Opus, tmp_path: Path) -> None:
    fetched = toy.fetch(tmp_path)
    assert (tmp_path / "Toy.en-de.en").read_text(encoding="utf-8") == EN
    assert (tmp_path / "Toy.en-de.de").read_text(encoding="utf-8") == DE
    assert visible(tmp_path) == [
        *("Toy.en-de.LICENSE", "Toy.en-de.README", "Toy.en-de.de", "Toy.en-de.en", "Toy.en-de.source.json"),
    ]
    content = zipped(MEMBERS)
    record = json.loads((tmp_path / "Toy.en-de.source.json").read_text(encoding="utf-8"))
    assert fetched.record_path == tmp_path / "Toy.en-de.source.json"
    assert (record["format"], record["name"], record["version"]) == (1, "Toy.en-de", "v10")
    assert record["licence"] == "CC BY 4.0,\n  by nobody"
    assert record["fetched_at"].endswith("+00:00")
    assert record["sources"] == [
        {
            "url": toy.server.url("/OPUS-Toy/v10/moses/de-en.txt.zip"),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "md5": None,
        }
    ]
    assert [(file["path"], file["lines"]) for file in record["files"]] == [
        *(("Toy.en-de.en", 2), ("Toy.en-de.de", 2), ("Toy.en-de.LICENSE", None), ("Toy.en-de.README", None)),
    ]
    assert record["files"][0]["sha256"] == hashlib.sha256(EN.encode()).hexdigest()
    assert record["files"][0]["bytes"] == len(EN.encode())


def test_what_a_recipe_says_of_it_has_source_and_target_in_their_direction(toy: Opus, tmp_path: Path) -> None:
    corpus = toy.fetch(tmp_path).corpus
    assert corpus is not None
    assert (corpus.name, corpus.licence) == ("Toy", "CC BY 4.0, by nobody")
    assert (corpus.source, corpus.target) == (str(tmp_path / "Toy.en-de.en"), str(tmp_path / "Toy.en-de.de"))
    other = toy.fetch(tmp_path, languages=("de", "en")).corpus
    assert other is not None
    assert (other.source, other.target) == (str(tmp_path / "Toy.de-en.de"), str(tmp_path / "Toy.de-en.en"))


def test_what_is_there_is_not_fetched_again(toy: Opus, tmp_path: Path) -> None:
    assert not toy.fetch(tmp_path, "v10").reused
    before = (tmp_path / "Toy.en-de.source.json").read_bytes()
    assert toy.asked() == ["api", "/OPUS-Toy/v10/moses/de-en.txt.zip"]
    assert toy.fetch(tmp_path, "v10").reused
    assert toy.asked() == []
    assert toy.fetch(tmp_path).reused
    assert toy.asked() == ["api"]
    assert (tmp_path / "Toy.en-de.source.json").read_bytes() == before


def test_a_file_that_has_changed_or_another_version_is_fetched(toy: Opus, tmp_path: Path) -> None:
    toy.fetch(tmp_path, "v9")
    assert (tmp_path / "Toy.en-de.de").read_text(encoding="utf-8") == "Alt.\nAlt.\n"
    assert toy.fetch(tmp_path).record.version == "v10"
    (tmp_path / "Toy.en-de.de").write_text("changed\n", encoding="utf-8")
    assert not toy.fetch(tmp_path, "v10").reused
    assert (tmp_path / "Toy.en-de.de").read_text(encoding="utf-8") == DE


def test_a_new_release_without_a_licence_leaves_none_of_the_old_one(toy: Opus, tmp_path: Path) -> None:
    toy.fetch(tmp_path)
    toy.release("v11", {name: text for name, text in MEMBERS.items() if name.startswith("Toy")})
    fetched = toy.fetch(tmp_path)
    assert fetched.record.licence == "not stated"
    assert visible(tmp_path) == ["Toy.en-de.de", "Toy.en-de.en", "Toy.en-de.source.json"]


def test_a_licence_that_is_stated_stands_in_place_of_the_one_in_the_zip(toy: Opus, tmp_path: Path) -> None:
    assert toy.fetch(tmp_path, licence="ours").record.licence == "ours"
    again = toy.fetch(tmp_path, licence="theirs")
    assert again.reused
    assert json.loads(again.record_path.read_text(encoding="utf-8"))["licence"] == "theirs"
    assert toy.fetch(tmp_path).record.licence == "theirs"


def test_a_digest_is_that_of_the_zip(toy: Opus, tmp_path: Path) -> None:
    right = Digest("sha256", hashlib.sha256(zipped(MEMBERS)).hexdigest())
    with pytest.raises(InputError, match=f"expected {'0' * 64}, found {right.hex}"):
        toy.fetch(tmp_path, digest=Digest("sha256", "0" * 64))
    assert visible(tmp_path) == []
    assert not toy.fetch(tmp_path, digest=right).reused
    assert toy.fetch(tmp_path, digest=right).reused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"version": "v1"}, "opus:Toy: OPUS has no version v1 for de-en. There are: v10, v9"),
        ({"corpus": "toy"}, "opus:toy: OPUS has no such corpus for de-en. There are: Toy, Toybox"),
        ({"corpus": "Quux"}, "opus:Quux: OPUS has no such corpus for de-en. There are: Books, Toy, Toybox"),
        ({"languages": ("en", "xx")}, "opus:Toy: OPUS has nothing for en-xx. Look at the codes of the languages"),
        ({"corpus": "../Toy"}, "opus:../Toy: not the name of a corpus of OPUS. As in opus:Tatoeba"),
    ],
)
def test_what_opus_has_not_is_answered_with_what_it_has(
    toy: Opus, tmp_path: Path, options: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError) as raised:
        toy.fetch(tmp_path, **options)  # type: ignore[arg-type]
    assert str(raised.value) == says


def test_a_zip_that_is_not_there_is_answered_with_the_other_versions(toy: Opus, tmp_path: Path) -> None:
    del toy.server.resources[toy.path("v10")]
    with pytest.raises(InputError, match=r"404 Not Found\. OPUS names these versions too: v9$"):
        toy.fetch(tmp_path)
    toy.releases = ["v10"]
    with pytest.raises(InputError, match=r"404 Not Found\. OPUS names no other version$"):
        toy.fetch(tmp_path)


@pytest.mark.parametrize("answer", [[], {"corpora": [{"corpus": "Toy"}]}, {"corpora": "none"}, {"error": "no"}])
def test_what_is_no_answer_of_the_api_is_told(toy: Opus, tmp_path: Path, answer: object) -> None:
    toy.server.json_answers["/opusapi/"] = lambda _query: answer
    with pytest.raises(InputError, match=r"not an answer of the OPUS API\. Look at --opus-api"):
        toy.fetch(tmp_path)


def test_a_version_that_is_a_path_is_no_answer_of_the_api(toy: Opus, tmp_path: Path) -> None:
    toy.server.json_answers["/opusapi/"] = lambda _query: {"corpora": [toy.entry("../../v1")]}
    with pytest.raises(InputError, match="not an answer of the OPUS API"):
        toy.fetch(tmp_path)


def test_an_encrypted_answer_does_not_lead_to_a_file_without_encryption(
    toy: Opus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opus, "read_json", lambda _url, _parameters: {"corpora": [toy.entry("v10")]})
    toy.api = "https://opus.invalid/"
    with pytest.raises(InputError, match="the OPUS API names a file without encryption"):
        toy.fetch(tmp_path)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({**MEMBERS, "Toy.de-en.en": EN + "One more."}, r"not as many lines each \(Toy.en-de.en 3, Toy.en-de.de 2\)"),
        ({"Toy.de-en.de": DE, "README": ""}, "the archive has no Toy.de-en.en; it has README, Toy.de-en.de"),
        ({"../Toy.de-en.en": EN, "/Toy.de-en.de": DE}, "the archive has no Toy.de-en.en"),
        ({}, "it has nothing"),
    ],
)
def test_a_zip_that_holds_something_else_changes_nothing(
    toy: Opus, tmp_path: Path, members: dict[str, str], says: str
) -> None:
    toy.fetch(tmp_path, "v9")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    toy.release("v11", members)
    with pytest.raises(InputError, match=says):
        toy.fetch(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_path_of_an_archive_is_used(toy: Opus, tmp_path: Path) -> None:
    toy.release("v11", {**MEMBERS, "../escaped": "x", "/tmp/escaped": "x", "a/../../escaped": "x", "LICENSE/": ""})
    toy.fetch(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert "Toy.en-de.LICENSE" in visible(tmp_path / "data")


def test_a_full_disk_keeps_the_zip_for_the_next_call(
    toy: Opus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(opus, "copy_lines", full)
    with pytest.raises(InputError, match="the disk is full"):
        toy.fetch(tmp_path)
    assert visible(tmp_path) == ["Toy.en-de.v10.zip"]
    monkeypatch.setattr(opus, "copy_lines", copy_lines)
    toy.asked()
    assert toy.fetch(tmp_path).record.sources[0].sha256 == hashlib.sha256(zipped(MEMBERS)).hexdigest()
    assert toy.asked() == ["api"]
    assert "Toy.en-de.v10.zip" not in visible(tmp_path)


def test_a_zip_that_would_not_fit_is_not_unzipped(toy: Opus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tmp_path / "a.zip"
    content.write_bytes(zipped(MEMBERS))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(99, 0, 10))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=f"{len((EN + DE).encode())} bytes are to be written, 10 are free"):
        unzip_aligned(content, {"Toy.de-en.en": tmp_path / "en", "Toy.de-en.de": tmp_path / "de"}, {})
    assert visible(tmp_path) == ["a.zip"]


@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_a_damaged_zip_gives_the_right_texts_or_none(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[float, int]], kept: float
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(zipped(MEMBERS))
    for place, byte in places:
        content[int(place * len(content))] = byte
    archive = folder / "a.zip"
    archive.write_bytes(content[: int(kept * len(content))])
    try:
        unzip_aligned(archive, {"Toy.de-en.en": folder / "en", "Toy.de-en.de": folder / "de"}, {})
    except InputError as error:
        assert "the archive has been removed" in error.what
        assert list(folder.iterdir()) == []
    else:
        assert (folder / "en").read_text(encoding="utf-8") == EN
        assert (folder / "de").read_text(encoding="utf-8") == DE
    shutil.rmtree(folder)


def test_an_encrypted_member_is_told(tmp_path: Path) -> None:
    content = bytearray(zipped(MEMBERS))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    archive = tmp_path / "a.zip"
    archive.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        unzip_aligned(archive, {"Toy.de-en.de": tmp_path / "de", "Toy.de-en.en": tmp_path / "en"}, {})
