from __future__ import annotations

from typing import Any

import pytest

from flows.summary import Rows, best_on_dev, dropping, ledger, percent, rules, size, threshold, visible, waterfall_rows
from nmt.config import PricesConfig

TRAIN: dict[str, Any] = {
    "split": "train",
    "corpus": "news",
    "read": 2000,
    "kept": 1879,
    "rejected": {"empty": 0, "language": 120, "duplicate": 1},
    "alone": {"empty": 0, "language": 150},
    "only": {"empty": 0, "language": 100},
}
TEST: dict[str, Any] = {"split": "test", "corpus": "talks", "read": 10, "kept": 9, "rejected": {"malformed": 1}}


def _criterion(name: str, threshold: float | None, worse: str = "above") -> dict[str, Any]:
    return {"name": name, "column": f"score_{name}", "worse": worse, "threshold": threshold}


def test_the_waterfall_has_shares_of_the_rows_read() -> None:
    assert waterfall_rows([TRAIN, TEST]) == Rows(
        ["rows", "train news", "test talks"],
        [
            ["read", "2,000", "10"],
            ["- language", "120    6.0 %", "."],
            ["- duplicate", "1    0.1 %", "."],
            ["- malformed", ".", "1   10.0 %"],
            ["kept", "1,879   94.0 %", "9   90.0 %"],
        ],
    )


def test_many_corpora_stand_together_by_split() -> None:
    many = [{**TRAIN, "corpus": f"c{place}"} for place in range(5)]
    table = waterfall_rows([*many, TEST])
    assert table.header == ["rows", "train", "test"]
    assert table.rows[0] == ["read", "10,000", "10"]
    assert table.rows[-1] == ["kept", "9,395   94.0 %", "9   90.0 %"]


def test_a_corpus_without_a_row_has_no_share() -> None:
    empty = {"split": "test", "corpus": "none", "read": 0, "kept": 0, "rejected": {}}
    assert waterfall_rows([empty]).rows == [["read", "0"], ["kept", "0    0.0 %"]]


def test_reasons_that_dropped_rows_are_in_their_order() -> None:
    assert dropping([TRAIN, TEST]) == ["language", "duplicate", "malformed"]


def test_rules_stand_with_what_they_drop_alone_and_what_no_other_drops() -> None:
    criteria = {"train/news": [_criterion("empty", 1.0, "below"), _criterion("language", 0.75)]}
    assert rules([TRAIN, TEST], criteria) == Rows(
        ["rule", "drops", "dropped", "alone", "only"],
        [["language", "above 0.75", "120    6.0 %", "150    7.5 %", "100    5.0 %"]],
    )


def test_thresholds_that_differ_are_each_named_once() -> None:
    criteria = {
        "train/a": [_criterion("words", 250.0), _criterion("input_laser", 0.8, "below")],
        "train/b": [_criterion("words", None), _criterion("input_laser", 1.2)],
        "train/c": [_criterion("words", 250.0)],
    }
    assert threshold(criteria, "words") == "above 250, nothing (soft)"
    assert threshold(criteria, "input_laser") == "below 0.8, above 1.2"
    assert threshold(criteria, "duplicate") == ""


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0 %"), (0.0004, "<0.1 %"), (0.0005, "0.1 %"), (0.5, "50.0 %"), (1.0, "100.0 %")]
)
def test_shares_are_percentages(share: float, text: str) -> None:
    assert percent(share) == text


def test_what_cannot_be_seen_is_drawn_and_long_texts_are_cut() -> None:
    assert visible("a\tb\x00") == "a␉b␀"
    assert visible("abcdef", 3) == "abc…"
    assert visible("abc", 3) == "abc"


def test_the_best_on_dev_is_bleu_or_a_language_models_perplexity() -> None:
    assert best_on_dev({"best_bleu": 31.256, "best_loss": 1.5}) == "BLEU 31.26"
    assert best_on_dev({"best_loss": 2.5, "best_perplexity": 12.182}) == "perplexity 12.18"


LEDGER = {
    "wall_hours": 0.25, "worker_hours": 0.5, "gpu_hours": 0.0, "again_hours": 0.0, "restarts": 0, "updates": 1200,
    "updates_again": 0, "target_tokens": 50_000, "target_tokens_per_s": 61.7, "shares": {"validation": 0.25},
}  # fmt: skip


def test_the_ledger_is_a_row_a_figure_and_leaves_out_what_there_was_not() -> None:
    rows = [
        ["wall time", "0.25 h"],
        ["workers' time", "0.50 h"],
        ["restarts", "0"],
        ["updates", "1,200"],
        ["target pieces", "50,000"],
        ["target pieces per second", "62"],
        ["of the time: validation", "25.0 %"],
    ]
    assert ledger({"ledger": LEDGER}).rows == rows
    costly = LEDGER | {"cost": 1234.5, "currency": "EUR", "updates_again": 3, "gpu_hours": 2.0}
    assert ledger({"ledger": costly}).rows == [
        *rows[:2], ["GPUs' time", "2.00 h"], rows[2], ["updates done again", "3"], *rows[3:], ["cost", "1,234.50 EUR"],
    ]  # fmt: skip
    assert ledger({"updates": 3}).rows == []
    unpriced = PricesConfig()
    assert ledger({"ledger": LEDGER}, unpriced).rows == rows
    assert ledger({"ledger": costly}, unpriced).rows[-1] == ["cost", "1,234.50 EUR"]


def test_the_cost_of_a_training_that_has_ended_is_by_the_prices_of_today() -> None:
    prices = PricesConfig(currency="CHF", worker_hour=100.0, machine_hour=8.0)
    for found in (LEDGER, LEDGER | {"cost": 1234.5, "currency": "EUR"}):
        assert ledger({"ledger": found}, prices).rows[-1] == ["cost", "52.00 CHF"]


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (12_345_678, "12.3 MB"), (2 * 10**9, "2 GB")]
)
def test_sizes_have_three_digits_and_a_unit(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text
