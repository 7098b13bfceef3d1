from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.fetch_cli import recipe_lines
from pipelines.config import CorpusConfig
from tests.pipelines.web_server import Resource, WebServer, web_server

BODY = b"A cat\tEine Katze\n"
SHA256 = hashlib.sha256(BODY).hexdigest()
LICENCE = "CC BY: {free}, \"as it is\" # for all — 'ja'"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with web_server() as server:
        server.resources["/toy.tsv"] = Resource(BODY)
        server.resources["/toy.zip"] = Resource(zipped())
        entry = {"corpus": "Toy", "source": "de", "target": "en", "preprocessing": "moses", "version": "v1"}
        server.json_answers["/api"] = lambda _query: {"corpora": [{**entry, "url": server.url("/toy.zip")}]}
        yield server


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in {"Toy.de-en.de": "Katze\n", "Toy.de-en.en": "cat\n", "LICENSE": LICENCE}.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def fetch(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["fetch", *(str(argument) for argument in arguments)])


def test_what_is_printed_can_be_put_into_a_recipe(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLOOM_OPUS_API", server.url("/api"))
    result = fetch("opus:Toy", "--languages", "en-de", "--output", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.startswith("- {name: Toy, source: ")
    assert result.stdout.count("\n") == 1
    (entry,) = yaml.safe_load(result.stdout)
    expected = {"source": str(tmp_path / "Toy.en-de.en"), "target": str(tmp_path / "Toy.en-de.de")}
    assert entry == {"name": "Toy", **expected, "licence": LICENCE}
    assert CorpusConfig.model_validate(entry).licence == LICENCE
    assert f"fetched: {tmp_path / 'Toy.en-de.en'}\n" in result.stderr
    again = fetch("opus:Toy", "--languages", "en-de", "--output", tmp_path, "--opus-api", server.url("/api"))
    assert again.stdout == result.stdout
    assert f"unchanged: {tmp_path / 'Toy.en-de.en'}\n" in again.stderr


def test_the_json_object_holds_the_record_and_the_lines(server: WebServer, tmp_path: Path) -> None:
    url = server.url("/toy.tsv")
    result = fetch(url, "--sha256", SHA256, "--output", tmp_path, "--licence", "CC0", "--json")
    assert result.exit_code == 0
    path = str(tmp_path / "toy.tsv")
    assert json.loads(result.stdout) == {
        "record": f"{path}.source.json",
        "version": None,
        "licence": "CC0",
        "sources": [{"url": url, "bytes": 17, "sha256": SHA256, "md5": None}],
        "files": [{"path": path, "bytes": 17, "sha256": SHA256, "lines": None}],
        "reused": False,
        "recipe": f"- {{name: toy, tsv: {path}, licence: CC0}}\n",
    }


def test_an_unverified_file_is_told_with_its_digest(server: WebServer, tmp_path: Path) -> None:
    result = fetch(server.url("/toy.tsv"), "--unverified", "--output", tmp_path)
    assert result.exit_code == 0
    assert f"not verified; found --sha256 {SHA256}\n" in result.stderr


def test_an_archive_has_no_lines_for_a_recipe(server: WebServer, tmp_path: Path) -> None:
    result = fetch(server.url("/toy.zip"), "--unverified", "--output", tmp_path)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "unpack or convert it first" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["Toy"], "neither opus:CORPUS, nor sacrebleu:TESTSET, nor a URL"),
        (["opus:Toy"], "the languages are missing"),
        (["http://me:s3cret@host.invalid/a"], "http://host.invalid/a: a URL needs either the sha256"),
        (["sacrebleu:wmt20", "--languages", "en-xx"], "the test set has no en-xx"),
    ],
)
def test_wrong_questions_end_with_status_two(tmp_path: Path, arguments: list[str], says: str) -> None:
    result = fetch(*arguments, "--output", tmp_path / "data")
    assert result.exit_code == 2
    assert says in result.stderr
    assert "s3cret" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_another_digest_ends_with_status_two_and_names_both(server: WebServer, tmp_path: Path) -> None:
    result = fetch(server.url("/toy.tsv"), "--sha256", "0" * 64, "--output", tmp_path)
    assert result.exit_code == 2
    assert f"expected {'0' * 64}, found {SHA256}" in result.stderr
    assert not (tmp_path / "toy.tsv").exists()


def test_a_bar_stands_in_a_terminal_only(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fetch(server.url("/toy.tsv"), "--unverified", "--output", tmp_path / "a")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal then
    drawn = fetch(server.url("/toy.tsv"), "--unverified", "--output", tmp_path / "b")
    quiet = fetch(server.url("/toy.tsv"), "--unverified", "--output", tmp_path / "c", "--quiet")
    assert [("downloading" in result.stderr, "17/17 bytes" in result.stderr) for result in (plain, drawn, quiet)] == [
        *((False, False), (True, True), (False, False)),
    ]
    assert "toy.tsv: from http://127.0.0.1" in plain.stderr
    assert "toy.tsv: from" not in quiet.stderr


def test_nothing_stands_for_what_no_recipe_can_name() -> None:
    assert recipe_lines(None) == ""


def test_what_a_killed_process_had_is_continued(server: WebServer, tmp_path: Path) -> None:
    body = bytes(range(256)) * 8192
    server.resources["/big.tsv"] = Resource(body, break_after=[1 << 20, *[0] * 99])
    url = server.url("/big.tsv")
    command = [sys.executable, "-m", "flows.cli", "fetch", url, "--unverified", "--output", str(tmp_path)]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("1,048,576 bytes of 2,097,152 have arrived; again in 1 s" in line for line in lines)
    process.kill()
    process.wait()
    process.stderr.close()
    assert (tmp_path / "big.tsv.part").stat().st_size == 1 << 20
    assert not (tmp_path / "big.tsv").exists()
    server.resources["/big.tsv"].break_after.clear()
    server.requests.clear()
    subprocess.run(command, capture_output=True, env=environment, check=True)
    assert server.ranges() == ["bytes=1048576-"]
    assert (tmp_path / "big.tsv").read_bytes() == body
