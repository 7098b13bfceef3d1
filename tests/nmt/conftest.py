"""A toy language pair and its finished data stages: seconds to make, and learnable by a tiny model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmt.config import RayConfig
from pipelines.config import BeamConfig, LanguagesConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.stage import StageResult, StageRun, run_stage

LANGUAGES = LanguagesConfig(source="en", target="de")
_WORDS = [
    ("one", "eins"), ("two", "zwei"), ("three", "drei"), ("four", "vier"), ("house", "Haus"), ("tree", "Baum"),
    ("red", "rot"), ("green", "grün"), ("dog", "Hund"), ("cat", "Katze"), ("and", "und"), ("small", "klein"),
]  # fmt: skip
_SIZES = {"train": 240, "dev": 17, "test": 11}


@dataclass(frozen=True)
class ToyStages:
    """The stages that training and translation read."""

    cleaned: StageRun
    tokenizer: StageRun
    encoded: StageRun
    ray: RayConfig


def toy_pairs(split: str) -> list[tuple[str, str]]:
    """Return sentences of 2 to 6 words, the target with its words in the opposite order."""
    rng = random.Random(split)
    pairs = []
    for _ in range(_SIZES[split]):
        words = rng.choices(_WORDS, k=rng.randint(2, 6))
        pairs.append((" ".join(en for en, _ in words), " ".join(de for _, de in reversed(words))))
    return pairs


def _cleaned(folder: Path) -> StageResult:
    outputs = []
    for ordinal, split in enumerate(_SIZES):
        pairs = toy_pairs(split)
        src, tgt = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        columns = {
            "row_id": pa.array([ordinal * 2**40 + i for i in range(len(pairs))], pa.int64()),
            "corpus": [f"toy-{split}"] * len(pairs),
            "src": src,
            "tgt": tgt,
        }
        if split != "train":
            columns |= {"src_raw": src, "tgt_raw": tgt}
        path = folder / "clean" / split / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)
        outputs.append(str(path.relative_to(folder)))
    return StageResult(outputs, {})


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyStages:
    root = tmp_path_factory.mktemp("toy")
    config = {"languages": LANGUAGES.model_dump(), "normalize": {}}
    cleaned = run_stage("clean", 1, config, {}, root, _cleaned)
    tokenizer = fit_tokenizer(LANGUAGES, TokenizerConfig(vocab_size=48), cleaned, root)
    encoded = encode(ShardConfig(), cleaned, tokenizer, BeamConfig(), root)
    ray = RayConfig(num_workers=2, translate_actors=2, object_store_memory_bytes=80 * 2**20)
    return ToyStages(cleaned, tokenizer, encoded, ray)
