"""A finished stage `clean` with given rows, for the tests of the stages after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.stage import StageResult, StageRun, run_stage

COLOURS = {"red": "rote", "blue": "blaue", "green": "grüne", "white": "weiße", "old": "alte", "small": "kleine"}
NOUNS = {"house": "Haus", "boat": "Boot", "dress": "Kleid", "book": "Buch", "village": "Dorf", "castle": "Schloss"}

# 72 pairs, the numbers too.
PAIRS = [
    (f"The {colour} {noun} costs € {price}.50.", f"Das {farbe} {wort} kostet {price},50 €.")
    for price in (3, 17)
    for colour, farbe in COLOURS.items()
    for noun, wort in NOUNS.items()
]


def cleaned_stage(
    root: Path,
    train: Sequence[Sequence[tuple[str, str]]] = (PAIRS[:40], PAIRS[40:70]),
    dev: Sequence[tuple[str, str]] = PAIRS[70:71],
    test: Sequence[tuple[str, str]] = PAIRS[71:72],
) -> StageRun:
    """Return a stage whose clean/train has one part for each list of pairs; dev and test have one part each."""
    splits: Mapping[str, Sequence[Sequence[tuple[str, str]]]] = {"train": train, "dev": [dev], "test": [test]}

    def body(folder: Path) -> StageResult:
        outputs = []
        for split, parts in splits.items():
            (folder / "clean" / split).mkdir(parents=True)
            first = 0
            for number, pairs in enumerate(parts):
                path = f"clean/{split}/part-{number:05d}.parquet"
                pq.write_table(_table(pairs, first, split), folder / path)
                outputs.append(path)
                first += len(pairs)
        return StageResult(outputs, {})

    rows = {split: [list(pairs) for pairs in parts] for split, parts in splits.items()}
    return run_stage("clean", 1, {"rows": rows}, {}, root, body)


def _table(pairs: Sequence[tuple[str, str]], first: int, corpus: str) -> pa.Table:
    return pa.table(
        {
            "row_id": pa.array(range(first, first + len(pairs)), pa.int64()),
            "corpus": pa.array([corpus] * len(pairs), pa.string()),
            "src": pa.array([source for source, _ in pairs], pa.string()),
            "tgt": pa.array([target for _, target in pairs], pa.string()),
            "score_length": pa.array([1.0] * len(pairs), pa.float32()),
        }
    )
