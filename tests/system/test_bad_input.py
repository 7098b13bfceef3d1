"""Bad input through the real command: exit status 2, and one message that names the place and the remedy."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

_PAIRS = [
    (f"The {colour} {noun} is {number} years old.", f"{article} {noun_de} ist {number} Jahre alt und {colour_de}.")
    for colour, colour_de in (("red", "rot"), ("blue", "blau"), ("green", "grün"))
    for noun, article, noun_de in (("house", "Das", "Haus"), ("tree", "Der", "Baum"), ("lamp", "Die", "Lampe"))
    for number in range(2, 12)
]
RECIPE = """
name: bad
languages: {source: en, target: de}
corpora:
  train: [{name: train, source: train.en, target: train.de}]
  dev: [{name: dev, source: dev.en, target: dev.de}]
  test: [{name: test, source: test.en, target: test.de}]
tokenizer: {vocab_size: 46, character_coverage: 1.0}
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder with a recipe and a corpus of ninety pairs that can be used."""
    splits = {"train": _PAIRS[:80], "dev": _PAIRS[80:85], "test": _PAIRS[85:]}
    for split, pairs in splits.items():
        (tmp_path / f"{split}.en").write_text("".join(f"{source}\n" for source, _ in pairs), encoding="utf-8")
        (tmp_path / f"{split}.de").write_text("".join(f"{target}\n" for _, target in pairs), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def prepare(corpus: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "prepare", str(corpus / "recipe.yaml"), "--workdir"]
    return subprocess.run([*command, str(corpus / "runs"), *options], capture_output=True, text=True, timeout=200)


def refused(corpus: Path, *options: str) -> str:
    """Return the one message of a run that ends with status 2 and leaves no finished stage that it should not."""
    done = prepare(corpus, *options)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    # A terminal's width decides where the message is broken into lines.
    return " ".join(done.stderr.split("error:")[-1].split())


def test_the_corpus_as_it_stands_is_prepared(corpus: Path) -> None:
    assert prepare(corpus).returncode == 0


def test_a_missing_file_is_named(corpus: Path) -> None:
    (corpus / "train.de").unlink()
    message = refused(corpus)
    assert "train.de" in message


def test_files_of_unequal_length_are_named_with_their_counts(corpus: Path) -> None:
    with (corpus / "train.de").open("a", encoding="utf-8") as file:
        file.write("Eine Zeile zu viel.\n")
    message = refused(corpus)
    assert "train.en" in message
    assert "train.de" in message
    assert "80" in message
    assert "81" in message


def test_a_broken_gzip_is_named(corpus: Path) -> None:
    whole = gzip.compress((corpus / "train.en").read_bytes())
    (corpus / "train.en.gz").write_bytes(whole[:-20])
    recipe = (corpus / "recipe.yaml").read_text(encoding="utf-8").replace("train.en", "train.en.gz")
    (corpus / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert "train.en.gz" in refused(corpus)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("tokenizer.vocab=60", "unknown key `tokenizer.vocab`"),
        ("tokenizer.vocab_size=many", "`tokenizer.vocab_size`"),
        ("clean.rules.length_ratio=wide", "`clean.rules.length_ratio`"),
        ("languages.source=English", "`languages.source`"),
    ],
)
def test_an_unknown_or_ill_typed_key_is_named(corpus: Path, option: str, says: str) -> None:
    assert says in refused(corpus, "--set", option)


def test_a_language_without_text_is_named(corpus: Path) -> None:
    (corpus / "train.de").write_text("\n" * 80, encoding="utf-8")
    message = refused(corpus)
    assert "train.de" in message
    assert "text" in message


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_an_empty_corpus_is_named(corpus: Path, split: str) -> None:
    for language in ("en", "de"):
        (corpus / f"{split}.{language}").write_bytes(b"")
    message = refused(corpus)
    assert f"{split}.en" in message
    assert "empty" in message


def test_a_vocabulary_larger_than_the_corpus_can_give_is_refused_with_the_bound(corpus: Path) -> None:
    message = refused(corpus, "--set", "tokenizer.vocab_size=30000")
    assert "tokenizer.vocab_size" in message
    assert "30000" in message


def test_invalid_utf8_drops_the_row_with_its_reason(corpus: Path) -> None:
    lines = (corpus / "train.de").read_bytes().split(b"\n")
    lines[7] = b"Das \xff Haus."
    (corpus / "train.de").write_bytes(b"\n".join(lines))
    assert prepare(corpus).returncode == 0
    rejects = pq.read_table(next((corpus / "runs/stages").glob("clean-*/rejects/train"))).to_pylist()
    row = next(reject for reject in rejects if reject["row_id"] % 2**40 == 7)
    assert row["rule"] == "invalid_utf8"
    assert row["tgt"] == "Das \\xff Haus."


def test_a_corpus_of_which_nothing_is_left_is_refused(corpus: Path) -> None:
    for language in ("en", "de"):
        (corpus / f"train.{language}").write_text("<b>x</b>\n" * 80, encoding="utf-8")
    assert "rejected" in refused(corpus)
