"""Time the data stages on a pair of files: from text to Parquet, Beam included.

    python tests/benchmarks/clean_speed.py SOURCE TARGET DEV_SOURCE DEV_TARGET
        [--rules default|no-language|seven] [--near] [--workers N] [--beam-workers] [--rows-per-shard N]

`seven`: length, length ratio, long word, markup, script, terminal punctuation and numbers, and exact duplicates: the
work that other tools were measured on. `default`: a recipe's defaults. `near`: MinHash besides. Prints pairs per second
of the wall clock and per CPU-second, the largest resident set of any process, and what went. dev is the test set too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from pipelines.clean import clean
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    DuplicatesConfig,
    LanguagesConfig,
    LeakageConfig,
    RulesConfig,
    ShardConfig,
)
from pipelines.score import score

SEVEN = {
    "empty": 1.0,
    "characters": 2000.0,
    "words": 250.0,
    "length_ratio": 2.5,
    "long_word": 50.0,
    "markup": 0.0,
    "script": 0.4,
    "terminal_punctuation": 0.7,
    "numbers": 0.7,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=4, metavar="FILE", help="source and target of train, then of dev")
    parser.add_argument("--languages", nargs=2, default=["en", "de"], metavar="CODE")
    parser.add_argument("--rules", choices=["default", "no-language", "seven"], default="default")
    parser.add_argument("--near", action="store_true", help="look for near duplicates by MinHash, too")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--beam-workers", action="store_true", help="workers of Beam in place of our processes")
    parser.add_argument("--rows-per-shard", type=int, default=100_000)
    options = parser.parse_args()
    source, target, dev_source, dev_target = (str(Path(file).resolve()) for file in options.files)
    held_out = (CorpusConfig(name="dev", source=dev_source, target=dev_target),)
    corpora = CorporaConfig(
        train=(CorpusConfig(name="train", source=source, target=target),), dev=held_out, test=held_out
    )
    languages = LanguagesConfig(source=options.languages[0], target=options.languages[1])
    config = _config(options.rules, near=options.near)
    parallel = {"direct_running_mode": "multi_processing", "direct_num_workers": options.workers}
    beam = BeamConfig(processes=1, options=parallel) if options.beam_workers else BeamConfig(processes=options.workers)
    root = Path(tempfile.mkdtemp())
    watch = _Watch()
    watch.start()
    try:
        times = [(time.monotonic(), watch.cpu_seconds)]
        scored = score(languages, corpora, config, ShardConfig(rows_per_shard=options.rows_per_shard), beam, root)
        times.append((time.monotonic(), watch.cpu_seconds))
        run = clean(languages, corpora, config, scored, beam, root)
        times.append((time.monotonic(), watch.cpu_seconds))
        disk = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    finally:
        watch.stop()
        shutil.rmtree(root)
    entry = run.manifest.counters["waterfall"][0]
    print(json.dumps({"read": entry["read"], "kept": entry["kept"], "rejected": entry["rejected"]}))
    (start, start_cpu), (middle, middle_cpu), (end, end_cpu) = times
    pairs, cpu = entry["read"], end_cpu - start_cpu
    print(f"{pairs / (end - start):,.0f} pairs/s, {pairs / cpu:,.0f} pairs/CPU-s, {options.workers} process(es)")
    print(f"score {middle - start:.2f} s ({middle_cpu - start_cpu:.2f} CPU-s), ", end="")
    print(f"clean {end - middle:.2f} s ({end_cpu - middle_cpu:.2f} CPU-s)")
    print(f"{watch.peak / 2**20:,.0f} MiB in the largest process, {disk / pairs:,.0f} bytes a pair on disk")


def _config(rules: str, *, near: bool) -> CleanConfig:
    duplicates = DuplicatesConfig(near="pair" if near else None)
    if rules == "default":
        return CleanConfig(duplicates=duplicates)
    if rules == "no-language":
        return CleanConfig(duplicates=duplicates, rules=RulesConfig(language=None))
    every = {name: SEVEN.get(name) for name in RulesConfig.model_fields}
    return CleanConfig(
        rules=RulesConfig.model_validate(every),
        duplicates=duplicates.model_copy(update={"folded": None}),
        leakage=LeakageConfig(overlap=None),
    )


class _Watch(threading.Thread):
    """The CPU seconds and the largest resident set of this process and all that it starts, twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._cpu: dict[int, float] = {}
        self.peak = 0  # bytes, of one process
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.5):
            self.look()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    @property
    def cpu_seconds(self) -> float:
        self.look()
        return sum(self._cpu.values())

    def look(self) -> None:
        parents, seconds = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended since it was listed
            # Fields 4, 14 and 15 of proc(5): the parent, and user and system time.
            parents[int(folder.name)] = int(fields[1])
            seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        ours = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        for pid in ours & seconds.keys():
            self._cpu[pid] = seconds[pid]
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            self.peak = max([self.peak, *(1024 * int(kib) for kib in peaks)])


if __name__ == "__main__":
    main()
