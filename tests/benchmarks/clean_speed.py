"""Time the cleaning stage on a pair of files.

    python tests/benchmarks/clean_speed.py SOURCE TARGET DEV_SOURCE DEV_TARGET [--workers N] [--no-language]

Prints pairs per second of the whole stage (files to files: hashing, scanning, rules, duplicates, leakage, Parquet),
the largest resident set of its processes, and the waterfall. dev serves as the test set too.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from pipelines.clean import clean
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    LanguagesConfig,
    RulesConfig,
    ShardConfig,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=4, metavar="FILE", help="source and target of train, then of dev")
    parser.add_argument("--languages", nargs=2, default=["en", "de"], metavar="CODE")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows-per-shard", type=int, default=100_000)
    parser.add_argument("--no-language", action="store_true", help="switch the language rule off")
    options = parser.parse_args()
    source, target, dev_source, dev_target = (str(Path(file).resolve()) for file in options.files)
    held_out = (CorpusConfig(name="dev", source=dev_source, target=dev_target),)
    corpora = CorporaConfig(
        train=(CorpusConfig(name="train", source=source, target=target),), dev=held_out, test=held_out
    )
    parallel = {"direct_running_mode": "multi_processing", "direct_num_workers": options.workers}
    with tempfile.TemporaryDirectory() as root:
        start, start_cpu = time.monotonic(), _cpu_seconds()
        run = clean(
            LanguagesConfig(source=options.languages[0], target=options.languages[1]),
            corpora,
            CleanConfig(rules=RulesConfig(language=None) if options.no_language else RulesConfig()),
            ShardConfig(rows_per_shard=options.rows_per_shard),
            BeamConfig(options=parallel if options.workers > 1 else {}),
            Path(root),
        )
        seconds, cpu_seconds = time.monotonic() - start, _cpu_seconds() - start_cpu
    entry = run.manifest.counters["waterfall"][0]
    print(json.dumps(entry))
    print(f"{entry['read'] / seconds:,.0f} pairs/s, {entry['read'] / cpu_seconds:,.0f} pairs/CPU-s")
    print(f"{seconds:.1f} s, {cpu_seconds:.1f} CPU-s, {options.workers} process(es), {_peak_bytes() / 2**20:,.0f} MiB")


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_bytes() -> int:
    # Linux counts in KiB; of the children it is the largest one.
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1024 * max(usage.ru_maxrss for usage in usages)


if __name__ == "__main__":
    main()
