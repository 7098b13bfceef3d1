"""Readers of raw corpora: what a line is, how files are cut, and which files are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipelines.config import CorporaConfig, CorpusConfig, LanguagesConfig
from pipelines.corpus import ROW_ID_STRIDE, Corpus, input_digests, read_batches, scan, unpacked
from pipelines.errors import InputError
from pipelines.stage import file_sha256

LANGUAGES = LanguagesConfig(source="en", target="de")
Row = tuple[int, str, str | None, str | None]


def pair(folder: Path, source: bytes, target: bytes, name: str = "c", suffix: str = "") -> CorpusConfig:
    paths = folder / f"{name}.en{suffix}", folder / f"{name}.de{suffix}"
    for path, data in zip(paths, (source, target)):
        path.write_bytes(gzip.compress(data) if suffix == ".gz" else data)
    return CorpusConfig(name=name, source=str(paths[0]), target=str(paths[1]))


def tsv(folder: Path, data: bytes, source_column: int | str, target_column: int | str, header: bool) -> CorpusConfig:
    path = folder / "c.tsv"
    path.write_bytes(data)
    return CorpusConfig(
        name="c", tsv=str(path), source_column=source_column, target_column=target_column, header=header
    )


def scanned(train: CorpusConfig, rows_per_piece: int = 2) -> Corpus:
    return scan(CorporaConfig(train=(train,), dev=(train,), test=(train,)), LANGUAGES, rows_per_piece)[0]


def rows(corpus: Corpus, batch_rows: int = 1000) -> list[Row]:
    found: list[Row] = []
    for piece in corpus.pieces:
        for batch in read_batches(piece, batch_rows):
            columns = (batch.src.to_pylist(), batch.tgt.to_pylist(), batch.reason.to_pylist())
            found.extend(zip(batch.row_id.tolist(), *columns))
    return found


def texts(corpus: Corpus) -> list[tuple[str, str | None]]:
    return [(src, tgt) for _, src, tgt, _ in rows(corpus)]


# --- Lines -----------------------------------------------------------------------------------------------------------


def test_lines_of_both_files_meet(tmp_path: Path) -> None:
    corpus = scanned(pair(tmp_path, b"a\nb\nc\n", b"x\ny\nz\n"))
    assert rows(corpus) == [(0, "a", "x", None), (1, "b", "y", None), (2, "c", "z", None)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_last_line_may_lack_its_end(tmp_path: Path, suffix: str) -> None:
    assert texts(scanned(pair(tmp_path, b"a\nb", b"x\ny\n", suffix=suffix))) == [("a", "x"), ("b", "y")]


def test_one_carriage_return_before_the_end_goes(tmp_path: Path) -> None:
    assert texts(scanned(pair(tmp_path, b"a\r\nb\r\r\nc\r", b"x\ny\nz\r\n"))) == [("a", "x"), ("b\r", "y"), ("c", "z")]


def test_other_separators_stay_inside_the_line(tmp_path: Path) -> None:
    line = "a\u2028b\x0bc\x85d\re\x0cf\x1eg"
    assert texts(scanned(pair(tmp_path, f"{line}\nh\n".encode(), b"x\ny\n"))) == [(line, "x"), ("h", "y")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_goes_at_the_start_only(tmp_path: Path, suffix: str) -> None:
    data = "\ufeffa\n\ufeffb\n\ufeffc\n".encode()
    corpus = scanned(pair(tmp_path, data, b"x\ny\nz\n", suffix=suffix), rows_per_piece=3)
    assert [src for src, _ in texts(corpus)] == ["a", "\ufeffb", "\ufeffc"]


def test_empty_lines_are_rows(tmp_path: Path) -> None:
    assert texts(scanned(pair(tmp_path, b"\na\n\n", b"x\n\n\n"))) == [("", "x"), ("a", ""), ("", "")]


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\nb\nc\n", b"x\ny\nz\n", suffix=".gz")
    Path(str(config.source)).write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"\nc\n"))
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


def test_a_file_that_shrinks_during_the_run_is_noticed(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\nb\n", b"x\ny\n")
    corpus = scanned(config)
    Path(str(config.target)).write_bytes(b"x\n")
    with pytest.raises(RuntimeError, match="fewer lines"):
        rows(corpus)


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


@pytest.mark.parametrize("cut", [1, 10, 25])
def test_a_truncated_gzip_is_refused_by_its_name(tmp_path: Path, cut: int) -> None:
    config = pair(tmp_path, b"a\nb\n" * 500, b"x\ny\n" * 500, suffix=".gz")
    path = tmp_path / "c.de.gz"
    path.write_bytes(path.read_bytes()[:-cut])
    error = refusal(config)
    assert "broken gzip" in error.what
    assert error.where == str(path)


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\nb\n" * 500, b"x\ny\n" * 500, suffix=".gz")
    path = tmp_path / "c.en.gz"
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(bytes(data))
    assert "broken gzip" in refusal(config).what


def test_text_in_a_file_named_gz_is_refused(tmp_path: Path) -> None:
    config = pair(tmp_path, b"a\n", b"x\n", suffix=".gz")
    (tmp_path / "c.en.gz").write_bytes(b"a\n")
    assert "broken gzip" in refusal(config).what


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
