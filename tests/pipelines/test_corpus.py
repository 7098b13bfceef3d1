"""Raw corpora: what a line is, what each form holds, how files are cut, and which files are refused."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compressed import COMPRESS
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import corpus as corpus_module
from pipelines import readers
from pipelines.config import CorporaConfig, CorpusConfig, InputScoreConfig, LanguagesConfig
from pipelines.corpus import ROW_ID_STRIDE, Corpus, Piece, input_digests, read_batches, scan, unpacked
from pipelines.errors import InputError
from pipelines.stage import file_sha256

LANGUAGES = LanguagesConfig(source="en", target="de")
SUFFIXES = ["", *sorted(COMPRESS)]
Row = tuple[int, str | None, str | None, str | None]


def written(path: Path, data: bytes) -> str:
    """Write a file, compressed where its name says so, and return its path."""
    path.write_bytes(COMPRESS[path.suffix](data) if path.suffix in COMPRESS else data)
    return str(path)


def pair(folder: Path, source: bytes, target: bytes, name: str = "c", suffix: str = "") -> CorpusConfig:
    paths = [written(folder / f"{name}.{side}{suffix}", data) for side, data in (("en", source), ("de", target))]
    return CorpusConfig(name=name, source=paths[0], target=paths[1])


def tsv(folder: Path, data: bytes, source_column: int | str, target_column: int | str, header: bool) -> CorpusConfig:
    path = folder / "c.tsv"
    path.write_bytes(data)
    return CorpusConfig(
        name="c", tsv=str(path), source_column=source_column, target_column=target_column, header=header
    )


def scanned(train: CorpusConfig, rows_per_piece: int = 2, languages: LanguagesConfig = LANGUAGES) -> Corpus:
    return scan(corpora_of(train), languages, rows_per_piece)[0]


def corpora_of(train: CorpusConfig, monolingual: Sequence[CorpusConfig] = ()) -> CorporaConfig:
    held_out: Any = {"dev": 0.1, "test": 0.1}
    return CorporaConfig(train=(train,), monolingual=tuple(monolingual), held_out=held_out)


def rows(corpus: Corpus, batch_rows: int = 1000) -> list[Row]:
    found: list[Row] = []
    for piece in corpus.pieces:
        for batch in read_batches(piece, batch_rows):
            columns = (batch.src.to_pylist(), batch.tgt.to_pylist(), batch.reason.to_pylist())
            found.extend(zip(batch.row_id.tolist(), *columns))
    return found


def scores(corpus: Corpus) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for piece in corpus.pieces:
        for batch in read_batches(piece, 1000):
            for name, values in batch.scores.items():
                assert values.type == pa.float32()
                found.setdefault(name, []).extend(values.to_pylist())
    return found


def texts(corpus: Corpus) -> list[tuple[str | None, str | None]]:
    return [(src, tgt) for _, src, tgt, _ in rows(corpus)]


# --- Lines -----------------------------------------------------------------------------------------------------------


def test_lines_of_both_files_meet(tmp_path: Path) -> None:
    corpus = scanned(pair(tmp_path, b"a\nb\nc\n", b"x\ny\nz\n"))
    assert rows(corpus) == [(0, "a", "x", None), (1, "b", "y", None), (2, "c", "z", None)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_last_line_may_lack_its_end(tmp_path: Path, suffix: str) -> None:
    assert texts(scanned(pair(tmp_path, b"a\nb", b"x\ny\n", suffix=suffix))) == [("a", "x"), ("b", "y")]


def test_one_carriage_return_before_the_end_goes(tmp_path: Path) -> None:
    assert texts(scanned(pair(tmp_path, b"a\r\nb\r\r\nc\r", b"x\ny\nz\r\n"))) == [("a", "x"), ("b\r", "y"), ("c", "z")]


def test_other_separators_stay_inside_the_line(tmp_path: Path) -> None:
    line = "a\u2028b\x0bc\x85d\re\x0cf\x1eg"
    assert texts(scanned(pair(tmp_path, f"{line}\nh\n".encode(), b"x\ny\n"))) == [(line, "x"), ("h", "y")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_byte_order_mark_goes_at_the_start_only(tmp_path: Path, suffix: str) -> None:
    data = "\ufeffa\n\ufeffb\n\ufeffc\n".encode()
    corpus = scanned(pair(tmp_path, data, b"x\ny\nz\n", suffix=suffix), rows_per_piece=3)
    assert [src for src, _ in texts(corpus)] == ["a", "\ufeffb", "\ufeffc"]


def test_empty_lines_are_rows(tmp_path: Path) -> None:
    assert texts(scanned(pair(tmp_path, b"\na\n\n", b"x\n\n\n"))) == [("", "x"), ("a", ""), ("", "")]


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_several_members_are_one_file(tmp_path: Path, suffix: str) -> None:
    config = pair(tmp_path, b"a\nb\nc\n", b"x\ny\nz\n", suffix=suffix)
    compress = COMPRESS[suffix]
    Path(str(config.source)).write_bytes(compress(b"a\nb") + compress(b"\nc\n"))
    assert [src for src, _ in texts(scanned(config, rows_per_piece=3))] == ["a", "b", "c"]


def test_gzip_without_its_suffix_is_told_by_its_bytes(tmp_path: Path) -> None:
    config = pair(tmp_path, gzip.compress(b"a\n"), b"x\n")
    assert texts(scanned(config)) == [("a", "x")]


def test_invalid_utf8_is_a_reason_and_is_kept_escaped(tmp_path: Path) -> None:
    corpus = scanned(pair(tmp_path, b"ok\nst\xfcck\n\xed\xa0\x80\n", "gut\nStück\n€\n".encode()))
    assert rows(corpus) == [
        (0, "ok", "gut", None),
        (1, "st\\xfcck", "Stück", "invalid_utf8"),
        (2, "\\xed\\xa0\\x80", "€", "invalid_utf8"),
    ]


def test_lines_of_several_encodings_are_told_one_by_one(tmp_path: Path) -> None:
    word = "Größe"
    lines = [word.encode(encoding) for encoding in ("utf-8", "latin-1", "utf-8", "cp1252", "utf-16-le")]
    corpus = scanned(pair(tmp_path, b"\n".join(lines), b"x\n" * 5), rows_per_piece=5)
    assert [(src, reason) for _, src, _, reason in rows(corpus)] == [
        (word, None),
        ("Gr\\xf6\\xdfe", "invalid_utf8"),
        (word, None),
        ("Gr\\xf6\\xdfe", "invalid_utf8"),
        ("G\0r\0\\xf6\0\\xdf\0e\0", "invalid_utf8"),
    ]


def test_nul_and_long_lines_are_text(tmp_path: Path) -> None:
    long = "ä" * 70_000
    corpus = scanned(pair(tmp_path, f"a\0b\n{long}\n".encode(), b"\0\nx\n"))
    assert texts(corpus) == [("a\0b", "\0"), (long, "x")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_beyond_the_bound_is_cut_and_the_others_stay_aligned(tmp_path: Path, suffix: str) -> None:
    source = b"a\n" + b"b" * 10_000_001 + b"\n" + b"c" * 10_000_000 + b"\nd\n"
    corpus = scanned(pair(tmp_path, source, b"w\nx\ny\nz\n", suffix=suffix), rows_per_piece=4)
    assert rows(corpus) == [
        (0, "a", "w", None),
        (1, "b" * 1000, "x", "line_too_long"),
        (2, "c" * 10_000_000, "y", None),
        (3, "d", "z", None),
    ]


def test_a_batch_holds_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 100)
    corpus = scanned(pair(tmp_path, b"a" * 29 + b"\n" + b"b\n" * 60, b"x\n" * 59 + b"y" * 200 + b"\nz\n"), 100)
    batches = list(read_batches(corpus.pieces[0], 1000))
    assert [len(batch.row_id) for batch in batches] == [36, 23, 1, 1]
    assert [batch.row_id.tolist()[0] for batch in batches] == [0, 36, 59, 60]


# --- TSV -------------------------------------------------------------------------------------------------------------


def test_tsv_columns_by_number(tmp_path: Path) -> None:
    corpus = scanned(tsv(tmp_path, b"1\tx\ta\n2\ty\tb\textra\n", 2, 1, header=False))
    assert rows(corpus) == [(0, "a", "x", None), (1, "b", "y", None)]


def test_tsv_columns_by_name_keep_the_files_line_numbers(tmp_path: Path) -> None:
    data = "\ufeffid\tde\ten\r\n1\tx\ta\r\n2\ty\tb\r\n3\tz\tc".encode()
    corpus = scanned(tsv(tmp_path, data, "en", "de", header=True))
    assert corpus.rows == 3
    assert rows(corpus) == [(1, "a", "x", None), (2, "b", "y", None), (3, "c", "z", None)]


def test_a_tsv_row_with_too_few_columns_is_malformed(tmp_path: Path) -> None:
    corpus = scanned(tsv(tmp_path, b"a\tx\nalone\n\nb\ty\n", 0, 1, header=False))
    assert rows(corpus) == [
        (0, "a", "x", None),
        (1, "alone", None, "malformed"),
        (2, "", None, "malformed"),
        (3, "b", "y", None),
    ]


def test_invalid_utf8_in_tsv_is_a_reason(tmp_path: Path) -> None:
    corpus = scanned(tsv(tmp_path, b"a\tx\n\xff\ty\n", 0, 1, header=False))
    assert rows(corpus)[1] == (1, "\\xff", "y", "invalid_utf8")


def test_scores_of_a_tsv_are_columns_by_name_or_number(tmp_path: Path) -> None:
    config = tsv(tmp_path, b"id\ten\tde\tp\n1\ta\tx\t0.5\n2\tb\ty\tnone\n3\tc\tz\n", "en", "de", header=True)
    config = config.model_copy(
        update={"scores": {"good": InputScoreConfig(column="p"), "n": InputScoreConfig(column=0)}}
    )
    corpus = scanned(config)
    assert scores(corpus) == {"good": [0.5, None, None], "n": [1.0, 2.0, 3.0]}
    assert [reason for _, _, _, reason in rows(corpus)] == [None] * 3


# --- JSONL -----------------------------------------------------------------------------------------------------------


def jsonl(folder: Path, lines: Sequence[Any], suffix: str = "", **config: Any) -> CorpusConfig:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    return CorpusConfig(name="c", jsonl=written(folder / f"c.jsonl{suffix}", text.encode()), **config)


def test_fields_of_jsonl_are_src_and_tgt_unless_they_are_named(tmp_path: Path) -> None:
    lines = [{"src": "a", "tgt": "x\ny", "en": "c"}, "not JSON", {"src": "b"}]
    assert rows(scanned(jsonl(tmp_path, lines))) == [
        (0, "a", "x\ny", None),
        (1, "not JSON", None, "malformed"),
        (2, '{"src": "b"}', None, "malformed"),
    ]
    assert texts(scanned(jsonl(tmp_path, lines, source_column="en", target_column="src")))[0] == ("c", "a")


def test_jsonl_has_a_byte_order_mark_and_scores(tmp_path: Path) -> None:
    config = jsonl(
        tmp_path, ['\ufeff{"src": "a", "tgt": "x", "p": 0.5}', '{"src": "b", "tgt": "y"}\r'],
        scores={"good": InputScoreConfig(column="p")},
    )  # fmt: skip
    assert texts(scanned(config)) == [("a", "x"), ("b", "y")]
    assert scores(scanned(config)) == {"good": [0.5, None]}


# --- Parquet ---------------------------------------------------------------------------------------------------------


def parquet(folder: Path, table: pa.Table, row_group: int = 1000, **config: Any) -> CorpusConfig:
    pq.write_table(table, folder / "c.parquet", row_group_size=row_group)
    return CorpusConfig(name="c", parquet=str(folder / "c.parquet"), **config)


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.string_view()],
    ids=str,
)
def test_parquet_columns_may_hold_text_in_any_way(tmp_path: Path, kind: pa.DataType) -> None:
    values = ["a", None, "ä\n", ""]
    plain = pa.array([None if value is None else value.encode() for value in values], pa.binary())
    column = plain if kind == pa.binary() else plain.cast(pa.string()).cast(kind)
    other = pa.array(["x", "y", None, "z"])
    table = pa.table({"de": column, "x": other, "n": pa.array([1, 2**60, None, 4])})
    config = parquet(
        tmp_path, table, source_column="x", target_column="de",
        scores={"n": InputScoreConfig(column="n"), "x": InputScoreConfig(column="n")},
    )  # fmt: skip
    corpus = scanned(config)
    assert rows(corpus) == [
        (0, "x", "a", None),
        (1, "y", None, "malformed"),
        (2, None, "ä\n", "malformed"),
        (3, "z", "", None),
    ]
    assert scores(corpus) == {"n": [1.0, 2.0**60, None, 4.0], "x": [1.0, 2.0**60, None, 4.0]}


@pytest.mark.parametrize("rows_per_piece", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("row_group", [1, 3, 5, 100])
def test_parquet_pieces_are_rows_of_any_row_groups(tmp_path: Path, rows_per_piece: int, row_group: int) -> None:
    columns = {side: [f"{side}{n}" for n in range(11)] for side in ("src", "tgt")}
    table = pa.table({**columns, "s": [str(n) for n in range(11)]})
    corpus = scanned(parquet(tmp_path, table, row_group, scores={"s": InputScoreConfig(column="s")}), rows_per_piece)
    assert not corpus.compressed
    assert rows(corpus, 2) == [(n, f"src{n}", f"tgt{n}", None) for n in range(11)]
    assert scores(corpus)["s"] == [float(n) for n in range(11)]


def test_parquet_text_that_is_no_utf8_or_too_long_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 20)
    bad = pa.array([b"a", b"\xffb", b"c" * 21, b"d"], pa.binary()).view(pa.string())
    corpus = scanned(parquet(tmp_path, pa.table({"src": bad, "tgt": ["w", "x", "y", None]})), 10)
    assert rows(corpus) == [
        (0, "a", "w", None),
        (1, "\\xffb", "x", "invalid_utf8"),
        (2, "c" * 21, "y", "line_too_long"),
        (3, "d", None, "malformed"),
    ]


def test_parquet_of_huge_row_groups_is_unpacked(tmp_path: Path) -> None:
    columns = {side: [f"{side}{n}" for n in range(40)] for side in ("src", "tgt")}
    corpus = scanned(parquet(tmp_path, pa.table(columns), 33), 2)
    assert corpus.compressed
    expected = [(n, f"src{n}", f"tgt{n}", None) for n in range(40)]
    assert rows(corpus) == expected
    assert rows(replace(corpus, pieces=tuple(unpacked(corpus.pieces, tmp_path)))) == expected


def test_long_texts_in_parquet_are_read_a_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_BYTES", 10_000)
    table = pa.table({"src": [f"{n:400}" for n in range(500)], "tgt": ["x"] * 500})
    corpus = scanned(parquet(tmp_path, table), 500)
    read = [len(batch.row_id) for batch in read_batches(corpus.pieces[0], 100)]
    assert sum(read) == 500
    assert 20 <= max(read) <= 25


# --- TMX -------------------------------------------------------------------------------------------------------------


def tmx(
    folder: Path, units: Sequence[dict[str, str]], suffix: str = "", encoding: str = "utf-8", **config: Any
) -> CorpusConfig:
    body = "".join(
        "<tu>" + "".join(
            f'<prop type="{tag[1:]}">{escape(text)}</prop>' if tag.startswith("@")
            else f'<tuv xml:lang="{tag}"><seg>{escape(text)}</seg></tuv>'
            for tag, text in unit.items()
        ) + "</tu>"
        for unit in units
    )  # fmt: skip
    text = f'<?xml version="1.0" encoding="{encoding}"?><tmx version="1.4"><body>{body}</body></tmx>'
    return CorpusConfig(name="c", tmx=written(folder / f"c.tmx{suffix}", text.encode(encoding)), **config)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_tmx_is_read_by_the_recipes_languages(tmp_path: Path, suffix: str, encoding: str) -> None:
    units = [{"DE-at": "x\ny", "en": "a"}, {"en-US": "b", "fr": "q"}, {"@p": "0.5", "en": "ö", "de": "z"}]
    config = tmx(tmp_path, units, suffix, encoding, scores={"good": InputScoreConfig(column="p")})
    corpus = scanned(config)
    expected = [(0, "a", "x\ny", None), (1, "b", None, "malformed"), (2, "ö", "z", None)]
    assert corpus.compressed
    assert rows(corpus) == expected
    done = replace(corpus, pieces=tuple(unpacked(corpus.pieces, tmp_path)))
    assert rows(done) == expected
    assert scores(done) == scores(corpus) == {"good": [None, None, 0.5]}


def test_the_languages_of_a_tmx_may_be_given(tmp_path: Path) -> None:
    units = [{"en-US": "a", "en-GB": "b", "de": "x"}]
    assert texts(scanned(tmx(tmp_path, units, source_column="en-GB", target_column="en-us"))) == [("b", "a")]


def test_languages_that_differ_in_the_region_alone_are_told_by_it(tmp_path: Path) -> None:
    languages = LanguagesConfig(source="pt-BR", target="pt-PT")
    corpus = scanned(tmx(tmp_path, [{"pt-PT": "x", "pt-BR": "a"}]), languages=languages)
    assert texts(corpus) == [("a", "x")]


# --- All forms -------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=12)


@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), max_size=12), rows_per_piece=st.integers(1, 14), batch_rows=st.integers(1, 9),
    suffix=st.sampled_from(SUFFIXES),
)  # fmt: skip
@settings(max_examples=50)
def test_each_form_gives_the_same_rows_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[str, str]],
    rows_per_piece: int,
    batch_rows: int,
    suffix: str,
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    pairs = [*pairs, ("a", "b")]  # a corpus has some text
    source, target = ("".join(pair[side] + "\n" for pair in pairs).encode() for side in (0, 1))
    table = "".join(f"{src}\t{tgt}\n" for src, tgt in pairs).encode()
    columns = pa.table({"src": [src for src, _ in pairs], "tgt": [tgt for _, tgt in pairs]})
    forms = [
        pair(folder, source, target, suffix=suffix),
        CorpusConfig(name="c", tsv=written(folder / f"c.tsv{suffix}", table)),
        jsonl(folder, [{"src": src, "tgt": tgt} for src, tgt in pairs], suffix),
        parquet(folder, columns, row_group=5),
        tmx(folder, [{"en": src, "de": tgt} for src, tgt in pairs], suffix),
    ]
    expected = [(row, src, tgt, None) for row, (src, tgt) in enumerate(pairs)]
    for config in forms:
        corpus = scanned(config, rows_per_piece)
        assert rows(corpus, batch_rows) == expected
        done = unpacked([Piece.from_dict(json.loads(json.dumps(piece.to_dict()))) for piece in corpus.pieces], folder)
        assert rows(replace(corpus, pieces=tuple(done)), batch_rows) == expected


@given(
    lines=st.lists(st.tuples(*[st.binary(max_size=9).map(lambda line: line.replace(b"\n", b""))] * 2), max_size=15),
    rows_per_piece=st.integers(1, 17), suffix=st.sampled_from(SUFFIXES),
)  # fmt: skip
def test_lines_of_any_bytes_stay_aligned_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[bytes, bytes]], rows_per_piece: int, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    lines = [(b"a", b"b"), *lines]
    corpus = scanned(
        pair(folder, *(b"".join(pair[side] + b"\n" for pair in lines) for side in (0, 1)), suffix=suffix),
        rows_per_piece,
    )
    expected = [tuple(side.removesuffix(b"\r").decode("utf-8", "backslashreplace") for side in both) for both in lines]
    assert texts(corpus) == expected
    assert texts(replace(corpus, pieces=tuple(unpacked(corpus.pieces, folder)))) == expected


# --- Several files ---------------------------------------------------------------------------------------------------


def test_rows_run_on_over_the_files_of_a_pattern(tmp_path: Path) -> None:
    for name, source, target in (("2", b"d\ne\n", b"w\nx\n"), ("1", b"a\nb\nc", b"r\ns\nt\n"), ("3", b"", b"")):
        pair(tmp_path, source, target, name=name)
    config = CorpusConfig(name="c", source=f"{tmp_path}/*.en", target=f"{tmp_path}/*.de")
    corpus = scanned(config)
    assert [(row, src, tgt) for row, src, tgt, _ in rows(corpus)] == [
        (0, "a", "r"), (1, "b", "s"), (2, "c", "t"), (3, "d", "w"), (4, "e", "x"),
    ]  # fmt: skip
    assert [(Path(piece.source).name, piece.rows) for piece in corpus.pieces] == [("1.en", 2), ("1.en", 1), ("2.en", 2)]
    assert sorted(input_digests(corpora_of(config))) == [
        f"train/c/{role}/{number:05d}" for role in ("source", "target") for number in range(3)
    ]


def test_each_file_of_a_pattern_has_its_own_header_and_compression(tmp_path: Path) -> None:
    written(tmp_path / "1.tsv", b"en\tde\na\tx\n")
    written(tmp_path / "2.tsv.gz", b"de\ten\ny\tb\nz\tc\n")
    config = CorpusConfig(name="c", tsv=f"{tmp_path}/*", header=True, source_column="en", target_column="de")
    corpus = scanned(config, 1)
    assert rows(corpus) == [(1, "a", "x", None), (3, "b", "y", None), (4, "c", "z", None)]
    assert corpus.compressed
    assert corpus.direct() == corpus.pieces[:1]
    assert corpus.streams() == [corpus.pieces[1:]]
    (tmp_path / "unpacked").mkdir()
    done = tuple(unpacked(corpus.pieces, tmp_path / "unpacked"))
    assert done[0] == corpus.pieces[0]
    assert rows(replace(corpus, pieces=done)) == rows(corpus)


def test_a_streamed_file_of_one_piece_is_read_directly(tmp_path: Path) -> None:
    corpus = scanned(pair(tmp_path, b"a\nb\n", b"x\ny\n", suffix=".xz"), 2)
    assert (corpus.direct(), corpus.streams()) == (corpus.pieces, [])


def test_a_header_of_aligned_files_is_no_row(tmp_path: Path) -> None:
    config = pair(tmp_path, b"\xef\xbb\xbfenglish\na\nb\nc\n", b"german\nx\ny\nz\n").model_copy(update={"header": True})
    assert rows(scanned(config)) == [(1, "a", "x", None), (2, "b", "y", None), (3, "c", "z", None)]


def test_patterns_that_fit_unlike_numbers_of_files_are_refused(tmp_path: Path) -> None:
    pair(tmp_path, b"a\n", b"x\n", name="1")
    written(tmp_path / "2.en", b"b\n")
    error = refusal(CorpusConfig(name="c", source=f"{tmp_path}/*.en", target=f"{tmp_path}/*.de"))
    assert error.what == f"2 files fit the source, 1 the target {tmp_path}/*.de"
    assert error.where == f"{tmp_path}/*.en"


def test_unequal_files_of_a_pattern_are_named(tmp_path: Path) -> None:
    for name, source, target in (("1", b"a\n", b"x\n"), ("2", b"a\nb\n", b"x\n")):
        pair(tmp_path, source, target, name=name)
    error = refusal(CorpusConfig(name="c", source=f"{tmp_path}/*.en", target=f"{tmp_path}/*.de"))
    assert (error.what, error.where) == (
        f"2 lines in the source, 1 lines in the target {tmp_path}/2.de",
        f"{tmp_path}/2.en",
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_corpus_may_lie_behind_uris(tmp_path: Path, suffix: str) -> None:
    memory = fsspec.filesystem("memory")
    for side, data in (("en", b"a\nb\nc\n"), ("de", b"x\ny\nz\n")):
        path = tmp_path / f"c.{side}{suffix}"
        written(path, data)
        memory.pipe(f"/corpus{suffix}/{path.name}", path.read_bytes())
    uri = f"memory://corpus{suffix}/c"
    config = CorpusConfig(name="c", source=f"{uri}.en{suffix}", target=f"{uri}.de{suffix}")
    corpus = scanned(config)
    assert corpus.compressed == (suffix != "")
    assert texts(corpus) == [("a", "x"), ("b", "y"), ("c", "z")]
    assert texts(replace(corpus, pieces=tuple(unpacked(corpus.pieces, tmp_path)))) == texts(corpus)
    assert input_digests(corpora_of(config))["train/c/source"] == file_sha256(tmp_path / f"c.en{suffix}")


def test_parquet_may_lie_behind_a_uri(tmp_path: Path) -> None:
    config = parquet(tmp_path, pa.table({"src": ["a", "b", "c"], "tgt": ["x", "y", "z"]}))
    fsspec.filesystem("memory").pipe("/table/c.parquet", Path(str(config.parquet)).read_bytes())
    assert texts(scanned(CorpusConfig(name="c", parquet="memory://table/*.parquet"))) == [
        ("a", "x"),
        ("b", "y"),
        ("c", "z"),
    ]


# --- One side --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lines", "tsv", "jsonl", "parquet", "tmx"])
@pytest.mark.parametrize("side", ["src", "tgt"])
def test_a_monolingual_corpus_has_one_side(tmp_path: Path, form: str, side: str) -> None:
    key = "source" if side == "src" else "target"
    config: CorpusConfig
    if form == "lines":
        config = CorpusConfig(name="m", **{key: written(tmp_path / "m.txt", b"a\n\xff\n")})  # type: ignore[arg-type]
        bad: Any = ("\\xff", "invalid_utf8")
    elif form == "tsv":
        table = written(tmp_path / "m.tsv", b"1\ta\nb\n")
        config = CorpusConfig(name="m", tsv=table, **{f"{key}_column": 1})  # type: ignore[arg-type]
        bad = ("b", "malformed")
    elif form == "jsonl":
        config = jsonl(tmp_path, [{"t": "a"}, "b"], **{f"{key}_column": "t"})
        bad = ("b", "malformed")
    elif form == "parquet":
        config = parquet(tmp_path, pa.table({"t": ["a", None]}), **{f"{key}_column": "t"})
        bad = (None, "malformed")
    else:
        config = tmx(tmp_path, [{"fr": "a"}, {"de": "b"}], **{f"{key}_column": "fr"})
        bad = (None, "malformed")
    train = pair(tmp_path, b"a\n", b"x\n", name="train")
    corpus = scan(corpora_of(train, [config]), LANGUAGES, 1)[-1]
    assert corpus.split == "monolingual"
    assert [piece.side for piece in corpus.pieces] == [side, side]
    first = ROW_ID_STRIDE
    expected = [(first, "a", None), (first + 1, *bad)]
    found = rows(corpus)
    assert [(row, src if side == "src" else tgt, reason) for row, src, tgt, reason in found] == expected
    assert [tgt if side == "src" else src for _, src, tgt, _ in found] == [None, None]
    assert rows(replace(corpus, pieces=tuple(unpacked(corpus.pieces, tmp_path)))) == found
    assert set(input_digests(corpora_of(train, [config]))) >= {"train/train/source", "train/train/target"}
    assert any(name.startswith(f"monolingual/{config.name}/") for name in input_digests(corpora_of(train, [config])))


# --- Pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_per_piece", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_pieces_hold_all_rows_in_their_order(tmp_path: Path, rows_per_piece: int, batch_rows: int) -> None:
    source = "".join(f"\u2028{'s' * n}\r\n" for n in range(7)).encode()
    target = "".join(f"{'t' * (9 - n)}\n" for n in range(7)).encode()
    corpus = scanned(pair(tmp_path, source, target), rows_per_piece)
    assert rows(corpus, batch_rows) == [(n, "\u2028" + "s" * n, "t" * (9 - n), None) for n in range(7)]
    assert [piece.rows for piece in corpus.pieces][:-1] == [rows_per_piece] * (len(corpus.pieces) - 1)


def test_a_compressed_corpus_unpacks_to_the_same_rows(tmp_path: Path) -> None:
    source, target = b"\xef\xbb\xbfa\nb\r\n\xef\xbb\xbfc\nd\ne", b"v\nw\nx\ny\nz\n"
    packed = scanned(pair(tmp_path, source, target, name="packed", suffix=".gz"))
    plain = scanned(pair(tmp_path, source, target, name="plain"))
    pieces = tuple(unpacked(packed.pieces, tmp_path))
    assert packed.compressed
    assert rows(Corpus("train", "c", 5, False, pieces)) == rows(plain)


def test_a_corpus_of_one_compressed_side_unpacks_too(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\nb\nc\n", gzip.compress(b"x\ny\nz\n"))
    pieces = tuple(unpacked(scanned(config).pieces, tmp_path))
    assert texts(Corpus("train", "c", 3, False, pieces)) == [("a", "x"), ("b", "y"), ("c", "z")]


def test_row_ids_tell_the_corpus_over_all_splits(tmp_path: Path) -> None:
    one, other = pair(tmp_path, b"a\n", b"x\n", name="one"), pair(tmp_path, b"b\n", b"y\n", name="other")
    corpora = scan(CorporaConfig(train=(one, other), dev=(one,), test=(other,)), LANGUAGES, 10)
    assert [(c.split, c.name, rows(c)[0][0] // ROW_ID_STRIDE) for c in corpora] == [
        ("train", "one", 0),
        ("train", "other", 1),
        ("dev", "one", 2),
        ("test", "other", 3),
    ]
    assert [piece.index for corpus in corpora for piece in corpus.pieces] == [0, 1, 2, 3]


def test_digests_are_of_contents_and_named_without_paths(tmp_path: Path) -> None:
    moses, table = pair(tmp_path, b"a\n", b"x\n"), tsv(tmp_path, b"a\tx\n", 0, 1, header=False)
    digests = input_digests(CorporaConfig(train=(moses,), dev=(table,), test=(table,)))
    assert digests == {
        "train/c/source": file_sha256(tmp_path / "c.en"),
        "train/c/target": file_sha256(tmp_path / "c.de"),
        "dev/c/tsv": file_sha256(tmp_path / "c.tsv"),
        "test/c/tsv": file_sha256(tmp_path / "c.tsv"),
    }


@pytest.mark.parametrize("data", [b"x\n", b"x\ny\nz\n", b"v\nw\n"])
def test_a_file_that_changed_since_the_scan_is_refused(tmp_path: Path, data: bytes) -> None:
    config = pair(tmp_path, b"a\nb\n", b"x\ny\n")
    corpus = scanned(config)
    rewrite(Path(str(config.target)), data)
    for read in (rows, lambda corpus: list(unpacked([replace(p, streamed=True) for p in corpus.pieces], tmp_path))):
        with pytest.raises(InputError) as caught:
            read(corpus)
        assert caught.value.what == "the file changed while it was read"
        assert caught.value.where == config.target


def rewrite(path: Path, data: bytes) -> None:
    """Write other content, a millisecond later at least."""
    later = path.stat().st_mtime_ns + 1_000_000
    path.write_bytes(data)
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, suffix: str) -> None:
    config = pair(tmp_path, b"a\nb\n", b"x\ny\n", suffix=suffix)
    batches = read_batches(scanned(config).pieces[0], 1)
    next(batches)
    rewrite(Path(str(config.source)), Path(str(config.source)).read_bytes())
    with pytest.raises(InputError, match=r"c\.en.*: the file changed while it was read"):
        list(batches)


def test_a_file_that_changes_while_it_is_scanned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pair(tmp_path, b"a\nb\n", b"x\ny\n")
    check_content = corpus_module._check_content

    def meanwhile(*arguments: Any) -> None:
        check_content(*arguments)
        rewrite(Path(str(config.target)), b"x\ny\nz\n")

    monkeypatch.setattr(corpus_module, "_check_content", meanwhile)
    assert refusal(config).what == "the file changed while it was read"


def test_batches_outlive_the_files_they_were_read_from(tmp_path: Path) -> None:
    (piece,) = unpacked(scanned(pair(tmp_path, b"a\nb\n", b"x\ny\n", suffix=".gz")).pieces, tmp_path)
    held = list(read_batches(piece, 1))
    Path(piece.source).unlink()
    assert [(batch.src.to_pylist(), batch.tgt.to_pylist()) for batch in held] == [(["a"], ["x"]), (["b"], ["y"])]


def test_a_uri_whose_size_changed_is_refused() -> None:
    memory = fsspec.filesystem("memory")
    for side in ("en", "de"):
        memory.pipe(f"/changing/c.{side}", b"a\nb\n")
    corpus = scanned(CorpusConfig(name="c", source="memory://changing/c.en", target="memory://changing/c.de"))
    memory.pipe("/changing/c.de", b"a\n")
    with pytest.raises(InputError, match=r"memory://changing/c\.de: the file changed while"):
        rows(corpus)


def test_fewer_rows_than_were_scanned_are_refused(tmp_path: Path) -> None:
    corpus = scanned(pair(tmp_path, b"a\nb\n", b"x\ny\n"))
    with pytest.raises(InputError, match="the file changed while it was read"):
        list(read_batches(replace(corpus.pieces[0], rows=3), 10))


def test_an_archive_that_breaks_leaves_whole_pieces_only(tmp_path: Path) -> None:
    lines = b"".join(b"%d\n" % (n * 7919 % 1_000_003) for n in range(300_000))
    config = pair(tmp_path, lines, lines, suffix=".gz")
    pieces = scanned(config, 10_000).pieces
    path = Path(str(config.source))
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-len(data) // 4] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    folder = tmp_path / "unpacked"
    folder.mkdir()
    done: list[Piece] = []
    with pytest.raises(InputError, match=r"c\.en\.gz: broken gzip"):
        done.extend(unpacked(pieces, folder))
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f"{number:06d}.arrow" for number in range(len(names))]
    assert 0 < len(names) < len(pieces)
    for name in names:
        assert pa.ipc.open_file(folder / name).read_all().num_rows == 10_000


# --- Refused ---------------------------------------------------------------------------------------------------------


def refusal(config: CorpusConfig) -> InputError:
    with pytest.raises(InputError) as caught:
        scanned(config)
    return caught.value


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\n", b"x\n")
    (tmp_path / "c.de").unlink()
    error = refusal(config)
    assert (error.what, error.where) == ("no such file", str(tmp_path / "c.de"))
    with pytest.raises(InputError, match="no such file"):
        input_digests(CorporaConfig(train=(config,), dev=(config,), test=(config,)))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\n", b"x\n")
    assert refusal(config.model_copy(update={"source": str(tmp_path)})).what == "a folder, not a file"


def test_sides_of_unequal_length_are_refused_with_both_counts(tmp_path: Path) -> None:
    error = refusal(pair(tmp_path, b"a\nb\nc\n", b"x\ny\n"))
    assert error.what == f"3 lines in the source, 2 lines in the target {tmp_path / 'c.de'}"
    assert error.where == str(tmp_path / "c.en")


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("cut", [1, 10, 25])
def test_a_truncated_archive_is_refused_by_its_name(tmp_path: Path, suffix: str, cut: int) -> None:
    config = pair(tmp_path, b"a\nb\n" * 500, b"x\ny\n" * 500, suffix=suffix)
    path = Path(str(config.target))
    path.write_bytes(path.read_bytes()[:-cut])
    error = refusal(config)
    assert error.what.startswith("broken ")
    assert error.where == str(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_damaged_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    config = pair(tmp_path, b"a\nb\n" * 500, b"x\ny\n" * 500, suffix=suffix)
    path = Path(str(config.source))
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(bytes(data))
    assert refusal(config).what.startswith("broken ")


def test_text_in_a_file_named_gz_is_refused(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\n", b"x\n", suffix=".gz")
    (tmp_path / "c.en.gz").write_bytes(b"a\n")
    assert "broken gzip" in refusal(config).what


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    config = parquet(tmp_path, pa.table({"src": ["a"] * 500, "tgt": ["b"] * 500}))
    path = Path(str(config.parquet))
    whole = path.read_bytes()
    for data in (b"", b"text\n", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(data)
        error = refusal(config)
        assert error.what.startswith("broken Parquet, or none: ")
        assert error.where == str(path)


def test_damaged_pages_of_parquet_are_refused(tmp_path: Path) -> None:
    config = parquet(tmp_path, pa.table({"src": [f"a{n}" for n in range(5000)], "tgt": ["b"] * 5000}))
    path = Path(str(config.parquet))
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(bytes(data))
    error = refusal(config)
    assert error.what.startswith("broken Parquet: ")
    assert error.where == str(path)


def test_a_parquet_without_the_column_is_refused_with_those_it_has(tmp_path: Path) -> None:
    table = pa.table({"src": ["a"], "de": ["x"], "n": [1]})
    assert refusal(parquet(tmp_path, table)).what == "there is no column 'tgt', but src, de, n"
    error = refusal(parquet(tmp_path, table, target_column="n"))
    assert error.what == "the column 'n' holds int64, not text"
    scored = parquet(
        tmp_path, pa.table({"src": ["a"], "tgt": ["x"], "b": [True]}), scores={"b": InputScoreConfig(column="b")}
    )
    assert refusal(scored).what == "the column 'b' holds bool, not numbers"


def test_a_tmx_without_the_language_is_refused_with_those_it_has(tmp_path: Path) -> None:
    error = refusal(tmx(tmp_path, [{"en-GB": "a", "fr": "b"}]))
    assert error.what == "no unit has a segment in 'de'; the languages are en-GB, fr"


def test_a_tmx_that_is_not_well_formed_is_refused_with_the_place(tmp_path: Path) -> None:
    config = CorpusConfig(name="c", tmx=written(tmp_path / "c.tmx.gz", b"<tmx>\n<body></tmx>"))
    error = refusal(config)
    assert (error.what, error.where) == ("not well-formed XML: mismatched tag", f"{config.tmx}:2:9")


def test_a_score_without_any_number_is_refused(tmp_path: Path) -> None:
    config = tsv(tmp_path, b"a\tx\ttext\nb\ty\t\n", 0, 1, header=False)
    error = refusal(config.model_copy(update={"scores": {"good": InputScoreConfig(column=2)}}))
    assert error.what == "no row has a number for the score 'good' in column 2"


@pytest.mark.parametrize(
    ("update", "what"),
    [
        (
            {"source": "a", "target": "b", "scores": {"good": InputScoreConfig(column=2)}},
            "aligned files have no columns",
        ),
        ({"source": "a", "target": "b", "source_column": 1}, "aligned files have no columns"),
        ({"jsonl": "a", "header": True}, "`header` means nothing for jsonl"),
        ({"parquet": "a", "source_column": 0}, "a column of parquet is given by a number"),
        ({"tmx": "a", "scores": {"good": InputScoreConfig(column=2)}}, "a column of tmx is given by a number"),
        ({"tsv": "a", "scores": {"good": InputScoreConfig(column="x")}}, "a column is given by name"),
        ({"tsv": "a", "target_column": -1}, "a column's number is below 0"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(update: dict[str, Any], what: str) -> None:
    error = refusal(CorpusConfig(name="c", **update))
    assert (error.what, error.where) == (what, "corpora.train, 'c'")


@pytest.mark.parametrize("columns", [{}, {"source_column": "en", "target_column": "de"}])
def test_a_monolingual_table_without_its_side_is_refused(tmp_path: Path, columns: dict[str, str]) -> None:
    config = jsonl(tmp_path, [{"en": "a", "de": "b"}], **columns)
    with pytest.raises(InputError, match="a monolingual corpus has one side"):
        scan(corpora_of(pair(tmp_path, b"a\n", b"x\n"), [config]), LANGUAGES, 10)


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    assert refusal(pair(tmp_path, b"", b"")).what == "the corpus 'c' of train has no row"


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    assert refusal(tsv(tmp_path, b"en\tde\n", "en", "de", header=True)).what == "the corpus 'c' of train has no row"


def test_a_language_without_text_is_refused(tmp_path: Path) -> None:
    error = refusal(pair(tmp_path, b"a\nb\n", b" \n\t\n"))
    assert error.what == "a language without text: no line of 'c' of train has readable de text"
    assert error.where == str(tmp_path / "c.de")


def test_a_column_without_text_is_refused(tmp_path: Path) -> None:
    error = refusal(tsv(tmp_path, b"a\tx\nb\ty\n", 5, 1, header=False))
    assert error.what.endswith("has readable en text in column 5")


def test_a_header_without_the_column_is_refused(tmp_path: Path) -> None:
    error = refusal(tsv(tmp_path, b"en\tde\na\tx\n", "en", "fr", header=True))
    assert error.what == "the header has no column 'fr', but en, de"
    assert error.where == str(tmp_path / "c.tsv")
