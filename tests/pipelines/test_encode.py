from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleaned_stage import PAIRS, cleaned_stage

from pipelines.config import BeamConfig, LanguagesConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.encoding import encode_part
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.shards import check_shard, read_shards, shard_paths
from pipelines.stage import StageRun
from pipelines.tokenizer import EOS_ID, UNK_ID, Tokenizer

LANGUAGES = LanguagesConfig(source="en", target="de")
CONFIG = TokenizerConfig(vocab_size=60, character_coverage=1.0)


@pytest.fixture
def cleaned(tmp_path: Path) -> StageRun:
    return cleaned_stage(tmp_path, dev=[("The red ж house.", "Das ж ж rote Haus.")])


@pytest.fixture
def fitted(tmp_path: Path, cleaned: StageRun) -> StageRun:
    return fit_tokenizer(LANGUAGES, CONFIG, cleaned, tmp_path)


@pytest.fixture
def encoded(tmp_path: Path, cleaned: StageRun, fitted: StageRun) -> StageRun:
    return encode(ShardConfig(), cleaned, fitted, BeamConfig(), tmp_path)


def test_each_part_becomes_the_shard_of_its_name(encoded: StageRun) -> None:
    assert {output.path: output.rows for output in encoded.manifest.outputs} == {
        "shards/train/part-00000.parquet": 40,
        "shards/train/part-00001.parquet": 30,
        "shards/dev/part-00000.parquet": 1,
        "shards/test/part-00000.parquet": 1,
    }
    written = {str(path.relative_to(encoded.folder)) for path in encoded.folder.rglob("*") if path.is_file()}
    assert written == {output.path for output in encoded.manifest.outputs} | {"manifest.json"}


def test_rows_are_those_of_the_parts_as_piece_ids(encoded: StageRun, fitted: StageRun) -> None:
    tokenizer = Tokenizer.load(fitted.folder)
    columns = read_shards(encoded.folder / "shards" / "train", tokenizer.digest)
    assert columns.row_id.tolist() == [*range(70)]
    for row, (source, target) in enumerate(PAIRS[:70]):
        src = columns.src[columns.src_offsets[row] : columns.src_offsets[row + 1]].tolist()
        tgt = columns.tgt[columns.tgt_offsets[row] : columns.tgt_offsets[row + 1]].tolist()
        assert [src] == tokenizer.encode_source([source])
        assert tgt[-1] == EOS_ID
        assert tokenizer.decode_target([tgt]) == [target]


def test_shards_bear_the_digest_of_their_tokeniser_and_their_corpus(encoded: StageRun, fitted: StageRun) -> None:
    shard = encoded.folder / "shards" / "test" / "part-00000.parquet"
    assert check_shard(shard, Tokenizer.load(fitted.folder).digest) == 1
    assert pq.read_table(shard)["corpus"].to_pylist() == ["test"]


def test_counters_are_sums_over_the_shards(encoded: StageRun) -> None:
    for split, rows in (("train", 70), ("dev", 1), ("test", 1)):
        columns = read_shards(encoded.folder / "shards" / split)
        assert encoded.manifest.counters[split] == {
            "rows": rows,
            "src_pieces": len(columns.src),
            "tgt_pieces": len(columns.tgt),
            "src_unknown": int((columns.src == UNK_ID).sum()),
            "tgt_unknown": int((columns.tgt == UNK_ID).sum()),
        }
    assert encoded.manifest.counters["dev"]["src_unknown"] == 1
    assert encoded.manifest.counters["dev"]["tgt_unknown"] == 2


def test_an_empty_part_becomes_an_empty_shard(tmp_path: Path) -> None:
    cleaned = cleaned_stage(tmp_path, train=[PAIRS[:70], []])
    run = encode(ShardConfig(), cleaned, fit_tokenizer(LANGUAGES, CONFIG, cleaned, tmp_path), BeamConfig(), tmp_path)
    assert check_shard(run.folder / "shards" / "train" / "part-00001.parquet") == 0
    assert run.manifest.counters["train"]["rows"] == 70


@pytest.mark.parametrize("with_text", [False, True])
def test_what_is_encoded_in_one_go_changes_no_byte(
    tmp_path: Path, cleaned: StageRun, fitted: StageRun, with_text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, tokenizer = cleaned.folder / "clean" / "train" / "part-00000.parquet", Tokenizer.load(fitted.folder)
    counts = encode_part(part, tmp_path / "whole", tokenizer, with_text=with_text)
    monkeypatch.setattr("pipelines.encoding._CHUNK_ROWS", 7)
    assert encode_part(part, tmp_path / "chunks", tokenizer, with_text=with_text) == counts
    assert (tmp_path / "chunks").read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_unchanged_stage_is_reused(tmp_path: Path, encoded: StageRun, cleaned: StageRun, fitted: StageRun) -> None:
    assert not encoded.reused
    assert encode(ShardConfig(), cleaned, fitted, BeamConfig(), tmp_path).reused
    inputs = {"cleaned": cleaned.manifest.digest(), "tokenizer": fitted.manifest.digest()}
    assert encoded.manifest.inputs == inputs


def test_text_stands_in_the_shards_of_train_where_it_is_asked_for(
    tmp_path: Path, encoded: StageRun, cleaned: StageRun, fitted: StageRun
) -> None:
    run = encode(ShardConfig(), cleaned, fitted, BeamConfig(), tmp_path, with_text=True)
    assert run.folder != encoded.folder
    paths = shard_paths(run.folder / "shards" / "train")
    texts = pa.concat_tables(pq.read_table(path) for path in paths)
    assert list(zip(texts["src_text"].to_pylist(), texts["tgt_text"].to_pylist())) == PAIRS[:70]
    for split in ("dev", "test"):
        path = f"shards/{split}/part-00000.parquet"
        assert (run.folder / path).read_bytes() == (encoded.folder / path).read_bytes()
    with_ids, without = (read_shards(stage.folder / "shards" / "train") for stage in (run, encoded))
    assert np.array_equal(with_ids.src, without.src)
    assert run.manifest.counters == encoded.manifest.counters


def test_without_text_the_key_is_what_it_has_always_been(encoded: StageRun) -> None:
    assert encoded.manifest.config == {"shards": {"rows_per_shard": 100_000}, "shard_format": 1}


_SCRIPT = """
import sys
from pathlib import Path
from pipelines.config import BeamConfig, ShardConfig
from pipelines.encode import encode
from pipelines.stage import StageRun, read_manifest
cleaned, fitted = (StageRun(Path(folder), read_manifest(Path(folder)), True) for folder in sys.argv[1:3])
options = {"direct_running_mode": "multi_processing", "direct_num_workers": 2}
encode(ShardConfig(), cleaned, fitted, BeamConfig(options=options), Path(sys.argv[3]))
"""


def test_two_worker_processes_write_the_same_bytes(
    tmp_path: Path, encoded: StageRun, cleaned: StageRun, fitted: StageRun
) -> None:
    root = tmp_path / "other"
    arguments = [str(cleaned.folder), str(fitted.folder), str(root)]
    # In a process of its own: Beam's workers are started from the main module's file.
    subprocess.run([sys.executable, "-c", _SCRIPT, *arguments], check=True, capture_output=True, env={**os.environ})
    for output in encoded.manifest.outputs:
        again = root / encoded.folder.name / output.path
        assert again.read_bytes() == (encoded.folder / output.path).read_bytes()


def test_a_tokeniser_that_cannot_be_read_is_an_input_error(tmp_path: Path, cleaned: StageRun, fitted: StageRun) -> None:
    (fitted.folder / "joint.model").unlink()
    with pytest.raises(InputError, match=r"joint\.model: the model file is missing"):
        encode(ShardConfig(), cleaned, fitted, BeamConfig(), tmp_path)


def test_lost_rows_fail_the_stage(tmp_path: Path, cleaned: StageRun, fitted: StageRun) -> None:
    part = cleaned.folder / "clean" / "train" / "part-00001.parquet"
    pq.write_table(pq.read_table(part).slice(0, 29), part)
    with pytest.raises(RuntimeError, match="train: 70 rows in, 69 in the shards, 69 counted"):
        encode(ShardConfig(), cleaned, fitted, BeamConfig(), tmp_path)
