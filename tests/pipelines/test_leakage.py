"""What of train counts as leaked from dev and test."""

from __future__ import annotations

import pyarrow as pa

from pipelines.characters import CodePoints
from pipelines.dedup import FoldedKeys, folded_keys
from pipelines.leakage import LEAKAGE_REASONS, HeldOutKeys, held_out_keys, leaks, merged

MIN_CHARACTERS = 20


def keys(*texts: str) -> FoldedKeys:
    return folded_keys(CodePoints(pa.array(texts, type=pa.string())))


def held_out(*pairs: tuple[str, str]) -> HeldOutKeys:
    src, tgt = zip(*pairs)
    return held_out_keys(keys(*src), keys(*tgt), MIN_CHARACTERS)


def reasons(train: list[tuple[str, str]], splits: dict[str, HeldOutKeys]) -> list[str | None]:
    src, tgt = zip(*train)
    found = leaks(keys(*src).keys, keys(*tgt).keys, splits)
    return [LEAKAGE_REASONS[place] if place >= 0 else None for place in found.tolist()]


LONG = ("A man in a blue shirt is standing on a ladder.", "Ein Mann in einem blauen Hemd steht auf einer Leiter.")


def test_either_side_tells_a_leak() -> None:
    train = [(LONG[0], "Etwas anderes."), ("Something else.", LONG[1]), ("Something else.", "Etwas anderes.")]
    assert reasons(train, {"test": held_out(LONG)}) == ["leakage_test", "leakage_test", None]


def test_case_and_punctuation_do_not_hide_a_leak() -> None:
    assert reasons([(LONG[0].upper().rstrip("."), "Anders.")], {"dev": held_out(LONG)}) == ["leakage_dev"]


def test_a_short_side_counts_only_with_its_pair() -> None:
    train = [("Stop.", "Halt!"), ("Stop.", "Anhalten."), ("Wait.", "Halt!")]
    assert reasons(train, {"dev": held_out(("Stop.", "Halt."))}) == ["leakage_dev", None, None]


def test_the_sides_of_different_pairs_make_no_short_pair() -> None:
    assert reasons([("Stop.", "Warte.")], {"dev": held_out(("Stop.", "Halt."), ("Wait.", "Warte."))}) == [None]


def test_what_is_in_dev_and_test_counts_for_dev() -> None:
    assert reasons([LONG], {"dev": held_out(LONG), "test": held_out(LONG)}) == ["leakage_dev"]


def test_a_source_in_the_targets_is_no_leak() -> None:
    assert reasons([(LONG[1], LONG[0])], {"dev": held_out(LONG)}) == [None]


def test_without_held_out_rows_nothing_leaks() -> None:
    empty = merged([])
    assert reasons([LONG], {"dev": empty, "test": empty}) == [None]


def test_parts_merge_into_what_they_are_together() -> None:
    other = ("Two dogs are running through the deep snow.", "Zwei Hunde rennen durch den tiefen Schnee.")
    together = held_out(LONG, other, LONG)
    parts = merged([held_out(other).to_bytes(), held_out(LONG).to_bytes(), held_out(LONG).to_bytes()])
    for kind in ("src", "tgt", "pair"):
        assert getattr(parts, kind).tolist() == getattr(together, kind).tolist()
