"""Counts, histograms and examples of what decides on some rows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from pipelines.explanations import SAMPLES, Explanations, edges, histogram_table, sample_table, waterfall_table
from pipelines.verdict import Criterion, judge

WORDS = Criterion("words", "score_words", "above", 10.0)
NUMBERS = Criterion("numbers", "score_numbers", "above", None)


def rows(scores: list[float | None], first: int = 0) -> pa.Table:
    numbers = range(first, first + len(scores))
    return pa.table(
        {
            "row_id": pa.array(numbers, pa.int64()),
            "corpus": ["web"] * len(scores),
            "src": [f"source {number}" for number in numbers],
            "tgt": [f"target {number}" for number in numbers],
            "score_words": pa.array(scores, pa.float32()),
        }
    )


def explained(tables: list[pa.Table]) -> Explanations:
    made = Explanations((WORDS, NUMBERS))
    for table in tables:
        columns = {"score_words": table["score_words"].combine_chunks()}
        verdict = judge(columns, made.criteria, len(table))
        made.count(verdict, columns, np.ones(len(table), dtype=np.bool_))
        reason = pa.array(["words" if place == 0 else None for place in verdict.first], pa.string())
        made.show(table, reason, columns["score_words"])
    return made


@given(st.lists(st.one_of(st.none(), st.floats(0, 3000, width=32)), min_size=1, max_size=60))
def test_a_histogram_counts_each_score_in_its_bin(scores: list[float | None]) -> None:
    made = explained([rows(scores)])
    bins = edges("words").tolist()
    known = [score for score in scores if score is not None]
    for counts, values in ((made.before, known), (made.after, [score for score in known if score <= 10])):
        expected = [sum(low <= value < high for value in values) for low, high in zip(bins, [*bins[1:], np.inf])]
        assert counts["score_words"].tolist() == expected


def test_counts_of_parts_add_up_and_pass_through_json() -> None:
    scores: list[float | None] = [3, 12, None, 40, 11]
    whole = explained([rows(scores)])
    parts = [explained([rows(scores[:2])]), explained([rows(scores[2:], first=2)])]
    total = Explanations(whole.criteria)
    for part in parts:
        total.add(Explanations.from_dict(part.criteria, part.to_dict()))
    assert total.to_dict() == whole.to_dict()
    assert (whole.alone.tolist(), whole.only.tolist()) == ([3, 0], [3, 0])


def test_examples_are_the_nearest_to_the_threshold_in_whatever_parts_they_were(tmp_path: Path) -> None:
    scores: list[float | None] = [float(score) for score in np.random.default_rng(1).permutation(60)]
    cuts = [0, 7, 8, 40, 60]
    files = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        files.append(tmp_path / str(number))
        explained([rows(scores[start:stop], first=start)]).write_samples(files[-1])
    apart = sample_table(files)
    explained([rows(scores)]).write_samples(tmp_path / "whole")
    assert apart.equals(sample_table([tmp_path / "whole"]))
    found = {kind: [row["score"] for row in apart.to_pylist() if row["kind"] == kind] for kind in KINDS}
    assert found["borderline dropped"] == [11, 12, 13, 14, 15]
    assert found["borderline kept"] == [10, 9, 8, 7, 6]
    assert len(found["dropped"]) == len(found["kept"]) == SAMPLES
    assert min(found["dropped"]) > 10


KINDS = ("dropped", "kept", "borderline dropped", "borderline kept")


def test_tables_hold_what_was_counted(tmp_path: Path) -> None:
    made = explained([rows([3, 12])])
    histogram = histogram_table({"train/web": made})
    filled = [row for row in histogram.to_pylist() if row["before"]]
    assert [(row["low"], row["high"], row["before"], row["after"]) for row in filled] == [(3, 4, 1, 1), (10, 15, 1, 0)]
    entry = {"split": "train", "corpus": "web", "read": 2, "kept": 1, "rejected": {"words": 1, "duplicate": 0}}
    table = waterfall_table([{**entry, "alone": {"words": 1}, "only": {"words": 1}}])
    pq.write_table(table, tmp_path / "waterfall.parquet")
    assert [(row["reason"], row["rows"], row["alone"], row["only"]) for row in table.to_pylist()] == [
        ("read", 2, None, None),
        ("words", 1, 1, 1),
        ("duplicate", 0, None, None),
        ("kept", 1, None, None),
    ]
