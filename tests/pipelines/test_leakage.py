"""What of train counts as leaked from dev and test, against a plain loop over sets of n-grams."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import leakage as module
from pipelines.characters import CodePoints, folded
from pipelines.config import LanguagesConfig, LeakageConfig
from pipelines.dedup import folded_keys
from pipelines.leakage import LEAKAGE_REASONS, NO_LEAK, NO_MATCH, HeldOutIndex, Leaks, held_out_index, merged

EN_DE = LanguagesConfig(source="en", target="de")
EN_ZH = LanguagesConfig(source="en", target="zh-Hans")
EXACT = LeakageConfig(overlap=None)
NEAR = LeakageConfig(overlap=0.8)

Pair = tuple[str | None, str | None]


class HeldOut(NamedTuple):
    split: str
    row_id: int
    src: str
    tgt: str


def texts(side: list[str | None]) -> CodePoints:
    return CodePoints(pa.array(side, type=pa.string()))


def index(rows: list[HeldOut], config: LeakageConfig = EXACT, languages: LanguagesConfig = EN_DE) -> HeldOutIndex:
    parts = []
    for split in ("dev", "test"):
        some = [row for row in rows if row.split == split]
        row_id = np.array([row.row_id for row in some], dtype=np.int64)
        src, tgt = texts([row.src for row in some]), texts([row.tgt for row in some])
        parts.append(held_out_index(split, row_id, src, tgt, languages, config))
    return merged(parts)


def leaks(train: list[Pair], held_out: HeldOutIndex) -> list[tuple[str, float, int] | None]:
    """For each row of train: reason, overlap and the held-out row; None without a leak."""
    sides = tuple(texts([pair[side] for pair in train]) for side in (0, 1))
    missing = [np.array([pair[side] is None for pair in train], dtype=np.bool_) for side in (0, 1)]
    keys = (pa.array(folded_keys(side).keys, mask=mask) for side, mask in zip(sides, missing))
    return plain(held_out.leaks(*keys, sides))


def plain(found: Leaks) -> list[tuple[str, float, int] | None]:
    rows = zip(found.reason.tolist(), found.overlap.tolist(), found.match.tolist())
    result: list[tuple[str, float, int] | None] = []
    for reason, overlap, match in rows:
        if reason == NO_LEAK:
            assert (overlap, match) == (0.0, NO_MATCH)
        result.append(None if reason == NO_LEAK else (LEAKAGE_REASONS[reason], pytest.approx(overlap), match))
    return result


def reasons(train: list[Pair], held_out: HeldOutIndex) -> list[str | None]:
    return [found and found[0] for found in leaks(train, held_out)]


SRC, TGT = "A man in a blue shirt is standing on a ladder.", "Ein Mann in einem blauen Hemd steht auf einer Leiter."
LONG = HeldOut("test", 7, SRC, TGT)
STOP = HeldOut("dev", 3, "Stop.", "Halt.")

# --- Equal texts ---------------------------------------------------------------------------------------------------


def test_either_side_tells_a_leak() -> None:
    train: list[Pair] = [(SRC, "Etwas anderes."), ("Something else.", TGT), ("Something else.", "Etwas anderes.")]
    assert leaks(train, index([LONG])) == [("leakage_test", 1.0, 7), ("leakage_test", 1.0, 7), None]


def test_case_and_punctuation_do_not_hide_a_leak() -> None:
    assert reasons([(SRC.upper().rstrip("."), "Anders.")], index([LONG])) == ["leakage_test"]


def test_a_short_side_counts_only_with_its_pair() -> None:
    train: list[Pair] = [("Stop.", "Halt!"), ("Stop.", "Anhalten."), ("Wait.", "Halt!")]
    assert leaks(train, index([STOP])) == [("leakage_dev", 1.0, 3), None, None]


def test_a_short_side_counts_where_the_config_says_so() -> None:
    train: list[Pair] = [("Stop.", "Anhalten."), ("Wait.", "Halt!"), ("Go.", "Geh.")]
    config = LeakageConfig(min_characters=0)
    assert reasons(train, index([STOP], config)) == ["leakage_dev", "leakage_dev", None]


def test_the_sides_of_different_pairs_make_no_short_pair() -> None:
    assert reasons([("Stop.", "Warte.")], index([STOP, HeldOut("dev", 4, "Wait.", "Warte.")])) == [None]


def test_of_several_held_out_rows_dev_comes_first_then_the_smallest_row_id() -> None:
    rows = [
        LONG,
        HeldOut("test", 1, SRC, "Anders."),
        HeldOut("dev", 9, "Other.", TGT),
        HeldOut("dev", 8, "Other.", TGT),
    ]
    assert leaks([(SRC, TGT), (SRC, "Neu.")], index(rows)) == [("leakage_dev", 1.0, 8), ("leakage_test", 1.0, 1)]


def test_a_source_in_the_targets_is_no_leak() -> None:
    assert reasons([(TGT, SRC)], index([LONG], NEAR)) == [None]


def test_a_row_of_one_side_leaks_by_it_and_never_as_a_pair() -> None:
    train: list[Pair] = [(SRC, None), (None, TGT), ("Stop.", None), (None, "Halt."), (None, None)]
    held_out = index([LONG, STOP, HeldOut("dev", 5, "", "")])
    assert reasons(train, held_out) == ["leakage_test", "leakage_test", None, None, None]


def test_keys_may_come_as_numbers() -> None:
    keys = [folded_keys(texts([SRC, "Else."])).keys, folded_keys(texts(["Anders.", "Anders."])).keys]
    assert plain(index([LONG]).leaks(*keys)) == [("leakage_test", 1.0, 7), None]


@pytest.mark.parametrize("config", [EXACT, NEAR])
def test_without_held_out_rows_nothing_leaks(config: LeakageConfig) -> None:
    assert reasons([(SRC, TGT)], index([], config)) == [None]
    assert reasons([(SRC, TGT)], merged([])) == [None]


@pytest.mark.parametrize("config", [EXACT, NEAR])
def test_without_rows_there_is_no_leak(config: LeakageConfig) -> None:
    assert leaks([], index([LONG], config)) == []


# --- Like texts ----------------------------------------------------------------------------------------------------


def test_like_texts_leak_only_where_an_overlap_is_set() -> None:
    train: list[Pair] = [("Today " + SRC, "Anders.")]
    assert reasons(train, index([LONG])) == [None]
    assert leaks(train, index([LONG], NEAR)) == [("near_leakage_test", 1.0, 7)]


def test_a_text_that_holds_a_held_out_one_leaks_and_so_does_a_part_of_one() -> None:
    longer = f"We saw nothing for hours. {SRC} Then it became dark and all of us went home to have supper."
    part = "a blue shirt is standing on a ladder"
    assert reasons([(longer, ""), (part, "")], index([LONG], NEAR)) == ["near_leakage_test"] * 2


def test_another_word_at_the_end_leaves_most_of_the_n_grams() -> None:
    # Of 35 letters, 21 n-grams, 29 letters stay; with "roof" they are 33 letters, 19 n-grams, of which 15 are held out.
    changed = SRC.replace("ladder", "roof")
    assert leaks([(changed, "")], index([LONG], LeakageConfig(overlap=0.7))) == [
        ("near_leakage_test", np.float32(15 / 19), 7)
    ]
    assert reasons([(changed, "")], index([LONG], LeakageConfig(overlap=0.9))) == [None]


def test_a_share_that_equals_the_overlap_is_a_leak() -> None:
    # Ten n-grams of which seven are held out, and 0.7 is no binary number.
    held_out, text = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnop", "abcdefghijklmnopqrstu123"
    assert shared_of(text, held_out, 15) == 0.7
    row = HeldOut("dev", 1, held_out, "")
    assert leaks([(text, "")], index([row], LeakageConfig(overlap=0.7))) == [("near_leakage_dev", np.float32(0.7), 1)]
    assert leaks([(text, "")], index([row], LeakageConfig(overlap=0.71))) == [None]


def test_an_equal_text_is_no_near_leak_whatever_split_it_is_from() -> None:
    near = HeldOut("dev", 2, "Today " + SRC, "")
    assert leaks([(SRC, "Anders.")], index([near, LONG], NEAR)) == [("leakage_test", 1.0, 7)]


def test_of_several_like_rows_dev_comes_first_then_the_greatest_overlap_then_the_smallest_row_id() -> None:
    rows = [
        HeldOut("test", 1, SRC, ""),
        HeldOut("dev", 2, SRC.replace("ladder", "chair"), ""),
        HeldOut("dev", 4, "Now " + SRC, ""),
        HeldOut("dev", 3, "Now " + SRC, ""),
    ]
    train: list[Pair] = [(SRC.removesuffix(" ladder."), "")]
    assert leaks(train, index(rows, LeakageConfig(overlap=0.6))) == [("near_leakage_dev", 1.0, 2)]
    train = [(SRC + " Look!", "")]
    assert leaks(train, index(rows, LeakageConfig(overlap=0.6))) == [("near_leakage_dev", np.float32(21 / 24), 3)]


def test_a_part_of_fewer_than_twenty_letters_is_met_by_chance() -> None:
    config = LeakageConfig(overlap=0.5, min_characters=0)
    assert len("standing on a ladder".replace(" ", "")) == 17
    assert (
        reasons([("standing on a ladder", ""), ("is standing on a big ladder", "")], index([LONG], config))
        == [None] * 2
    )
    assert reasons([("shirt is standing on a ladder", "")], index([LONG], config)) == ["near_leakage_test"]


def test_ideographs_have_shorter_n_grams() -> None:
    rows = [HeldOut("dev", 1, "x", "他在一次意外中失去了他的视力。")]
    train: list[Pair] = [
        ("y", "他在那次意外中失去了他的视力。"),
        ("y", "她在一次会议上失去了耐心。"),
        ("y", "失去了他的视力"),
    ]
    assert leaks(train, index(rows, LeakageConfig(overlap=0.6), EN_ZH)) == [
        ("near_leakage_dev", np.float32(0.7), 1),
        None,
        ("near_leakage_dev", 1.0, 1),
    ]
    assert leaks(train, index(rows, LeakageConfig(overlap=0.6), EN_DE)) == [None, None, None]


# --- A plain loop --------------------------------------------------------------------------------------------------

GRAMS = {"en": 15, "de": 15, "zh": 5}
WORDS = (
    "a",
    "dog",
    "in the garden",
    "ran away",
    "with",
    "他在一次意外",
    "失去了视力",
    "two old men",
    "ha ha ha ha",
    "𠀀𠀁",
)


@cache
def grams(text: str, length: int) -> tuple[tuple[int, ...], ...]:
    points = folded(CodePoints(pa.array([text])))[0].tolist()
    return tuple(tuple(points[start : start + length]) for start in range(max(len(points) - length + 1, 1)))


def shared_of(text: str, held_out: str, length: int) -> float:
    """The greater of the shares: of the text's n-grams that the other has, and of the other's that the text has."""
    mine, other = grams(text, length), grams(held_out, length)
    return max(
        sum(gram in set(other) for gram in mine) / len(mine),
        len(set(mine) & set(other)) / len(set(other)),
    )


def reference(
    pair: Pair, rows: list[HeldOut], config: LeakageConfig, languages: LanguagesConfig
) -> tuple[str, float, int] | None:
    def key(text: str | None) -> object:
        return None if text is None else tuple(grams(text, 10_000)[0])

    def letters(text: str) -> int:
        return len(key(text)) + 2 * sum("\u4e00" <= sign <= "\u9fff" or sign > "\U00020000" for sign in text)  # type: ignore[arg-type]

    found: list[tuple[int, float, int]] = []
    for row in rows:
        place = ("dev", "test").index(row.split)
        equal = [key(mine) == key(other) for mine, other in zip(pair, row[2:])]
        alone = [letters(other) >= config.min_characters for other in row[2:]]
        if all(equal) or any(one and long for one, long in zip(equal, alone)):
            found.append((place, -1.0, row.row_id))
        if config.overlap is None:
            continue
        for mine, other, language in zip(pair, row[2:], (languages.source, languages.target)):
            length = GRAMS[language[:2]]
            shortest = -(-max(config.min_characters, 20) * length // 15) - length + 1
            if min(len(grams(mine or "", length)), len(grams(other, length))) < shortest:
                continue
            if (overlap := shared_of(mine or "", other, length)) >= config.overlap and overlap > 0:
                found.append((2 + place, -overlap, row.row_id))
    if not found:
        return None
    reason, overlap, row_id = min(found)
    return LEAKAGE_REASONS[reason], np.float32(-overlap), row_id


SENTENCES = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
ROWS = st.lists(st.tuples(st.sampled_from(["dev", "test"]), SENTENCES, SENTENCES), max_size=12).map(
    lambda rows: [HeldOut(split, 100 - number, src, tgt) for number, (split, src, tgt) in enumerate(rows)]
)
TRAIN = st.lists(st.tuples(SENTENCES, st.one_of(st.none(), SENTENCES)), min_size=1, max_size=12)
CONFIGS = st.builds(
    LeakageConfig,
    overlap=st.sampled_from([None, 0.0, 0.3, 0.5, 0.7, 0.8, 1.0]),
    min_characters=st.sampled_from([0, 20, 30]),
)


@settings(max_examples=60)
@given(TRAIN, ROWS, CONFIGS, st.sampled_from([EN_DE, EN_ZH]))
def test_leaks_are_those_of_a_plain_loop(
    train: list[Pair], rows: list[HeldOut], config: LeakageConfig, languages: LanguagesConfig
) -> None:
    assert leaks(train, index(rows, config, languages)) == [reference(pair, rows, config, languages) for pair in train]


@settings(max_examples=60)
@given(TRAIN, ROWS, st.sampled_from([0.3, 0.5, 0.8]), st.integers(1, 40), st.integers(1, 6))
def test_neither_steps_nor_counters_that_are_shared_change_the_answer(
    train: list[Pair], rows: list[HeldOut], overlap: float, meetings: int, slot_bits: int
) -> None:
    config = LeakageConfig(overlap=overlap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MEETINGS", meetings)
        patch.setattr(module, "_SLOT_BITS", slot_bits)
        patch.setattr(module, "_FILTER_BITS", (3, 3))
        assert leaks(train, index(rows, config, EN_ZH)) == [reference(pair, rows, config, EN_ZH) for pair in train]


def test_every_held_out_text_is_found_among_many() -> None:
    dice = random.Random(2)
    rows = [
        HeldOut(
            "dev", number, "".join(dice.choices("abcdefghijklmnop", k=60)), "".join(dice.choices("qrstuvwxyz", k=60))
        )
        for number in range(500)
    ]
    train: list[Pair] = [
        (row.src[3:] if row.row_id % 2 else "", row.tgt[:-3] if not row.row_id % 2 else "") for row in rows
    ]
    assert leaks(train, index(rows, NEAR)) == [("near_leakage_dev", 1.0, row.row_id) for row in rows]


# --- Parts and files -----------------------------------------------------------------------------------------------


@given(ROWS, CONFIGS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_parts_merge_into_what_they_are_together(
    rows: list[HeldOut], config: LeakageConfig, size: int, dice: random.Random
) -> None:
    together = index(rows, config)
    shuffled = dice.sample(rows, len(rows))
    parts = merged([index(shuffled[start : start + size], config) for start in range(0, len(rows), size)])
    assert parts == together


def test_a_file_holds_the_whole_index(tmp_path: Path) -> None:
    rows = [LONG, STOP, HeldOut("dev", 5, "", "")]
    for config in (EXACT, NEAR):
        whole = index(rows, config)
        whole.save(tmp_path / "index")
        index(rows[::-1], config).save(tmp_path / "again")
        loaded = HeldOutIndex.load(tmp_path / "index")
        assert loaded == whole
        assert leaks([(SRC + " Look!", "")], loaded) == leaks([(SRC + " Look!", "")], whole)
        assert (tmp_path / "index").read_bytes() == (tmp_path / "again").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "index"]


def test_parts_of_different_configs_are_a_fault() -> None:
    with pytest.raises(AssertionError, match="different configs"):
        merged([index([LONG], EXACT), index([STOP], NEAR)])


def test_the_strictest_length_of_the_parts_counts_for_like_texts() -> None:
    strict, loose = (LeakageConfig(overlap=0.5, min_characters=characters) for characters in (40, 0))
    both = merged([index([LONG], loose), index([STOP], strict)])
    part = "a blue shirt is standing on a ladder"
    assert reasons([(part, "")], both) == [None]
    assert reasons([(part, "")], index([LONG], loose)) == ["near_leakage_test"]
