"""Where training guides attention: the shards of train -> which source piece each target piece is linked to (Beam).

    align(recipe.align, encoded, tokenizer, profile.beam, root)

Inputs: shards/train/part-*.parquet of the stage encode; the tokeniser of the stage fit_tokenizer, whose sizes count.
Output, a file for each shard, see `pipelines/alignments.py`:

    alignments/train/part-00000.parquet     row_id, src, tgt: the places of each link

The aligner is estimated on a sample, spread evenly over the rows; memory does not grow with those beyond it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.alignments import ALIGNMENT_FORMAT, AlignPart, align_part, pair_batches
from pipelines.bags import Bags
from pipelines.config import AlignConfig, BeamConfig
from pipelines.diagonal import fit
from pipelines.runner import Each, beam, local_processes, run_pipeline
from pipelines.stage import StageResult, StageRun, run_stage, write_atomically
from pipelines.tokenizer import Tokenizer

STAGE_VERSION = 1
_ALIGNER, _COUNTS = ".aligner.npz", ".counts"
_FIGURES = ("rows", "src_pieces", "tgt_pieces", "links")


def align(config: AlignConfig, encoded: StageRun, tokenizer: StageRun, beam: BeamConfig, root: Path) -> StageRun:
    """Return the stage whose folder holds the alignments.

    Counters: rows, src_pieces, tgt_pieces (without EOS, of rows that are not too long), links; sampled_rows; entries:
    pairs of pieces with a probability; tension: {"target", "source"}; iterations: [{"target", "source"}], the
    log-likelihoods per piece in nats. Raises RuntimeError when rows were lost, by a fault of ours.
    """
    shards = sorted(output.path for output in encoded.manifest.outputs if output.path.startswith("shards/train/"))
    rows = sum(output.rows or 0 for output in encoded.manifest.outputs if output.path in shards)

    def body(folder: Path) -> StageResult:
        loaded = Tokenizer.load(tokenizer.folder)
        sampled = min(config.sample_rows, rows)
        src, tgt = _sample([encoded.folder / path for path in shards], rows, sampled)
        aligner, likelihoods = fit(src, tgt, (loaded.source_size, loaded.target_size), config.iterations)
        aligner_path = folder.absolute() / _ALIGNER
        aligner.save(aligner_path)
        outputs = {path: path.replace("shards/", "alignments/", 1) for path in shards}
        parts = [
            AlignPart(str((encoded.folder / shard).absolute()), str(folder.absolute() / aligned))
            for shard, aligned in outputs.items()
        ]
        (folder / "alignments" / "train").mkdir(parents=True)
        counts = _aligned(parts, aligner_path, beam, folder)
        aligner_path.unlink()
        if counts["rows"] != rows:
            raise RuntimeError(f"{rows} rows are in the shards, {counts['rows']} are aligned")
        counters: dict[str, Any] = {
            **counts,
            "sampled_rows": sampled,
            "entries": len(aligner.keys),
            "tension": {"target": round(aligner.target.tension, 4), "source": round(aligner.source.tension, 4)},
            "iterations": likelihoods,
        }
        return StageResult(outputs.values(), counters)

    decides = {"align": config.model_dump(mode="json"), "alignment_format": ALIGNMENT_FORMAT}
    inputs = {"encoded": encoded.manifest.digest(), "tokenizer": tokenizer.manifest.digest()}
    return run_stage("align", STAGE_VERSION, decides, inputs, root, body)


def _sample(shards: Sequence[Path], total: int, rows: int) -> tuple[Bags, Bags]:
    """Return both sides of so many rows, evenly spread over all `total` of them; a batch of a shard is in memory."""
    picked = np.arange(rows) * total // max(rows, 1)
    first, sides = 0, ([_NONE], [_NONE])
    for shard in shards:
        for row_id, *pair in pair_batches(shard):
            inside = picked[(picked >= first) & (picked < first + len(row_id))] - first
            for side, bags in zip(sides, pair):
                side.append(_rows(bags, inside))
            first += len(row_id)
    src, tgt = (_joined(side) for side in sides)
    return src, tgt


def _rows(bags: Bags, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Bags:
    wanted = np.zeros(len(bags.sizes), dtype=np.bool_)
    wanted[rows] = True
    ids = bags.ids[np.repeat(wanted, bags.sizes)]
    first = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(bags.sizes[rows])])
    return Bags(ids, np.ones(len(ids), dtype=np.float32), first)


def _joined(parts: Sequence[Bags]) -> Bags:
    sizes = np.concatenate([part.sizes for part in parts])
    first = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
    return Bags(np.concatenate([part.ids for part in parts]), np.concatenate([part.counts for part in parts]), first)


_NONE = Bags(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32), np.zeros(1, dtype=np.int64))


def _aligned(parts: Sequence[AlignPart], aligner: Path, config: BeamConfig, folder: Path) -> dict[str, int]:
    # Counts come back through files: not every runner reports its counters to the launcher.
    counts_folder = folder.absolute() / _COUNTS
    counts_folder.mkdir()
    processes = local_processes(config, len(parts))

    def build(pipeline: beam.Pipeline) -> None:
        _ = (
            pipeline
            | "Parts" >> beam.Create(parts, reshuffle=False)
            | "Align" >> Each(partial(_align_and_count, str(aligner), str(counts_folder)), processes)
        )

    run_pipeline(build, config)
    counted = [json.loads(path.read_text(encoding="utf-8")) for path in counts_folder.iterdir()]
    shutil.rmtree(counts_folder)
    return dict(zip(_FIGURES, (sum(column) for column in zip((0,) * len(_FIGURES), *counted))))


def _align_and_count(aligner: str, counts: str, part: AlignPart) -> str:
    found = align_part(aligner, part)
    write_atomically(Path(counts) / f"{Path(part.shard).stem}.json", json.dumps(found))
    return part.aligned
