"""Rows found again by their numbers, against all files read whole."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from pipelines.clean import clean
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    LanguagesConfig,
    ShardConfig,
)
from pipelines.corpus import ROW_ID_STRIDE
from pipelines.lookup import (
    Match,
    Origin,
    fate,
    fates,
    last_row_id,
    match_of,
    numbered,
    origin_of,
    rated_row,
    raw_row,
    row_id_of,
    samples,
    scored_row,
)
from pipelines.score import score
from pipelines.stage import StageRun

LANGUAGES = LanguagesConfig(source="en", target="de")
BEAM = BeamConfig(processes=1)
PLACES = [
    "by the river",
    "in the garden",
    "at the station",
    "on the market",
    "near the old bridge",
    "behind the school",
]
ORTE = ["am Fluss", "im Garten", "am Bahnhof", "auf dem Markt", "nahe der alten Brücke", "hinter der Schule"]
PAIRS = [(f"The child is playing {place}.", f"Das Kind spielt {ort}.") for place, ort in zip(PLACES, ORTE)]
LEAKED = ("The neighbours are singing in the kitchen.", "Die Nachbarn singen in der Küche.")
NOISY = [
    PAIRS[0],
    (PAIRS[1][0], ""),
    PAIRS[1],
    PAIRS[0],
    (f"{PAIRS[2][0]} &amp; more", f"{PAIRS[2][1]} &amp; mehr"),
    (f"  {LEAKED[0].upper()}", "Etwas anderes."),
    (f"<p>{PAIRS[3][0]}</p>", PAIRS[3][1]),
]


def write(path: Path, lines: list[bytes], *, packed: bool = False) -> str:
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if packed else data)
    return str(path)


def aligned(folder: Path, name: str, pairs: list[tuple[str, str]], *, packed: bool = False) -> CorpusConfig:
    suffix = ".gz" if packed else ""
    source, target = (
        write(folder / f"{name}.{language}{suffix}", [pair[side].encode() for pair in pairs], packed=packed)
        for side, language in enumerate(("en", "de"))
    )
    return CorpusConfig(name=name, source=source, target=target)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> CorporaConfig:
    folder = tmp_path_factory.mktemp("corpora")
    header = b"en\tde"
    for number, pairs in enumerate((PAIRS[3:5], PAIRS[5:])):
        write(folder / f"table{number}.tsv", [header, *("\t".join(pair).encode() for pair in pairs), b"a\xff\tb"])
    table = CorpusConfig(name="table", tsv=f"{folder}/table*.tsv", source_column="en", target_column="de", header=True)
    return CorporaConfig(
        train=(aligned(folder, "noisy", NOISY, packed=True), table),
        dev=(aligned(folder, "noisy-dev", [("A red ball.", "Ein roter Ball.")]),),
        test=(aligned(folder, "talks", [LEAKED, ("", "Leer.")]),),
        monolingual=(CorpusConfig(name="mono", target=write(folder / "mono.de", [b"Ein Haus am See.", b""])),),
    )


@pytest.fixture(scope="module")
def runs(corpora: CorporaConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageRun]:
    root, config = tmp_path_factory.mktemp("stages"), CleanConfig()
    scored = score(LANGUAGES, corpora, config, ShardConfig(rows_per_shard=2), BEAM, root)
    return {"score": scored, "clean": clean(LANGUAGES, corpora, config, scored, BEAM, root)}


def scored_rows(run: StageRun) -> list[dict[str, Any]]:
    rows = []
    for part in run.manifest.counters["parts"]:
        with pa.memory_map(str(run.folder / part["path"])) as file:
            rows += pa.ipc.open_file(file).read_all().to_pylist()
    return rows


def test_a_row_has_the_number_of_its_corpus_and_its_line(corpora: CorporaConfig) -> None:
    names = [(split, corpus.name) for split, corpus in numbered(corpora)]
    assert names == [
        ("train", "noisy"), ("train", "table"), ("dev", "noisy-dev"), ("test", "talks"), ("monolingual", "mono"),
    ]  # fmt: skip
    assert row_id_of(corpora, Origin("test", "talks", 2)) == 3 * ROW_ID_STRIDE + 1
    assert origin_of(corpora, 3 * ROW_ID_STRIDE + 1) == Origin("test", "talks", 2)
    assert str(origin_of(corpora, 5)) == "train/noisy:6"


def test_every_scored_row_is_found(corpora: CorporaConfig, runs: dict[str, StageRun]) -> None:
    rows = scored_rows(runs["score"])
    assert len(rows) == 7 + 5 + 1 + 2 + 2
    for row in rows:
        origin = origin_of(corpora, row["row_id"])
        found = scored_row(runs["score"], origin.split, origin.corpus, row["row_id"])
        assert found is not None and found.to_pylist() == [row]


def test_every_fate_is_found_alone_and_together(corpora: CorporaConfig, runs: dict[str, StageRun]) -> None:
    written = {
        row["row_id"]: (output.path, row)
        for output in runs["clean"].manifest.outputs
        if not output.path.startswith("explanations/")
        for row in pq.read_table(runs["clean"].folder / output.path).to_pylist()
    }
    assert written.keys() == {row["row_id"] for row in scored_rows(runs["score"])}
    together = fates(runs["clean"], "train", [row_id for row_id in written if row_id < 2 * ROW_ID_STRIDE])
    assert len(together) == 7 + 5
    for row_id, (path, row) in written.items():
        found = fate(runs["clean"], origin_of(corpora, row_id).split, row_id)
        assert found is not None
        assert (found.kept, found.path, found.row) == (path.startswith("clean/"), path, row)
        assert together.get(row_id, found) == found


@pytest.mark.parametrize(
    ("corpus", "line"),
    [("noisy", 8), ("table", 1), ("table", 5), ("table", 8), ("noisy", 10**9)],
    ids=["beyond the end", "header", "header of the second file", "beyond both files", "far beyond"],
)
def test_what_is_no_row_is_not_found(corpora: CorporaConfig, runs: dict[str, StageRun], corpus: str, line: int) -> None:
    origin = Origin("train", corpus, line)
    row_id = row_id_of(corpora, origin)
    assert scored_row(runs["score"], "train", corpus, row_id) is None
    assert fate(runs["clean"], "train", row_id) is None
    assert raw_row(corpora, LANGUAGES, origin) is None


def test_the_last_row_of_a_corpus_is_known(corpora: CorporaConfig, runs: dict[str, StageRun]) -> None:
    assert last_row_id(runs["score"], "train", "noisy") == 6
    assert last_row_id(runs["score"], "train", "table") == ROW_ID_STRIDE + 6
    assert last_row_id(runs["score"], "monolingual", "mono") == 4 * ROW_ID_STRIDE + 1


@pytest.mark.parametrize(
    ("origin", "src", "tgt", "reason"),
    [
        (Origin("train", "noisy", 5), *NOISY[4], None),
        (Origin("train", "noisy", 6), *NOISY[5], None),
        (Origin("train", "table", 2), *PAIRS[3], None),
        (Origin("train", "table", 6), *PAIRS[5], None),
        (Origin("train", "table", 7), r"a\xff", "b", "invalid_utf8"),
        (Origin("test", "talks", 2), "", "Leer.", None),
        (Origin("monolingual", "mono", 1), None, "Ein Haus am See.", None),
    ],
)
def test_a_row_is_read_as_it_stands_in_its_file(
    corpora: CorporaConfig, origin: Origin, src: str | None, tgt: str, reason: str | None
) -> None:
    raw = raw_row(corpora, LANGUAGES, origin)
    assert raw is not None
    assert raw.row_id.tolist() == [origin.line - 1]
    assert (raw.src.to_pylist(), raw.tgt.to_pylist(), raw.reason.to_pylist()) == ([src], [tgt], [reason])


def test_samples_say_where_they_stand_and_what_they_repeat_or_leak(
    corpora: CorporaConfig, runs: dict[str, StageRun]
) -> None:
    dropped = {sample.origin: sample for sample in samples(runs["clean"], corpora) if sample.kind == "dropped"}
    assert {str(origin): (sample.rule, sample.match) for origin, sample in dropped.items()} == {
        "train/noisy:2": ("empty", None),
        "train/noisy:4": ("duplicate", Match(Origin("train", "noisy", 1), *PAIRS[0])),
        "train/noisy:6": ("leakage_test", Match(Origin("test", "talks", 1), *LEAKED)),
        "train/noisy:7": ("markup", None),
        "train/table:4": ("invalid_utf8", None),
        "train/table:7": ("invalid_utf8", None),
        "monolingual/mono:2": ("empty", None),
    }
    assert (dropped[Origin("train", "noisy", 2)].score, dropped[Origin("train", "noisy", 2)].threshold) == (0.0, 1.0)
    kept = [sample for sample in samples(runs["clean"], corpora) if sample.rule is None]
    assert {sample.kind for sample in kept} == {"kept"} and all(sample.match is None for sample in kept)


def test_the_row_that_is_repeated_may_be_gone_itself(corpora: CorporaConfig, runs: dict[str, StageRun]) -> None:
    assert match_of(runs["clean"], corpora, 3) == Match(Origin("train", "noisy", 4), *PAIRS[0])


def test_rows_held_out_of_train_are_found_where_they_went(tmp_path: Path) -> None:
    pairs = [(f"House number {place} is red.", f"Das Haus Nummer {place} ist rot.") for place in range(40)]
    corpora = CorporaConfig(
        train=(aligned(tmp_path, "all", pairs),),
        test=(aligned(tmp_path, "talks", [LEAKED]),),
        held_out={"dev": 0.25},
    )
    config, root = CleanConfig(), tmp_path / "stages"
    scored = score(LANGUAGES, corpora, config, ShardConfig(rows_per_shard=9), BEAM, root)
    cleaned = clean(LANGUAGES, corpora, config, scored, BEAM, root)
    kept = {split: pq.read_table(cleaned.folder / f"clean/{split}")["row_id"].to_pylist() for split in ("train", "dev")}
    assert kept["train"] and kept["dev"]
    found = fates(cleaned, "train", kept["train"] + kept["dev"])
    assert {row_id: found[row_id].path.split("/")[1] for row_id in found} == {
        row_id: split for split, row_ids in kept.items() for row_id in row_ids
    }


def test_a_rated_row_is_found_in_the_part_of_the_same_place(runs: dict[str, StageRun], tmp_path: Path) -> None:
    scored = runs["score"]
    (tmp_path / "rated" / "train").mkdir(parents=True)
    for part in scored.manifest.counters["parts"]:
        if part["split"] == "train":
            with pa.memory_map(str(scored.folder / part["path"])) as file:
                row_id = pa.ipc.open_file(file).read_all()["row_id"]
            ratings = pa.table({"row_id": row_id, "score_adequacy": pa.array(row_id.to_numpy() % 7, pa.float32())})
            with pa.ipc.new_file(
                str(tmp_path / part["path"].replace("scored/", "rated/", 1)), ratings.schema
            ) as writer:
                writer.write_table(ratings)
    rated = StageRun(tmp_path, scored.manifest, reused=True)
    for corpus, row_id in (("noisy", 0), ("noisy", 6), ("table", ROW_ID_STRIDE + 5)):
        found = rated_row(scored, rated, corpus, row_id)
        assert found is not None
        assert found.to_pylist() == [{"row_id": row_id, "score_adequacy": row_id % 7}]
    assert rated_row(scored, rated, "noisy", 7) is None
