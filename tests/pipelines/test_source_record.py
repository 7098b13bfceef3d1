from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.source_record import (
    SourceRecord,
    copy_lines,
    described,
    listed,
    one_line,
    read_intact,
    restated,
    working_alone,
    write_record,
)


def record_of(path: Path) -> SourceRecord:
    return SourceRecord(
        name="toy", version=None, licence="CC0", sources=(), files=(described(path, path, 1),), fetched_at="2024-01-01"
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "toy.en"
    path.write_text("a cat\n", encoding="utf-8")
    write_record(tmp_path, record_of(path))
    return path


def test_a_record_is_read_as_it_was_written(text: Path) -> None:
    assert read_intact(text.parent, "toy") == record_of(text)
    assert read_intact(text.parent, "other") is None


@pytest.mark.parametrize("content", ["a dog\n", "a cat", None])
def test_a_file_that_is_not_as_recorded_is_not_there(
    text: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        text.unlink()
    else:
        text.write_text(content, encoding="utf-8")
    assert read_intact(text.parent, "toy") is None
    assert f"{text}: not the file that was fetched" in caplog.text


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}'])
def test_what_is_no_record_is_told_and_not_used(text: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (text.parent / "toy.source.json").write_text(content, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert read_intact(text.parent, "toy") is None
    assert "not a record of format 1" in caplog.text


def test_a_licence_is_restated_in_the_file(text: Path) -> None:
    record = record_of(text)
    assert restated(text.parent, record, None) is record
    assert restated(text.parent, record, "CC0") is record
    assert restated(text.parent, record, "ours") == record.model_copy(update={"licence": "ours"})
    assert read_intact(text.parent, "toy") == record.model_copy(update={"licence": "ours"})


@given(st.lists(st.sampled_from([b"", b"a", b"\r", b"\n", b"\xc2\x85\n"])))
def test_only_line_feeds_end_lines(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    content = b"".join(parts)
    path = tmp_path_factory.getbasetemp() / "lines"
    assert copy_lines(io.BytesIO(content), path) == len(list(io.BytesIO(content)))
    assert path.read_bytes() == content


def test_a_licence_is_shortened_to_a_line() -> None:
    assert one_line(" CC BY\n\t4.0 ") == "CC BY 4.0"
    assert one_line("x" * 120) == "x" * 120
    assert one_line("x" * 121) == "x" * 117 + "..."


def test_names_are_listed_up_to_a_bound() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(14)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"


def test_a_second_process_is_told(tmp_path: Path) -> None:
    with (
        working_alone(tmp_path / "data", "toy"),
        pytest.raises(InputError, match="another process is fetching it"),
        working_alone(tmp_path / "data", "toy"),
    ):
        pass
    with working_alone(tmp_path / "data", "toy"), working_alone(tmp_path / "data", "other"):
        pass
