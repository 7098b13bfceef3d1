"""What checkpoints cost: the time that training waits for one, and by how much writing it slows the updates meanwhile.

    python tests/benchmarks/checkpoint_pause.py [--recipe multi30k-en-de] [--checkpoints 4] [--between 15]

One process does updates of the recipe's model on captions of random pieces, as long as those of Multi30k, and has a
checkpoint written every so many updates, all behind each other on the disk of --folder. It prints one line of JSON: the
pause of a checkpoint and the slowing of the updates beside it (seconds, medians), and their share of the time of
`checkpoint_updates` updates. With --foreground training waits for the writing, as it did before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from flows.config import load_recipe
from nmt.allocation import keep_freed_memory
from nmt.architectures import build_model
from nmt.batches import MicroBatch, collate
from nmt.checkpoint import CheckpointConfig, TrainState, training_content
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, make_optimizer
from nmt.training.saver import Saver
from nmt.training.step import World, train_step
from pipelines.shards import ShardColumns

MEAN_PIECES = 16  # of a caption, with its end


def microbatches(tokens: int, vocabulary: int, seed: int) -> list[tuple[int, MicroBatch]]:
    """Return an update of two micro-batches of so many padded pieces, of rows of like length."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(2):
        rows = tokens // MEAN_PIECES
        lengths = np.full(rows, MEAN_PIECES)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.integers(4, vocabulary, offsets[-1]).astype(np.int32)
        shards = ShardColumns(np.arange(rows), ids, offsets, ids[::-1].copy(), offsets)
        found.append((number, collate(shards, np.arange(rows))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="multi30k-en-de")
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--between", type=int, default=15, help="updates between two checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where checkpoints go. Default: a temporary folder")
    parser.add_argument("--foreground", action="store_true", help="wait until each is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(measured(options, Path(folder))))


def measured(options: argparse.Namespace, folder: Path) -> dict[str, float | int | str]:
    """Return the figures; the first checkpoint, for which buffers are made, is not among them."""
    recipe = load_recipe(options.recipe, define={"DATA": "/"})
    config, vocabulary, device = recipe.train, recipe.tokenizer.vocab_size, torch.device(options.device)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision(config.matmul_precision)
    model = build_model(recipe.model_table(), vocabulary, vocabulary).to(device)
    parameters = list(model.parameters())
    optimizer, flat = make_optimizer(config, parameters), FlatGradients(parameters)
    averages = Averages(parameters, config.ema_decay) if config.ema_decay else None
    held = CheckpointConfig(model=recipe.model_table(), source_size=1, target_size=1, tokenizer="0" * 64, update=0)
    update = microbatches(config.microbatch_tokens, vocabulary, seed=1)
    tokens = sum(int(batch.target_mask().sum()) for _, batch in update)

    pauses, beside, alone, number = [], [], [], 0
    with Saver(folder, 2) as saver:
        for _ in range(options.checkpoints + 1):
            started = time.monotonic()
            state = TrainState(update=number)
            saver.save(state, training_content(model, optimizer, averages, held, state))
            if options.foreground:
                saver.wait()
            pauses.append(time.monotonic() - started)
            writing, slow = not options.foreground, 0.0
            for _ in range(options.between):
                began = time.monotonic()
                train_step(
                    model, optimizer, flat, averages, update, config,
                    update=number, target_tokens=tokens, rate=config.learning_rate, world=World(0, 1, device),
                )  # fmt: skip
                taken = time.monotonic() - began
                number += 1
                if writing:
                    slow += taken
                    writing = not saver.idle
                    if not writing:
                        beside.append((slow, number))
                else:
                    alone.append(taken)
    return _figures(options, config.checkpoint_updates or 500, pauses[1:], beside[1:], alone, folder)


def _figures(
    options: argparse.Namespace,
    every: int,
    pauses: list[float],
    beside: list[tuple[float, int]],
    alone: list[float],
    folder: Path,
) -> dict[str, float | int | str]:
    of_update = statistics.median(alone)
    # The updates of a checkpoint during which it was written, against as many alone.
    slowed = [max(0.0, seconds - (number - 1) % options.between * of_update - of_update) for seconds, number in beside]
    pause, slowing = statistics.median(pauses), statistics.median(slowed) if slowed else 0.0
    size = sum(file.stat().st_size for file in next(folder.glob("update-*")).iterdir())
    return {
        "device": options.device,
        "threads": options.threads,
        "megabytes": round(size / 1e6, 1),
        "update_s": round(of_update, 4),
        "pause_s": round(pause, 4),
        "slowing_s": round(slowing, 4),
        "checkpoint_updates": every,
        "pause_share": round(pause / (every * of_update + pause), 6),
        "whole_share": round((pause + slowing) / (every * of_update + pause + slowing), 6),
    }


if __name__ == "__main__":
    main()
