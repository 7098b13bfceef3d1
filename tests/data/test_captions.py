from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from captions import DEV_PAIRS, NOISE, TEST_PAIRS, folded, make_corpus, write_corpus
from captions_words import Adjective, Clause, NounPhrase, prepositional, read_lexicon

PAIRS = 400
WORDS = read_lexicon()


def phrase(en: str, determiner: str, adjective: str = "", *, plural: bool = False) -> NounPhrase:
    found: Adjective | None = next((word for word in WORDS.adjectives if word.en == adjective), None)
    return NounPhrase(WORDS.noun(en), determiner, found, plural)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    write_corpus(folder, PAIRS, seed=1)
    return folder


def lines(path: Path) -> list[bytes]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert content.endswith(b"\n")
    return content[:-1].split(b"\n")


def test_two_runs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path, PAIRS, seed=1)
    names = sorted(path.name for path in made.iterdir())
    assert names == [
        *("dev.de", "dev.en", "made.json", "notices.tsv"),
        *("test.de", "test.en", "train.de.gz", "train.en.gz"),
    ]
    for name in names:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_another_seed_gives_other_sentences(made: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path, PAIRS, seed=2)
    assert (tmp_path / "test.en").read_bytes() != (made / "test.en").read_bytes()


def test_both_sides_have_as_many_lines(made: Path) -> None:
    assert len(lines(made / "train.en.gz")) == len(lines(made / "train.de.gz"))
    for split, pairs in (("dev", DEV_PAIRS), ("test", TEST_PAIRS)):
        assert len(lines(made / f"{split}.en")) == len(lines(made / f"{split}.de")) == pairs


def test_dev_and_test_are_unseen_on_both_sides_and_have_no_copies() -> None:
    corpus = make_corpus(PAIRS, seed=1)
    for side in (0, 1):
        clean = {folded(pair[side]) for pairs in corpus.train.values() for pair in pairs}
        heldout = [folded(pair[side]) for pair in [*corpus.dev, *corpus.test]]
        assert len(clean) == PAIRS
        assert len(set(heldout)) == DEV_PAIRS + TEST_PAIRS
        assert clean.isdisjoint(heldout)


def test_train_has_all_clean_pairs_and_the_noise_that_is_counted(made: Path) -> None:
    counts = json.loads((made / "made.json").read_text(encoding="utf-8"))
    assert sum(counts["clean"].values()) == PAIRS
    assert set(counts["noise"]) == set(NOISE)
    assert min(counts["noise"].values()) >= 1
    # Less its header line.
    written = len(lines(made / "train.en.gz")) + len(lines(made / "notices.tsv")) - 1
    assert written == PAIRS + sum(counts["noise"].values())


def test_noise_is_in_the_files(made: Path) -> None:
    sources, targets = lines(made / "train.en.gz"), lines(made / "train.de.gz")
    rows = lines(made / "notices.tsv")
    everything = b"\n".join([*targets, *rows])
    assert rows[0] == b"id\ten\tde"
    assert [row for row in rows if row.count(b"\t") < 2]
    assert [pair for pair in zip(sources, targets, strict=True) if pair[0] == pair[1]]
    assert b"http://" in everything
    assert b"<p>" in everything
    assert "\ufffd".encode() in everything
    assert "Ã".encode() in everything
    assert max(map(len, sources)) > 2000
    with pytest.raises(UnicodeDecodeError):
        everything.decode()


def test_sentences_of_test_are_leaked_into_train(made: Path) -> None:
    train = {folded(line.decode(errors="replace")) for line in lines(made / "train.en.gz")}
    train |= {folded(row.split(b"\t")[1].decode(errors="replace")) for row in lines(made / "notices.tsv")}
    for split in ("dev", "test"):
        assert train & {folded(line.decode()) for line in lines(made / f"{split}.en")}


@pytest.mark.parametrize(
    ("made_of", "german"),
    [
        (("man", "a", "old"), ["ein alter Mann", "einen alten Mann", "einem alten Mann"]),
        (("child", "a", "small"), ["ein kleines Kind", "ein kleines Kind", "einem kleinen Kind"]),
        (("woman", "the", "young"), ["die junge Frau", "die junge Frau", "der jungen Frau"]),
        (("coat", "his", "expensive"), ["sein teurer Mantel", "seinen teuren Mantel", "seinem teuren Mantel"]),
        (("boy", "this", "tired"), ["dieser müde Junge", "diesen müden Jungen", "diesem müden Jungen"]),
    ],
)
def test_noun_phrases_are_declined(made_of: tuple[str, str, str], german: list[str]) -> None:
    made = phrase(*made_of)
    assert [made.de("nom"), made.de("acc"), made.de("dat")] == german


def test_plurals_are_declined() -> None:
    assert phrase("dog", "three", "black", plural=True).de("dat") == "drei schwarzen Hunden"
    assert phrase("apple", "", "red", plural=True).de("acc") == "rote Äpfel"
    assert phrase("house", "the", "new", plural=True).de("dat") == "den neuen Häusern"
    assert phrase("apple", "a").en() == "an apple"


def test_prepositions_join_the_article() -> None:
    assert prepositional("in", phrase("park", "the"), "dat") == "im Park"
    assert prepositional("zu", phrase("church", "the", "old"), "dat") == "zur alten Kirche"
    assert prepositional("in", phrase("house", "a"), "acc") == "in ein Haus"


def test_the_verb_is_second_or_last_and_its_prefix_at_the_end() -> None:
    pick_up = next(verb for verb in WORDS.transitive if verb.infinitive == "abholen")
    clause = Clause(
        phrase("man", "the"), pick_up, "present", thing=phrase("letter", "a"), time=("in the evening", "am Abend")
    )
    assert clause.en() == "the man picks up a letter in the evening"
    assert clause.de() == "der Mann holt am Abend einen Brief ab"
    assert clause.de(time_first=True) == "am Abend holt der Mann einen Brief ab"
    assert clause.de_final() == "der Mann am Abend einen Brief abholt"
    assert clause.de_inverted() == "holt der Mann am Abend einen Brief ab"
    assert pick_up.infinitive_with_zu == "abzuholen"


def test_a_definite_object_stands_before_the_place_and_an_indefinite_one_after_it() -> None:
    read = next(verb for verb in WORDS.transitive if verb.infinitive == "lesen")
    girl, park = phrase("girl", "the"), ("in the park", "im Park")
    assert Clause(girl, read, "perfect", thing=phrase("book", "the"), place=park).de() == (
        "das Mädchen hat das Buch im Park gelesen"
    )
    assert Clause(girl, read, "want", thing=phrase("book", "a"), place=park).de() == (
        "das Mädchen möchte im Park ein Buch lesen"
    )
