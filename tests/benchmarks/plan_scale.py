"""Time and memory of the batch plan by the size of the corpus.

    python tests/benchmarks/plan_scale.py [--rows 1e6 1e7 1e8] [--windows 4] [--folder DIR] [--stages DIR]

Of each size, in a process of its own: shards as training reads them, of 100,000 rows, are written by the contract's
own writer, with lengths that are drawn (log-normal, 26 pieces on average, both sides alike) and pieces that are all
the same, so that they take little disk and are quicker to decompress; they are decoded and held as any others. Then
what a worker does before its first update (to look at the shards, read, sort and plan the first window, estimate the
updates) and window after window, each prepared while the one before it is gone through as training does, without
computing. `--windows 0` goes through all of the first epoch. `--small ROWS` adds a corpus of one shard, which
`--weight W` and `--temperature T` have the epochs see more often. Prints start-up (of the clock, and of all CPUs), CPU
seconds of the thread that prepares a window, how long the loop waited for one, collation per update, and the largest
resident set.

With `--stages`, the folder of finished stages (fit_tokenizer/ and encode/): padding of the real corpus's plan.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from nmt.batches import collate
from nmt.config import TrainConfig
from nmt.training.epochs import Epochs, Window
from pipelines.config import AugmentConfig, LanguagesConfig, TokenizerConfig
from pipelines.shards import write_shard
from pipelines.tokenizer import JOINT_MODEL, Tokenizer, save_tokenizer, train_model

CORPORA = ((0.7, "crawl"), (0.25, "parliament"), (0.05, "captions"))  # shares of the rows, in this order
SMALL_ID = 2**40  # row_id of the first row of the small corpus
CONFIG = TrainConfig(microbatch_tokens=4096, microbatches_per_update=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=float, default=[1e6, 1e7, 1e8])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where shards are written, and kept; a temporary one without it")
    parser.add_argument("--stages", type=Path)
    parser.add_argument("--rows-per-shard", type=int, default=100_000)
    parser.add_argument("--window-rows", type=int, default=TrainConfig().window_rows)
    parser.add_argument("--small", type=float, default=0, help="rows of a further corpus, in one shard")
    parser.add_argument("--weight", type=float, default=1.0, help="that of the small corpus")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        changes = {"window_rows": options.window_rows, "temperature": options.temperature}
        measure(options.folder, options.windows, CONFIG.model_copy(update=changes), options.weight)
        return
    if options.stages is not None:
        report_padding(options.stages)
    for rows in map(int, options.rows):
        if options.folder is not None:
            _write_and_measure(options.folder / str(rows), rows, options)
            continue
        with tempfile.TemporaryDirectory() as folder:
            _write_and_measure(Path(folder), rows, options)


def _write_and_measure(folder: Path, rows: int, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    if not (folder / "train").exists():
        write(folder, rows, options.rows_per_shard, int(options.small))
    size = sum(path.stat().st_size for path in (folder / "train").iterdir())
    print(
        f"{rows:,} rows: {size / 2**30:.2f} GiB of shards, written in {time.perf_counter() - started:.0f} s", flush=True
    )
    command = [sys.executable, __file__, "--measure", "--folder", str(folder), "--windows", str(options.windows)]
    command += ["--window-rows", str(options.window_rows), "--weight", str(options.weight)]
    command += ["--temperature", str(options.temperature)]
    subprocess.run(command, check=True)


def write(folder: Path, rows: int, rows_per_shard: int, small: int = 0) -> None:
    """Write a tokeniser, and shards of so many rows, corpus after corpus; the last one is of a small corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer").mkdir(exist_ok=True)
    config = TokenizerConfig(vocab_size=24, character_coverage=1.0)
    model = train_model(["one two three four", "five six seven eight nine"] * 50, config)
    save_tokenizer(folder / "tokenizer", {JOINT_MODEL: model}, LanguagesConfig(source="en", target="de"), config)
    digest = Tokenizer.load(folder / "tokenizer").digest
    rng = np.random.default_rng(1)
    bounds = [round(rows * share) for share in np.cumsum([share for share, _ in CORPORA])]
    writing = folder / "writing"
    writing.mkdir(exist_ok=True)
    for number, first in enumerate(range(0, rows, rows_per_shard)):
        corpus = next(name for (_, name), bound in zip(CORPORA, bounds) if first < bound)
        table = synthetic(rng, first, min(rows_per_shard, rows - first), corpus)
        write_shard(writing / f"part-{number:05d}.parquet", table, digest)
    if small:
        write_shard(writing / "part-99999.parquet", synthetic(rng, SMALL_ID, small, "small"), digest)
    writing.rename(folder / "train")


def synthetic(rng: np.random.Generator, first: int, rows: int, corpus: str) -> pa.Table:
    """Return rows of which only the lengths are drawn."""
    src = np.clip(rng.lognormal(3.1, 0.55, rows), 2, 250).astype(np.int64)
    tgt = np.clip(src * rng.normal(1.05, 0.18, rows), 2, 250).astype(np.int64)

    def pieces(lengths: np.ndarray) -> pa.ListArray:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, np.full(offsets[-1], 3, dtype=np.int32))

    row_id = np.arange(first, first + rows)
    return pa.table({"row_id": row_id, "corpus": [corpus] * rows, "src": pieces(src), "tgt": pieces(tgt)})


def measure(folder: Path, windows: int, config: TrainConfig, weight: float = 1.0) -> None:
    """Print what a worker's start and windows take."""
    before, started = _peak_mib(), time.perf_counter()
    preparing: list[float] = []
    before_cpu = time.process_time()
    with _Timed(config, folder, preparing, {"small": weight}) as epochs:
        looked = time.perf_counter() - started
        total = epochs.total_updates()
        start_up, start_up_cpu = time.perf_counter() - started, time.process_time() - before_cpu
        number = min(windows or epochs.num_windows(0), epochs.num_windows(0))
        waits, collations, updates = [], [], 0
        read, seen, of_small = [], [], []
        for place in range(number):
            waiting = time.perf_counter()
            window = epochs.window(0, place)
            waits.append(time.perf_counter() - waiting)
            read.append(len(window.shards))
            seen.append(len(window.rows))
            of_small.append(int((window.shards.row_id[window.rows] >= SMALL_ID).sum()))
            collating = time.perf_counter()
            for update in window.updates:
                for batch in update:
                    collate(window, batch)
            collations.append((time.perf_counter() - collating) / len(window.updates))
            updates += len(window.updates)
    print(
        json.dumps(
            {
                "windows_of_epoch": epochs.num_windows(0),
                "windows_measured": number,
                "rows_per_window": len(window.rows),
                "most_rows_read": max(read),
                "most_rows_per_window": max(seen),
                "rows_of_small_corpus": [min(of_small), max(of_small)],
                "updates_per_window": round(updates / number),
                "estimated_total_updates": total,
                "look_at_shards_s": round(looked, 2),
                "start_up_s": round(start_up, 2),
                "start_up_cpu_s": round(start_up_cpu, 2),
                # Of those measured: the one behind them may have been begun, or not.
                "prepare_window_cpu_s": [round(seconds, 2) for seconds in preparing[:number]],
                "waited_for_window_s": [round(seconds, 2) for seconds in waits],
                "collate_update_ms": round(1000 * float(np.mean(collations)), 2),
                "padding": round(padding(window), 4),
                "peak_mib_before": round(before),
                "peak_mib": round(_peak_mib()),
            }
        ),
        flush=True,
    )


class _Timed(Epochs):
    """Epochs that note the CPU seconds of the thread that prepares each window: waits for others do not count."""

    def __init__(self, config: TrainConfig, folder: Path, seconds: list[float], weights: dict[str, float]) -> None:
        super().__init__(config, AugmentConfig(), weights, folder / "train", folder / "tokenizer")
        self._seconds = seconds

    def _prepared(self, epoch: int, number: int) -> Window:
        started = time.thread_time()
        window = super()._prepared(epoch, number)
        self._seconds.append(time.thread_time() - started)
        return window


def padding(window: Window) -> float:
    """Return the share of a window's cells, of both sides, that hold no piece."""
    batches = [batch for update in window.updates for batch in update]
    src, tgt = window.src_lengths, window.tgt_lengths
    cells = sum(len(batch) * int(src[batch].max() + tgt[batch].max()) for batch in batches)
    return 1.0 - int(src[window.rows].sum() + tgt[window.rows].sum()) / cells


def report_padding(stages: Path) -> None:
    """Print the padding of the first epochs of a real corpus, at several sizes of micro-batches."""
    for tokens in (1024, 2048, 4096, 8192):
        config = TrainConfig(microbatch_tokens=tokens)
        train, tokenizer = stages / "encode" / "shards" / "train", stages / "fit_tokenizer"
        with Epochs(config, AugmentConfig(), {}, train, tokenizer) as epochs:
            found = [padding(epochs.window(epoch)) for epoch in range(3)]
            rows = epochs.counts().trainable
        print(f"{rows:,} rows, micro-batches of {tokens}: {100 * float(np.mean(found)):.2f} % padding")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
