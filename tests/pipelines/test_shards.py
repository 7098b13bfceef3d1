from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import InputError
from pipelines.shards import (
    SCHEMA,
    TEXT_SCHEMA,
    check_shard,
    check_texts,
    columns_of,
    joined,
    read_parts,
    read_rows,
    read_shards,
    scan_shards,
    shard_paths,
    write_shard,
)


def rows(ids: Sequence[int]) -> pa.Table:
    """Row n has n + 1 source pieces and one target piece."""
    return pa.table(
        {
            "tgt": [[number, 3] for number in ids],
            "row_id": list(ids),
            "corpus": ["captions"] * len(ids),
            "src": [[*range(4, 4 + number), 3] for number in ids],
            "score": [0.5] * len(ids),
        }
    )


def test_written_rows_are_read_in_the_order_of_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00001.parquet", rows([2]), "digest")
    write_shard(tmp_path / "part-00000.parquet", rows([0, 1]), "digest")
    columns = read_shards(tmp_path, "digest")
    assert len(columns) == 3
    assert columns.row_id.tolist() == [0, 1, 2]
    assert columns.src.tolist() == [3, 4, 3, 4, 5, 3]
    assert columns.src_offsets.tolist() == [0, 1, 3, 6]
    assert columns.src_lengths().tolist() == [1, 2, 3]
    assert columns.tgt.tolist() == [0, 3, 1, 3, 2, 3]
    assert columns.tgt_lengths().tolist() == [2, 2, 2]
    assert (columns.src.dtype, columns.src_offsets.dtype) == ("int32", "int64")


def test_an_empty_shard_has_no_rows(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00000.parquet", SCHEMA.empty_table(), "digest")
    columns = read_shards(tmp_path)
    assert len(columns) == 0
    assert columns.src_offsets.tolist() == [0]


def test_only_the_columns_of_the_schema_are_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00000.parquet", rows([1]), "digest")
    assert pq.read_schema(tmp_path / "part-00000.parquet").remove_metadata() == SCHEMA


def test_text_is_written_beside_the_ids_where_it_is_asked_for(tmp_path: Path) -> None:
    for name, ids in (("part-00000.parquet", [0, 1]), ("part-00001.parquet", [2])):
        table = rows(ids).append_column("src_text", pa.array([f"s{i}" for i in ids]))
        table = table.append_column("tgt_text", pa.array([f"t{i}" for i in ids]))
        write_shard(tmp_path / name, table, "digest", with_text=True)
    assert check_shard(tmp_path / "part-00000.parquet", "digest") == 2
    assert read_shards(tmp_path, "digest").row_id.tolist() == [0, 1, 2]
    check_texts(tmp_path)
    assert [shard.rows for shard in scan_shards(tmp_path, "digest")] == [2, 1]
    first = pq.read_table(tmp_path / "part-00000.parquet")
    assert first.schema.remove_metadata() == TEXT_SCHEMA
    assert first["src_text"].to_pylist() == ["s0", "s1"]
    assert first["tgt_text"].to_pylist() == ["t0", "t1"]


def test_a_shard_without_text_is_told_when_text_is_needed(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00000.parquet", rows([0]), "digest")
    with pytest.raises(InputError, match=r"part-00000\.parquet: the shard holds no text"):
        check_texts(tmp_path)


def write_corpora(folder: Path) -> None:
    """Three shards: of two corpora, of none, and of one."""
    for number, corpora in enumerate((["b", "a", "b"], [], ["c", "c"])):
        table = rows(range(number * 10, number * 10 + len(corpora)))
        table = table.set_column(2, "corpus", pa.array(corpora, pa.string()))
        write_shard(folder / f"part-{number:05d}.parquet", table, "digest")


def test_the_corpora_of_rows_are_read_as_places_in_a_list_of_names(tmp_path: Path) -> None:
    write_corpora(tmp_path)
    names = ["a", "b", "c"]
    shards = scan_shards(tmp_path)
    columns, corpus = read_rows([shards[2], shards[1], shards[0]], names)
    assert corpus.tolist() == [2, 2, 1, 0, 1]
    assert columns.row_id.tolist() == [20, 21, 0, 1, 2]
    expected = joined([list(read_parts(tmp_path))[place] for place in (2, 1, 0)])
    for name, value in vars(columns).items():
        assert np.array_equal(value, getattr(expected, name))
        assert value.dtype == getattr(expected, name).dtype
    assert len(read_rows([shards[1]], names)[0]) == len(read_rows([], names)[0]) == 0
    with pytest.raises(ValueError, match="'b' is not in list"):
        read_rows(shards, ["a", "c"])


def test_rows_without_a_piece_and_groups_of_rows_are_read(tmp_path: Path) -> None:
    table = rows(range(5)).set_column(3, "src", pa.array([[], [7], [], [8, 9], []], pa.list_(pa.int32())))
    write_shard(tmp_path / "part-00000.parquet", table, "digest")
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    (shard,) = scan_shards(tmp_path)
    columns, _ = read_rows([shard], ["captions"])
    assert [ids.tolist() for ids in columns.sources(np.arange(5))] == [[], [7], [], [8, 9], []]
    assert columns.src.tolist() == [7, 8, 9]
    assert columns.tgt.tolist() == [0, 3, 1, 3, 2, 3, 3, 3, 4, 3]


def test_a_scan_counts_the_rows_of_each_corpus(tmp_path: Path) -> None:
    write_corpora(tmp_path)
    found = scan_shards(tmp_path, "digest")
    assert [(shard.path.name, *shard[1:]) for shard in found] == [
        ("part-00000.parquet", 3, {"a": 1, "b": 2}, 1 + 2 + 3, 6),
        ("part-00001.parquet", 0, {}, 0, 0),
        ("part-00002.parquet", 2, {"c": 2}, 21 + 22, 4),
    ]
    with pytest.raises(InputError, match=r"part-00000\.parquet: encoded by the tokeniser"):
        scan_shards(tmp_path, "b" * 64)


def test_a_scan_counts_by_groups_of_rows_and_reads_where_there_are_no_statistics(tmp_path: Path) -> None:
    write_corpora(tmp_path)
    path = tmp_path / "part-00000.parquet"
    table = pq.read_table(path)
    for options in ({"row_group_size": 1}, {"row_group_size": 2}, {"write_statistics": False}):
        pq.write_table(table, path, **options)
        assert scan_shards(tmp_path)[0].corpora == {"a": 1, "b": 2}


def test_parts_are_the_rows_shard_by_shard(tmp_path: Path) -> None:
    write_corpora(tmp_path)
    assert [part.row_id.tolist() for part in read_parts(tmp_path, "digest")] == [[0, 1, 2], [], [20, 21]]
    assert read_shards(tmp_path).row_id.tolist() == [0, 1, 2, 20, 21]


def test_rows_are_taken_and_joined(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00000.parquet", rows([0, 1, 2]), "digest")
    columns = read_shards(tmp_path)
    assert [ids.tolist() for ids in columns.sources(np.asarray([2, 0]))] == [[4, 5, 3], [3]]
    assert [ids.tolist() for ids in columns.targets(np.asarray([2, 0]))] == [[2, 3], [0, 3]]
    every = np.arange(3)
    again = columns_of(columns.row_id, columns.sources(every), columns.targets(every))
    for whole in (again, joined([columns_of(columns.row_id[:0], [], []), again])):
        for name, value in vars(columns).items():
            assert np.array_equal(getattr(whole, name), value)
            assert getattr(whole, name).dtype == value.dtype
    twice = joined([columns, columns])
    assert twice.src_offsets.tolist() == [0, 1, 3, 6, 7, 9, 12]
    assert twice.tgt.tolist() == columns.tgt.tolist() * 2


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("part-00000.parquet", "part-00001.parquet"):
        write_shard(tmp_path / name, rows([0, 1, 2]), "digest")
    assert (tmp_path / "part-00000.parquet").read_bytes() == (tmp_path / "part-00001.parquet").read_bytes()


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00000.parquet", rows([0]), "digest")
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]


def test_rows_are_counted_by_the_check(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00000.parquet", rows([5, 6]), "digest")
    assert check_shard(tmp_path / "part-00000.parquet", "digest") == 2
    assert check_shard(tmp_path / "part-00000.parquet") == 2


def test_ids_beyond_int32_are_refused(tmp_path: Path) -> None:
    table = rows([0]).set_column(3, "src", pa.array([[2**40]]))
    with pytest.raises(pa.ArrowInvalid):
        write_shard(tmp_path / "part-00000.parquet", table, "digest")


def test_another_tokeniser_is_refused_by_both_digests(tmp_path: Path) -> None:
    write_shard(tmp_path / "part-00000.parquet", rows([0]), "a" * 64)
    with pytest.raises(InputError, match=r"part-00000\.parquet: encoded by the tokeniser a{12}, expected b{12}"):
        read_shards(tmp_path, "b" * 64)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    write_shard(path, rows([0]), "digest")
    metadata = {**pq.read_schema(path).metadata, b"seqloom.shard_format": b"99"}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match="shard format 99, this version reads 1"):
        check_shard(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    metadata = {b"seqloom.shard_format": b"1"}
    pq.write_table(pa.table({"row_id": [1], "src": [[1]]}).replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match=r"columns \['row_id', 'src'\] do not fit the shard schema"):
        check_shard(path)


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        check_shard(path)


def test_a_parquet_file_of_another_origin_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(InputError, match="shard format none"):
        check_shard(path)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no shard")
    with pytest.raises(InputError, match="no shard"):
        shard_paths(tmp_path)
