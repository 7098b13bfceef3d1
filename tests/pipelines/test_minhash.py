"""Signatures, bands and near duplicates, against plain loops, exact Jaccard indices and brute force."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import minhash as module
from pipelines.characters import CodePoints
from pipelines.minhash import (
    SIGNATURE_SIZE,
    Repeats,
    Signatures,
    band_keys,
    band_shape,
    near_duplicates,
    pair_signatures,
    signatures,
    similarity,
    union,
)
from pipelines.shingles import mixed, shingles

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
TEXTS = st.lists(st.text(st.sampled_from("abcÄ .字𠀀𝄞1"), max_size=40), min_size=1, max_size=6)
EMPTY = 0xFFFFFFFF


def of(*texts: str) -> CodePoints:
    return CodePoints(pa.array(texts, type=pa.string()))


def hashes_of(text: str, shingle: int, salt: int = 0) -> set[int]:
    return set(shingles(of(text), shingle, salt).hashes.tolist())


def jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


# --- Signatures ----------------------------------------------------------------------------------------------------


def mixed_number(number: int) -> int:
    return int(mixed(np.array([number], dtype=np.uint64))[0])


def donors(place: int) -> list[int]:
    others = [other for other in range(SIGNATURE_SIZE) if other != place]
    return sorted(others, key=lambda other: mixed_number(mixed_number(place + 1) + other & (1 << 64) - 1))


DONORS = [donors(place) for place in range(SIGNATURE_SIZE)]


def signature_of(hashes: set[int]) -> list[int]:
    bins = [EMPTY] * SIGNATURE_SIZE
    for value in hashes:
        place = value >> 58
        bins[place] = min(bins[place], value & 0xFFFFFFFF)
    return [
        value if value != EMPTY else next(bins[donor] for donor in DONORS[place] if bins[donor] != EMPTY)
        for place, value in enumerate(bins)
    ]


def test_signatures_are_the_same_on_every_machine() -> None:
    assert signatures(of("A dog runs."), 3)[0, :4].tolist() == [1681724944, 1065509321, 1065509321, 1681724944]


@given(TEXTS, st.integers(1, 12))
def test_a_signature_is_the_least_hash_of_each_bin(texts: list[str], shingle: int) -> None:
    assert signatures(of(*texts), shingle).tolist() == [signature_of(hashes_of(text, shingle)) for text in texts]


@given(TEXTS, st.integers(1, 12))
def test_a_pair_is_the_set_of_both_sides_shingles(texts: list[str], shingle: int) -> None:
    salts = (module._SOURCE, module._TARGET)
    expected = [
        signature_of(hashes_of(src, shingle, salts[0]) | hashes_of(tgt, shingle, salts[1]))
        for src, tgt in zip(texts, reversed(texts))
    ]
    assert pair_signatures(of(*texts), of(*reversed(texts)), shingle).tolist() == expected


def test_what_is_signed_in_one_go_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = of(*(f"row {number} " * (number % 7) for number in range(50)))
    together = signatures(texts, 4)
    monkeypatch.setattr(module, "_ROWS", 8)
    assert np.array_equal(signatures(texts, 4), together)


def test_source_and_target_do_not_change_places() -> None:
    one, other = of("a dog runs in the garden"), of("ein Hund läuft im Garten")
    assert similarity(pair_signatures(one, other, 3), pair_signatures(other, one, 3)) == [0.0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("A dog runs.", "a DOG - runs", 1.0),
        ("", "", 1.0),
        ("...", "...", 1.0),
        ("", "a dog", 0.0),
        ("字", "字", 1.0),
        ("𠀀𠀁", "𠀀𠀂", 0.0),
        ("abc", "abd", 0.0),
        ("abababababab", "ababab", 1.0),  # the same set of shingles
    ],
)
def test_similarity_of_what_is_the_same_or_has_nothing_in_common(one: str, other: str, expected: float) -> None:
    assert similarity(signatures(of(one), 5), signatures(of(other), 5)).tolist() == [expected]


def noisy(text: str, share: float, dice: random.Random) -> str:
    return "".join(dice.choice("abcdefghij") if dice.random() < share else character for character in text)


def estimates(length: int, pairs: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return exact and estimated Jaccard indices of random texts and their noisy copies: [pairs] each."""
    dice = random.Random(5)
    originals = ["".join(dice.choices("abcdefghij", k=length)) for _ in range(pairs)]
    copies = [noisy(text, dice.choice([0.005, 0.02, 0.05, 0.1, 0.2]), dice) for text in originals]
    exact = [jaccard(hashes_of(one, 5), hashes_of(other, 5)) for one, other in zip(originals, copies)]
    estimated = similarity(signatures(of(*originals), 5), signatures(of(*copies), 5))
    return np.array(exact), estimated.astype(np.float64)


def test_similarity_estimates_the_jaccard_index_with_the_binomial_error() -> None:
    exact, estimated = estimates(length=600, pairs=600)
    assert exact.min() < 0.2 and exact.max() > 0.9
    variance = exact * (1 - exact) / SIGNATURE_SIZE
    error = estimated - exact
    assert abs(error.mean()) < 4 * np.sqrt(variance.mean() / len(error))
    # A little below 1, as bins hold different shingles: sampling without replacement.
    assert 0.7 < (error**2).sum() / variance.sum() < 1.1
    assert (np.abs(error) < 5 * np.sqrt(variance + 1e-4)).all()


def test_texts_with_fewer_shingles_than_places_are_estimated_without_bias() -> None:
    exact, estimated = estimates(length=40, pairs=2000)
    error = estimated - exact
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))
    assert error.std() < 0.12


# --- Bands ---------------------------------------------------------------------------------------------------------


def found_with_probability(similarity: float, bands: int, places: int) -> float:
    missed = 1.0
    for _ in range(bands):
        missed *= 1.0 - similarity**places
    return 1.0 - missed


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_bands_are_as_long_and_as_few_as_find_the_threshold(threshold: float) -> None:
    fitting = [
        (bands, places)
        for places in range(1, SIGNATURE_SIZE + 1)
        for bands in range(1, SIGNATURE_SIZE // places + 1)
        if found_with_probability(threshold, bands, places) >= 0.95
    ]
    longest = max(places for _, places in fitting)
    assert band_shape(threshold) == (min(bands for bands, places in fitting if places == longest), longest)


def test_the_bands_of_the_default_threshold() -> None:
    assert band_shape(0.8) == (10, 6)


def test_a_similarity_that_no_bands_find_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.01"):
        band_shape(0.01)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_rows_of_the_threshold_share_a_key_as_often_as_the_formula_says(threshold: float) -> None:
    dice = np.random.default_rng(3)
    rows = 4000
    one = dice.integers(0, 2**32, (rows, SIGNATURE_SIZE), dtype=np.uint32)
    other = np.where(dice.random(one.shape) < threshold, one, dice.integers(0, 2**32, one.shape, dtype=np.uint32))
    share = (band_keys(one, threshold) == band_keys(other, threshold)).any(axis=1).mean()
    expected = found_with_probability(threshold, *band_shape(threshold))
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / rows)


def test_a_key_is_of_its_band_and_of_the_values_in_their_order() -> None:
    bands, _ = band_shape(0.8)
    same = np.full((1, SIGNATURE_SIZE), 7, dtype=np.uint32)
    keys = band_keys(same, 0.8)
    assert keys.shape == (1, bands)
    assert len(set(keys[0].tolist())) == bands
    ordered, swapped = same.copy(), same.copy()
    ordered[0, 0], swapped[0, 1] = 8, 8
    assert band_keys(ordered, 0.8)[0, 0] != band_keys(swapped, 0.8)[0, 0]
    assert (band_keys(ordered, 0.8)[0, 1:] == keys[0, 1:]).all()


# --- Near duplicates -----------------------------------------------------------------------------------------------


def row_keys(signed: Signatures, threshold: float, row_id: npt.ArrayLike, priority: npt.ArrayLike) -> dict[str, object]:
    """The entries of rows whose signatures are `signed`: one for each key of each row."""
    keys = band_keys(signed, threshold)
    bands = keys.shape[1]
    return {
        "band_key": keys.ravel(),
        "row_id": np.repeat(np.asarray(row_id, dtype=np.int64), bands),
        "priority": np.repeat(np.asarray(priority, dtype=np.float32), bands),
        "place": np.repeat(np.arange(len(signed)), bands),
    }


def rows_of(found: Repeats) -> list[tuple[int, int, float]]:
    return list(zip(found.row_id.tolist(), found.better.tolist(), found.similarity.tolist()))


def brute_force(
    signed: Signatures, threshold: float, row_id: list[int], priority: list[float], share_a_key: bool
) -> list[tuple[int, int, float]]:
    keys = [set(row) for row in band_keys(signed, threshold).tolist()]
    found = []
    for row in range(len(row_id)):
        better = [
            (-priority[other], row_id[other], int((signed[other] == signed[row]).sum()) / SIGNATURE_SIZE)
            for other in range(len(row_id))
            if (-priority[other], row_id[other]) < (-priority[row], row_id[row])
            and (not share_a_key or keys[row] & keys[other])
        ]
        like = sorted(entry for entry in better if entry[2] >= threshold)
        if like:
            found.append((row_id[row], like[0][1], like[0][2]))
    return sorted(found)


@st.composite
def likenesses(draw: st.DrawFn) -> tuple[Signatures, list[int], list[float]]:
    """Signatures that have most places in common, row ids in any order, and priorities of which many are equal."""
    rows = draw(st.integers(1, 20))
    dice = np.random.default_rng(draw(st.integers(0, 1000)))
    families = dice.integers(0, 2**32, (3, SIGNATURE_SIZE), dtype=np.uint32)[dice.integers(0, 3, rows)]
    changed = dice.random(families.shape) < dice.choice([0.0, 0.02, 0.1, 0.2], (rows, 1))
    signed = np.where(changed, dice.integers(0, 2**32, families.shape, dtype=np.uint32), families)
    priority = dice.choice([-1.5, 0.0, 0.25, np.inf, -np.inf], rows).tolist()
    return signed, (dice.permutation(rows) * 3).tolist(), priority


@given(likenesses(), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_a_row_goes_for_the_best_one_that_it_is_like(
    rows: tuple[Signatures, list[int], list[float]], threshold: float
) -> None:
    signed, row_id, priority = rows
    found = near_duplicates(
        **row_keys(signed, threshold, row_id, priority), lookup=lambda places: signed[places], similarity=threshold
    )
    assert rows_of(found) == brute_force(signed, threshold, row_id, priority, share_a_key=True)


@given(likenesses())
def test_rows_that_all_share_a_key_are_judged_by_similarity_alone(
    rows: tuple[Signatures, list[int], list[float]],
) -> None:
    signed, row_id, priority = rows
    found = near_duplicates(
        np.zeros(len(row_id), dtype=np.uint64),
        np.array(row_id),
        np.array(priority, dtype=np.float32),
        np.arange(len(row_id)),
        lambda places: signed[places],
        0.8,
    )
    assert rows_of(found) == brute_force(signed, 0.8, row_id, priority, share_a_key=False)


@given(likenesses(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_neither_order_nor_partition_nor_steps_change_the_answer(
    rows: tuple[Signatures, list[int], list[float]], partitions: int, dice: random.Random
) -> None:
    signed, row_id, priority = rows
    entries = row_keys(signed, 0.8, row_id, priority)
    together = near_duplicates(**entries, lookup=lambda places: signed[places], similarity=0.8)
    order = np.array(dice.sample(range(len(entries["band_key"])), len(entries["band_key"])))
    shuffled = {name: column[order] for name, column in entries.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COMPARISONS", 3)
        parts = [
            near_duplicates(
                **{name: column[shuffled["band_key"] % partitions == part] for name, column in shuffled.items()},
                lookup=lambda places: signed[places],
                similarity=0.8,
            )
            for part in range(partitions)
        ]
    dice.shuffle(parts)
    assert rows_of(union(parts)) == rows_of(together)
    assert union(parts).better_priority.tolist() == together.better_priority.tolist()


def test_without_entries_nothing_goes() -> None:
    found = near_duplicates(
        **row_keys(np.zeros((0, SIGNATURE_SIZE), dtype=np.uint32), 0.8, [], []),
        lookup=lambda places: pytest.fail("nothing is to be looked up"),
        similarity=0.8,
    )
    assert rows_of(found) == rows_of(union([])) == []


def test_a_row_goes_even_if_the_better_one_goes_for_a_third() -> None:
    signed = np.zeros((3, SIGNATURE_SIZE), dtype=np.uint32)
    signed[1, :12], signed[2, -12:] = 1, 2  # both are like row 0, but not like one another
    found = near_duplicates(
        np.zeros(3, dtype=np.uint64), np.arange(3), np.array([0, 1, -1], dtype=np.float32), np.arange(3),
        lambda places: signed[places], 0.8,
    )  # fmt: skip
    assert rows_of(found) == [(0, 1, 52 / 64), (2, 0, 52 / 64)]


def test_only_the_best_rows_of_a_key_are_compared_with() -> None:
    rows = 40
    signed = np.tile(np.arange(rows, dtype=np.uint32)[:, None], SIGNATURE_SIZE)
    signed[33], signed[39] = signed[31], signed[35]  # rows 0 to 31 are the leaders
    found = near_duplicates(
        np.zeros(rows, dtype=np.uint64), np.arange(rows), np.zeros(rows, dtype=np.float32), np.arange(rows),
        lambda places: signed[places], 0.8,
    )  # fmt: skip
    assert rows_of(found) == [(33, 31, 1.0)]


def test_a_million_equal_rows_are_compared_once_each() -> None:
    rows, compared = 1_000_000, 0
    one = np.zeros((1, SIGNATURE_SIZE), dtype=np.uint32)

    def lookup(places: npt.NDArray[np.int64]) -> Signatures:
        nonlocal compared
        compared += len(places)
        return np.broadcast_to(one, (len(places), SIGNATURE_SIZE))

    found = near_duplicates(
        np.zeros(rows, dtype=np.uint64), np.arange(rows), np.zeros(rows, dtype=np.float32), np.zeros(rows, np.int64),
        lookup, 0.8,
    )  # fmt: skip
    assert len(found) == rows - 1
    assert set(found.better.tolist()) == {0}
    assert compared == 2 * (rows - 1)


def test_a_priority_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        near_duplicates(
            np.zeros(1, dtype=np.uint64), np.zeros(1, np.int64), np.array([np.nan], dtype=np.float32),
            np.zeros(1, np.int64), lambda places: np.zeros((len(places), SIGNATURE_SIZE), np.uint32), 0.8,
        )  # fmt: skip


@given(TEXTS)
def test_a_signature_does_not_depend_on_the_rows_around_it(texts: list[str]) -> None:
    together = signatures(of(*texts), 5)
    assert together.tolist() == [signatures(of(text), 5)[0].tolist() for text in texts]


def test_a_changed_word_makes_a_near_duplicate_and_another_sentence_none() -> None:
    src = [
        "Two young men are repairing an old wooden boat at the quiet harbour in the early morning.",
        "Two young men are repairing an old wooden boat at the quiet harbour in the late morning.",
        "A woman in a red coat is waiting for the bus in front of the new theatre with her small dog.",
    ]
    tgt = [
        "Zwei junge Männer reparieren am frühen Morgen ein altes Holzboot am ruhigen Hafen.",
        "Zwei junge Männer reparieren am späten Morgen ein altes Holzboot am ruhigen Hafen.",
        "Eine Frau in einem roten Mantel wartet mit ihrem kleinen Hund vor dem neuen Theater auf den Bus.",
    ]
    signed = pair_signatures(of(*src), of(*tgt), 5)
    found = near_duplicates(
        **row_keys(signed, 0.7, [10, 11, 12], [0.0, 0.0, 0.0]), lookup=lambda places: signed[places], similarity=0.7
    )
    assert [(row, better) for row, better, _ in rows_of(found)] == [(11, 10)]
