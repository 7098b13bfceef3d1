"""Files of vectors of words: both formats as bytes, what is kept of them, and every fault with its place."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nmt.vectors import Vectors, read_header, read_vectors
from pipelines.errors import InputError

TEXT = b"3 2\nhouse 0.5 -1.25\ntree 1e-3 2\nHaus 3 4\n"


def binary(*words: bytes, between: bytes = b"\n", header: bytes | None = None) -> bytes:
    """Word2vec's binary format, its vectors [i, -i] for the i-th word from 1."""
    rows = [word + b" " + struct.pack("<2f", i, -i) + between for i, word in enumerate(words, start=1)]
    return (header or f"{len(words)} 2\n".encode()) + b"".join(rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "words.vec"


def read(path: Path, content: bytes, *wanted: str) -> Vectors:
    path.write_bytes(content)
    return read_vectors(str(path), wanted)


def lists(found: Vectors) -> dict[str, list[float]]:
    assert all(vector.dtype == np.float32 for vector in found.words.values())
    return {word: vector.tolist() for word, vector in found.words.items()}


def fault(path: Path, content: bytes, *wanted: str) -> str:
    with pytest.raises(InputError) as raised:
        read(path, content, *wanted)
    return str(raised.value)


def test_text_gives_the_vectors_of_the_wanted_words_alone(path: Path) -> None:
    found = read(path, TEXT, "house", "Haus", "cat")
    assert lists(found) == {"house": [0.5, -1.25], "Haus": [3.0, 4.0]}
    assert found.repeated == 0
    assert read_header(str(path)) == (3, 2, False)


def test_numbers_of_text_become_the_nearest_float32(path: Path) -> None:
    assert read(path, TEXT, "tree").words["tree"][0] == np.float32(1e-3)


@pytest.mark.parametrize("end", [" \n", "\r\n", "\n"])
def test_spaces_and_carriage_returns_at_the_ends_of_lines_are_no_components(path: Path, end: str) -> None:
    content = end.join(["2 2", "a 1 2", "b 3 4", ""]).encode()
    assert lists(read(path, content, "a", "b")) == {"a": [1.0, 2.0], "b": [3.0, 4.0]}


def test_other_white_space_of_unicode_is_part_of_a_word(path: Path) -> None:
    words = ["a\u00a0b", "c\u2028d", "e\x85"]
    content = "3 1\n" + "".join(f"{word} {i}\n" for i, word in enumerate(words))
    assert lists(read(path, content.encode(), *words)) == {words[0]: [0.0], words[1]: [1.0], words[2]: [2.0]}


@pytest.mark.parametrize("between", [b"\n", b""], ids=["word2vec", "without line feeds"])
def test_binary_gives_the_vectors_of_the_wanted_words_alone(path: Path, between: bytes) -> None:
    content = binary(b"house", "grün".encode(), b"tree", between=between)
    assert lists(read(path, content, "grün", "tree")) == {"grün": [2.0, -2.0], "tree": [3.0, -3.0]}
    assert read_header(str(path)) == (3, 2, True)


def test_binary_vectors_may_hold_the_bytes_of_spaces_and_line_feeds(path: Path) -> None:
    values = struct.unpack("<2f", b"  \n \n\n\n\n")
    content = b"2 2\na " + struct.pack("<2f", *values) + b"\nb " + struct.pack("<2f", 1, 2)
    assert lists(read(path, content, "a", "b")) == {"a": list(values), "b": [1.0, 2.0]}


@pytest.mark.parametrize("content", [TEXT, binary(b"house", b"tree", b"Haus")], ids=["text", "binary"])
def test_a_compressed_file_gives_what_the_plain_one_gives(path: Path, content: bytes) -> None:
    plain = lists(read(path, content, "house", "Haus"))
    assert lists(read(path.with_name("words.vec.gz"), gzip.compress(content), "house", "Haus")) == plain
    assert set(plain) == {"house", "Haus"}


def test_of_a_word_that_comes_again_the_first_vector_counts(path: Path) -> None:
    text = read(path, b"4 1\na 1\nb 2\na 3\na 4\n", "a", "b")
    assert (lists(text), text.repeated) == ({"a": [1.0], "b": [2.0]}, 2)
    stored = read(path, binary(b"a", b"b", b"a"), "a")
    assert (lists(stored), stored.repeated) == ({"a": [1.0, -1.0]}, 1)


def test_records_across_the_borders_of_blocks_are_whole(path: Path) -> None:
    # Five megabytes: the words lie at every place of the blocks that are read.
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((12_001, 100)).astype("<f4")
    records = [b"w%d " % number + vector.tobytes() + b"\n" for number, vector in enumerate(vectors)]
    wanted = [f"w{number}" for number in range(0, len(vectors), 397)]
    found = read(path, b"%d 100\n" % len(vectors) + b"".join(records), *wanted)
    assert list(found.words) == wanted
    assert all(np.array_equal(found.words[word], vectors[int(word[1:])]) for word in wanted)


def test_memory_holds_the_wanted_vectors_and_a_block_whatever_the_size_of_the_file(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"30000 100\n")
        for number in range(30_000):
            file.write(b"w%d " % number + b"\0" * 400 + b"\n")
    assert path.stat().st_size > 12e6
    tracemalloc.start()
    read_vectors(str(path), {"w5"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize(
    "header", [b"", b"house 0.5 -1.25\n", b"3\n", b"0 2\n", b"3 0\n", b"3 99999999\n", b"-3 2\n", b"3 2", b"3  2\n"]
)
def test_a_wrong_header_is_named(path: Path, header: bytes) -> None:
    assert f"{path}:1: a wrong header: {header[:40]!r}" in fault(path, header)


def test_a_model_of_fasttext_is_told_from_its_vectors(path: Path) -> None:
    assert "This is a model of fastText" in fault(path, b"\xba\x16\x4f\x2f\x0c\x00\x00\x00" + b"\0" * 90)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"2 2\na 1 2\nb 1\n", ":3: 1 components, where the header says 2"),
        (b"2 2\na 1 2\nb 1 2 3\n", ":3: 3 components, where the header says 2"),
        (b"2 2\na 1\nb 1 2\n", ":2: 1 components, where the header says 2"),
        (b"2 2\na 1 2\nb\n", ":3: 0 components, where the header says 2"),
        (b"2 2\na 1 2\nb 1  2\n", ":3: 3 components, where the header says 2"),
        (b"3 2\na 1 2\nb 1 2\n", ":3: the file ends, or is broken, after 2 vectors of 2 components"),
        (b"1 2\na 1 2\nb 1 2\n", ":3: more than the 1 vectors that the header says"),
        (b"2 2\na 1 2\nb 1 x\n", ":3: a component is no number"),
        (b"2 2\na 1 2\nb 1 nan\n", ":3: the vector of 'b' holds a number that is infinite or none"),
        (b"2 2\na 1 2\nb -inf 1\n", ":3: the vector of 'b' holds a number that is infinite or none"),
        (b"2 2\na 1 2\nb 1e39 1\n", ":3: the vector of 'b' holds a number that is infinite or none"),
        (b"2 2\na 1 2\n\xe4 1 2\n", ":3: the word b'\\xe4' is no UTF-8"),
    ],
)
def test_a_fault_of_text_is_named_with_its_line(path: Path, content: bytes, says: str) -> None:
    assert f"{path}{says}" in fault(path, content, "a", "b")


def test_a_line_without_end_takes_no_memory_without_end(path: Path) -> None:
    assert f"{path}:3: " in fault(path, b"2 2\na 1 2\n" + b"x" * 10**6, "a")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (binary(b"a", b"b")[:-4], ": byte 14: the file ends, or is broken, after 1 vectors of 2 components"),
        (binary(b"a", b"b")[:16], ": byte 14: the file ends, or is broken, after 1 vectors of 2 components"),
        (binary(b"a", b"b", header=b"3 2\n"), ": byte 25: the file ends, or is broken, after 2 vectors"),
        (binary(b"a", b"b", header=b"1 2\n"), ": byte 14: more than the 1 vectors that the header says"),
        (binary(b"a", b"\xe4"), ": byte 14: the word b'\\xe4' is no UTF-8"),
        (b"1 2\na " + struct.pack("<2f", 1, np.nan), ": byte 4: the vector of 'a' holds a number that is infinite"),
        (b"1 2\na " + struct.pack("<2f", np.inf, 1), ": byte 4: the vector of 'a' holds a number that is infinite"),
    ],
)
def test_a_fault_of_binary_is_named_with_its_byte(path: Path, content: bytes, says: str) -> None:
    assert f"{path}{says}" in fault(path, content, "a", "b")


def test_a_broken_gzip_and_a_missing_file_are_named(tmp_path: Path) -> None:
    cut = tmp_path / "cut.vec.gz"
    cut.write_bytes(gzip.compress(TEXT * 1000)[:-40])
    for path in (cut, tmp_path / "none.vec"):
        with pytest.raises(InputError, match=path.name):
            read_vectors(str(path), {"house"})
