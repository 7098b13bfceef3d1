"""Keys of texts, and which rows repeat an earlier one."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.characters import CodePoints
from pipelines.dedup import ENTRIES, digitless, folded_keys, overused, pair_keys, repeats, text_keys


def exact_key(text: str) -> int:
    return int(text_keys(pa.array([text]))[0])


def folded_key(text: str) -> int:
    return int(folded_keys(CodePoints(pa.array([text]))).keys[0])


def test_keys_are_the_same_on_every_machine() -> None:
    assert exact_key("A dog.") == 0x83479B16CF794AA8
    assert folded_key("A dog.") == 0x6781CA41137A93C4


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A dog.", "a  DOG", True),
        ("A dog.", "„A dog!“", True),
        ("ÄRGER", "ärger", True),
        ("字、字", "字字", True),
        ("Room 12", "Room 13", False),
        ("3 + 4", "3 4", False),
        ("a dog", "a log", False),
        ("...", "?!", False),
        ("?!", "?!", True),
        ("", "?!", False),
        ("𠀀a", "𠀀 A", True),
        ("𠀀a", "𠀁a", False),
    ],
)
def test_folding_drops_case_punctuation_and_white_space(one: str, other: str, same: bool) -> None:
    assert (folded_key(one) == folded_key(other)) is same


def test_an_ideograph_is_as_long_as_three_letters() -> None:
    keys = folded_keys(CodePoints(pa.array(["A dog.", "一只狗。", ""])))
    assert keys.lengths.tolist() == [4, 9, 0]


def test_the_sides_of_a_pair_do_not_change_places() -> None:
    one, other = np.array([1], dtype=np.uint64), np.array([2], dtype=np.uint64)
    assert pair_keys(one, other) != pair_keys(other, one)


def test_a_key_does_not_depend_on_the_rows_around_it() -> None:
    texts = ["", "a", "ünï", "", "ba", "𠀀", ""]
    assert text_keys(pa.array(texts)).tolist() == [exact_key(text) for text in texts]
    assert text_keys(pa.array(["x", *texts]).slice(1)).tolist() == [exact_key(text) for text in texts]
    assert text_keys(pa.array([None, "a"])).tolist() == [exact_key(""), exact_key("a")]


def test_digits_can_be_left_out_of_a_key() -> None:
    texts = ["Page 3 of 10", "page 12 of 9", "Page of", "Pages 3", "", "12", "٣ page of"]
    keys = digitless(CodePoints(pa.array(texts)))
    assert keys[0] == keys[1] == keys[2] == keys[6]
    assert keys[3] != keys[0]
    assert keys[4] == keys[5]


Row = tuple[int, int, int]  # key, priority, tag


def entries(rows: list[Row], order: list[int]) -> Any:
    made = np.zeros(len(rows), dtype=ENTRIES)
    for place, row_id in enumerate(order):
        key, priority, tag = rows[row_id]
        made[place] = (key, row_id, priority, tag)
    return made


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1), st.integers(0, 3)), max_size=25)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_best_of_a_key_stays_whatever_the_order(rows: list[Row], random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    best = {
        key: min((-priority, row_id) for row_id, (other, priority, _) in enumerate(rows) if other == key)[1]
        for key, _, _ in rows
    }
    made = entries(rows, order)
    repeated, match = repeats(made)
    assert match.tolist() == [best[key] for key in made["key"].tolist()]
    assert repeated.tolist() == [best[key] != row_id for key, row_id in zip(made["key"], made["row_id"])]


@given(ROWS, st.integers(1, 3), st.randoms(use_true_random=False))
def test_no_more_than_so_many_different_ones_of_a_key_stay(rows: list[Row], uses: int, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    expected = set()
    for key in {key for key, _, _ in rows}:
        group = sorted((-priority, row_id, tag) for row_id, (k, priority, tag) in enumerate(rows) if k == key)
        tags = list(dict.fromkeys(tag for _, _, tag in group))
        expected |= {row_id for _, row_id, tag in group if tags.index(tag) >= uses}
    made = entries(rows, order)
    over, _ = overused(made, uses)
    assert set(made["row_id"][over].tolist()) == expected
