"""Keys of texts, and which rows repeat an earlier one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.characters import CodePoints
from pipelines.dedup import duplicates, folded_keys, pair_keys, text_keys


def exact_key(text: str) -> int:
    return int(text_keys(CodePoints(pa.array([text])))[0])


def folded_key(text: str) -> int:
    return int(folded_keys(CodePoints(pa.array([text]))).keys[0])


def test_keys_are_the_same_on_every_machine() -> None:
    assert exact_key("A dog.") == 0x745CB89F47E55FBA
    assert folded_key("A dog.") == 0x7C15FF9E8D6AE82


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
    together = text_keys(CodePoints(pa.array(texts))).tolist()
    assert together == [exact_key(text) for text in texts]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30), st.randoms(use_true_random=False))
def test_the_smallest_row_id_stays_whatever_the_order(keys: list[tuple[int, int]], random: object) -> None:
    # The near key is a function of the exact key, as it is of texts.
    rows = [(row_id, exact, exact // 2) for row_id, (exact, _) in enumerate(keys)]
    expected = {}
    seen_exact: set[int] = set()
    seen_near: set[int] = set()
    for row_id, exact, near in rows:
        expected[row_id] = (exact in seen_exact, exact not in seen_exact and near in seen_near)
        seen_exact.add(exact)
        seen_near.add(near)
    random.shuffle(rows)  # type: ignore[attr-defined]
    row_id, exact_keys, near_keys = (np.array(column, dtype=np.int64) for column in (zip(*rows) if rows else ((),) * 3))
    exact, near = duplicates(row_id, exact_keys.astype(np.uint64), near_keys.astype(np.uint64))
    assert dict(zip(row_id.tolist(), zip(exact.tolist(), near.tolist()))) == expected
