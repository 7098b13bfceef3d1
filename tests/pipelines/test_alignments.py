"""The contract of alignments, and the stage that writes them: from rows of shards to their links."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleaned_stage import cleaned_stage

from pipelines import alignments as module
from pipelines.align import align
from pipelines.alignments import MAX_PIECES, AlignPart, align_part, alignment_ranges, pair_batches, read_alignments
from pipelines.bags import KeyIndex
from pipelines.config import AlignConfig, BeamConfig, LanguagesConfig, TokenizerConfig
from pipelines.diagonal import fit, links
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.shards import SCHEMA, write_shard
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.tokenizer import EOS_ID

DIGEST = "d" * 64
CONFIG = AlignConfig(sample_rows=1000)
Rows = list[tuple[int, list[int], list[int]]]


def corpus(rows: int, *, seed: int = 1) -> Rows:
    """Return rows in which source piece k is target piece k + 10, in the same order, with one more at the end."""
    rng = random.Random(seed)
    found = []
    for number in range(rows):
        src = rng.sample(range(4, 24), rng.randint(2, 8))
        found.append((3 * number, src, [piece + 10 for piece in src] + [35]))
    return found


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "row_id": [row_id for row_id, _, _ in rows],
        "corpus": ["toy"] * len(rows),
        "src": [[*src, EOS_ID] for _, src, _ in rows],
        "tgt": [[*tgt, EOS_ID] for _, _, tgt in rows],
    }
    write_shard(path, pa.table(columns, schema=SCHEMA), DIGEST)
    return path


def encoded(root: Path, parts: list[Rows]) -> StageRun:
    def body(folder: Path) -> StageResult:
        outputs = []
        for split in ("train", "dev"):
            for number, rows in enumerate(parts if split == "train" else parts[:1]):
                name = f"shards/{split}/part-{number:05d}.parquet"
                write(folder / name, rows)
                outputs.append(name)
        return StageResult(outputs, {})

    return run_stage("encode", 1, {"parts": [len(rows) for rows in parts]}, {}, root, body)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    """A tokeniser of 60 pieces: of it the stage asks for its size alone."""
    root = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(vocab_size=60, character_coverage=1.0)
    return fit_tokenizer(LanguagesConfig(source="en", target="de"), config, cleaned_stage(root), root)


def test_pieces_come_without_eos_and_long_rows_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ROWS", 3)
    rows: Rows = [
        (5, [7], [8, 9]),
        (6, [4] * MAX_PIECES, [5]),
        (7, [4] * (MAX_PIECES + 1), [5, 6]),
        (9, [], [5]),
        (11, [1, 2, 3], []),
    ]
    found = []
    for row_id, src, tgt in pair_batches(write(tmp_path / "part-00000.parquet", rows)):
        for number in range(len(row_id)):
            pair = [side.ids[side.first[number] : side.first[number + 1]].tolist() for side in (src, tgt)]
            found.append((row_id[number].as_py(), *pair))
        assert (src.counts == 1).all()
    assert found == [(7, [], []) if row[0] == 7 else row for row in rows]


def test_a_part_holds_the_links_of_its_rows_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ROWS", 64)
    rows = [*corpus(300), (900, [], [5]), (901, [4] * (MAX_PIECES + 1), [14])]
    shard = write(tmp_path / "part-00000.parquet", rows)
    ((_, src, tgt),) = _whole(shard, monkeypatch)
    aligner, _ = fit(src, tgt, (40, 40), 4)
    aligner.save(tmp_path / "aligner")
    part = AlignPart(str(shard), str(tmp_path / "out.parquet"))
    counted = align_part(str(tmp_path / "aligner"), part)
    found = read_alignments(Path(part.aligned))
    assert found.row_id.tolist() == [row_id for row_id, _, _ in rows]
    exact = links(aligner, KeyIndex(aligner.keys), src, tgt)
    assert np.array_equal(np.repeat(np.arange(len(rows)), np.diff(found.first)), exact.row)
    assert np.array_equal(found.src, exact.src)
    assert np.array_equal(found.tgt, exact.tgt)
    assert counted == (302, len(src.ids), len(tgt.ids), len(exact.row))
    right = sum(rows[row][1][j] + 10 == rows[row][2][i] for row, j, i in zip(*exact))
    assert right / len(exact.row) > 0.97
    assert right / sum(len(row[1]) for row in rows[:300]) > 0.95
    assert found.first[-1] == found.first[300]


def _whole(shard: Path, monkeypatch: pytest.MonkeyPatch) -> list:  # type: ignore[type-arg]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_BATCH_ROWS", 10_000)
        return list(pair_batches(shard))


def test_the_stage_aligns_every_row_of_train(tmp_path: Path, tokenizer: StageRun) -> None:
    rows = corpus(400)
    run = align(CONFIG, encoded(tmp_path, [rows[:150], [], rows[150:]]), tokenizer, BeamConfig(processes=1), tmp_path)
    assert [output.path for output in run.manifest.outputs] == [
        f"alignments/train/part-0000{number}.parquet" for number in range(3)
    ]
    assert sorted(path.name for path in run.folder.iterdir()) == ["alignments", "manifest.json"]
    counters = run.manifest.counters
    assert counters["rows"] == counters["sampled_rows"] == 400
    assert counters["src_pieces"] == sum(len(src) for _, src, _ in rows)
    assert counters["tgt_pieces"] == counters["src_pieces"] + 400
    assert counters["links"] == pytest.approx(counters["src_pieces"], rel=0.03)
    assert len(counters["iterations"]) == 5
    assert counters["iterations"][-1]["target"] > counters["iterations"][0]["target"]
    assert counters["tension"]["target"] > 4
    found = [read_alignments(run.folder / output.path).row_id.tolist() for output in run.manifest.outputs]
    assert found == [[row[0] for row in some] for some in (rows[:150], [], rows[150:])]


def test_neither_processes_nor_the_cut_of_the_shards_change_a_link(tmp_path: Path, tokenizer: StageRun) -> None:
    rows = corpus(300)
    cuts = ([rows], [rows[:1], rows[1:120], rows[120:]])
    found = []
    for number, (cut, processes) in enumerate(zip(cuts, (1, 2))):
        root = tmp_path / str(number)
        run = align(AlignConfig(sample_rows=170), encoded(root, cut), tokenizer, BeamConfig(processes=processes), root)
        parts = [read_alignments(run.folder / output.path) for output in run.manifest.outputs]
        columns = ([getattr(part, side) for part in parts] for side in ("row_id", "src", "tgt"))
        found.append([np.concatenate(column).tolist() for column in columns])
        assert run.manifest.counters["sampled_rows"] == 170
    assert found[0] == found[1]


def test_the_stage_is_named_by_shards_and_settings(tmp_path: Path, tokenizer: StageRun) -> None:
    shards = encoded(tmp_path, [corpus(60)])
    first = align(CONFIG, shards, tokenizer, BeamConfig(processes=1), tmp_path)
    assert align(CONFIG, shards, tokenizer, BeamConfig(processes=2), tmp_path).reused
    other = align(CONFIG.model_copy(update={"iterations": 2}), shards, tokenizer, BeamConfig(processes=1), tmp_path)
    assert other.folder != first.folder


def test_the_ranges_of_row_ids_are_known_without_reading_rows(tmp_path: Path, tokenizer: StageRun) -> None:
    rows = corpus(90)
    run = align(CONFIG, encoded(tmp_path, [rows[:30], [], rows[30:]]), tokenizer, BeamConfig(processes=1), tmp_path)
    folder = run.folder / "alignments" / "train"
    assert {path.name: ids for path, ids in alignment_ranges(folder).items()} == {
        "part-00000.parquet": (0, 87),
        "part-00002.parquet": (90, 267),
    }
    with pytest.raises(InputError, match=r"no alignments \(part-\*.parquet\) here"):
        alignment_ranges(tmp_path)
    table = pq.read_table(folder / "part-00000.parquet")
    pq.write_table(table.replace_schema_metadata(None), folder / "part-00000.parquet")
    with pytest.raises(InputError, match="alignment format none, this version reads 1"):
        alignment_ranges(folder)
