"""Vectors of words, as word2vec and fastText write them: only those of the words that are wanted are kept.

    text      "400000 300\\n", then a line for each word: "house 0.12 -0.5 ...\\n"       word2vec, fastText's .vec
    binary    "400000 300\\n", then for each word: its text, a space, 300 float32, maybe "\\n"        word2vec's .bin

Both are told by their content, and may be compressed or lie at a URI as `pipelines/files.py` has it. Only single spaces
and line feeds separate, as some words hold other white space of Unicode. A file is read as a stream: memory holds a
block of it and the vectors that are kept. Typical: two million words of 300 components, text: a minute.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.errors import InputError
from pipelines.files import opened

Vector = npt.NDArray[np.float32]

_HEADER = re.compile(rb"([0-9]{1,15}) ([0-9]{1,15})[ \r]*\n")
_NUMBER = re.compile(rb"[-+]?([0-9.]+([eE][-+]?[0-9]+)?|nan|inf)[ \r\n]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
_HEADER_BYTES = 64
_WORD_BYTES = 4096  # of the longest word; word2vec itself cuts them at 100
_NUMBER_BYTES = 64  # of the longest component in text, with the space
_BLOCK_BYTES = 2**20
_MAX_COMPONENTS = 2**16
_FASTTEXT_MODEL = b"\xba\x16\x4f\x2f"
_AGAIN = "Fetch or write the file again"


class Header(NamedTuple):
    """The first line of a file of vectors, and whether what follows is binary."""

    words: int
    components: int
    binary: bool


@dataclass
class Vectors:
    """The vectors [components] that were wanted and found, by word; and how often such a word came once more."""

    words: dict[str, Vector] = field(default_factory=dict)
    repeated: int = 0

    def keep(self, word: str, vector: Vector, where: str) -> None:
        """Keep the vector of a word, unless there is one already: the first is the word's."""
        if not np.isfinite(vector).all():
            raise InputError(
                f"the vector of {word!r} holds a number that is infinite or none", where=where, remedy=_AGAIN
            )
        if word in self.words:
            self.repeated += 1
        else:
            self.words[word] = vector


def read_header(path: str) -> Header:
    """Return what the beginning of a file says. Raises InputError where it is none of the two formats."""
    with opened(path) as file:
        line = file.readline(_HEADER_BYTES)
        match = _HEADER.fullmatch(line)
        if match is None or not int(match[1]) or not 0 < int(match[2]) <= _MAX_COMPONENTS:
            raise _wrong_header(path, line)
        words, components = int(match[1]), int(match[2])
        _, _, values = file.read(_WORD_BYTES + _NUMBER_BYTES * components).partition(b" ")
    return Header(words, components, _is_binary(values[: max(4 * components, _NUMBER_BYTES)]))


def read_vectors(path: str, wanted: Collection[str]) -> Vectors:
    """Return the vectors of the wanted words that a file has. Of a word that comes twice the first counts.

    Of the other words only the text and the number of components are checked. Raises InputError naming the file and the
    line (text) or the byte of what was compressed (binary): for a wrong header, number of components or number of
    words, a file that was cut, a word that is no UTF-8, and a component that is no finite number.
    """
    header, kept, wanted = read_header(path), Vectors(), frozenset(wanted)
    with opened(path) as file:
        start = len(file.readline(_HEADER_BYTES))
        if header.binary:
            _read_binary(_Bytes(file, path, start), header, wanted, kept)
        else:
            _read_text(file, path, header, wanted, kept)
    return kept


def _is_binary(values: bytes) -> bool:
    """Return whether the bytes behind the first word are floats: those of text begin with a number in digits."""
    return _NUMBER.match(values) is None or _CONTROL.search(values) is not None


def _wrong_header(path: str, line: bytes) -> InputError:
    if line.startswith(_FASTTEXT_MODEL):
        remedy = "This is a model of fastText: give the file .vec that lies beside it, or print its vectors into one"
    else:
        remedy = "The first line is the number of words and of components, as in `400000 300`; GloVe's files lack it"
    return InputError(f"a wrong header: {line[:40]!r}", where=f"{path}:1", remedy=remedy)


def _read_text(file: IO[bytes], path: str, header: Header, wanted: frozenset[str], kept: Vectors) -> None:
    longest, number = _WORD_BYTES + header.components * _NUMBER_BYTES, 1
    while line := file.readline(longest):
        number += 1
        where = f"{path}:{number}"
        content = line.rstrip(b" \r\n")
        if number - 1 > header.words:
            if not content:
                continue
            raise _too_many(header, where)
        text, _, values = content.partition(b" ")
        found = values.count(b" ") + 1 if values else 0
        if found != header.components:
            raise InputError(
                f"{found} components, where the header says {header.components}", where=where, remedy=_AGAIN
            )
        word = _decoded(text, where)
        if word in wanted:
            kept.keep(word, _parsed(values, where), where)
    if number - 1 < header.words:
        raise _too_few(header, number - 1, f"{path}:{number}")


def _parsed(values: bytes, where: str) -> Vector:
    try:
        numbers = np.array(values.split(b" "), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"a component is no number ({error})", where=where, remedy=_AGAIN) from error
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
        return numbers.astype(np.float32)


class _Bytes:
    """A stream read in pieces of given lengths or up to the next space; `offset` is where the next one begins."""

    def __init__(self, file: IO[bytes], path: str, offset: int) -> None:
        self.path, self.offset = path, offset
        self._file, self._block, self._place = file, b"", 0

    @property
    def where(self) -> str:
        return f"{self.path}: byte {self.offset}"

    def word(self) -> bytes | None:
        """Return what stands before the next space, without the space; None where none comes."""
        end = self._block.find(b" ", self._place)
        if end < 0:
            self._fill(_WORD_BYTES)
            end = self._block.find(b" ")
            if end < 0:
                return None
        word = self._block[self._place : end]
        self._moved(len(word) + 1)
        return word

    def take(self, size: int) -> bytes:
        """Return the next so many bytes, fewer at the end only."""
        if len(self._block) - self._place < size:
            self._fill(size)
        taken = self._block[self._place : self._place + size]
        self._moved(len(taken))
        return taken

    def _moved(self, size: int) -> None:
        self._place += size
        self.offset += size

    def _fill(self, size: int) -> None:
        rest = self._block[self._place :]
        self._block, self._place = rest + self._file.read(max(_BLOCK_BYTES, size - len(rest))), 0


def _read_binary(stream: _Bytes, header: Header, wanted: frozenset[str], kept: Vectors) -> None:
    size = 4 * header.components
    for number in range(header.words):
        where = stream.where
        text = stream.word()
        if text is None or len(text) > _WORD_BYTES:
            raise _too_few(header, number, where)
        word = _decoded(text.lstrip(b"\n"), where)
        values = stream.take(size)
        if len(values) < size:
            raise _too_few(header, number, where)
        if word in wanted:
            kept.keep(word, np.frombuffer(values, dtype="<f4").astype(np.float32), where)
    where = stream.where
    if stream.take(2) not in (b"", b"\n"):
        raise _too_many(header, where)


def _decoded(word: bytes, where: str) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError as error:
        remedy = "Write the file again in UTF-8, or without this word"
        raise InputError(f"the word {word[:80]!r} is no UTF-8", where=where, remedy=remedy) from error


def _too_few(header: Header, found: int, where: str) -> InputError:
    what = f"the file ends, or is broken, after {found:,} vectors of {header.components} components"
    return InputError(f"{what}, where the header says {header.words:,}", where=where, remedy=_AGAIN)


def _too_many(header: Header, where: str) -> InputError:
    remedy = "Correct the number of words in the first line, or fetch the file again"
    return InputError(f"more than the {header.words:,} vectors that the header says", where=where, remedy=remedy)
