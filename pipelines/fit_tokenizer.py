"""Stage 3: a sample of the cleaned training pairs -> the SentencePiece model.

    fit_tokenizer(recipe.languages, recipe.tokenizer, cleaned, root)

Inputs: clean/train/part-*.parquet of the stage clean.
Outputs: tokenizer.json and joint.model, or source.model and target.model (see `pipelines/tokenizer.py`).
With `tokenizer.from_model` they are that model's, and nothing is fitted.
Takes seconds for 30,000 pairs, minutes for the default sample of a million.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.config import LanguagesConfig, TokenizerConfig
from pipelines.errors import InputError
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.tokenizer import (
    JOINT_MODEL,
    SOURCE_MODEL,
    TARGET_MODEL,
    TOKENIZER_JSON,
    Tokenizer,
    save_tokenizer,
    tokenizer_files,
    tokenizer_keys,
    train_model,
)

STAGE_VERSION = 1


@dataclass(frozen=True)
class _Sample:
    """`rows` pairs of the training parts, evenly spread over all `total` of them."""

    parts: tuple[Path, ...]
    total: int
    rows: int

    def sentences(self, columns: tuple[str, ...]) -> Iterator[str]:
        """Yield the sampled rows' columns (`src`, `tgt`), row by row in order; one part is in memory at a time."""
        picked = np.arange(self.rows) * self.total // self.rows
        first = 0
        for part in self.parts:
            table = pq.read_table(part, columns=list(columns))
            inside = picked[(picked >= first) & (picked < first + len(table))] - first
            taken = table.take(inside)
            for row in zip(*(taken[column].to_pylist() for column in columns), strict=True):
                yield from row
            first += len(table)


def fit_tokenizer(languages: LanguagesConfig, config: TokenizerConfig, cleaned: StageRun, root: Path) -> StageRun:
    """Return the stage whose folder holds the tokeniser. Counters: rows, sampled_rows, source_size, target_size.

    Raises InputError when clean/train has no row, or cannot give `vocab_size` pieces; with `from_model`, when there is
    no tokeniser.
    """
    if config.from_model is not None:
        return _taken(languages, Path(config.from_model) / "tokenizer", config, root)

    def body(folder: Path) -> StageResult:
        sample = _sample(cleaned, config.sample_rows)
        if config.joint:
            models = {JOINT_MODEL: train_model(sample.sentences(("src", "tgt")), config)}
        else:
            models = {
                SOURCE_MODEL: train_model(sample.sentences(("src",)), config),
                TARGET_MODEL: train_model(sample.sentences(("tgt",)), config),
            }
        outputs = save_tokenizer(folder, models, languages, config)
        tokenizer = Tokenizer.load(folder)
        counters = {
            "rows": sample.total,
            "sampled_rows": sample.rows,
            "source_size": tokenizer.source_size,
            "target_size": tokenizer.target_size,
        }
        return StageResult(outputs, counters)

    # Without the key that says where to take one from, so that what is fitted keeps the name that it has always had.
    settings = config.model_dump(mode="json", exclude={"from_model"})
    decides = {"languages": languages.model_dump(mode="json"), "tokenizer": settings}
    inputs = {"cleaned": cleaned.manifest.digest()}
    return run_stage("fit_tokenizer", STAGE_VERSION, decides, inputs, root, body)


def _taken(languages: LanguagesConfig, source: Path, config: TokenizerConfig, root: Path) -> StageRun:
    """Return the stage whose folder holds the tokeniser of another one, for these languages.

    Of the same languages it has the same digest. Counters: source_size, target_size.
    """
    given = Tokenizer.load(source)

    def body(folder: Path) -> StageResult:
        names = tokenizer_files(source)
        if (given.source_language, given.target_language) == (languages.source, languages.target):
            for name in names:
                shutil.copyfile(source / name, folder / name)
            outputs = names
        else:
            models = {name: (source / name).read_bytes() for name in names if name != TOKENIZER_JSON}
            outputs = save_tokenizer(folder, models, languages, config.model_copy(update=tokenizer_keys(source)))
        return StageResult(outputs, {"source_size": given.source_size, "target_size": given.target_size})

    # Where it lies decides nothing, and neither does the corpus.
    decides = {"languages": languages.model_dump(mode="json"), "taken": True}
    return run_stage("fit_tokenizer", STAGE_VERSION, decides, {"tokenizer": given.digest}, root, body)


def _sample(cleaned: StageRun, sample_rows: int) -> _Sample:
    # From the manifest, so that a stray file in the folder is no input.
    outputs = [output for output in cleaned.manifest.outputs if output.path.startswith("clean/train/")]
    total = sum(output.rows or 0 for output in outputs)
    if total == 0:
        raise InputError(
            "no training pair is left after cleaning",
            where=str(cleaned.folder / "clean" / "train"),
            remedy="Look at rejects/train beside it for the reasons, and at the table `clean` of the recipe",
        )
    parts = tuple(cleaned.folder / output.path for output in sorted(outputs, key=lambda output: output.path))
    return _Sample(parts, total, min(sample_rows, total))
