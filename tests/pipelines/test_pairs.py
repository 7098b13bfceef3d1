"""What a side knows of its texts, against plain loops."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_pairs import EN_DE, EN_ZH, TEXTS, pairs_of

from pipelines.pairs import Pairs, Side, mixed
from pipelines.resources import Resources


def side_of(texts: list[str], language: str = "de") -> Side:
    array = pa.array(texts, type=pa.string())
    return Side("tgt", array, array, language)


@given(st.lists(TEXTS, max_size=5))
def test_words_are_what_stands_between_spaces(texts: list[str]) -> None:
    side = side_of(texts)
    words = side.spaced
    content = side.code_points.content
    expected = [text.split(" ") if text else [] for text in texts]
    found = [content[start:end].decode() for start, end in zip(words.starts, words.ends)]
    assert found == [word for words_of_row in expected for word in words_of_row]
    assert words.counts.tolist() == [len(found) for found in expected]


@given(st.lists(TEXTS, max_size=5))
def test_the_same_words_have_the_same_number(texts: list[str]) -> None:
    ids, first = side_of(texts).word_ids
    words = [word for text in texts if text for word in text.split(" ")]
    assert len(set(zip(words, ids.tolist()))) == len(set(words)) == len(set(ids.tolist()))
    assert first[-1] == len(words)


def test_a_word_is_a_letter_where_there_are_no_spaces() -> None:
    ids, first = side_of(["一只Tom狗。", "a b", "字"], "zh-Hant").word_ids
    assert ids.tolist() == [ord(character) for character in "一只狗字"]
    assert first.tolist() == [0, 3, 3, 4]


def test_the_language_of_a_side_is_without_its_region() -> None:
    side = side_of([], "zh-Hant")
    assert (side.language, side.tag, side.is_unspaced) == ("zh", "zh-Hant", True)
    assert not side_of([], "pt-BR").is_unspaced


def test_an_ideograph_counts_for_three_letters_and_a_syllable_for_two() -> None:
    side = side_of(["a1 字강"])
    assert (side.volume.tolist(), side.letter_volume.tolist(), side.printed.tolist()) == ([8], [5], [4])


def test_pairs_of_one_side_are_no_pairs() -> None:
    pairs = pairs_of(None, ["ein Hund", "x"])
    assert [side.name for side in pairs.sides] == ["tgt"]
    assert len(pairs) == 2
    with pytest.raises(ValueError, match="one side alone"):
        _ = pairs.both


def test_some_pairs_keep_their_lines_and_resources() -> None:
    resources = Resources(language_model_digest="x")
    src = pa.array(["a", "b", "c"])
    pairs = Pairs.of(src, src, EN_ZH, src_raw=pa.array(["A", "B", "C"]), resources=resources).take(np.array([2, 0]))
    assert pairs.both[0].raw.to_pylist() == ["C", "A"]
    assert pairs.both[1].raw.to_pylist() == ["c", "a"]
    assert pairs.both[1].tag == "zh"
    assert pairs.resources is resources


def test_numbers_are_spread_over_all_bits() -> None:
    spread = mixed(np.arange(1000, dtype=np.uint64))
    assert len(set(spread.tolist())) == 1000
    assert np.unpackbits(spread.view(np.uint8)).mean() == pytest.approx(0.5, abs=0.02)


def test_pairs_without_raw_lines_count_their_texts_as_such() -> None:
    texts = pa.array(["a"])
    assert Pairs.of(texts, None, EN_DE).sides[0].raw is texts
