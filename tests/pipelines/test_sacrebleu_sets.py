from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import sacrebleu.dataset.base
import sacrebleu.utils
from sacrebleu.dataset import DATASETS
from sacrebleu.dataset.base import Dataset
from sacrebleu.dataset.fake_sgml import FakeSGMLDataset
from sacrebleu.dataset.plain_text import PlainTextDataset
from sacrebleu.dataset.tsv import TSVDataset
from sacrebleu.dataset.wmt_xml import WMTXMLDataset

from pipelines.errors import InputError
from pipelines.sacrebleu_sets import fetch_test_set
from tests.pipelines.web_server import Resource, WebServer, web_server

SGML = '<doc docid="d" genre="g" origlang="en">\n<seg id="1"> A  {0} </seg>\n<seg id="2">The dog</seg>\n</doc>\n'
XML = """<dataset id="toy"><doc id="d" origlang="en">
<src lang="en"><p><seg id="1">A cat</seg><seg id="2">The dog</seg></p></src>
<ref lang="de" translator="refA"><p><seg id="1">Eine Katze</seg><seg id="2">Der Hund</seg></p></ref>
<ref lang="de" translator="refB"><p><seg id="1">Ein Kater</seg><seg id="2">Hund</seg></p></ref>
</doc></dataset>"""
# Each kind of reader that sacreBLEU has: its files, where it finds them, and what becomes of them.
SGML_FILES = {"toy/src.sgm": SGML.format("cat"), "toy/ref.sgm": SGML.format("Katze"), "toy/b.sgm": SGML.format("Kater")}
KINDS: dict[str, tuple[type[Dataset], dict[str, str], list[str], dict[str, str]]] = {
    "plain": (
        PlainTextDataset,
        {"a.en": "A cat \nThe dog\n", "a.de": "Eine Katze\nDer Hund\n"},
        ["a.en", "a.de"],
        {"en": "A cat\nThe dog\n", "de": "Eine Katze\nDer Hund\n"},
    ),
    "tsv": (
        TSVDataset,
        {"a.tsv": "1\tA cat\tEine Katze\n2\tThe dog\tDer Hund\n"},
        ["1:a.tsv", "2:a.tsv"],
        {"en": "A cat\nThe dog\n", "de": "Eine Katze\nDer Hund\n"},
    ),
    "sgml": (
        FakeSGMLDataset,
        SGML_FILES,
        ["toy/src.sgm", "toy/ref.sgm"],
        {"en": "A cat\nThe dog\n", "de": "A Katze\nThe dog\n"},
    ),
    "references": (
        FakeSGMLDataset,
        SGML_FILES,
        ["toy/src.sgm", "toy/ref.sgm", "toy/b.sgm"],
        {"en": "A cat\nThe dog\n", "de": "A Katze\nThe dog\n", "de.ref2": "A Kater\nThe dog\n"},
    ),
    "xml": (
        WMTXMLDataset,
        {"toy.xml": XML},
        ["toy.xml"],
        {"en": "A cat\nThe dog\n", "de": "Eine Katze\nDer Hund\n"},
    ),
}


def tarred(members: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WebServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for module in (sacrebleu.utils, sacrebleu.dataset.base):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path / "sacrebleu"))
    with web_server() as server:
        yield server


def register(monkeypatch: pytest.MonkeyPatch, server: WebServer, kind: str, md5: str | None = None) -> bytes:
    """Make toy/<kind> a test set that sacreBLEU knows, and return its archive."""
    reader, members, paths, _texts = KINDS[kind]
    content = tarred(members)
    server.resources["/toy.tgz"] = Resource(content)
    name = f"toy/{kind}"
    known = reader(
        name,
        data=[server.url("/toy.tgz")],
        md5=[md5 or hashlib.md5(content).hexdigest()],
        langpairs={"en-de": paths},
        refs=["refA"],
    )
    monkeypatch.setitem(DATASETS, name, known)
    return content


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_test_set_becomes_lines(
    kind: str, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = register(monkeypatch, server, kind)
    output = tmp_path / "data"
    fetched = fetch_test_set(f"toy/{kind}", ("en", "de"), output)
    texts = KINDS[kind][3]
    name = f"toy_{kind}.en-de"
    assert {path.name: path.read_text(encoding="utf-8") for path in output.glob("toy*") if path.suffix != ".json"} == {
        f"{name}.{suffix}": text for suffix, text in texts.items()
    }
    assert fetched.corpus is not None
    assert (fetched.corpus.name, fetched.corpus.licence) == (f"toy_{kind}", "not stated")
    assert (fetched.corpus.source, fetched.corpus.target) == (str(output / f"{name}.en"), str(output / f"{name}.de"))
    record = json.loads((output / f"{name}.source.json").read_text(encoding="utf-8"))
    assert record["version"] == f"sacrebleu {sacrebleu.__version__}"
    assert record["sources"] == [
        {
            "url": server.url("/toy.tgz"),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "md5": hashlib.md5(content).hexdigest(),
        }
    ]
    assert [(file["path"], file["lines"]) for file in record["files"]] == [(f"{name}.{key}", 2) for key in texts]
    assert not list(output.glob(".*.archives"))
    assert DATASETS[f"toy/{kind}"].data == [server.url("/toy.tgz")]


def test_a_second_fetch_asks_nobody_and_neither_does_another_folder(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, server, "sgml")
    assert not fetch_test_set("toy/sgml", ("en", "de"), tmp_path / "a").reused
    server.requests.clear()
    again = fetch_test_set("toy/sgml", ("en", "de"), tmp_path / "a", licence="theirs")
    assert (again.reused, again.record.licence) == (True, "theirs")
    # sacreBLEU has kept it.
    other = fetch_test_set("toy/sgml", ("en", "de"), tmp_path / "b")
    assert (other.reused, other.record.sources[0].sha256) == (False, None)
    assert other.record.files == again.record.files
    assert server.requests == []


def test_another_archive_than_sacrebleu_knows_is_refused(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, server, "plain", md5="0" * 32)
    with pytest.raises(InputError, match=f"not the expected md5: expected {'0' * 32}"):
        fetch_test_set("toy/plain", ("en", "de"), tmp_path / "data")
    assert not (tmp_path / "sacrebleu").exists()


@pytest.mark.parametrize(
    ("test_set", "languages", "says"),
    [
        ("wmt2O", ("en", "de"), "sacrebleu:wmt2O: sacreBLEU knows no such test set. There are: wmt2"),
        ("???", ("en", "de"), "There are: iwslt17, "),
        ("wmt17/improved", ("en", "de"), "the test set has no en-de. There are: en-zh, zh-en"),
    ],
)
def test_what_sacrebleu_does_not_know_is_answered_with_what_it_knows(
    tmp_path: Path, test_set: str, languages: tuple[str, str], says: str
) -> None:
    with pytest.raises(InputError) as raised:
        fetch_test_set(test_set, languages, tmp_path / "data")
    assert says in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_half_of_a_test_set_in_sacrebleus_folder_is_told(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, server, "plain")
    kept = tmp_path / "sacrebleu" / "toy" / "plain"
    (kept / "raw").mkdir(parents=True)
    # An archive that was never unpacked.
    (kept / "raw" / "toy_plain.toy.tgz").write_bytes(b"x")
    with pytest.raises(InputError) as raised:
        fetch_test_set("toy/plain", ("en", "de"), tmp_path / "data")
    assert (raised.value.where, raised.value.remedy) == (
        str(kept),
        "Remove this folder, and fetch the test set again",
    )
    # Texts that were not written to their end.
    (kept / "toy_plain.en-de.src").write_text("A cat\nThe dog\n", encoding="utf-8")
    (kept / "toy_plain.en-de.ref").write_text("Eine Katze\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"toy_plain.en-de.en of 2 lines, toy_plain.en-de.de of 1 lines"):
        fetch_test_set("toy/plain", ("en", "de"), tmp_path / "data")
    assert not list((tmp_path / "data").glob("toy*"))
