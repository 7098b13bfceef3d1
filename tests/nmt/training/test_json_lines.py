"""Files of JSON lines: half a line at the end, lines that are none, and what a follower reads of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from nmt.training.json_lines import Follower, append_line, read_lines
from pipelines.errors import InputError
from pipelines.stage import write_atomically


def text_of(*numbers: int) -> str:
    return "".join(json.dumps({"n": number, "text": "ü\u2028"}) + "\n" for number in numbers)


def numbers_of(records: list[dict[str, Any]]) -> list[int]:
    return [record["n"] for record in records]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def test_half_a_line_at_the_end_is_no_line_and_the_next_one_takes_its_place(path: Path) -> None:
    assert read_lines(path) == []
    append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "tex')
    assert numbers_of(read_lines(path)) == [1]
    append_line(path, {"n": 3})
    append_line(path, {"n": 4})
    assert numbers_of(read_lines(path)) == [1, 3, 4]


@pytest.mark.parametrize("line", [b'{"n": 2{"n": 3}\n', b"\0\0\0\n", b'{"n": "\xff"}\n', b"\n"])
def test_a_line_that_is_no_json_is_named(path: Path, line: bytes) -> None:
    path.write_bytes(text_of(1).encode() + line + text_of(3).encode())
    for reading in (lambda: read_lines(path), lambda: Follower(path)):
        with pytest.raises(InputError, match="not JSON") as raised:
            reading()
        assert raised.value.where == f"{path}:2"
        assert "Remove the line" in raised.value.remedy


def test_a_bad_line_that_comes_later_is_named_by_its_number_too(path: Path) -> None:
    path.write_text(text_of(1, 2))
    follower = Follower(path)
    with path.open("a") as file:
        file.write(text_of(3) + "no JSON\n")
    with pytest.raises(InputError) as raised:
        follower.look()
    assert raised.value.where == f"{path}:4"


def test_of_a_file_that_grows_no_more_than_its_end_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(text_of(*range(10_000)))
    follower = Follower(path)
    read = 0
    opened = Path.open

    class Counted:
        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *exception: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, size: int = -1) -> bytes:
            nonlocal read
            data = self.file.read(size)
            read += len(data)
            return data

    monkeypatch.setattr(Path, "open", lambda path, mode: Counted(opened(path, mode)))
    for number in range(20):
        with opened(path, "a") as file:
            file.write(text_of(number) + '{"n"')
        assert numbers_of(follower.look()) == [number]
        assert follower.look() == []
        with opened(path, "rb+") as file:
            file.truncate(path.stat().st_size - 4)
    assert read < 20 * 5000


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("after", "new"),
    [
        ((1, 2, 3), []),
        ((1, 2), []),
        ((1, 2, 3, 4), [4]),
        ((1, 5, 3), [5, 3]),
        ((1, 5, 3, 6, 7), [5, 3, 6, 7]),
        ((), []),
        ((8,), [8]),
    ],
)
def test_of_a_file_that_was_written_anew_the_lines_from_the_first_other_one_are_new(
    path: Path, in_place: bool, after: tuple[int, ...], new: list[int]
) -> None:
    path.write_text(text_of(1, 2, 3))
    follower = Follower(path)
    assert numbers_of(follower.before) == [1, 2, 3]
    if in_place:
        path.write_text(text_of(*after))
    else:
        write_atomically(path, text_of(*after))
    assert numbers_of(follower.look()) == new
    with path.open("a") as file:
        file.write(text_of(9))
    assert numbers_of(follower.look()) == [9]


def test_a_file_that_comes_later_is_all_new(path: Path) -> None:
    follower = Follower(path)
    assert follower.before == follower.look() == []
    path.write_text(text_of(1))
    assert numbers_of(follower.look()) == [1]
