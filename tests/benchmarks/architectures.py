"""Train variants of the architectures at equal parameters and equal time, and compare their BLEU.

    seqloom prepare multi30k-en-de --define DATA=... --workdir WORKDIR
    python tests/benchmarks/architectures.py WORKDIR/multi30k-en-de/stages --variants luong-general,transformer
        --speeds speeds.jsonl --measure [--parameters 6_000_000] [--jobs 2]
    python tests/benchmarks/architectures.py WORKDIR/multi30k-en-de/stages --variants luong-general,transformer
        --speeds speeds.jsonl [--seconds 480] [--output results.jsonl] [--seed 1] [--learning-rate 1e-3]
    python tests/benchmarks/architectures.py --table results.jsonl
    python tests/benchmarks/architectures.py --list

The folder `stages` of a prepared recipe holds its shards, its tokeniser and the raw references. The first call finds
how fast each variant is: target pieces per CPU-second of one thread over `--speed-seconds`, on a machine that does
nothing else. The second trains each, in a process of one thread, on as many target pieces as that speed does in
`--seconds`: so a result depends on no other work of the machine, and can be had again. embedding_dim is the same for
all, and the size that SIZES names is chosen so that the parameters are within 3 % of `--parameters`. Precision and
averaging are those of the recipe multi30k-en-de; an update is one micro-batch of it, since in so short a time twice the
updates bring more than twice the batch. The learning rate rises over the first part of the pieces and falls to 0 along
half a cosine. Dev and test are translated with the averaged weights by beam search of 5, and scored by sacreBLEU.

Results are appended as lines of JSON; a variant that is there with the same budgets and seed is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from nmt.allocation import keep_freed_memory
from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.batches import Rows, collate, plan_epoch, target_tokens
from nmt.config import EvaluateConfig, ModelTable, TrainConfig
from nmt.evaluate import corpus_bleu, score
from nmt.model.architecture import Variant
from nmt.model.batch_norm import collectors
from nmt.model.seq2seq import Seq2Seq
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, make_optimizer
from nmt.training.step import World, train_step
from nmt.training.validation import score_rows
from pipelines.epoch_rows import trainable_rows
from pipelines.shards import ShardColumns, read_shards
from pipelines.tokenizer import Tokenizer

EMBEDDING_DIM = 256
TOLERANCE = 0.03  # of the parameters
STEP = 8  # of the sizes that are tried
WARMUP = 0.08  # of the pieces
UNTIMED_UPDATES = 5  # before speed is measured
TRAIN = TrainConfig(
    microbatch_tokens=1024,
    microbatches_per_update=1,
    ema_decay=0.998,
    label_smoothing=0.1,
    precision="bfloat16",
    matmul_precision="medium",
)


@dataclass(frozen=True)
class Size:
    """How an architecture is trained: the key that is set by the number of parameters, other keys, the peak rate."""

    solved: str
    keys: Mapping[str, Any]
    rate: float


SIZES = {
    "recurrent": Size("hidden_dim", {"dropout": 0.3}, 1.5e-3),
    "transformer": Size(
        "feed_forward_dim", {"encoder_layers": 3, "decoder_layers": 3, "attention_heads": 4, "dropout": 0.2}, 1e-3
    ),
    "convolutional": Size("hidden_dim", {"dropout": 0.2}, 2e-3),
}
# Of a variant itself, where its paper's depth does not fit the parameters: twice the others' encoder layers and one
# decoder layer, as the paper has 12 and 1 beside 6 and 6.
KEYS = {"transformer-deep-shallow": {"encoder_layers": 6, "decoder_layers": 1}}


@dataclass(frozen=True)
class Data:
    """Shards of the splits, the references of dev and test as they stand in the files, and the tokeniser."""

    splits: dict[str, ShardColumns]
    references: dict[str, list[str]]
    tokenizer: Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--parameters", type=int, default=6_000_000)
    parser.add_argument("--variants", type=lambda names: names.split(","), default=[])
    parser.add_argument("--output", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--here", action="store_true", help="train in this process")
    parser.add_argument("--speeds", type=Path, help="what the first call writes and the second reads")
    parser.add_argument("--speed-seconds", type=float, default=20.0)
    parser.add_argument("--measure", action="store_true", help="the first call")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.table is not None:
        print_table(options.table)
    elif options.list:
        for name, variant in variants().values():
            print(f"{variant.name:28s} {name:14s} {variant.paper}")
    elif options.stages is None:
        parser.error("give the folder `stages` of a prepared recipe")
    elif options.speeds is None:
        parser.error("give the file of speeds")
    elif options.here:
        for name in options.variants:
            if options.measure:
                append(options.speeds, measured(name, options))
            else:
                append(options.output, trained(name, options))
    else:
        train_apart(options)


def variants() -> dict[str, tuple[str, Variant]]:
    """Return the variants that translate, by their names, each with its architecture's name."""
    translating = [name for name in ARCHITECTURES if architecture(name).table.has_source]
    return {variant.name: (name, variant) for name in translating for variant in architecture(name).variants}


def train_apart(options: argparse.Namespace) -> None:
    """Train each variant that has no result yet in a process of its own."""
    unknown = set(options.variants) - set(variants())
    if unknown:
        sys.exit(f"no variant {', '.join(sorted(unknown))}; see --list")
    done = {identity(result) for result in results(options.output)}
    asked = [name for name in options.variants if options.measure or (name, *budget(options)) not in done]

    def process(name: str) -> int:
        given = {"seconds": options.seconds, "parameters": options.parameters, "seed": options.seed}
        if options.learning_rate is not None:
            given["learning-rate"] = options.learning_rate
        command = [sys.executable, __file__, str(options.stages), "--here", "--variants", name]
        command += ["--output", str(options.output), *(f"--{key}={value}" for key, value in given.items())]
        command += ["--speeds", str(options.speeds), f"--speed-seconds={options.speed_seconds}"]
        command += ["--measure"] * options.measure
        # oneDNN's bound on its cache of shapes is that of training, see nmt/training/loop.py.
        one_thread = {"OMP_NUM_THREADS": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
        return subprocess.run(command, env={**os.environ, **one_thread}, check=False).returncode

    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [name for name, status in zip(asked, pool.map(process, asked)) if status]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if not options.measure:
        print_table(options.output)


def budget(options: argparse.Namespace) -> tuple[Any, ...]:
    return options.seconds, options.parameters, options.seed, options.learning_rate


def identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    given = result["budget"]
    return result["variant"], given["seconds"], given["parameters"], given["seed"], given["learning_rate"]


# Data and sizes


def read(stages: Path) -> Data:
    tokenizer = Tokenizer.load(stages / "fit_tokenizer")
    splits = {
        split: read_shards(stages / "encode" / "shards" / split, tokenizer.digest) for split in ("train", "dev", "test")
    }
    references = {}
    for split in ("dev", "test"):
        paths = sorted((stages / "clean" / "clean" / split).glob("part-*.parquet"))
        rows = [row for path in paths for row in pq.read_table(path, columns=["row_id", "tgt_raw"]).to_pylist()]
        assert [row["row_id"] for row in rows] == splits[split].row_id.tolist()
        references[split] = [row["tgt_raw"] for row in rows]
    return Data(splits, references, tokenizer)


def sized(name: str, variant: Variant, tokenizer: Tokenizer, parameters: int) -> ModelTable:
    """Return the variant's config at the size whose parameters are nearest. Raises ValueError beyond TOLERANCE."""
    size, own = SIZES[name], {**variant.keys, **KEYS.get(variant.name, {})}

    def config(units: int) -> ModelTable:
        keys = {"embedding_dim": EMBEDDING_DIM, size.solved: units, **size.keys, **own, "architecture": name}
        return architecture(name).table.model_validate(keys)

    def number(units: int) -> int:
        return build_model(config(units), tokenizer.source_size, tokenizer.target_size).num_parameters()

    low, high = 1, 2
    while number(high * STEP) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if number(middle * STEP) < parameters else (low, middle)
    nearest = min((low * STEP, high * STEP), key=lambda units: abs(number(units) - parameters))
    found = number(nearest)
    if abs(found - parameters) > TOLERANCE * parameters:
        raise ValueError(f"{variant.name}: {size.solved} {nearest} has {found} parameters, wanted {parameters}")
    return config(nearest)


# Training


@dataclass
class Trainee:
    """A variant that is being trained, and what it has seen."""

    name: str
    architecture: str
    model: Seq2Seq
    config: TrainConfig
    data: Data
    target_tokens: int = 0
    cpu_seconds: float = 0.0
    num_updates: int = 0
    epochs: float = 0.0

    def train(self, budget: float) -> Iterator[float]:
        """Yield the nll after each update; the learning rate is for as many target pieces as the budget."""
        parameters = list(self.model.parameters())
        optimizer, flat = make_optimizer(self.config, parameters), FlatGradients(parameters, collectors(self.model))
        averages, tgt_lengths = Averages(parameters, self.config.ema_decay), self.data.splits["train"].tgt_lengths()
        for update, epochs in updates(self.data.splits["train"], self.config):
            started, pieces = time.process_time(), target_tokens(update, tgt_lengths)
            batches = [(i, collate(self.data.splits["train"], rows)) for i, rows in enumerate(update)]
            rate = rate_at(self.target_tokens / budget, self.config.learning_rate)
            figures = train_step(
                self.model, optimizer, flat, averages, batches, self.config,
                update=self.num_updates, target_tokens=pieces, rate=rate, world=World(),
            )  # fmt: skip
            self.cpu_seconds += time.process_time() - started
            self.target_tokens += pieces
            self.num_updates, self.epochs = self.num_updates + 1, epochs
            yield figures.nll
            if self.target_tokens >= budget:
                break
        averages.swap()


def begin(name: str, options: argparse.Namespace) -> Trainee:
    """Return a variant at the size that has the parameters, not trained yet."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(TRAIN.matmul_precision)
    data = read(options.stages)
    kind, variant = variants()[name]
    model_config = sized(kind, variant, data.tokenizer, options.parameters)
    config = TRAIN.model_copy(update={"seed": options.seed, "learning_rate": options.learning_rate or SIZES[kind].rate})
    model = build_model(model_config, data.tokenizer.source_size, data.tokenizer.target_size, seed=options.seed)
    keys = model_config.model_dump_json(exclude_unset=True)
    print(f"{name}: {model.num_parameters():,} parameters, {keys}", file=sys.stderr)
    return Trainee(name, kind, model, config, data)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the target pieces per CPU-second of a variant."""
    trainee = begin(name, options)
    before_tokens, before_seconds = 0, 0.0
    for _ in trainee.train(math.inf):
        if trainee.num_updates == UNTIMED_UPDATES:
            before_tokens, before_seconds = trainee.target_tokens, trainee.cpu_seconds
        elif trainee.cpu_seconds - before_seconds >= options.speed_seconds and before_tokens:
            break
    speed = (trainee.target_tokens - before_tokens) / (trainee.cpu_seconds - before_seconds)
    print(f"{name}: {speed:,.0f} target pieces per CPU-second", file=sys.stderr)
    return {"variant": name, "parameters": options.parameters, "target_tokens_per_cpu_second": round(speed, 1)}


def speed_of(name: str, options: argparse.Namespace) -> float:
    """Return what was measured last of a variant at these parameters."""
    found = [r for r in results(options.speeds) if (r["variant"], r["parameters"]) == (name, options.parameters)]
    if not found:
        sys.exit(f"no speed of {name} at {options.parameters:,} parameters in {options.speeds}; call with --measure")
    return float(found[-1]["target_tokens_per_cpu_second"])


def trained(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a variant reaches."""
    speed = speed_of(name, options)
    trainee, shown = begin(name, options), 0
    pieces = speed * options.seconds
    for nll in trainee.train(pieces):
        if trainee.target_tokens >= (shown + 1) * pieces / 10:
            shown += 1
            print(f"{name}: update {trainee.num_updates}, epoch {trainee.epochs:.2f}, nll {nll:.3f}", file=sys.stderr)
    return {
        "variant": name,
        "architecture": trainee.architecture,
        "budget": dict(zip(("seconds", "parameters", "seed", "learning_rate"), budget(options))),
        "peak_learning_rate": trainee.config.learning_rate,
        "parameters": trainee.model.num_parameters(),
        "updates": trainee.num_updates,
        "epochs": round(trainee.epochs, 3),
        "target_tokens": trainee.target_tokens,
        "target_tokens_per_cpu_second": speed,
        "cpu_seconds_beside_other_work": round(trainee.cpu_seconds, 1),
        **evaluated(trainee.model, trainee.data, trainee.config),
        "model": trainee.model.config.model_dump(mode="json"),
        "torch": torch.__version__,
    }


def updates(shards: ShardColumns, config: TrainConfig) -> Iterator[tuple[list[Rows], float]]:
    """Yield the updates of epoch after epoch without end, each with how many epochs are done behind it."""
    src_lengths, tgt_lengths = shards.src_lengths(), shards.tgt_lengths()
    rows = trainable_rows(src_lengths, tgt_lengths, config.max_pieces)
    for epoch in count():
        plan = plan_epoch(config, epoch, src_lengths, tgt_lengths, rows)
        for number, update in enumerate(plan, start=1):
            yield update, epoch + number / len(plan)


def rate_at(share: float, peak: float) -> float:
    """Return the learning rate when this share of the pieces is done."""
    if share < WARMUP:
        return peak * max(share, 0.01 * WARMUP) / WARMUP
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (share - WARMUP) / (1.0 - WARMUP))))


def evaluated(model: Seq2Seq, data: Data, config: TrainConfig) -> dict[str, Any]:
    """Return loss and BLEU on dev, and BLEU and chrF on test with their signatures and intervals."""
    started = time.process_time()
    decoding = config.model_copy(update={"precision": "float32", "validation_beam_size": 5})
    dev_loss, dev, *_ = score_rows(model, data.splits["dev"], data.tokenizer, decoding, World())
    _, test, *_ = score_rows(model, data.splits["test"], data.tokenizer, decoding, World())
    return {
        "dev_loss": round(dev_loss, 4),
        "dev_bleu": round(corpus_bleu(dev, data.references["dev"], "13a"), 2),
        "test": score(test, data.references["test"], EvaluateConfig(metrics=("bleu", "chrf"))),
        "evaluation_cpu_seconds": round(time.process_time() - started, 1),
    }


# Results


def append(path: Path, result: Mapping[str, Any]) -> None:
    # One write of a whole line: processes side by side do not mix theirs.
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(result, ensure_ascii=False) + "\n").encode())


def results(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def print_table(path: Path) -> None:
    """Print the results as a table in Markdown, best first, with the signatures below."""
    found = sorted(results(path), key=lambda result: -result["test"]["bleu"]["score"])
    print("| variant | parameters | updates | epochs | target pieces per CPU-second | dev BLEU | test BLEU | chrF |")
    print("|---|---|---|---|---|---|---|---|")
    for result in found:
        bleu, chrf = result["test"]["bleu"], result["test"]["chrf"]
        low, high = bleu["confidence"]
        print(
            f"| {result['variant']} | {result['parameters']:,} | {result['updates']:,} | {result['epochs']:.1f} "
            f"| {result['target_tokens_per_cpu_second']:,.0f} | {result['dev_bleu']:.2f} "
            f"| {bleu['score']:.2f} [{low:.2f}, {high:.2f}] | {chrf['score']:.2f} |"
        )
    for metric in ("bleu", "chrf"):
        print(*sorted({f"\n`{result['test'][metric]['signature']}`" for result in found}))


if __name__ == "__main__":
    main()
