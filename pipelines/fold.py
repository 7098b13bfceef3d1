"""Cross-validation: the cleaned training rows -> the i-th of k folds as dev, and all others as train.

    fold(cleaned, 5, 0, root)

Inputs: clean/train/part-*.parquet of the stage clean. No row of its dev or test is touched. Outputs, which tokeniser,
encoding and training read in the place of those of clean:

    clean/train/part-00000.parquet      the rows of the other folds, as they were
    clean/dev/part-00000.parquet        the rows of this fold: row_id, corpus, src, tgt, src_raw, tgt_raw

The texts of dev are those of training, normalised, so that the reference is the target as it was cleaned. Rows are in
the order of row_id, within a file and over the files. Takes about a second for 100,000 pairs on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.characters import CodePoints
from pipelines.decisions import HELD_OUT_SCHEMA, write_parquet
from pipelines.dedup import folded_keys
from pipelines.draws import derived, uniform
from pipelines.errors import InputError
from pipelines.stage import StageResult, StageRun, run_stage

STAGE_VERSION = 1
_TRAIN = "clean/train/"
_PURPOSE = "fold"


def fold(cleaned: StageRun, folds: int, index: int, root: Path) -> StageRun:
    """Return the stage whose folder holds fold `index` (from 0) of `folds` as dev, and the other folds as train.

    Counters: {"rows", "train", "dev"}. Raises InputError where the fold, or all others together, have no row.
    """
    if not 0 <= index < folds:
        raise ValueError(f"no fold {index} of {folds}")

    def body(folder: Path) -> StageResult:
        outputs: list[str] = []
        rows = {"train": 0, "dev": 0}
        for table in _tables(cleaned):
            inside = fold_numbers(table["src"].combine_chunks(), folds) == index
            for split, part in (("train", table.filter(pa.array(~inside))), ("dev", _held_out(table, inside))):
                rows[split] += len(part)
                if len(part):
                    number = sum(path.startswith(f"clean/{split}/") for path in outputs)
                    outputs.append(f"clean/{split}/part-{number:05d}.parquet")
                    (folder / outputs[-1]).parent.mkdir(parents=True, exist_ok=True)
                    write_parquet(folder / outputs[-1], part)
        _check(rows, folds, index)
        return StageResult(outputs, {"rows": rows["train"] + rows["dev"], **rows})

    # What translation does to its input stands where it stands of clean.
    settings = {name: cleaned.manifest.config[name] for name in ("languages", "normalize")}
    decides = {"folds": folds, "fold": index, **settings}
    return run_stage("fold", STAGE_VERSION, decides, {"cleaned": cleaned.manifest.digest()}, root, body)


def fold_numbers(sources: pa.StringArray, folds: int) -> npt.NDArray[np.int64]:
    """Return the fold of each row by its source without case, punctuation and white space: [rows], 0 to folds - 1.

    A pure function of the text: rows of the same source are in the same fold, whatever else there is.
    """
    keys = derived(folded_keys(CodePoints(sources)).keys, _PURPOSE)
    return (uniform(keys) * folds).astype(np.int64)


def _tables(cleaned: StageRun) -> Iterator[pa.Table]:
    """Yield the parts of train in their order; one is in memory at a time."""
    # From the manifest, so that a stray file in the folder is no input.
    for path in sorted(output.path for output in cleaned.manifest.outputs):
        if path.startswith(_TRAIN):
            yield pq.read_table(cleaned.folder / path)


def _held_out(table: pa.Table, inside: npt.NDArray[np.bool_]) -> pa.Table:
    rows = table.filter(pa.array(inside))
    columns = [rows[name.removesuffix("_raw")] for name in HELD_OUT_SCHEMA.names]
    return pa.table(columns, names=HELD_OUT_SCHEMA.names).cast(HELD_OUT_SCHEMA)


def _check(rows: dict[str, int], folds: int, index: int) -> None:
    for split, what in (("dev", f"fold {index} of {folds} has no row"), ("train", f"fold {index} holds every row")):
        if rows[split] == 0:
            raise InputError(
                f"{what}: train has {rows['train'] + rows['dev']} rows, those of one source together",
                where="tune.folds",
                remedy="Use fewer folds, or 0 for the recipe's own dev",
            )
