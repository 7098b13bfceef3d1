"""The stage clean where pairs are rated: thresholds of adequacy and quality, and the best-rated repetition."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scored_corpus import LANGUAGES, labelled_file, translated_pairs

from pipelines.clean import clean
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    DuplicatesConfig,
    LabelledConfig,
    QualityConfig,
    RulesConfig,
    ShardConfig,
)
from pipelines.fit_quality import fit_quality
from pipelines.rate import rate
from pipelines.score import score
from pipelines.stage import StageRun

GOOD = translated_pairs(300)
# Each of the last forty sources stands there twice: with the target of another row, and then with its own.
WRONG = [(src, GOOD[row][1]) for row, (src, _) in enumerate(GOOD[260:])]
ROWS = [*GOOD[:260], *WRONG, *GOOD[260:]]
ONE_PROCESS = BeamConfig(processes=1)


def corpus(folder: Path, name: str, pairs: list[tuple[str, str]]) -> CorpusConfig:
    path = folder / f"{name}.tsv"
    path.write_text("".join(f"{src}\t{tgt}\n" for src, tgt in pairs), encoding="utf-8")
    return CorpusConfig(name=name, tsv=str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rated")


def cleaned(folder: Path, rules: RulesConfig, duplicates: DuplicatesConfig) -> StageRun:
    held_out = (corpus(folder, "held_out", [("where is the station", "wo ist der bahnhof")]),)
    corpora = CorporaConfig(train=(corpus(folder, "web", ROWS),), dev=held_out, test=held_out)
    quality = QualityConfig(labelled=(LabelledConfig(tsv=str(labelled_file(folder / "labelled.tsv"))),))
    config = CleanConfig(rules=rules, duplicates=duplicates, quality=quality)
    root = folder / "stages"
    scored = score(LANGUAGES, corpora, config, ShardConfig(rows_per_shard=100), ONE_PROCESS, root)
    fitted = fit_quality(scored, LANGUAGES, quality, config, root)
    rated = rate(scored, fitted, LANGUAGES, ONE_PROCESS, root)
    return clean(LANGUAGES, corpora, config, scored, ONE_PROCESS, root, rated=rated)


def rejected(run: StageRun) -> dict[int, str]:
    return {row["row_id"]: row["rule"] for row in pq.read_table(run.folder / "rejects/train").to_pylist()}


def test_rows_that_are_no_translation_go_by_their_quality(folder: Path) -> None:
    rules = RulesConfig(language=None, quality=0.5)
    run = cleaned(folder, rules, DuplicatesConfig(exact=None, folded=None))
    gone = rejected(run)
    assert set(gone.values()) == {"quality"}
    wrong = set(range(260, 300))
    assert len(wrong & set(gone)) >= 38
    assert len(set(gone) - wrong) <= 6
    kept = pq.read_table(run.folder / "clean/train")
    assert kept.column_names[-2:] == ["score_adequacy", "score_quality"]
    assert kept["score_quality"].null_count == 0
    assert min(kept["score_quality"].to_pylist()) >= 0.5


def test_of_two_targets_of_a_source_the_better_translation_stays(folder: Path) -> None:
    duplicates = DuplicatesConfig(exact="source", folded=None, keep="quality")
    gone = rejected(cleaned(folder, RulesConfig(language=None), duplicates))
    assert set(gone.values()) == {"duplicate"}
    # Without a score it would be the first one, which is the wrong one.
    assert len(set(gone) & set(range(260, 300))) >= 38


def test_adequacy_is_a_threshold_too(folder: Path) -> None:
    run = cleaned(folder, RulesConfig(language=None, adequacy=0.2), DuplicatesConfig(exact=None, folded=None))
    gone = rejected(run)
    assert set(gone.values()) == {"adequacy"}
    assert set(gone) <= set(range(255, 300))
    assert len(gone) >= 15  # without labels, a sign that is sure of some
