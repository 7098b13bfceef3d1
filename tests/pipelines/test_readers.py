"""Readers: lines, fields, faults and numbers, against plain loops."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import readers
from pipelines.readers import (
    READ_FAULTS,
    ChunkReader,
    Columns,
    JsonlReader,
    LineReader,
    Lines,
    Reader,
    Rows,
    TsvReader,
    arrow_batch,
    arrow_schema,
    is_number,
    is_text,
    numbers,
    tmx_rows,
)
from pipelines.tmx import Unit

LINE = st.binary(max_size=30).map(lambda line: line.replace(b"\n", b""))
Row = tuple[str | None, str | None, str | None]


def all_rows(reader: Reader, take: int = 3) -> list[Row]:
    found: list[Row] = []
    while len(rows := reader.take(take)):
        assert len(rows) <= take
        for array in (rows.src, rows.tgt, *rows.scores.values()):
            array.validate(full=True)
            assert array.offset == 0
        found.extend(zip(rows.src.to_pylist(), rows.tgt.to_pylist(), rows.reasons().to_pylist()))
    return found


def decoded(line: bytes) -> tuple[str, str | None]:
    line = line.removesuffix(b"\r")
    try:
        return line.decode(), None
    except UnicodeDecodeError:
        return line.decode("utf-8", "backslashreplace"), "invalid_utf8"


def of_text(data: bytes, columns: Columns, form: type[TsvReader] | type[JsonlReader]) -> list[Row]:
    return all_rows(form(io.BytesIO(data), columns))


# --- Lines -----------------------------------------------------------------------------------------------------------


@given(lines=st.lists(LINE, max_size=20), end=st.booleans(), take=st.integers(1, 7), read=st.integers(1, 40))
def test_lines_are_those_of_a_plain_split(lines: list[bytes], end: bool, take: int, read: int) -> None:
    data = b"\n".join(lines) + (b"\n" if end and lines else b"")
    expected = data.removesuffix(b"\n").split(b"\n") if data else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_READ_BYTES", read)
        found = all_rows(LineReader([io.BytesIO(data)], "src"), take)
    assert found == [(text, None, reason) for text, reason in map(decoded, expected)]


@given(pairs=st.lists(st.tuples(LINE, LINE), max_size=20), read=st.integers(1, 40), held=st.integers(1, 60))
def test_aligned_lines_stay_together_whatever_the_blocks(
    pairs: list[tuple[bytes, bytes]], read: int, held: int
) -> None:
    sides = [io.BytesIO(b"".join(pair[side] + b"\n" for pair in pairs)) for side in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_READ_BYTES", read)
        patch.setattr(readers, "BATCH_BYTES", held)
        found = all_rows(LineReader(sides, "both"), 5)
    expected = [(decoded(src), decoded(tgt)) for src, tgt in pairs]
    assert found == [(src, tgt, src_reason or tgt_reason) for (src, src_reason), (tgt, tgt_reason) in expected]


@given(lines=st.lists(LINE, min_size=1, max_size=30), held=st.integers(1, 100), read=st.integers(1, 40))
def test_as_many_lines_are_ready_as_fit(lines: list[bytes], held: int, read: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_READ_BYTES", read)
        patch.setattr(readers, "BATCH_BYTES", held)
        reader = Lines(io.BytesIO(b"".join(line + b"\n" for line in lines)))
        at = 0
        while ready := reader.ready(10):
            taken = reader.take(ready)
            assert taken == b"".join(line + b"\n" for line in lines[at : at + ready])
            assert ready == 1 or len(taken) <= held
            at += ready
            # As many as the bound allows, not fewer.
            assert ready == 10 or at == len(lines) or len(taken) + len(lines[at]) + 1 > held
    assert at == len(lines)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12), read=st.integers(1, 40), take=st.integers(1, 5),
    end=st.sampled_from([b"\n", b"\r\n"]),
)  # fmt: skip
def test_a_line_longer_than_the_bound_is_cut_whatever_the_blocks(
    lengths: list[int], read: int, take: int, end: bytes
) -> None:
    data = b"".join(bytes([97 + place]) * length + end for place, length in enumerate(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_READ_BYTES", read)
        patch.setattr(readers, "MAX_LINE_BYTES", 20)
        patch.setattr(readers, "KEPT_CHARACTERS", 4)
        found = all_rows(LineReader([io.BytesIO(data)], "tgt"), take)
    texts = [chr(97 + place) * length for place, length in enumerate(lengths)]
    expected = [(text[:4], "line_too_long") if len(text) > 20 else (text, None) for text in texts]
    assert found == [(None, text, reason) for text, reason in expected]


def test_a_long_line_is_cut_between_characters_and_its_bad_bytes_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 20)
    monkeypatch.setattr(readers, "KEPT_CHARACTERS", 6)
    data = "ä€😀xyzä€😀\n".encode() + b"\xffa" * 11 + b"\n"
    assert all_rows(LineReader([io.BytesIO(data)], "src")) == [
        ("ä€😀xyz", None, "line_too_long"),
        ("\\xffa\\", None, "line_too_long"),
    ]


def test_of_a_line_of_fifty_million_characters_ten_are_held() -> None:
    class Counted(io.RawIOBase):
        """Fifty million letters, a line end, and a line behind it; nothing of it is in memory."""

        left = 50_000_000

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            if self.left > 0:
                size = min(len(buffer), self.left)
                buffer[:size] = b"a" * size
                self.left -= size
                return size
            data = b"\nb" if self.left == 0 else b""
            self.left = -1
            buffer[: len(data)] = data
            return len(data)

    lines = Lines(io.BufferedReader(Counted()))  # type: ignore[type-var]
    assert lines.ready(10) == 2
    assert len(lines.take(1)) == readers.MAX_LINE_BYTES + 3
    assert lines.take(1) == b"b\n"
    assert lines.ready(10) == 0


def test_a_million_empty_lines_are_rows() -> None:
    reader = LineReader([io.BytesIO(b"\n" * 1_000_000), io.BytesIO(b"\r\n" * 999_999 + b"\r")], "both")
    rows, texts = 0, 0
    while len(batch := reader.take(8192)):
        rows += len(batch)
        texts += pc.sum(pc.binary_length(batch.src)).as_py() + pc.sum(pc.binary_length(batch.tgt)).as_py()
    assert (rows, texts) == (1_000_000, 0)


# --- TSV -------------------------------------------------------------------------------------------------------------


@given(
    lines=st.lists(st.lists(st.binary(max_size=5).map(lambda field: re.sub(rb"[\t\r\n]", b"", field)), max_size=4)),
    src=st.integers(0, 3), tgt=st.integers(0, 3),
)  # fmt: skip
def test_fields_are_those_of_a_plain_split(lines: list[list[bytes]], src: int, tgt: int) -> None:
    joined = [b"\t".join(fields) for fields in lines]
    expected: list[Row] = []
    for line in joined:
        text, reason = decoded(line)
        fields = text.split("\t")
        malformed = len(fields) <= max(src, tgt)
        expected.append((text, None, "malformed") if malformed else (fields[src], fields[tgt], reason))
    assert of_text(b"".join(line + b"\n" for line in joined), Columns(src, tgt), TsvReader) == expected


def test_a_tsv_of_one_side_needs_its_column_alone() -> None:
    data = b"a\tb\nc\n\xff\td\n"
    assert of_text(data, Columns(None, 1), TsvReader) == [
        (None, "b", None),
        (None, "c", "malformed"),
        (None, "d", "invalid_utf8"),
    ]
    assert of_text(data, Columns(0, None), TsvReader) == [
        ("a", None, None),
        ("c", None, None),
        ("\\xff", None, "invalid_utf8"),
    ]


def test_a_score_that_is_no_number_is_null_and_loses_no_row() -> None:
    rows = TsvReader(io.BytesIO(b"a\tb\t0.5\nc\td\tbad\ne\tf\n"), Columns(0, 1, (("one", 2), ("two", 5)))).take(10)
    assert rows.scores == {"one": pa.array([0.5, None, None], pa.float32()), "two": pa.nulls(3, pa.float32())}
    assert rows.reasons().null_count == 3


# --- JSONL -----------------------------------------------------------------------------------------------------------

JSON_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.lists(st.text())
)


@given(
    objects=st.lists(st.one_of(JSON_VALUE, st.dictionaries(st.sampled_from(["src", "tgt", "x"]), JSON_VALUE))),
    ascii=st.booleans(),
)  # fmt: skip
def test_fields_are_those_of_a_plain_parser(objects: list[object], ascii: bool) -> None:
    lines = [json.dumps(value, ensure_ascii=ascii) for value in objects]
    expected: list[Row] = []
    for line, value in zip(lines, objects):
        src, tgt = (value.get("src"), value.get("tgt")) if isinstance(value, dict) else (None, None)
        good = isinstance(src, str) and isinstance(tgt, str)
        expected.append((src, tgt, None) if good else (line, None, "malformed"))  # type: ignore[arg-type]
    assert of_text("\n".join(lines).encode(), Columns("src", "tgt"), JsonlReader) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"src": "a", "tgt": "b"', "malformed"),
        (b'{"src": "a"}', "malformed"),
        (b'{"src": "a", "tgt": null}', "malformed"),
        (b'{"src": "a", "tgt": 3}', "malformed"),
        (b'{"src": "a", "tgt": NaN}', "malformed"),
        (b'{"src": "\\ud800", "tgt": "b"}', "malformed"),
        (b'["a", "b"]', "malformed"),
        (b'"a"', "malformed"),
        (b"", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"src": "\xff", "tgt": "b"}', "invalid_utf8"),
    ],
)
def test_a_bad_line_is_kept_whole_with_its_reason(line: bytes, reason: str) -> None:
    good = b'{"src": "c", "tgt": "d"}'
    found = of_text(b"\n".join([good, line, good]), Columns("src", "tgt"), JsonlReader)
    assert found == [("c", "d", None), (line.decode("utf-8", "backslashreplace"), None, reason), ("c", "d", None)]


def test_a_text_may_hold_line_ends_and_nul() -> None:
    assert of_text(b'{"src": "a\\nb\\u0000", "tgt": "\\u2028"}\r\n', Columns("src", "tgt"), JsonlReader) == [
        ("a\nb\0", "\u2028", None)
    ]


def test_a_jsonl_of_one_side_keeps_bad_lines_there() -> None:
    data = b'{"text": "a"}\n{}\n'
    assert of_text(data, Columns(None, "text"), JsonlReader) == [(None, "a", None), (None, "{}", "malformed")]
    assert of_text(data, Columns("text", None), JsonlReader) == [("a", None, None), ("{}", None, "malformed")]


def test_both_sides_may_be_one_field() -> None:
    assert of_text(b'{"text": "a"}', Columns("text", "text"), JsonlReader) == [("a", "a", None)]


def test_scores_of_jsonl_are_its_numbers() -> None:
    values = ["0.25", "3", '"0.5"', "true", "null", "1e39", "18446744073709551616"]
    data = "\n".join(f'{{"src": "a", "tgt": "b", "s": {value}}}' for value in values) + '\n{"src": 1, "s": 2}'
    rows = JsonlReader(io.BytesIO(data.encode()), Columns("src", "tgt", (("quality", "s"),))).take(100)
    assert rows.scores["quality"].to_pylist() == [0.25, 3.0, None, None, None, None, 2.0**64, 2.0]
    assert rows.reasons().to_pylist() == [None] * 7 + ["malformed"]


# --- Chunks ----------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 9), max_size=6), take=st.integers(1, 12), held=st.integers(1, 12)
)  # fmt: skip
def test_chunks_are_cut_by_rows_and_bytes(sizes: list[int], take: int, held: int) -> None:
    texts = [[f"{chunk}{row}" for row in range(size)] for chunk, size in enumerate(sizes)]
    chunks = (
        Rows(pa.array(chunk, pa.string()), pa.nulls(len(chunk), pa.string()), np.full(len(chunk), 3, np.uint8), {})
        for chunk in texts
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH_BYTES", held)
        reader = ChunkReader(chunks)
        found: list[list[str]] = []
        while len(rows := reader.take(take)):
            found.append(rows.src.to_pylist())
            assert len(rows) == 1 or 2 * len(rows) <= held
    assert list(chain(*found)) == list(chain(*texts))
    assert len(reader.take(take)) == 0


def test_units_of_a_tmx_are_rows_with_what_there_is_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 8)
    monkeypatch.setattr(readers, "KEPT_CHARACTERS", 2)
    monkeypatch.setattr(readers, "_CHUNK_CHARACTERS", 3)
    found = [
        Unit("a", "b", ("0.5",)), Unit("c", None, (None,)), Unit(None, "d", ("x",)), Unit("", "", ("1",)),
        Unit("äöüäö", "e", ("2",)),
    ]  # fmt: skip
    chunks = list(tmx_rows(iter(found), "both", ["score"]))
    assert [len(chunk) for chunk in chunks] == [2, 3]
    assert all_rows(ChunkReader(iter(chunks))) == [
        ("a", "b", None),
        ("c", None, "malformed"),
        (None, "d", "malformed"),
        ("", "", None),
        ("äö", "e", "line_too_long"),
    ]
    assert [score for chunk in chunks for score in chunk.scores["score"].to_pylist()] == [0.5, None, None, 1.0, 2.0]
    one_side = next(tmx_rows(iter(found[2:3]), "tgt", ["score"]))
    assert one_side.reasons().to_pylist() == [None]


def test_rows_come_back_from_a_batch() -> None:
    rows = TsvReader(io.BytesIO(b"a\tb\t1\nc\n"), Columns(0, 1, (("one", 2),))).take(5)
    batch = arrow_batch(rows)
    assert batch.schema == arrow_schema(["one"])
    assert batch.to_pydict() == {"src": ["a", "c"], "tgt": ["b", None], "fault": [3, 1], "one": [1.0, None]}


def test_faults_are_named_in_their_order() -> None:
    texts = pa.array(["a"] * 4)
    rows = Rows(texts, texts, np.arange(4, dtype=np.uint8), {})
    assert READ_FAULTS == ("line_too_long", "malformed", "invalid_utf8")
    assert rows.reasons().to_pylist() == [*READ_FAULTS, None]


# --- Numbers and types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.5", 0.5), ("-3", -3.0), ("+3", 3.0), (" 1e-2 ", 0.01), (".5", 0.5), ("5.", 5.0), ("1E3", 1000.0),
        ("", None), (" ", None), ("a", None), ("1,5", None), ("0x1", None), ("nan", None), ("inf", None),
        ("-Infinity", None), ("1e39", None), ("1e999", None), ("1 2", None), ("٣", None), (None, None),
    ],
)  # fmt: skip
def test_a_number_is_a_decimal_that_float32_holds(text: str | None, number: float | None) -> None:
    found = numbers(pa.array([text], pa.string()))
    assert found == pa.array([number], pa.float32())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_numbers_are_exact(values: Sequence[float]) -> None:
    found = numbers(pa.array([repr(value) for value in values], pa.string())).to_pylist()
    assert [(value, math.copysign(1, value)) for value in found] == [(v, math.copysign(1, v)) for v in values]


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [
        (pa.string(), True, False), (pa.large_string(), True, False), (pa.binary(), True, False),
        (pa.string_view(), True, False), (pa.dictionary(pa.int8(), pa.large_string()), True, False),
        (pa.dictionary(pa.int8(), pa.int32()), False, False), (pa.int64(), False, True), (pa.float16(), False, True),
        (pa.decimal128(5, 2), False, True), (pa.bool_(), False, False), (pa.list_(pa.string()), False, False),
        (pa.null(), False, False),
    ],
)  # fmt: skip
def test_what_a_column_holds(kind: pa.DataType, text: bool, number: bool) -> None:
    assert (is_text(kind), is_number(kind)) == (text, number)
