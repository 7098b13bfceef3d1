"""A corpus of two made-up languages, right and wrong pairs of it, and the stage score on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    LanguagesConfig,
    RulesConfig,
    ShardConfig,
)
from pipelines.score import score
from pipelines.stage import StageRun

LANGUAGES = LanguagesConfig(source="en", target="de")
# The language rule would take made-up words for another language.
CONFIG = CleanConfig(rules=RulesConfig(language=None))
SOURCE = [first + vowel + "t" for first in "bdfgklmnps" for vowel in "aeo"]
TARGET = [word[::-1] + "i" for word in SOURCE]


def translated_pairs(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences of four to nine words, and their translations word by word in another order."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(rows):
        words = generator.integers(0, len(SOURCE), generator.integers(4, 10))
        turned = generator.permutation(words)
        pairs.append((" ".join(SOURCE[word] for word in words), " ".join(TARGET[word] for word in turned)))
    return pairs


def labelled_file(path: Path, rows: int = 200, extra: Sequence[str] = ()) -> Path:
    """Write pairs with verdicts: every other one has the target of another pair, and the label A instead of V."""
    pairs = translated_pairs(rows, seed=7)
    lines = ["note\tsrc\ttgt\tlabel"]
    for row, (src, tgt) in enumerate(pairs):
        lines.append(f"n{row}\t{src}\t{tgt if row % 2 == 0 else pairs[row - 1][1]}\t{'V' if row % 2 == 0 else 'A'}")
    path.write_text("\n".join([*lines, *extra]) + "\n", encoding="utf-8")
    return path


def tsv(path: Path, lines: Sequence[bytes]) -> str:
    """Write a file of lines, and return its path."""
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def encoded(pairs: Sequence[tuple[str, str]]) -> list[bytes]:
    """Return pairs as lines of TSV."""
    return ["\t".join(pair).encode() for pair in pairs]


def scored_stage(
    folder: Path,
    lines: Sequence[bytes],
    config: CleanConfig = CONFIG,
    rows_per_shard: int = 100,
    **corpora: Any,
) -> StageRun:
    """Return the stage score of train's lines, in the stages' folder `folder / "stages"`."""
    held_out = (CorpusConfig(name="held_out", tsv=tsv(folder / "held_out.tsv", [b"bat\ttabi"])),)
    train = (CorpusConfig(name="web", tsv=tsv(folder / "train.tsv", lines)),)
    splits = {"train": train, "dev": held_out, "test": held_out} | corpora
    shards = ShardConfig(rows_per_shard=rows_per_shard)
    return score(LANGUAGES, CorporaConfig(**splits), config, shards, BeamConfig(processes=1), folder / "stages")
