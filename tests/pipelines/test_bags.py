"""Words of texts, their counts by row, and entries: against plain loops over the same texts."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import bags as module
from pipelines.bags import (
    MAX_WORDS,
    Bags,
    Entries,
    KeyIndex,
    bags_of,
    blocks,
    entries_of,
    numbers_of,
    row_keys,
    tokens_of,
    turned_places,
)

WORDS = ("haus", "Haus", "buch", "a", "我", "ปลา", "2")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=5)


def texts(rows: list[str]) -> pa.StringArray:
    return pa.array(rows, pa.string())


def words_of(rows: list[str]) -> list[list[str]]:
    tokens = tokens_of(texts(rows))
    return [[tokens.text(word) for word in range(*tokens.first[row : row + 2].tolist())] for row in range(len(rows))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, Übersetzung!", ["don", "t", "stop", "übers"]),
        ("translated translation", ["trans", "trans"]),
        ("2,50 € in 2017", ["2", "50", "in", "2017"]),
        ("我爱Python3。", ["我", "爱", "pytho"]),
        ("ひらカナ", ["ひ", "ら", "カ", "ナ"]),
        ("น้ำใจ", ["น้", "ำ", "ใ", "จ"]),
        ("cafe\u0301s", ["cafe\u0301"]),
        ("𠀀𠀁 b", ["𠀀", "𠀁", "b"]),
        ("Привет, мир", ["приве", "мир"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("!?", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words_of([text]) == [expected]


def test_words_end_with_their_row() -> None:
    assert words_of(["ab", "cd", "", "我", "é 1"]) == [["ab"], ["cd"], [], ["我"], ["é", "1"]]


def test_the_first_words_of_a_long_text_count() -> None:
    long = " ".join(f"w{number}" for number in range(MAX_WORDS + 50))
    assert words_of(["a b", long, "c"]) == [["a", "b"], [f"w{number}" for number in range(MAX_WORDS)], ["c"]]


def test_a_hash_is_that_of_the_first_letters_in_any_case() -> None:
    hashes = tokens_of(texts(["Translation translated trans", "TRANSPORT tran Tranq"])).hashes
    assert hashes[0] == hashes[1] == hashes[2] == hashes[3]
    assert len(set(hashes.tolist())) == 3


def test_a_row_s_key_is_that_of_its_words_in_their_order() -> None:
    keys = row_keys(tokens_of(texts(["a b", "A, b!", "b a", "ab", "a b b", "", "?"])))
    assert keys[0] == keys[1]
    assert keys[5] == keys[6]
    assert len(set(keys.tolist())) == 5


def bags_and_words(rows: list[str], known: list[str]) -> tuple[Bags, list[str]]:
    """The bags of some texts, and the word of each number; a word that is not known has the number 0."""
    hashes = tokens_of(texts(known)).hashes
    order = np.argsort(hashes)
    tokens = tokens_of(texts(rows))
    return bags_of(tokens.hashes, tokens.first, hashes[order])[0], ["?", *(known[place] for place in order)]


@given(TEXTS)
def test_bags_count_the_words_of_each_row(rows: list[str]) -> None:
    bags, names = bags_and_words(rows, ["haus", "buch", "2"])
    for row, text in enumerate(rows):
        words = range(*bags.first[row : row + 2].tolist())
        found = Counter({names[bags.ids[word]]: int(bags.counts[word]) for word in words if bags.ids[word]})
        assert found == Counter(word for word in text.lower().split() if word in ("haus", "buch", "2"))
        unknown = sum(int(bags.counts[word]) for word in words if not bags.ids[word])
        assert unknown + found.total() == len(words_of([text])[0])


@given(TEXTS)
def test_sums_rows_and_where_are_those_of_each_row(rows: list[str]) -> None:
    bags, _ = bags_and_words(rows, ["haus", "a"])
    assert bags.sums(bags.counts).tolist() == [len(words) for words in words_of(rows)]
    some = bags.rows(0, 1)
    assert some.sizes.tolist() == bags.sizes[:1].tolist()
    known = bags.where(bags.ids > 0)
    assert known.sums(known.counts).tolist() == [
        sum(word in ("haus", "a") for word in words) for words in words_of(rows)
    ]


def test_the_numbers_of_no_vocabulary_are_0() -> None:
    empty = np.empty(0, dtype=np.uint64)
    assert numbers_of(empty, np.array([1, 2], dtype=np.uint64)).tolist() == [0, 0]
    assert numbers_of(np.array([2, 5], dtype=np.uint64), np.array([9, 5, 2, 0], dtype=np.uint64)).tolist() == [
        0,
        2,
        1,
        0,
    ]


def pairs_of(entries: Entries) -> list[tuple[int, int]]:
    return list(zip(entries.src.tolist(), entries.tgt.tolist()))


@given(TEXTS, TEXTS)
def test_entries_are_each_word_with_each_of_the_other_side(one: list[str], other: list[str]) -> None:
    rows = min(len(one), len(other))
    src, tgt = (bags_and_words(side[:rows], [])[0] for side in (one, other))
    entries = entries_of(src, tgt)
    expected = [
        (source, target)
        for row in range(rows)
        for target, source in product(range(*tgt.first[row : row + 2]), range(*src.first[row : row + 2]))
    ]
    assert pairs_of(entries) == expected
    ends = entries.starts.tolist()
    assert [entries.tgt[start:stop].tolist() for start, stop in pairwise(ends)] == [
        [word] * (stop - start) for word, (start, stop) in enumerate(pairwise(ends))
    ]
    places = turned_places(src, tgt).tolist()
    assert [pairs_of(entries)[place] for place in places] == [(s, t) for t, s in pairs_of(entries_of(tgt, src))]


def test_blocks_are_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES", 6)
    src, _ = bags_and_words(["a b", "a b c", "a b c d", "", "a"], [])
    tgt, _ = bags_and_words(["a b", "a", "a b c d", "a b", "c"], [])
    found = [(rows, pairs_of(entries_of(one, other))) for one, other, rows in blocks(src, tgt)]
    assert [(rows.start, rows.stop) for rows, _ in found] == [(0, 1), (1, 2), (2, 3), (3, 5)]
    assert [len(entries) for _, entries in found] == [4, 3, 16, 1]


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**62), unique=True, max_size=60), st.lists(st.integers(0, 50)))
def test_an_index_finds_what_is_in_it(keys: list[int], wanted: list[int]) -> None:
    index = KeyIndex(np.array(keys, dtype=np.int64))
    asked = [*wanted, *keys]
    expected = [keys.index(key) if key in keys else -1 for key in asked]
    assert index.find(np.array(asked, dtype=np.int64)).tolist() == expected


def test_an_index_finds_keys_that_fall_on_one_place() -> None:
    # The multiplier's inverse times small numbers: all of them hash to the first places of the table.
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    keys = [key for key in (number * inverse % 2**64 for number in range(1, 4000)) if key < 2**63][:500]
    index = KeyIndex(np.array(keys, dtype=np.int64))
    assert index.find(np.array(keys, dtype=np.int64)).tolist() == list(range(len(keys)))
    assert index.find(np.array([keys[0] + 1], dtype=np.int64)).tolist() == [-1]
