"""The stage rate: its ratings, row by row, whatever runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from scored_corpus import CONFIG, LANGUAGES, encoded, labelled_file, scored_stage, translated_pairs

from pipelines.config import BeamConfig, LabelledConfig, QualityConfig
from pipelines.errors import InputError
from pipelines.fit_quality import fit_quality
from pipelines.lexicon import Lexicon
from pipelines.quality import Quality, adequacy, pair_features
from pipelines.rate import rate
from pipelines.rating import RATED_SCHEMA
from pipelines.stage import StageRun

PAIRS = translated_pairs(150)
WRONG = [(src, tgt) for (src, _), (_, tgt) in zip(PAIRS[:50], PAIRS[50:100])]
LINES = [*encoded(PAIRS + WRONG), b"one column", b"caf\xe9\tKaffee", b"\ttabi", b"...\ttabi"]
ONE_PROCESS = BeamConfig(processes=1)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return scored_stage(tmp_path_factory.mktemp("scored"), LINES, rows_per_shard=60)


@pytest.fixture(scope="module")
def fitted(scored: StageRun, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    folder = tmp_path_factory.mktemp("fitted")
    entry = LabelledConfig(tsv=str(labelled_file(folder / "labelled.tsv")))
    return fit_quality(scored, LANGUAGES, QualityConfig(labelled=(entry,)), CONFIG, folder / "stages")


@pytest.fixture(scope="module")
def rated(scored: StageRun, fitted: StageRun, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return rate(scored, fitted, LANGUAGES, ONE_PROCESS, tmp_path_factory.mktemp("rated"))


def batches(run: StageRun, path: str) -> list[pa.RecordBatch]:
    with pa.OSFile(str(run.folder / path)) as file:
        reader = pa.ipc.open_file(file)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def rows_of(run: StageRun, kind: str) -> pa.Table:
    parts = [output.path for output in run.manifest.outputs if output.path.startswith(f"{kind}/train/")]
    return pa.Table.from_batches([batch for part in sorted(parts) for batch in batches(run, part)])


def test_each_part_has_the_rows_and_batches_of_its_scores(scored: StageRun, rated: StageRun) -> None:
    parts = [part["path"] for part in scored.manifest.counters["parts"] if part["split"] == "train"]
    assert [output.path for output in rated.manifest.outputs] == [p.replace("scored/", "rated/") for p in parts]
    assert len(parts) == 4
    for part in parts:
        one, other = batches(scored, part), batches(rated, part.replace("scored/", "rated/"))
        assert [batch["row_id"].to_pylist() for batch in one] == [batch["row_id"].to_pylist() for batch in other]
        assert all(batch.schema == RATED_SCHEMA for batch in other)
    counters = rated.manifest.counters
    assert (counters["rows"], counters["adequacy"], counters["quality"]) == (204, 200, 202)


def test_ratings_are_those_of_lexicon_and_model(scored: StageRun, fitted: StageRun, rated: StageRun) -> None:
    rows = rows_of(scored, "scored").slice(0, 200).combine_chunks().to_batches()[0]
    lexicon, model = Lexicon.load(fitted.folder / "lexicon"), Quality.load(fitted.folder / "quality.json")
    features = pair_features(rows, LANGUAGES, lexicon)
    found = rows_of(rated, "rated").slice(0, 200)
    assert found["score_adequacy"].to_pylist() == adequacy(features).astype("float32").tolist()
    assert found["score_quality"].to_pylist() == model.probabilities(features).tolist()


def test_wrong_pairs_are_rated_worse(rated: StageRun) -> None:
    found = rows_of(rated, "rated").to_pydict()
    for name in ("score_adequacy", "score_quality"):
        right, wrong = found[name][:150], found[name][150:200]
        better = sum(one > other for one in right for other in wrong) / (len(right) * len(wrong))
        assert better > 0.95, name
        assert 0 <= min(right + wrong) <= max(right + wrong) <= 1


def test_what_cannot_be_rated_is_null(rated: StageRun) -> None:
    last = rows_of(rated, "rated").slice(200).to_pylist()
    assert [row["score_adequacy"] for row in last] == [None] * 4
    assert [row["score_quality"] is None for row in last] == [True, True, False, False]


def test_without_labelled_pairs_there_is_no_quality(scored: StageRun, tmp_path: Path) -> None:
    plain = fit_quality(scored, LANGUAGES, QualityConfig(), CONFIG, tmp_path)
    run = rate(scored, plain, LANGUAGES, ONE_PROCESS, tmp_path)
    assert run.manifest.counters == {"rows": 204, "adequacy": 200, "quality": 0}
    assert rows_of(run, "rated")["score_quality"].null_count == 204


@pytest.mark.parametrize(
    "beam", [BeamConfig(processes=2), BeamConfig(options={"direct_running_mode": "in_memory"})], ids=["2", "beam"]
)
def test_every_runner_writes_the_same_bytes(
    scored: StageRun, fitted: StageRun, rated: StageRun, beam: BeamConfig, tmp_path: Path
) -> None:
    assert rate(scored, fitted, LANGUAGES, beam, tmp_path).manifest.outputs == rated.manifest.outputs


def test_a_run_that_was_ended_goes_on(scored: StageRun, fitted: StageRun, rated: StageRun, tmp_path: Path) -> None:
    folder = tmp_path / rated.folder.name / "rated" / "train"
    folder.mkdir(parents=True)
    first = rated.folder / "rated" / "train" / "part-00000.arrow"
    (folder / first.name).write_bytes(first.read_bytes())
    kept = (folder / first.name).stat().st_mtime_ns
    run = rate(scored, fitted, LANGUAGES, ONE_PROCESS, tmp_path)
    assert run.manifest.outputs == rated.manifest.outputs
    assert (folder / first.name).stat().st_mtime_ns == kept


def test_a_broken_lexicon_stops_the_run_at_once(scored: StageRun, fitted: StageRun, tmp_path: Path) -> None:
    broken = StageRun(tmp_path / "broken", fitted.manifest, reused=True)
    shutil.copytree(fitted.folder, broken.folder)
    (broken.folder / "lexicon" / "pairs.parquet").unlink()
    with pytest.raises(InputError, match=r"not a part of a lexicon.*\n?.*pairs\.parquet"):
        rate(scored, broken, LANGUAGES, ONE_PROCESS, tmp_path)
    assert not list(tmp_path.glob("rate-*/manifest.json"))
