"""Time the encoding stage on a pair of files against SentencePiece's own encoding of the same texts.

    python tests/benchmarks/encode_speed.py SOURCE TARGET [--vocabulary 8000] [--kinds unigram bpe] [--rounds 3]

Both in this process, turn by turn: SentencePiece gives lists of ids of all texts of a side at once, and writes nothing;
the stage reads the cleaned pairs, encodes and writes shards, Beam included. Prints of each kind of tokeniser the least
wall and CPU time of each, and how many times the one the other is; then the largest resident set.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece

from pipelines.config import BeamConfig, LanguagesConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.stage import StageResult, StageRun, run_stage

SIDES = ("src", "tgt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE", help="source and target; .gz or plain")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--kinds", nargs="+", default=["unigram", "bpe"])
    parser.add_argument("--rows-per-shard", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = [_lines(file) for file in options.files]
    rows = min(len(side) for side in texts)
    with tempfile.TemporaryDirectory() as folder:
        cleaned = _cleaned([side[:rows] for side in texts], options.rows_per_shard, Path(folder))
        for kind in options.kinds:
            config = TokenizerConfig.model_validate({"kind": kind, "vocab_size": options.vocabulary})
            tokenizer = fit_tokenizer(LanguagesConfig(source="en", target="de"), config, cleaned, Path(folder))
            processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.folder / "joint.model"))
            bare, stage = [], []
            for number in range(options.rounds):
                bare.append(_timed(partial(_encode_at_once, processor, texts, rows)))
                root = Path(folder) / f"{kind}-{number}"
                stage.append(_timed(partial(encode, ShardConfig(), cleaned, tokenizer, BeamConfig(processes=1), root)))
            for unit, place in (("s", 0), ("CPU-s", 1)):
                least = [min(times[place] for times in all_times) for all_times in (bare, stage)]
                print(
                    f"{kind}: SentencePiece {least[0]:.2f} {unit}, stage {least[1]:.2f} {unit}: "
                    f"{least[1] / least[0]:.2f} times; {rows / least[1]:,.0f} pairs/{unit}"
                )
    print(f"{rows:,} pairs; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return text.removesuffix("\n").split("\n")


def _cleaned(texts: list[list[str]], rows_per_shard: int, root: Path) -> StageRun:
    """Return a finished stage `clean`: all pairs as train, the first one as dev and test too."""
    rows = len(texts[0])
    table = pa.table(
        {
            "row_id": pa.array(range(rows)),
            "corpus": pa.array(["train"] * rows),
            **dict(zip(SIDES, map(pa.array, texts))),
        }
    )
    parts = {"train": [table.slice(start, rows_per_shard) for start in range(0, rows, rows_per_shard)]}
    parts |= {split: [table.slice(0, 1)] for split in ("dev", "test")}

    def body(folder: Path) -> StageResult:
        outputs = []
        for split, tables in parts.items():
            (folder / "clean" / split).mkdir(parents=True)
            for number, part in enumerate(tables):
                outputs.append(f"clean/{split}/part-{number:05d}.parquet")
                pq.write_table(part, folder / outputs[-1])
        return StageResult(outputs, {})

    return run_stage("clean", 1, {}, {}, root, body)


def _encode_at_once(processor: sentencepiece.SentencePieceProcessor, texts: list[list[str]], rows: int) -> None:
    for side in texts:
        processor.encode(side[:rows], add_eos=True)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall and the CPU seconds of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
