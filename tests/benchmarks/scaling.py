"""How much faster training is with more workers of one thread each, and where its time goes.

    seqloom prepare multi30k-en-de --define DATA=... --workdir WORKDIR
    python tests/benchmarks/scaling.py WORKDIR/multi30k-en-de/stages [--workers 1 2] [--updates 200] [--rounds 2]
        [--recipe multi30k-en-de] [--set KEY=VALUE]

The stages of the recipe are trained on under Ray, as `seqloom train` does it, for so many updates and one validation,
with each number of workers in turn, round after round, each time in a new folder. It prints, of the records behind the
first quarter, the target pieces per second by the clock, the ratio to the first number of workers, and the shares of
the time in the sum over the workers, in waiting for each other, for data, and for checkpoints. A machine that does
anything else tells nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.config import Recipe, load_recipe
from nmt.config import RayConfig
from nmt.train import train
from nmt.training.metrics import METRICS_FILE, read_metrics
from pipelines.stage import StageRun, read_manifest

LEFT_OUT = 0.25  # of a run, at its start
SHARES = ("communication", "data_wait", "checkpoint")  # of the time; a single worker sums with nobody


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--recipe", default="multi30k-en-de")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, define={"DATA": "."}, overrides=options.overrides)
    runs = {name: stage(options.stages / name) for name in ("clean", "fit_tokenizer", "encode")}
    found: dict[int, list[dict[str, float]]] = {number: [] for number in options.workers}
    for _ in range(options.rounds):
        for number in options.workers:
            found[number].append(figures(recipe, runs, number, options.updates))
            print(number, found[number][-1], flush=True)
    print_table(found)


def stage(link: Path) -> StageRun:
    folder = link.resolve()
    manifest = read_manifest(folder)
    assert manifest is not None, folder
    return StageRun(folder, manifest, True)


def figures(recipe: Recipe, runs: Mapping[str, StageRun], workers: int, updates: int) -> dict[str, float]:
    """Return the means over the records of one training."""
    config = recipe.train.model_copy(
        update={"max_updates": updates, "validate_epochs": None, "validate_updates": updates}
    )
    with tempfile.TemporaryDirectory() as root:
        ray = RayConfig(num_workers=workers)
        run = train(recipe.model_table(), config, runs["encode"], runs["clean"], runs["fit_tokenizer"], ray, Path(root))
        records = [record for record in read_metrics(run.folder / METRICS_FILE) if record["kind"] == "train"]
    kept = [record for record in records if record["update"] > LEFT_OUT * updates]
    return {
        "pieces": statistics.mean(record["target_tokens_per_s"] for record in kept),
        **{name: statistics.mean(record.get(name, 0.0) for record in kept) for name in SHARES},
        "waiting": statistics.mean(max(record.get("waiting", [0.0])) for record in kept),
    }


def print_table(found: Mapping[int, Sequence[Mapping[str, float]]]) -> None:
    """Print the medians over the rounds, with the least and the most of the pieces per second, as Markdown."""
    first = statistics.median(one["pieces"] for one in next(iter(found.values())))
    print("| workers | target pieces/s | ratio | communication | longest wait for others | data | checkpoints |")
    print("|---|---|---|---|---|---|---|")
    for number, rounds in found.items():
        pieces = [one["pieces"] for one in rounds]
        middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        speed = f"{middle['pieces']:,.0f} ({min(pieces):,.0f}-{max(pieces):,.0f})"
        shares = " | ".join(f"{middle[name]:.1%}" for name in ("communication", "waiting", "data_wait", "checkpoint"))
        print(f"| {number} | {speed} | {middle['pieces'] / first:.2f} | {shares} |")


if __name__ == "__main__":
    main()
