"""Hashes of character n-grams, against a plain loop over Python's integers."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import shingles as module
from pipelines.characters import CodePoints, folded
from pipelines.shingles import Shingles, shingles

BASE, MIXER, BITS = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, (1 << 64) - 1
TEXTS = st.lists(st.text(st.sampled_from("abcÄß .字𠀀𝄞1"), max_size=24), max_size=8)


def of(texts: list[str], length: int, salt: int = 0) -> Shingles:
    return shingles(CodePoints(pa.array(texts, type=pa.string())), length, salt)


def by_row(found: Shingles) -> list[list[int]]:
    bounds = found.offsets.tolist()
    return [found.hashes[start:stop].tolist() for start, stop in pairwise(bounds)]


def reference(text: str, length: int, salt: int = 0) -> list[int]:
    points = folded(CodePoints(pa.array([text])))[0].tolist()
    windows = [points[start : start + length] for start in range(max(len(points) - length + 1, 1))]
    hashes = []
    for window in windows:
        value = 0
        for point in window:
            value = (value * BASE + point) & BITS
        value ^= salt
        for _ in range(2):
            value = (value ^ value >> 32) * MIXER & BITS
        hashes.append(value ^ value >> 32)
    return hashes


def test_hashes_are_the_same_on_every_machine() -> None:
    assert by_row(of(["A dog."], 3)) == [[0x448C17B5A337C7F8, 0x2845F6E9643D1610]]


@given(TEXTS, st.integers(1, 20), st.sampled_from([0, 1, 0xC2B2AE3D27D4EB4F]))
def test_a_shingle_is_a_window_of_the_folded_text(texts: list[str], length: int, salt: int) -> None:
    assert by_row(of(texts, length, salt)) == [reference(text, length, salt) for text in texts]


@given(TEXTS, st.integers(1, 20), st.integers(1, 30))
def test_what_is_hashed_in_one_go_changes_nothing(texts: list[str], length: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        assert by_row(of(texts, length)) == [reference(text, length) for text in texts]


def test_case_punctuation_and_white_space_make_no_other_shingles() -> None:
    assert by_row(of(["A dog!"], 2)) == by_row(of(["a - DOG"], 2))


def test_a_text_shorter_than_a_shingle_is_one() -> None:
    found = of(["ab", "", "abc", "abcd"], 3)
    assert found.counts.tolist() == [1, 1, 1, 2]
    assert found.rows.tolist() == [0, 1, 2, 3, 3]
    assert len(set(found.hashes.tolist())) == 4  # "abc" is in both of the last two


def test_a_null_is_an_empty_text() -> None:
    texts = pa.array([None, "abc"], type=pa.string())
    assert by_row(shingles(CodePoints(texts), 2)) == by_row(of(["", "abc"], 2))


def test_another_salt_gives_other_hashes() -> None:
    assert not set(of(["a dog runs"], 3).hashes.tolist()) & set(of(["a dog runs"], 3, salt=1).hashes.tolist())


def test_ten_thousand_near_windows_all_have_their_own_hash() -> None:
    texts = [f"{number:05d}" for number in range(10_000)]
    assert len(set(of(texts, 5).hashes.tolist())) == len(texts)
    assert len({value >> 44 for value in of(texts, 5).hashes.tolist()}) > 9_900  # of 2^20 values, by chance 9,952
