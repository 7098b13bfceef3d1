"""Stage 4: cleaned pairs + tokeniser -> shards of piece ids (Beam).

    encode(recipe.shards, cleaned, tokenizer, profile.beam, root)

Inputs: clean/{train,dev,test}/part-*.parquet of the stage clean; the tokeniser of the stage fit_tokenizer.
Outputs, one shard for each part, of the same name and with the same rows in the same order:

    shards/{train,dev,test}/part-00000.parquet      row_id, corpus, src, tgt (see `pipelines/shards.py`); those of train
                                                    with their text where training changes it (`with_text`)

Takes about a second for 50,000 pairs on one core.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.config import SPLITS, BeamConfig, ShardConfig
from pipelines.encoding import COUNTS, CleanPart, encode_clean_part
from pipelines.runner import Each, beam, local_processes, run_pipeline
from pipelines.shards import SHARD_FORMAT
from pipelines.stage import StageResult, StageRun, run_stage, write_atomically
from pipelines.tokenizer import Tokenizer

STAGE_VERSION = 1

_COUNTS_FOLDER = ".counts"


def encode(
    config: ShardConfig,
    cleaned: StageRun,
    tokenizer: StageRun,
    beam: BeamConfig,
    root: Path,
    *,
    with_text: bool = False,
) -> StageRun:
    """Return the stage whose folder holds the shards. Counters: for each split the COUNTS.

    `with_text`: the shards of train hold their text too, which augmentation changes (`AugmentConfig.changes_text`).
    Raises InputError when the tokeniser cannot be read, RuntimeError when a split has not as many rows as in clean/.
    """

    def body(folder: Path) -> StageResult:
        Tokenizer.load(tokenizer.folder)  # here, since an error inside a worker comes back as the runner's own
        parts = _parts(cleaned, folder, with_text)
        for split in SPLITS:
            (folder / "shards" / split).mkdir(parents=True)
        counters = _run(parts, tokenizer.folder, beam, folder)
        _check_rows(cleaned, parts, counters)
        return StageResult([str(Path(part.shard).relative_to(folder.absolute())) for part in parts], counters)

    decides: dict[str, Any] = {"shards": config.model_dump(mode="json"), "shard_format": SHARD_FORMAT}
    if with_text:  # only then, so that shards without text keep the key that they have always had
        decides["with_text"] = True
    inputs = {"cleaned": cleaned.manifest.digest(), "tokenizer": tokenizer.manifest.digest()}
    return run_stage("encode", STAGE_VERSION, decides, inputs, root, body)


def _parts(cleaned: StageRun, folder: Path, with_text: bool) -> list[CleanPart]:
    parts = []
    for split in SPLITS:
        # From the manifest, so that a stray file in the folder is no input.
        for path in sorted(output.path for output in cleaned.manifest.outputs):
            if path.startswith(f"clean/{split}/"):
                shard = folder.absolute() / "shards" / split / Path(path).name
                cleaned_path = str((cleaned.folder / path).absolute())
                parts.append(CleanPart(split, cleaned_path, str(shard), with_text and split == "train"))
    return parts


def _run(
    parts: Sequence[CleanPart], tokenizer_folder: Path, config: BeamConfig, folder: Path
) -> dict[str, dict[str, int]]:
    # Counts come back through files: not every runner reports its counters to the launcher.
    counts_folder = folder.absolute() / _COUNTS_FOLDER
    counts_folder.mkdir()

    processes = local_processes(config, len(parts))

    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | "Parts" >> beam.Create(parts, reshuffle=False)
            | "Encode" >> Each(partial(encode_clean_part, str(tokenizer_folder.absolute())), processes)
            | "Add up" >> beam.CombinePerKey(_added)
            | "Write counts" >> beam.Map(_write_counts, str(counts_folder))
        )

    run_pipeline(build, config)
    counters: dict[str, dict[str, int]] = {split: dict.fromkeys(COUNTS, 0) for split in SPLITS}
    for path in counts_folder.iterdir():
        counters[path.stem] = dict(zip(COUNTS, json.loads(path.read_text(encoding="utf-8")), strict=True))
    shutil.rmtree(counts_folder)
    return counters


def _added(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    total = (0,) * len(COUNTS)
    for count in counts:
        total = tuple(left + right for left, right in zip(total, count, strict=True))
    return total


def _write_counts(counts: tuple[str, tuple[int, ...]], folder: str) -> None:
    split, numbers = counts
    write_atomically(Path(folder) / f"{split}.json", json.dumps(numbers))


def _check_rows(cleaned: StageRun, parts: Sequence[CleanPart], counters: dict[str, dict[str, int]]) -> None:
    for split in SPLITS:
        rows_in = sum(
            output.rows or 0 for output in cleaned.manifest.outputs if output.path.startswith(f"clean/{split}/")
        )
        rows_out = sum(pq.read_metadata(part.shard).num_rows for part in parts if part.split == split)
        if not rows_in == rows_out == counters[split]["rows"]:
            raise RuntimeError(
                f"{split}: {rows_in} rows in, {rows_out} in the shards, {counters[split]['rows']} counted as written"
            )
