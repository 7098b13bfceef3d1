"""Training's speed beside that of fairseq and OpenNMT-py: the same batches, in one run, turn by turn.

    python tests/benchmarks/peers_training.py SOURCE TARGET --fairseq PYTHON --opennmt PYTHON --threads 2 --rounds 5

SOURCE and TARGET are text, plain or .gz. Of their first 4,000 pairs a joint BPE of 8,000 pieces is fitted, and batches
are made by our own plan, once, for all. Each system then does updates on the same padded ids, in a process of its own,
one system after the other, round after round. Without the path of a peer's Python only ours runs; --systems chooses.
With --threads 1 every process is pinned to one core. With --workers 2 ours are two processes that share an update's
micro-batches and the threads, as training's workers do; the peers do the same micro-batches in one process.

`line` is torch.set_float32_matmul_precision("medium"), a line that a user can add to any of them; `bf16` is autocast
(the peers offer none on a CPU, so theirs is what they could have). Printed of each: the median over the rounds of the
median over the updates, with the least and the most of the rounds, by the clock and by CPU time; the ratio to the
fastest peer of its family that has the line; the cores that other processes kept busy; the loss of the last update,
which says that it trains. By the clock a figure counts only where next to no core was busy with others; CPU time tells
more on a machine that is shared, and of one thread. How much the line and bf16 bring depends on the processor, so the
rates of one product are printed first.

A peer's virtual environment, outside the project, torch 2.13.0 as here:

    python -m venv fairseq && fairseq/bin/pip install torch==2.13.0 numpy "setuptools<80" wheel cython
    fairseq/bin/pip install bitarray cffi hydra-core==1.3.2 omegaconf==2.3.0 regex sacrebleu scikit-learn tqdm
    fairseq/bin/pip download --no-deps --no-binary fairseq --no-build-isolation fairseq==0.12.2
    tar xf fairseq-0.12.2.tar.gz && cd fairseq-0.12.2
    # Python 3.11 takes no dataclass as a default
    sed -i -E 's/^(\\s+\\w+: \\w+ = )(\\w+)\\(\\)\\s*$/\\1field(default_factory=\\2)/
        s/field\\(default=(\\w+)\\(\\)\\)/field(default_factory=\\1)/' \\
        fairseq/dataclass/configs.py fairseq/models/transformer/transformer_config.py
    sed -i 's/\\.default$/; v = v.default_factory() if callable(v.default_factory) else v.default/' \\
        fairseq/dataclass/initialize.py
    # C++ that the archive does not hold, and that translation does not use
    sed -i 's/from torch.utils import cpp_extension/raise ImportError/' setup.py
    ../fairseq/bin/pip install --no-deps --no-build-isolation .

    python -m venv opennmt && opennmt/bin/pip install torch==2.13.0 numpy configargparse pyahocorasick pyonmttok \\
        pyyaml rapidfuzz sacrebleu six waitress
    opennmt/bin/pip install --no-deps OpenNMT-py==3.5.1

fairseq does one update as its Trainer does, without the Trainer's bookkeeping; `--fairseq-paths trainer own` adds its
Trainer on our batches, and on batches of its own. Its `lstm` scores 512 units with a matrix of its own, ours the 256
of the shared embeddings: `lstm-tied` is fairseq's nearest to that, with a layer more between.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_timing import Padded, target_pieces, write_batches

from nmt.batches import padded, plan_epoch
from nmt.config import TrainConfig
from pipelines.config import LanguagesConfig, TokenizerConfig
from pipelines.epoch_rows import trainable_rows
from pipelines.tokenizer import JOINT_MODEL, Tokenizer, save_tokenizer, train_model

HERE = Path(__file__).parent
PRECISIONS = {
    "plain": [],
    "line": ["--matmul-precision=medium"],
    "bf16": ["--matmul-precision=medium", "--precision=bfloat16"],
}
OURS = ("additive-feeding", "general-feeding", "general", "transformer")
FAIRSEQ = ("lstm", "lstm-tied", "transformer")
OPENNMT = ("rnn-mlp-feeding", "rnn-general-feeding", "rnn-general", "transformer")


@dataclass(frozen=True)
class System:
    """What is run: whose, its name, one of PRECISIONS, and the command without what all systems share."""

    owner: str
    name: str
    precision: str
    command: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.owner} {self.name} {self.precision}"

    @property
    def family(self) -> str:
        return "transformer" if "transformer" in self.name else "recurrent"


@dataclass
class Figures:
    """Medians over the updates of one process or team of workers: target pieces a second, by clock and CPU time."""

    wall: float
    cpu: float
    foreign: float
    loss: float
    parameters: int
    peak_mb: int
    raw: list[dict[str, Any]] = field(repr=False)


def main() -> None:
    options = arguments().parse_args()
    systems = chosen_systems(options)
    found: dict[System, list[Figures]] = defaultdict(list)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder) / "batches.npz"
        describe(make_batches(options, batches))
        for number in range(options.rounds):
            for system in systems:
                figures = run(system, batches, options)
                found[system].append(figures)
                print(f"round {number + 1} {system.title}: {figures.wall:,.0f}/s", file=sys.stderr, flush=True)
                if options.output is not None:
                    append(options.output, system, number, options, figures)
    print_table(found)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE", help="source and target; .gz or plain")
    parser.add_argument("--fairseq", metavar="PYTHON", help="of its virtual environment")
    parser.add_argument("--opennmt", metavar="PYTHON", help="of its virtual environment")
    parser.add_argument("--fairseq-paths", nargs="+", default=["bare"], choices=("bare", "trainer", "own"))
    parser.add_argument("--systems", nargs="+", help="by words of their titles: `transformer`, `seqloom general line`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=20, help="updates that are timed in a process")
    parser.add_argument("--warmup", type=int, default=4, help="updates before them")
    parser.add_argument("--threads", type=int, default=2, help="of a system in all")
    parser.add_argument("--workers", type=int, default=1, help="processes of ours, which share the threads")
    parser.add_argument("--tokens", type=int, default=4096, help="padded pieces of an update")
    parser.add_argument("--microbatches", type=int, help="of an update, which share its tokens; default: the workers")
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--output", type=Path, help="JSON lines of all timings are appended to it")
    return parser


def machine() -> str:
    """Return what processor this is and how fast its products are: what the line and bf16 can gain here at most."""
    known = dict.fromkeys(("model name", "cpu family", "model"), "?")
    for line in lines(Path("/proc/cpuinfo")) if Path("/proc/cpuinfo").exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in known:
            known[name.strip()] = value.strip()
    torch.set_num_threads(1)
    rates = []
    for precision, dtype in (("highest", torch.float32), ("medium", torch.float32), ("medium", torch.bfloat16)):
        torch.set_float32_matmul_precision(precision)
        rates.append(product_rate(dtype))
    return (
        f"{known['model name']}, family {known['cpu family']}, model {known['model']}; 2048 x 2048 x 2048, one thread: "
        f"{rates[0]:.0f} GFLOP/s plain, {rates[1]:.0f} with the line, {rates[2]:.0f} bf16"
    )


def product_rate(dtype: torch.dtype) -> float:
    """Return GFLOP per CPU-second of a product of matrices, the best of eight."""
    size, best = 2048, 0.0
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    for _ in range(8):
        start = time.process_time()
        torch.mm(left, right)
        best = max(best, 2e-9 * size**3 / (time.process_time() - start))
    return best


# The batches


def make_batches(options: argparse.Namespace, path: Path) -> list[list[Padded]]:
    """Write and return the batches; updates with fewer micro-batches than the others are left out."""
    microbatches = options.microbatches or options.workers
    texts = [list(islice(lines(file), options.pairs)) for file in options.files]
    ids = encoded(texts, options.vocabulary)
    src, tgt = ([np.asarray(row, dtype=np.int32) for row in side] for side in ids)
    src_lengths, tgt_lengths = (np.asarray([len(row) for row in side]) for side in (src, tgt))
    config = TrainConfig(microbatch_tokens=options.tokens // microbatches, microbatches_per_update=microbatches)
    rows = trainable_rows(src_lengths, tgt_lengths, config.max_pieces)
    updates = [
        [Padded(*padded([src[i] for i in batch]), *padded([tgt[i] for i in batch])) for batch in update]
        for update in plan_epoch(config, 0, src_lengths, tgt_lengths, rows)
        if len(update) == microbatches
    ]
    write_batches(path, options.vocabulary, updates)
    return updates


def lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def encoded(texts: list[list[str]], vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of both sides by a joint BPE that is fitted to them."""
    config = TokenizerConfig.model_validate({"kind": "bpe", "vocab_size": vocabulary, "joint": True})
    with tempfile.TemporaryDirectory() as folder:
        model = train_model([*texts[0], *texts[1]], config)
        save_tokenizer(Path(folder), {JOINT_MODEL: model}, LanguagesConfig(source="en", target="de"), config)
        tokenizer = Tokenizer.load(Path(folder))
    return tokenizer.encode_source(texts[0]), tokenizer.encode_target(texts[1])


def describe(updates: list[list[Padded]]) -> None:
    batches = [batch for update in updates for batch in update]
    real = sum(int(batch.tgt_lengths.sum()) for batch in batches)
    cells = sum(batch.tgt.numel() for batch in batches)
    pairs = sum(len(batch.src) for batch in batches)
    print(
        f"{len(updates)} updates of {len(updates[0])} micro-batches, {pairs:,} pairs, {real:,} target and "
        f"{sum(int(batch.src_lengths.sum()) for batch in batches):,} source pieces, "
        f"{1 - real / cells:.1%} of the target's cells padding, "
        f"{statistics.median(map(target_pieces, updates)):,.0f} target pieces an update"
    )


# The systems


def chosen_systems(options: argparse.Namespace) -> list[System]:
    """Return the systems in the order of their turns."""
    systems = []
    for precision, flags in PRECISIONS.items():
        for name in OURS if precision != "plain" else ():
            command = (sys.executable, str(HERE / "training_speed.py"), f"--system={name}", *flags)
            systems.append(System("seqloom", name, precision, command))
        for name in FAIRSEQ if options.fairseq else ():
            for path in options.fairseq_paths:
                command = (
                    options.fairseq,
                    str(HERE / "fairseq_steps.py"),
                    f"--system={name}",
                    *flags,
                    f"--path={path}",
                )
                owner = "fairseq" if path == "bare" else f"fairseq-{path}"
                systems.append(System(owner, name, precision, (*command, f"--own-tokens={options.tokens}")))
        for name in OPENNMT if options.opennmt else ():
            command = (options.opennmt, str(HERE / "opennmt_steps.py"), f"--system={name}", *flags)
            systems.append(System("opennmt", name, precision, command))
    wanted = [part.split() for part in options.systems or [""]]
    return [s for s in systems if any(all(word in s.title.split() for word in part) for part in wanted)]


def run(system: System, batches: Path, options: argparse.Namespace) -> Figures:
    """Run a system once, in as many processes as it has workers. Raises RuntimeError with what a failed one said."""
    workers = options.workers if system.owner == "seqloom" else 1
    threads = options.threads // workers
    shared = [str(batches), f"--threads={threads}", f"--warmup={options.warmup}", f"--updates={options.updates}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(workers):
            command = [*system.command, *shared]
            if threads == 1:
                command.append(f"--core={cores[-1 - rank]}")
            if workers > 1:
                command += [f"--rank={rank}", f"--workers={workers}", f"--store={folder}/store"]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs):
        if process.returncode:
            raise RuntimeError(f"{system.title}: {errors[-4000:]}")
    return merged([json.loads(output.splitlines()[-1]) for output, _ in outputs])


def merged(reports: Sequence[dict[str, Any]]) -> Figures:
    """Return the figures of the workers of one run: an update ends when the last of them has done it."""
    columns = {name: np.asarray([report[name] for report in reports]) for name in ("wall", "cpu", "foreign")}
    wall, cpu = columns["wall"].max(axis=0), columns["cpu"].sum(axis=0)
    others = columns["foreign"][0] - (cpu - columns["cpu"][0]) / columns["wall"][0]
    tokens = np.asarray(reports[0]["tokens"])
    return Figures(
        wall=float(np.median(tokens / wall)),
        cpu=float(np.median(tokens / cpu)),
        foreign=float(np.median(others.clip(min=0.0))),
        loss=float(reports[0]["loss"][-1]),
        parameters=reports[0]["parameters"],
        peak_mb=sum(report["peak_mb"] for report in reports),
        raw=list(reports),
    )


# The results


def append(path: Path, system: System, number: int, options: argparse.Namespace, figures: Figures) -> None:
    setting = {"system": system.title, "round": number, "threads": options.threads, "workers": options.workers}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(setting | {"tokens": options.tokens, "processes": figures.raw}) + "\n")


def print_table(found: Mapping[System, Sequence[Figures]]) -> None:
    """Print the systems by family as a table in Markdown, the fastest first."""
    print("| system | target pieces/s | ratio | per CPU-second | ratio | foreign cores | parameters | peak MB | loss |")
    print("|---|---|---|---|---|---|---|---|---|")
    for family in dict.fromkeys(system.family for system in found):
        of_family = {system: rounds for system, rounds in found.items() if system.family == family}
        by_wall = {system: [figures.wall for figures in rounds] for system, rounds in of_family.items()}
        by_cpu = {system: [figures.cpu for figures in rounds] for system, rounds in of_family.items()}
        for system in sorted(of_family, key=lambda system: -statistics.median(by_wall[system])):
            rounds = of_family[system]
            print(
                f"| {system.title} | {spread(by_wall[system])} | {ratio(system, by_wall)} "
                f"| {spread(by_cpu[system])} | {ratio(system, by_cpu)} "
                f"| {statistics.median(figures.foreign for figures in rounds):.2f} | {rounds[0].parameters:,} "
                f"| {max(figures.peak_mb for figures in rounds):,} | {rounds[-1].loss:.2f} |"
            )


def spread(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def ratio(system: System, rates: Mapping[System, Sequence[float]]) -> str:
    """Return how many times the fastest peer with the line a system is; a dash where no peer was run with it."""
    peers = [statistics.median(found) for s, found in rates.items() if s.owner != "seqloom" and s.precision == "line"]
    return f"{statistics.median(rates[system]) / max(peers):.2f}" if peers else "-"


if __name__ == "__main__":
    main()
