"""The stage score: every row, its scores and keys, whatever the thresholds are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.characters import CodePoints
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    DuplicatesConfig,
    LanguagesConfig,
    NormalizeConfig,
    ResourcesConfig,
    RulesConfig,
    ShardConfig,
)
from pipelines.dedup import folded_keys, text_keys
from pipelines.errors import InputError
from pipelines.filters import RULES, Pairs, rule_scores
from pipelines.minhash import SIGNATURE_SIZE, pair_signatures
from pipelines.score import score
from pipelines.scoring import Scoring, pair_scores
from pipelines.stage import StageRun

LANGUAGES = LanguagesConfig(source="en", target="de")
PAIRS = [
    ("A man is sitting on the bench.", "Ein Mann sitzt auf der Bank."),
    ("<p>A woman is reading a newspaper.</p>", "Eine Frau liest eine Zeitung."),
    ("The book costs &euro; 12.50  today.", "Das Buch kostet heute 12,50 €."),
    ("", "Leer."),
]


def corpora(folder: Path, lines: list[bytes], **more: Any) -> CorporaConfig:
    folder.mkdir(exist_ok=True)
    (folder / "train.tsv").write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / "held_out.tsv").write_text("Where is the station?\tWo ist der Bahnhof?\n")
    held_out = (CorpusConfig(name="held_out", tsv=str(folder / "held_out.tsv")),)
    train = (CorpusConfig(name="web", tsv=str(folder / "train.tsv")),)
    return CorporaConfig(**{"train": train, "dev": held_out, "test": held_out, **more})


def encoded(pairs: list[tuple[str, str]]) -> list[bytes]:
    return ["\t".join(pair).encode() for pair in pairs]


def run(folder: Path, corpora: CorporaConfig, config: CleanConfig | None = None, rows: int = 100) -> StageRun:
    shards = ShardConfig(rows_per_shard=rows)
    return score(LANGUAGES, corpora, config or CleanConfig(), shards, BeamConfig(), folder / "stages")


def rows_of(run: StageRun, split: str = "train") -> pa.Table:
    parts = [part["path"] for part in run.manifest.counters["parts"] if part["split"] == split]
    return pa.concat_tables([pa.ipc.open_file(run.folder / path).read_all() for path in parts])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    folder = tmp_path_factory.mktemp("score")
    return run(folder, corpora(folder, [*encoded(PAIRS), b"one column", b"caf\xe9\tKaffee"]), rows=4)


def test_every_row_that_was_read_is_there(scored: StageRun) -> None:
    rows = rows_of(scored)
    assert rows["row_id"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert rows["fault"].to_pylist() == [None, None, None, None, "malformed", "invalid_utf8"]
    assert rows["src"].to_pylist() == [
        PAIRS[0][0],
        PAIRS[1][0],
        "The book costs € 12.50 today.",
        "",
        "one column",
        "caf\\xe9",
    ]
    assert [part["rows"] for part in scored.manifest.counters["parts"]] == [4, 2, 1, 1]


def test_scores_and_keys_are_those_of_the_normalised_texts(scored: StageRun) -> None:
    rows = rows_of(scored).slice(0, 4).combine_chunks()
    src, tgt = rows["src"].chunk(0), rows["tgt"].chunk(0)
    cheap = [rule for rule in RULES if rule.name in Scoring.of(LANGUAGES, CORPORA, CleanConfig()).rules]
    expected = rule_scores(Pairs.of(src, tgt, LANGUAGES), [rule for rule in cheap if not rule.costly])
    for name, scores in expected.items():
        if name not in ("control", "broken_encoding"):  # these look at the line as it was read
            assert rows[f"score_{name}"].to_pylist() == scores.to_pylist(), name
    assert rows["src_key"].to_pylist() == text_keys(src).tolist()
    assert rows["tgt_folded"].to_pylist() == folded_keys(CodePoints(tgt)).keys.tolist()
    unreadable = rows_of(scored).slice(4)
    assert unreadable["src_key"].null_count == unreadable["score_words"].null_count == 2


CORPORA = CorporaConfig(
    train=(CorpusConfig(name="a", tsv="a"),),
    dev=(CorpusConfig(name="a", tsv="a"),),
    test=(CorpusConfig(name="a", tsv="a"),),
)


def test_costly_scores_are_those_of_rows_that_default_thresholds_leave(scored: StageRun) -> None:
    known = rows_of(scored)["score_language"].is_valid().to_pylist()
    assert known == [True, False, True, False, False, False]


def test_dev_and_test_have_their_lines_as_read(scored: StageRun) -> None:
    rows = rows_of(scored, "dev").to_pylist()
    assert [(row["src_raw"], row["tgt_raw"]) for row in rows] == [("Where is the station?", "Wo ist der Bahnhof?")]
    assert not [name for name in rows_of(scored, "dev").column_names if name.startswith("score_")]


def test_no_threshold_is_part_of_the_key(scored: StageRun, tmp_path: Path) -> None:
    same = [
        CleanConfig(rules=RulesConfig(words=20.0, language="soft", identical=0.0)),
        CleanConfig(duplicates=DuplicatesConfig(exact=None, keep="words"), max_reject_rate=0.5),
    ]
    other = [
        CleanConfig(rules=RulesConfig(words=None)),
        CleanConfig(normalize=NormalizeConfig(unescape_html=False)),
        CleanConfig(duplicates=DuplicatesConfig(near="pair")),
    ]
    texts = corpora(tmp_path, [*encoded(PAIRS), b"one column", b"caf\xe9\tKaffee"])
    shards = ShardConfig(rows_per_shard=4)

    def reused(config: CleanConfig) -> bool:
        return score(LANGUAGES, texts, config, shards, BeamConfig(), scored.folder.parent).reused

    assert all(reused(config) for config in same)
    assert not any(reused(config) for config in other)


def test_signatures_lie_beside_the_rows(tmp_path: Path) -> None:
    config = CleanConfig(duplicates=DuplicatesConfig(near="pair", shingle=4))
    run_ = run(tmp_path, corpora(tmp_path, [*encoded(PAIRS), b"one column"]), config)
    part = run_.manifest.counters["parts"][0]
    found = np.fromfile(run_.folder / part["signatures"], dtype="<u4").reshape(-1, SIGNATURE_SIZE)
    rows = rows_of(run_).slice(0, 4).combine_chunks()
    src, tgt = (CodePoints(rows[side].chunk(0)) for side in ("src", "tgt"))
    assert found.shape == (5, SIGNATURE_SIZE)
    assert (found[:4] == pair_signatures(src, tgt, 4)).all()


def test_a_word_list_that_changes_is_another_stage(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("bench\n")
    config = CleanConfig(rules=RulesConfig(profanity=0.0), resources=ResourcesConfig(source_profanity=str(words)))
    texts = corpora(tmp_path / "data", encoded(PAIRS))
    first = run(tmp_path, texts, config)
    assert rows_of(first)["score_profanity"].to_pylist()[:3] == [1.0, 0.0, 0.0]
    words.write_text("newspaper\n")
    second = run(tmp_path, texts, config)
    assert rows_of(second)["score_profanity"].to_pylist()[:3] == [0.0, 1.0, 0.0]
    words.unlink()
    with pytest.raises(InputError, match=r"words\.txt"):
        run(tmp_path, texts, config)


def test_texts_of_one_side_get_the_scores_of_one_side() -> None:
    scoring = Scoring.of(LANGUAGES, CORPORA, CleanConfig())
    pairs = Pairs.of(None, pa.array(["Ein Mann sitzt auf der Bank.", "<b>Eine Frau</b>"]), LANGUAGES)
    scores = pair_scores(scoring, pairs)
    assert scores["words"].to_pylist() == [6, 2]
    assert scores["markup"].to_pylist() == [0, 2]
    assert scores["length_ratio"].null_count == scores["identical"].null_count == 2
    assert scores["language"].is_valid().to_pylist() == [True, False]
